"""Resizing 8-bit images, bit for bit as cv2.resize computes it on x86: bilinear and nearest.

Bilinear is OpenCV's fixed-point arithmetic (modules/imgproc/src/resize.cpp): positions in float32,
weights of 11 bits; across, a sum is kept with 7 of its 11 bits more than the pixel; down, two
products are cut to 2 bits more and then rounded.
"""

from __future__ import annotations

import array
import math

from edgekit.board.png import Image

_ONE = 2048.0


def bilinear(image: Image, height: int, width: int) -> Image:
    """cv2.INTER_LINEAR."""
    across = _taps(width, image.width, clamp=True)
    down = _taps(height, image.height, clamp=False)
    # for every value of an output row: where its two source values are, and their weights
    plan = []
    for first, near, far in across:
        second = min(first + 1, image.width - 1)
        plan += [(3 * first + c, 3 * second + c, near, far) for c in range(3)]
    held: dict[int, list[int]] = {}

    def row(index: int) -> list[int]:
        if index not in held:
            # rows are asked for in order: two are enough
            for old in [key for key in held if key < index - 1]:
                del held[old]
            start = 3 * image.width * index
            line = image.rgb[start : start + 3 * image.width]
            held[index] = [(line[i] * a + line[j] * b) >> 4 for i, j, a, b in plan]
        return held[index]

    rows = []
    for first, near, far in down:
        upper = row(min(max(first, 0), image.height - 1))
        lower = row(min(max(first + 1, 0), image.height - 1))
        sums = [(((near * u) >> 16) + ((far * v) >> 16) + 2) >> 2 for u, v in zip(upper, lower)]
        if min(sums) < 0 or max(sums) > 255:
            sums = [min(max(value, 0), 255) for value in sums]
        rows.append(bytes(sums))
    return Image(height, width, b"".join(rows))


def nearest(image: Image, height: int, width: int) -> Image:
    """cv2.INTER_NEAREST."""
    scale_x = 1.0 / (width / image.width)
    scale_y = 1.0 / (height / image.height)
    columns = [min(math.floor(x * scale_x), image.width - 1) for x in range(width)]
    rows = []
    for y in range(height):
        start = 3 * image.width * min(math.floor(y * scale_y), image.height - 1)
        line = image.rgb[start : start + 3 * image.width]
        rows.append(b"".join(line[3 * x : 3 * x + 3] for x in columns))
    return Image(height, width, b"".join(rows))


def _taps(target: int, source: int, clamp: bool) -> list[tuple[int, int, int]]:
    """For each target index the first of its two source indices, and both weights.

    Across, a position beyond an end is moved to it; down, only the rows that are read are (`clamp`).
    """
    taps = []
    scale = 1.0 / (target / source)
    for index in range(target):
        position = _single((index + 0.5) * scale - 0.5)
        first = math.floor(position)
        part = _single(position - first)
        if clamp and first < 0:
            first, part = 0, 0.0
        if clamp and first >= source - 1:
            first, part = source - 1, 0.0
        # round() takes a half to the even neighbour, as lrint does
        taps.append((first, round(_single(1.0 - part) * _ONE), round(part * _ONE)))
    return taps


def _single(value: float) -> float:
    """`value` as float32 has it."""
    return array.array("f", [value])[0]
