"""TensorRT's calibration cache: a scale for each tensor of a network, as text.

    TRT-8502-EntropyCalibration2
    images: 3c010a14
    conv1: 3d3b5d4c

The first line names the TensorRT version (major, minor, patch: 8502 is 8.5.2, 100300 is 10.3.0) and the
algorithm; TensorRT checks the algorithm against the calibrator's and takes a cache of another
version with a warning. Each further line is a tensor's name and the bits of its float32 scale, as
eight hexadecimal digits, the most significant first. scale = amax / 127: the tensor's values are
taken for integers in [-127, 127] times that. A tensor without a line stays float.
Source: `IInt8Calibrator::writeCalibrationCache` as TensorRT 8.5 to 10.16 write it,
https://docs.nvidia.com/deeplearning/tensorrt/10.13.3/inference-library/work-quantized-types.html
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.atomic import write_text
from edgekit.errors import BadInput

ENTROPY, MINMAX = "EntropyCalibration2", "MinMaxCalibration"
"""The algorithms of IInt8EntropyCalibrator2 and IInt8MinMaxCalibrator."""

UNSTAMPED = "8502"
"""Version digits of a cache that no TensorRT wrote: the first version that is served, 8.5.2. The
device puts its own in when it reads the file."""

MAX_FILE_BYTES = 64 << 20
_HEADER = re.compile(r"TRT-([0-9]{4,6})-([A-Za-z0-9]+)")
_ROW = re.compile(r"(.+): ([0-9a-fA-F]{8})")


@dataclass(frozen=True, kw_only=True)
class CalibrationCache:
    """`scales`: float32 by tensor name, in the file's order; `version` as digits, `algorithm` by name."""

    algorithm: str
    scales: Mapping[str, float] = field(default_factory=dict)
    version: str = UNSTAMPED


def scale_bits(scale: float) -> str:
    """The eight hexadecimal digits of `scale` as float32. Raises ValueError where it is none."""
    bits = struct.pack(">f", scale)
    if not math.isfinite(scale) or scale <= 0 or struct.unpack(">f", bits)[0] <= 0:
        raise ValueError(f"{scale} is no scale: it must be a positive float32")
    return bits.hex()


def text_of(cache: CalibrationCache) -> str:
    """The cache as TensorRT writes it.

    Raises ValueError for a scale that is no positive float32 and for a name that would break a line.
    """
    for name in cache.scales:
        if not name or "\n" in name or "\r" in name:
            raise ValueError(f"a tensor cannot be called {name!r} in a calibration cache")
    rows = [f"{name}: {scale_bits(scale)}" for name, scale in cache.scales.items()]
    return "\n".join([f"TRT-{cache.version}-{cache.algorithm}", *rows]) + "\n"


def parse(text: str, where: str = "calibration cache") -> CalibrationCache:
    """Parse a cache. Raises BadInput, with the line, for everything that TensorRT would not take."""
    lines = text.split("\n")
    header = _HEADER.fullmatch(lines[0].rstrip("\r"))
    if header is None:
        raise _refused(where, 1, "it must read TRT-VERSION-ALGORITHM")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        row = _ROW.fullmatch(line.rstrip("\r"))
        if row is None:
            raise _refused(where, number, "a row is a tensor's name, ': ' and eight hex digits")
        name, scale = row[1], struct.unpack(">f", bytes.fromhex(row[2]))[0]
        if name in scales:
            raise _refused(where, number, f"a second row for '{name}'")
        if not math.isfinite(scale) or scale < 0:
            raise _refused(where, number, f"the scale of '{name}' is {scale}")
        scales[name] = scale
    return CalibrationCache(version=header[1], algorithm=header[2], scales=scales)


def _refused(where: str, line: int, problem: str) -> BadInput:
    return BadInput(
        f"{where}, line {line}: {problem}.",
        hint="Give a calibration cache that TensorRT or edgekit wrote.",
    )


def read(path: Path) -> CalibrationCache:
    """Read a cache. Raises BadInput as `parse`, and when it cannot be read."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInput(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB.")
        return parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no calibration cache: it is not text.") from error
    except FileNotFoundError as error:
        raise BadInput(f"The calibration cache {path} does not exist.") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error


def write(cache: CalibrationCache, path: Path) -> None:
    """Write the cache, atomically."""
    write_text(path, text_of(cache))
