"""Where calibration images come from: files, or an .npz of images."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit.atomic import sha256_file
from edgekit.errors import BadInput
from edgekit.images import decode, list_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HashFile = Callable[[Path], str]


class ImageSource(Protocol):
    """Images by number. Sources travel to worker processes, so they must be picklable."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the image is called in messages."""
        ...

    def fingerprint(self, index: int, hash_file: HashFile = sha256_file) -> str:
        """Hex sha256 of the image's stored bytes. Raises BadInput when they cannot be read."""
        ...

    def read(self, index: int) -> tuple[str, NDArray[np.uint8]]:
        """(fingerprint, uint8 RGB [h, w, 3]). Raises BadInput for an image that cannot be used."""
        ...


class FileSource:
    """Image files, in the order given."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [Path(path) for path in paths]
        if not self._paths:
            raise BadInput("There are no calibration images.", hint="Give a folder of images.")

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return str(self._paths[index])

    def fingerprint(self, index: int, hash_file: HashFile = sha256_file) -> str:
        try:
            return hash_file(self._paths[index])
        except OSError as error:
            raise self._unreadable(index, error) from error

    def read(self, index: int) -> tuple[str, NDArray[np.uint8]]:
        try:
            data = self._paths[index].read_bytes()
        except OSError as error:
            raise self._unreadable(index, error) from error
        return hashlib.sha256(data).hexdigest(), decode(data, self.name(index))

    def _unreadable(self, index: int, error: OSError) -> BadInput:
        return BadInput(f"The image {self._paths[index]} cannot be read: {error.strerror}.")


class ArraySource:
    """The array `images` of an .npz: uint8 [N, H, W, C], RGB or one grey channel."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._array: NDArray[np.uint8] | None = None

    def __getstate__(self) -> Path:
        # a worker process reads the file itself: cheaper than sending the pixels through a pipe
        return self._path

    def __setstate__(self, path: Path) -> None:
        self._path, self._array = path, None

    def _images(self) -> NDArray[np.uint8]:
        if self._array is None:
            self._array = _load_images(self._path)
        return self._array

    def __len__(self) -> int:
        return len(self._images())

    def name(self, index: int) -> str:
        return f"{self._path}[{index}]"

    def fingerprint(self, index: int, hash_file: HashFile = sha256_file) -> str:
        image = self._images()[index]
        digest = hashlib.sha256(f"uint8 {list(image.shape)};".encode())
        digest.update(image.tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> tuple[str, NDArray[np.uint8]]:
        import numpy as np

        image = self._images()[index]
        rgb = image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
        return self.fingerprint(index), np.ascontiguousarray(rgb)


def _load_images(path: Path) -> NDArray[np.uint8]:
    import numpy as np

    hint = "It must hold `images`, uint8 [N, H, W, 3] RGB (or [N, H, W, 1])."
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            images = archive["images"] if isinstance(archive, np.lib.npyio.NpzFile) else None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise BadInput(f"{path} is not an .npz of images: {error}.", hint=hint) from error
    if (
        images is None
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] not in (1, 3)
    ):
        found = "no archive" if images is None else f"{images.dtype} {list(images.shape)}"
        raise BadInput(f"{path}: its images are {found}.", hint=hint)
    if not len(images):
        raise BadInput(f"{path} holds no image.", hint=hint)
    result: NDArray[np.uint8] = images
    return result


def open_source(images: Path | Sequence[Path] | ImageSource) -> ImageSource:
    """A folder, an image file, an .npz, a list of image files, or a source as it is.

    Raises BadInput when there is no image in it.
    """
    if isinstance(images, (str, Path)):
        path = Path(images)
        if path.suffix.lower() == ".npz":
            return ArraySource(path)
        return FileSource(list_images(path))
    if isinstance(images, Sequence):
        if len(images) == 1 and Path(images[0]).suffix.lower() == ".npz":
            return ArraySource(images[0])
        return FileSource(images)
    return images
