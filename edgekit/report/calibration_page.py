"""The page of a calibration: how steady it is, the worst tensors with their ranges, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.report import svg
from edgekit.report.histograms import Drawn, color_of, svg_chart
from edgekit.report.page import render_page


@dataclass(frozen=True, kw_only=True)
class CalibrationPage:
    """What the page says: title, a line below it, how steady the ranges are, facts (name, value).

    `drawn` are the tensors with a picture; `rows` all tensors: name, minimum, maximum, best method,
    its SQNR in dB.
    """

    title: str
    subtitle: str
    stability: str
    facts: Sequence[tuple[str, str]]
    drawn: Sequence[Drawn]
    rows: Sequence[tuple[str, float, float, str, float]]


def render(page: CalibrationPage) -> str:
    """The page as HTML text: no network, no other file."""
    pictures = []
    for drawn in page.drawn:
        label = f"Histogram of {drawn.name} with the ranges of {', '.join(drawn.ranges)}"
        picture, scale = svg_chart(drawn, label)
        ranges = [
            (how, _css(how), *(svg.minus(f"{end:.4g}") for end in (low, high)), decibels(sqnr_db))
            for how, (low, high, sqnr_db) in drawn.ranges.items()
        ]
        pictures.append((drawn, picture, scale, ranges))
    rows = [
        (name, svg.minus(f"{low:.4g}"), svg.minus(f"{high:.4g}"), best, decibels(sqnr_db))
        for name, low, high, best, sqnr_db in page.rows
    ]
    return render_page("calibration.html.j2", page=page, pictures=pictures, rows=rows)


def _css(method: str) -> str:
    red, green, blue = color_of(method)
    return f"rgb({red},{green},{blue})"


def decibels(value: float) -> str:
    """One digit; an infinite one is lossless."""
    return "lossless" if math.isinf(value) and value > 0 else svg.minus(f"{value:.1f}")
