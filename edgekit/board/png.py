"""Reading an 8-bit RGB PNG with zlib alone: the golden images, as edgekit writes them.

Format: "Portable Network Graphics (PNG) Specification (Third Edition)", sections 5, 9 and 11.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from edgekit.board.errors import BadInput

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS = 1 << 26


@dataclass(frozen=True)
class Image:
    """Pixels as bytes R G B R G B …, row by row from the top."""

    height: int
    width: int
    rgb: bytes


def decode(data: bytes, name: str) -> Image:
    """Decode a PNG of 8 bits a channel, RGB, not interlaced. Raises BadInput for anything else."""
    if not data.startswith(_SIGNATURE):
        raise BadInput(f"{name} is not a PNG.")
    place, header, packed, ended = len(_SIGNATURE), b"", bytearray(), False
    while not ended:
        if place + 12 > len(data):
            raise BadInput(f"{name} ends in the middle.")
        (length,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        if len(body) != length or place + 12 + length > len(data):
            raise BadInput(f"{name} ends in the middle.")
        (checksum,) = struct.unpack_from(">I", data, place + 8 + length)
        if zlib.crc32(kind + body) != checksum:
            raise BadInput(f"{name} is damaged: a checksum is wrong.")
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed += body
        ended = kind == b"IEND"
        place += 12 + length
    if len(header) != 13:
        raise BadInput(f"{name} has no header.")
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if (depth, color, interlaced) != (8, 2, 0):
        raise BadInput(f"{name} is not 8-bit RGB.")
    if not 0 < width * height <= _MOST_PIXELS:
        raise BadInput(f"{name} has {width}x{height} pixels.")
    size = height * (1 + 3 * width)
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(bytes(packed), size + 1)
    except zlib.error as error:
        raise BadInput(f"{name} is damaged: {error}.") from error
    if len(raw) != size:
        raise BadInput(f"{name} is damaged: it does not hold {width}x{height} pixels.")
    return Image(height, width, _unfiltered(raw, height, 3 * width, name))


def _unfiltered(raw: bytes, height: int, row_bytes: int, name: str) -> bytes:
    """Undo the filter of each row: None, Sub, Up, Average, Paeth (section 9.2), 3 bytes a pixel."""
    rows: list[bytes] = []
    above = bytes(row_bytes)
    for y in range(height):
        start = y * (row_bytes + 1)
        kind = raw[start]
        row = bytearray(raw[start + 1 : start + 1 + row_bytes])
        if kind == 1:
            for i in range(3, row_bytes):
                row[i] = (row[i] + row[i - 3]) & 255
        elif kind == 2:
            row = bytearray((a + b) & 255 for a, b in zip(row, above))
        elif kind == 3:
            for i in range(row_bytes):
                left = row[i - 3] if i >= 3 else 0
                row[i] = (row[i] + ((left + above[i]) >> 1)) & 255
        elif kind == 4:
            for i in range(row_bytes):
                left, corner = (row[i - 3], above[i - 3]) if i >= 3 else (0, 0)
                up = above[i]
                to_left, to_up = abs(up - corner), abs(left - corner)
                to_corner = abs(left + up - 2 * corner)
                if to_left <= to_up and to_left <= to_corner:
                    predicted = left
                else:
                    predicted = up if to_up <= to_corner else corner
                row[i] = (row[i] + predicted) & 255
        elif kind != 0:
            raise BadInput(f"{name} is damaged: a row has the filter {kind}.")
        above = bytes(row)
        rows.append(above)
    return b"".join(rows)
