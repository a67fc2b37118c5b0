"""The images an export works on: which files, their hashes, and the first few as input tensors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import images
from edgekit.errors import BadInput
from edgekit.filehash import FileHashes
from edgekit.preprocess import Preprocess, apply
from edgekit.types import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# images that every parity check runs on
PARITY_IMAGES = 4
# files whose content the float stages depend on: a broken one or two must not change the choice
_PARITY_FILES = 8


@dataclass(frozen=True, kw_only=True)
class CalibrationImages:
    """Paths and sha256 of the calibration images; an `.npz` of images is one file.

    Without images (a float target) seeded noise takes their place in parity checks, and it is said.
    """

    paths: tuple[Path, ...] = ()
    sha256: tuple[str, ...] = ()

    @classmethod
    def collect(
        cls, source: Path | None, hashes: FileHashes, progress: Progress
    ) -> CalibrationImages:
        if source is None:
            return cls()
        paths = [source] if source.suffix == ".npz" else images.list_images(source)
        if not paths[0].is_file():
            raise BadInput(f"{source} does not exist.")
        return cls(paths=tuple(paths), sha256=hashes.sha256_all(paths, progress))

    @property
    def source(self) -> Path | tuple[Path, ...]:
        """What the calibrate stage takes: the image files, or the one archive."""
        return self.paths[0] if self.paths[0].suffix == ".npz" else self.paths

    @property
    def parity_key(self) -> list[str]:
        """What the parity checks' images depend on, for cache keys."""
        return list(self.sha256[:_PARITY_FILES])

    def pictures(self, count: int) -> list[NDArray[np.uint8]]:
        """The first `count` readable images, uint8 RGB."""
        if self.paths and self.paths[0].suffix == ".npz":
            import numpy as np

            try:
                with np.load(self.paths[0], allow_pickle=False) as archive:
                    stack = archive["images"][:count]
            except (OSError, ValueError, KeyError) as error:
                raise BadInput(f"{self.paths[0]} is not an .npz with 'images': {error}.") from error
            return list(stack)
        found: list[NDArray[np.uint8]] = []
        for _, picture in images.read_all(list(self.paths), []):
            found.append(picture)
            if len(found) == count:
                break
        return found

    def spread(self, count: int) -> list[NDArray[np.uint8]]:
        """`count` readable images from all over the set: neighbours in a folder are often alike."""
        if self.paths and self.paths[0].suffix == ".npz":
            everything = self.pictures(2**31)
            return everything[:: max(1, len(everything) // count)][:count]
        step = max(1, len(self.paths) // count)
        # the others are there for those that cannot be read
        order = [path for start in range(step) for path in self.paths[start::step]]
        return dataclasses.replace(self, paths=tuple(order), sha256=()).pictures(count)

    def feeds(self, contract: Preprocess) -> list[NDArray[Any]]:
        """Input tensors for parity checks."""
        return [apply(picture, contract)[0] for picture in self.samples(contract, PARITY_IMAGES)]

    def samples(self, contract: Preprocess, count: int) -> list[NDArray[np.uint8]]:
        """`count` images: real ones where there are any, else smooth seeded noise of the input's size."""
        if self.paths:
            found = self.pictures(count)
            if not found:
                raise BadInput(
                    f"None of the first images of {self.paths[0].parent} can be read.",
                    hint="Check the folder: `file` on one of them shows what it is.",
                )
            return found
        import cv2
        import numpy as np

        rng = np.random.default_rng(0)
        shape = (max(1, contract.height // 8), max(1, contract.width // 8), 3)
        size = (contract.width, contract.height)
        return [
            np.asarray(
                cv2.resize(rng.integers(0, 256, shape, dtype=np.uint8), size), dtype=np.uint8
            )
            for _ in range(count)
        ]
