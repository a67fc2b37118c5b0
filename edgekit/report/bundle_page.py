"""The report page of a bundle: what `BundleReport` holds, with charts, as one HTML file."""

from __future__ import annotations

import base64
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.report import svg
from edgekit.report.bundle_report import (
    AccuracyLine,
    BoxMark,
    BundleReport,
    LatencyLine,
    OperatorLine,
    SampleImage,
    SampleView,
)
from edgekit.report.drawing import class_color, text_on
from edgekit.report.page import render_page

if TYPE_CHECKING:
    from markupsafe import Markup

_MOST_CLASSES = 20
_MOST_OPERATORS = 10
# SQNR of a layer: from here on good, and below that poor
_GOOD_DB, _POOR_DB = 20.0, 10.0
_FULL_DB = 40.0
# images narrower than this are shown with their pixels visible
_SMALL_SIDE = 160


def render(report: BundleReport) -> str:
    """The page as HTML text: no network, no other file."""
    both = any(line.before is not None and line.after is not None for line in report.accuracy)
    charts, scale, beyond = _latency(report.latency)
    classes = _classes(report.classes, both)
    lists = _operators(report)
    values: dict[str, Any] = {
        "r": report,
        "tail_beyond": any(line.p99_ms > scale.high for line, _ in charts),
        "parts": _parts(report),
        "latency_charts": charts,
        "latency_scale": scale,
        "latency_beyond": beyond,
        "both": both,
        "classes": classes,
        "classes_left": len(classes) < len(report.classes),
        "operator_lists": lists,
        "operator_top": max((line.ms for _, lines, _ in lists for line in lines), default=0) or 1.0,
        "layer_top": max((layer.ms for layer in report.layers), default=0.0) or 1.0,
        "has_float_ms": any(layer.float_ms is not None for layer in report.layers),
        "has_loss": any(layer.sqnr_db is not None for layer in report.layers),
        "tensors": _tensors(report),
        "size_top": max((mb for _, mb in report.sizes), default=0.0) or 1.0,
    }
    tools = (decibels, plain_db, finite, loss_tone, loss_width, view_text, figure_cells)
    values.update({tool.__name__: tool for tool in tools})
    values.update(
        base64=lambda data: base64.b64encode(data).decode("ascii"),
        colors=_colors,
        line_width=_line_width,
        shown_width=_shown_width,
        label_place=_label_place,
        minus=svg.minus,
    )
    return render_page("bundle.html.j2", **values)


def _parts(report: BundleReport) -> list[tuple[str, str]]:
    """Anchors and titles of the sections that are there."""
    every = [
        ("stages", "Stages", True),
        ("latency", "Latency", report.latency),
        ("accuracy", "Accuracy", report.accuracy),
        ("layers", "Layers", report.layers),
        ("tensors", "Activations", report.tensors),
        ("samples", "Images", report.samples),
        ("sizes", "Sizes", True),
        ("provenance", "Provenance", True),
    ]
    return [(anchor, title) for anchor, title, there in every if there]


def _latency(
    lines: tuple[LatencyLine, ...],
) -> tuple[list[tuple[LatencyLine, Markup]], svg.Scale, int]:
    """Charts on one axis, the axis, and how many runs lie beyond its end."""
    shown = [line for line in lines if line.samples_ms]
    if not shown:
        return [], svg.Scale(low=0.0, high=1.0), 0
    low = min(min(line.samples_ms) for line in shown)
    # a few disturbed runs must not press all others into one bar
    high = max(min(1.05 * line.p99_ms, 1.6 * line.p90_ms) for line in shown)
    room = 0.03 * (high - low) or 0.05 * high
    scale = svg.Scale(low=max(0.0, low - room), high=high + room)
    charts = []
    for line in shown:
        label = (
            f"Latency of {line.name}: {line.runs} runs, median {line.p50_ms:.2f} ms, "
            f"99th percentile {line.p99_ms:.2f} ms"
        )
        css = "int8" if line.name == "INT8" else "float"
        picture = svg.distribution(
            line.samples_ms, scale, label, css, p50=line.p50_ms, p99=line.p99_ms
        )
        charts.append((line, picture))
    beyond = sum(value > scale.high for line in shown for value in line.samples_ms)
    return charts, scale, beyond


def _classes(
    lines: tuple[AccuracyLine, ...], both: bool
) -> list[tuple[AccuracyLine, Markup | None]]:
    """The classes that changed most, each with its chart."""
    ordered = sorted(lines, key=lambda line: -abs((line.after or 0.0) - (line.before or 0.0)))
    chosen = ordered[:_MOST_CLASSES] if both else list(lines)[:_MOST_CLASSES]
    found: list[tuple[AccuracyLine, Markup | None]] = []
    for line in chosen:
        picture = None
        if line.before is not None and line.after is not None:
            label = f"{line.name}: FP32 {100 * line.before:.1f} %, INT8 {100 * line.after:.1f} %"
            picture = svg.pair(line.before, line.after, label)
        found.append((line, picture))
    return found


def _operators(report: BundleReport) -> list[tuple[str, tuple[OperatorLine, ...], str]]:
    lists = []
    if report.float_operators:
        lists.append(("FP32", report.float_operators[:_MOST_OPERATORS], "float"))
    if report.operators:
        title, css = ("INT8", "") if report.precision == "int8" else ("FP32", "float")
        lists.append((title, report.operators[:_MOST_OPERATORS], css))
    return lists


def _tensors(report: BundleReport) -> list[tuple[Any, Markup, svg.Scale]]:
    found = []
    for tensor in report.tensors:
        label = (
            f"Values of {tensor.name} from {tensor.minimum:.3g} to {tensor.maximum:.3g}; "
            f"quantized range {tensor.low:.3g} to {tensor.high:.3g}"
        )
        picture, scale = svg.activation(tensor.bars, tensor.low, tensor.high, label)
        found.append((tensor, picture, scale))
    return found


# --- what the template calls -----------------------------------------------------------------


def decibels(value: float | None, unit: str = " dB") -> str:
    """ "12.3 dB"; "exact" for equal tensors, a dash where nothing is known."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "exact" if value > 0 else "nothing"
    return f"{value:.1f}{unit}"


def plain_db(value: float | None) -> str:
    """A number to sort by: exact is above everything."""
    if value is None:
        return ""
    return str(max(-999.0, min(999.0, value)))


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def loss_tone(value: float) -> str:
    return "good" if value >= _GOOD_DB else "neutral" if value >= _POOR_DB else "bad"


def loss_width(value: float) -> float:
    """Length of a bar in per cent; 40 dB and more fill it."""
    return 100 * min(1.0, max(0.02, value / _FULL_DB))


def view_text(view: SampleView) -> str:
    """What a view shows, in words: "13 objects: 11 RBC, 2 WBC"."""
    if view.ranking:
        name, probability = view.ranking[0]
        return f"{name}, {100 * probability:.1f} %"
    count = len(view.boxes)
    if not count:
        return "nothing found"
    kinds = Counter(box.name for box in view.boxes).most_common(5)
    listed = ", ".join(f"{number} {name}" for name, number in kinds)
    return f"{count} object{'s' if count != 1 else ''}: {listed}"


def figure_cells(line: AccuracyLine, both: bool) -> Markup:
    """The cells of an accuracy line."""
    from markupsafe import Markup

    def cell(value: float | None, text: str, css: str = "") -> str:
        plain = "" if value is None else f"{value:.6f}"
        return f'<td class="n{css}" data-v="{plain}">{text if value is not None else "–"}</td>'

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    if not both:
        value = line.before if line.before is not None else line.after
        return Markup(cell(value, percent(value)))
    change = None
    if line.before is not None and line.after is not None:
        change = 100 * (line.after - line.before)
    tone = (
        "" if change is None or abs(change) < 0.5 else " good-text" if change > 0 else " bad-text"
    )
    return Markup(
        cell(line.before, percent(line.before))
        + cell(line.after, percent(line.after))
        + cell(change, "" if change is None else svg.minus(f"{change:+.2f}"), tone)
    )


def _colors(number: int) -> tuple[str, str]:
    """Colour of a class, and of text on it."""
    color = class_color(number)
    return _hex(color), _hex(text_on(color))


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _shown_width(sample: SampleImage) -> int:
    """The widest a sample is drawn, in CSS pixels: small images are enlarged eightfold at most."""
    return max(240, 8 * sample.width) if sample.width < _SMALL_SIDE else 2 * sample.width


def _line_width(sample: SampleImage) -> float:
    return max(sample.width, sample.height) / 260


@dataclass(frozen=True, kw_only=True)
class _Label:
    """Where a box's label lies, in pixels of the image."""

    x: float
    y: float
    width: float
    height: float
    pad: float
    baseline: float
    size: float
    text: str


def _label_place(box: BoxMark, sample: SampleImage) -> _Label:
    """Above the box where there is room, else inside it, and never outside the image."""
    size = max(sample.width, sample.height) / 42
    text = f"{box.name} {box.score:.2f}"
    pad, height = size * 0.3, size * 1.4
    # no font can be measured here: the text is told to be so wide (textLength)
    width = 0.6 * size * len(text) + 2 * pad
    y = box.y1 - height if box.y1 >= height else box.y1
    x = max(0.0, min(box.x1, sample.width - width))
    return _Label(
        x=x,
        y=y,
        width=width,
        height=height,
        pad=pad,
        baseline=y + height - size * 0.38,
        size=size,
        text=text,
    )
