"""Boxes and classes drawn into images, so that a person can see whether a model works.

Small images are enlarged by a whole factor first (a label is unreadable on 32 x 32 pixels), large
ones are reduced; line width and letters follow the size of the result.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Color = tuple[int, int, int]

LEAST_SIDE = 320
MOST_SIDE = 1920
"""Bounds on the longer side of what is drawn, pixels."""

_WHITE: Color = (255, 255, 255)
_BLACK: Color = (0, 0, 0)
_TRUTH: Color = (255, 255, 255)
# steps of the golden angle keep any number of hues apart, the first ones furthest
_GOLDEN = 0.6180339887498949


def class_color(number: int) -> Color:
    """The RGB colour of class `number`: always the same, neighbours well apart."""
    hue = (0.58 + number * _GOLDEN) % 1.0
    value = (0.95, 0.75, 0.85)[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_on(color: Color) -> Color:
    """Black or white, whichever is easier to read on `color` (WCAG 2.2, relative luminance)."""
    parts = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in color)
    ]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return _BLACK if luminance > 0.179 else _WHITE


@dataclass(frozen=True, kw_only=True)
class Marked:
    """One box in pixels of the image, with its class, and its score where it was found.

    Boxes without a score are labels: they are drawn as thin white lines beneath the others.
    """

    box: tuple[float, float, float, float]
    number: int
    name: str
    score: float | None = None


def scale_for(height: int, width: int) -> float:
    """The factor that brings the longer side between LEAST_SIDE and MOST_SIDE."""
    longer = max(height, width)
    if longer < LEAST_SIDE:
        return float(-(-LEAST_SIDE // longer))
    return min(1.0, MOST_SIDE / longer)


def _resized(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    if factor == 1.0:
        copied: NDArray[np.uint8] = image.copy()
        return copied
    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_NEAREST if factor > 1 else cv2.INTER_AREA
    out: NDArray[np.uint8] = np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)
    return out


def draw_boxes(image: NDArray[np.uint8], marks: Sequence[Marked]) -> NDArray[np.uint8]:
    """A copy of the RGB image [h, w, 3] with boxes and labels, enlarged or reduced where needed."""
    import cv2

    height, width = image.shape[:2]
    factor = scale_for(height, width)
    canvas = _resized(image, factor)
    line = max(1, round(max(canvas.shape[:2]) / 500))
    for mark in sorted(marks, key=lambda mark: (mark.score is not None, mark.score or 0.0)):
        x1, y1, x2, y2 = (round(side * factor) for side in mark.box)
        if mark.score is None:
            cv2.rectangle(canvas, (x1, y1), (x2, y2), _BLACK, line + 2)
            cv2.rectangle(canvas, (x1, y1), (x2, y2), _TRUTH, line)
            continue
        color = class_color(mark.number)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, line + 1)
        _label(canvas, f"{mark.name} {mark.score:.2f}", x1, y1, color)
    return canvas


def _label(canvas: NDArray[Any], text: str, x: int, y: int, color: Color) -> None:
    """Text on a filled ground whose lower left corner is (x, y), moved to lie inside the image."""
    import cv2

    size, thick = _letters(canvas)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thick)
    pad = max(2, height // 4)
    ground = height + below + 2 * pad
    top = y - ground if y - ground >= 0 else y
    top = max(0, min(top, canvas.shape[0] - ground))
    left = max(0, min(x, canvas.shape[1] - width - 2 * pad))
    cv2.rectangle(canvas, (left, top), (left + width + 2 * pad, top + ground), color, -1)
    place = (left + pad, top + ground - pad - below)
    cv2.putText(
        canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, text_on(color), thick, cv2.LINE_AA
    )


def _letters(canvas: NDArray[Any]) -> tuple[float, int]:
    """Font scale and thickness for an image of this size."""
    longer = max(canvas.shape[:2])
    return max(0.4, longer / 1600), max(1, round(longer / 1200))


def draw_ranking(
    image: NDArray[np.uint8],
    ranked: Sequence[tuple[str, float]],
    label: str | None = None,
) -> NDArray[np.uint8]:
    """A copy of the image with the best classes and their probabilities on a strip beneath it.

    `label`, the true class, is named in the first line where it is known.
    """
    import cv2
    import numpy as np

    canvas = _resized(image, scale_for(*image.shape[:2]))
    size, thick = _letters(canvas)
    lines = [f"{100 * probability:5.1f} %  {name}" for name, probability in ranked]
    if label is not None:
        lines.insert(0, f"label: {label}")
    heights = cv2.getTextSize("Mg", cv2.FONT_HERSHEY_SIMPLEX, size, thick)
    step = round((heights[0][1] + heights[1]) * 1.4)
    widths = [cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, size, thick)[0][0] for line in lines]
    width = max(canvas.shape[1], max(widths, default=0) + 2 * step)
    strip = np.full((step * (len(lines) + 1), width, 3), 24, dtype=np.uint8)
    for number, line in enumerate(lines):
        right = label is None or (number > 0 and ranked[number - 1][0] == label)
        shade = _WHITE if right or number == 0 else (170, 170, 170)
        place = (step // 2, step * (number + 1))
        cv2.putText(strip, line, place, cv2.FONT_HERSHEY_SIMPLEX, size, shade, thick, cv2.LINE_AA)
    spare = width - canvas.shape[1]
    if spare:
        canvas = np.pad(canvas, ((0, 0), (0, spare), (0, 0)), constant_values=24)
    return np.concatenate([canvas, strip])


def encode(image: NDArray[np.uint8], suffix: str = ".jpg", quality: int = 90) -> bytes:
    """The RGB image as the bytes of a .jpg, .png or .webp file."""
    import cv2
    import numpy as np

    flags = {
        ".jpg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
        ".png": [],
    }[suffix]
    done, data = cv2.imencode(suffix, np.ascontiguousarray(image[:, :, ::-1]), flags)
    if not done:
        raise ValueError(f"an image of {image.shape} cannot be written as {suffix}")
    return data.tobytes()
