"""The image reader: lists folders and decodes files to uint8 RGB, and never takes half an image.

cv2 fills the missing part of a truncated JPEG with grey and says nothing, so the containers of the
common formats are checked for their end before decoding.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"}
)

# a marker that ends entropy-coded data: not a stuffed zero, a restart, or a fill byte
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")


def list_images(folder: Path) -> list[Path]:
    """Every image file under `folder` (or `folder` itself when it is one), sorted by path.

    Raises BadInput when the path does not exist or holds no image.
    """
    folder = Path(folder)
    if folder.is_file():
        if folder.suffix.lower() not in SUFFIXES:
            raise BadInput(
                f"{folder} is neither a folder nor an image.",
                hint="Known suffixes: " + " ".join(sorted(SUFFIXES)),
            )
        return [folder]
    if not folder.exists():
        raise BadInput(
            f"The image folder {folder} does not exist.", hint="Give a folder of images."
        )
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise BadInput(
            f"No image in {folder}.", hint="Known suffixes: " + " ".join(sorted(SUFFIXES))
        )
    return found


def _jpeg_problem(data: bytes) -> str | None:
    """Walk the segments of a JPEG (ITU-T T.81, annex B) to its end-of-image marker."""
    position = 2
    while True:
        if position + 4 > len(data):
            return "ends inside its headers"
        if data[position] != 0xFF:
            return "has a broken segment"
        code = data[position + 1]
        if code == 0xFF:
            position += 1
            continue
        if code == 0xD9:
            return None
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            position += 2
            continue
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        position += 2 + length
        if code != 0xDA:
            continue
        marker = _JPEG_MARKER.search(data, position)
        if marker is None:
            return "is truncated"
        if marker.group(1) == b"\xd9":
            return None
        position = marker.end() - 2


def _png_problem(data: bytes) -> str | None:
    """Walk the chunks of a PNG (W3C PNG, 5.3) to IEND."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        if data[position + 4 : position + 8] == b"IEND":
            return None
        position += 12 + length
    return "is truncated"


def container_problem(data: bytes) -> str | None:
    """What is wrong with the file's container, or None; decoding may still fail."""
    if not data:
        return "is empty"
    if data[:2] == b"\xff\xd8":
        return _jpeg_problem(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png_problem(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        (length,) = struct.unpack("<I", data[4:8])
        return "is truncated" if len(data) < length + 8 else None
    if data[:2] == b"BM" and len(data) >= 6:
        (length,) = struct.unpack("<I", data[2:6])
        return "is truncated" if len(data) < length else None
    return None


def decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file's bytes to uint8 RGB [h, w, 3].

    EXIF rotation is applied, 16-bit is reduced to 8, grey and CMYK become RGB, alpha is dropped.
    Raises BadInput for what is truncated or cannot be decoded.
    """
    import cv2
    import numpy as np

    problem = container_problem(data)
    if problem is not None:
        raise BadInput(f"The image {name} {problem}.", hint="Replace or delete the file.")
    try:
        bgr = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise BadInput(
            f"The image {name} cannot be decoded: {error.err or error}.",
            hint="Replace or delete the file.",
        ) from error
    if bgr is None:
        raise BadInput(f"The image {name} cannot be decoded.", hint="Replace or delete the file.")
    rgb: NDArray[np.uint8] = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return rgb


def read(path: Path) -> NDArray[np.uint8]:
    """Read an image file to uint8 RGB [h, w, 3]; see `decode`."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"The image {path} does not exist.") from error
    except OSError as error:
        raise BadInput(f"The image {path} cannot be read: {error.strerror}.") from error
    return decode(data, str(path))


def quarter_turn(path: Path) -> int | None:
    """How EXIF turns the stored pixels of `path` when that swaps its sides: 5, 6, 7 or 8, else None.

    5 mirrors along the falling diagonal, 6 turns clockwise, 7 mirrors along the rising diagonal, 8
    turns counter-clockwise (EXIF 2.32, tag 0x0112). Found by looking at the pixels with and without
    it, so for every format whose orientation the reader obeys.
    """
    import cv2
    import numpy as np

    upright = read(path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), dtype=np.uint8), flags)
    stored = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    turned = {
        6: np.rot90(stored, -1),
        8: np.rot90(stored),
        5: stored.transpose(1, 0, 2),
        7: np.rot90(stored.transpose(1, 0, 2), 2),
    }
    return next((kind for kind, pixels in turned.items() if np.array_equal(pixels, upright)), None)


def check_bad_share(bad: list[str], total: int, allowed_share: float) -> None:
    """Raise BadInput when more than `allowed_share` of `total` images were unusable."""
    if total and len(bad) > allowed_share * total:
        shown = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
        raise BadInput(
            f"{len(bad)} of {total} images cannot be used ({shown}); allowed are "
            f"{allowed_share:.0%}.",
            hint="Repair the folder, or raise --max-bad-images.",
        )


def read_all(paths: list[Path], bad: list[str]) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Yield (path, image) for the readable files; the messages of the others are appended to `bad`."""
    for path in paths:
        try:
            yield path, read(path)
        except BadInput as error:
            bad.append(error.message)
