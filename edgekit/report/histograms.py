"""Histograms of tensors with the ranges that methods chose drawn in: as SVG for a page, or as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.report.drawing import Color, encode

if TYPE_CHECKING:
    from markupsafe import Markup

    from edgekit.report.svg import Scale

COLORS: dict[str, Color] = {
    "minmax": (110, 118, 130),
    "entropy": (200, 85, 27),
    "percentile": (23, 113, 63),
    "mse": (126, 58, 200),
}
"""RGB by method; readable on white and on the page's dark ground."""

_OTHER: Color = (179, 38, 30)
_BARS: Color = (122, 155, 217)
_INK: Color = (26, 29, 34)
_MUTED: Color = (110, 118, 130)
_LINE: Color = (223, 225, 220)

# the PNG, in pixels
_WIDTH = 1200
_MARGIN = 40
_PLOT = 150
_TEXT = 24


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One tensor to draw: `bars` (low, high, count), and by method (low, high, SQNR in dB)."""

    name: str
    bars: Sequence[tuple[float, float, int]]
    ranges: Mapping[str, tuple[float, float, float]]
    best: str


def color_of(method: str) -> Color:
    """The colour of a method; "percentile=99.9" has that of percentile."""
    return COLORS.get(method.partition("=")[0], _OTHER)


def axis_of(drawn: Drawn) -> Scale:
    """The horizontal axis: from the lowest to the highest of values and ranges."""
    from edgekit.report.svg import Scale

    ends = [end for low, high, _ in drawn.ranges.values() for end in (low, high)]
    ends += [end for low, high, _ in drawn.bars for end in (low, high)] or [0.0]
    return Scale(low=min(ends), high=max(ends))


def svg_chart(drawn: Drawn, label: str, *, height: int = 110) -> tuple[Markup, Scale]:
    """The histogram with logarithmic counts, the ends of each range as lines in its colour.

    Returns the chart and its horizontal axis.
    """
    from edgekit.report.svg import chart

    scale = axis_of(drawn)
    tallest = max((math.log1p(count) for _, _, count in drawn.bars), default=0.0) or 1.0
    parts = []
    for low, high, count in drawn.bars:
        if count:
            tall = (height - 4) * math.log1p(count) / tallest
            width = max(0.25, 90 * (scale.place(high) - scale.place(low)))
            parts.append(
                f'<rect class="value" x="{100 * scale.place(low):.2f}%" width="{width:.2f}%" '
                f'y="{height - tall:.1f}" height="{tall:.1f}"/>'
            )
    for number, (method, (low, high, _)) in enumerate(drawn.ranges.items()):
        red, green, blue = color_of(method)
        for end in (low, high):
            place = f"{100 * scale.place(end):.2f}%"
            # the later ones start lower, so that equal ranges stay visible beneath each other
            parts.append(
                f'<line stroke="rgb({red},{green},{blue})" stroke-width="2" x1="{place}" '
                f'x2="{place}" y1="{number * height / 8:.1f}" y2="{height}"/>'
            )
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{height - 0.5}" y2="{height - 0.5}"/>')
    return chart(height, label, parts), scale


def png(tensors: Sequence[Drawn], title: str) -> bytes:
    """All tensors beneath each other as a PNG, 1200 pixels wide."""
    import numpy as np

    block = _PLOT + 4 * _TEXT
    canvas = np.full((2 * _MARGIN + block * len(tensors), _WIDTH, 3), 255, dtype=np.uint8)
    _write(canvas, title, _MARGIN, _MARGIN - 12, _INK, 0.6)
    for number, drawn in enumerate(tensors):
        top = _MARGIN + number * block
        _write(canvas, drawn.name, _MARGIN, top + _TEXT, _INK, 0.5)
        x = _MARGIN
        for method, (low, high, sqnr_db) in drawn.ranges.items():
            mark = "*" if method == drawn.best else ""
            text = f"{method}{mark} {low:.4g} .. {high:.4g}, {sqnr_db:.1f} dB"
            x += _write(canvas, text, x, top + 2 * _TEXT, color_of(method), 0.42) + _TEXT
        _plot(canvas, drawn, top + 2 * _TEXT + 10)
    return encode(canvas, ".png")


def _plot(canvas: Any, drawn: Drawn, top: int) -> None:
    import cv2

    from edgekit.report.svg import tick_text

    scale = axis_of(drawn)
    wide, bottom = _WIDTH - 2 * _MARGIN, top + _PLOT - 10

    def across(value: float) -> int:
        return _MARGIN + round(wide * scale.place(value))

    tallest = max((math.log1p(count) for _, _, count in drawn.bars), default=0.0) or 1.0
    for low, high, count in drawn.bars:
        if count:
            upper = bottom - round((_PLOT - 20) * math.log1p(count) / tallest)
            right = max(across(low) + 1, across(high) - 1)
            cv2.rectangle(canvas, (across(low), upper), (right, bottom), _BARS, -1)
    for number, (method, (low, high, _)) in enumerate(drawn.ranges.items()):
        for end in (low, high):
            start = top + number * _PLOT // 8
            cv2.line(canvas, (across(end), start), (across(end), bottom), color_of(method), 2)
    cv2.line(canvas, (_MARGIN, bottom), (_MARGIN + wide, bottom), _LINE, 1)
    for tick in scale.ticks(8):
        # OpenCV's letters are ASCII
        text = tick_text(tick).replace("−", "-")
        _write(canvas, text, across(tick) - 4 * len(text), bottom + 18, _MUTED, 0.4)


def _write(canvas: Any, text: str, x: int, y: int, color: Color, size: float) -> int:
    """Write `text` with its base line at (x, y); returns its width in pixels."""
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    plain = text.replace("…", "...").encode("ascii", "replace").decode("ascii")
    cv2.putText(canvas, plain, (x, y), font, size, color, 1, cv2.LINE_AA)
    return int(cv2.getTextSize(plain, font, size, 1)[0][0])
