"""Charts as inline SVG that need no script: rectangles and lines placed in per cent of the width.

Without a viewBox nothing is scaled: letters and lines keep their size on a phone, only distances
shrink. Colours come from the page's style sheet by class, so that charts follow light and dark. Every
chart is an image with a name for screen readers; the numbers stand in a table beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_LEAST_WIDTH = 0.25  # per cent; thinner bars vanish


def _tag(name: str, **attributes: object) -> str:
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{pairs}/>"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def chart(height: int, label: str, parts: Iterable[str], css: str = "") -> Markup:
    """An SVG of full width and `height` pixels, called `label` for screen readers."""
    name = escape(label)
    return Markup(
        f'<svg class="chart {escape(css)}" width="100%" height="{height}" role="img" '
        f'aria-label="{name}"><title>{name}</title>{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear axis from `low` to `high`."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where `value` lies, 0 to 1; what is outside lies at the end."""
        if self.high <= self.low:
            return 0.5
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values within the axis."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        rough = span / max(1, count)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough), 10 * power)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label: round numbers need no more digits than they have."""
    return minus(f"{round(value, 10):g}")


def minus(text: str) -> str:
    """The text with real minus signs in place of hyphens."""
    return text.replace("-", "−")


def distribution(
    samples: Sequence[float],
    scale: Scale,
    label: str,
    css: str,
    *,
    p50: float,
    p99: float,
    bins: int = 60,
    height: int = 72,
) -> Markup:
    """A histogram of `samples` on `scale` with the median as a line and p99 as a broken one."""
    counts = [0] * bins
    for value in samples:
        counts[min(bins - 1, int(scale.place(value) * bins))] += 1
    tallest = max(counts) or 1
    parts = []
    for number, count in enumerate(counts):
        if count:
            tall = max(2.0, (height - 6) * count / tallest)
            parts.append(
                _tag(
                    "rect",
                    class_=css,
                    x=_percent(number / bins),
                    width=_percent(0.86 / bins),
                    y=f"{height - tall:.1f}",
                    height=f"{tall:.1f}",
                    rx=1,
                )
            )
    parts.append(_tag("line", class_="axis", x1=0, x2="100%", y1=height - 0.5, y2=height - 0.5))
    for value, kind in ((p50, "median"), (p99, "tail")):
        if value > scale.high:
            continue  # beyond the end: the legend says so
        place = _percent(scale.place(value))
        parts.append(_tag("line", class_=f"mark {kind}", x1=place, x2=place, y1=0, y2=height))
    return chart(height, label, parts)


def activation(
    bars: Sequence[tuple[float, float, int]],
    low: float,
    high: float,
    label: str,
    *,
    height: int = 96,
) -> tuple[Markup, Scale]:
    """A histogram with logarithmic counts, the quantizer's range from `low` to `high` shaded.

    Returns the chart and its horizontal axis.
    """
    scale = Scale(low=min(bars[0][0], low), high=max(bars[-1][1], high))
    tallest = math.log1p(max(count for _, _, count in bars)) or 1.0
    left, right = scale.place(low), scale.place(high)
    parts = [
        _tag(
            "rect",
            class_="range",
            x=_percent(left),
            width=_percent(right - left),
            y=0,
            height=height,
        )
    ]
    for start, end, count in bars:
        if not count:
            continue
        tall = (height - 4) * math.log1p(count) / tallest
        width = max(_LEAST_WIDTH / 100, 0.9 * (scale.place(end) - scale.place(start)))
        centre = (start + end) / 2
        inside = low <= centre <= high
        parts.append(
            _tag(
                "rect",
                class_="value" if inside else "value outside",
                x=_percent(scale.place(start)),
                width=_percent(width),
                y=f"{height - tall:.1f}",
                height=f"{tall:.1f}",
            )
        )
    for end in (left, right):
        parts.append(
            _tag("line", class_="limit", x1=_percent(end), x2=_percent(end), y1=0, y2=height)
        )
    parts.append(_tag("line", class_="axis", x1=0, x2="100%", y1=height - 0.5, y2=height - 0.5))
    return chart(height, label, parts), scale


def pair(before: float, after: float, label: str, *, height: int = 20) -> Markup:
    """Two values from 0 to 1 on one line: a ring before, a dot after."""
    left, right = sorted((before, after))
    middle = height / 2
    parts = [
        _tag("line", class_="axis", x1=0, x2="100%", y1=middle, y2=middle),
        _tag(
            "line",
            class_="between",
            x1=_percent(left),
            x2=_percent(right),
            y1=middle,
            y2=middle,
        ),
        _tag("circle", class_="dot float", cx=_percent(before), cy=middle, r=5.5),
        _tag("circle", class_="dot int8", cx=_percent(after), cy=middle, r=4),
    ]
    return chart(height, label, parts)


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """One model: `x` and `y` on the axes, `size` drives the area, `css` its colour."""

    name: str
    x: float
    y: float
    size: float
    css: str


def frontier(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """The points that no other one beats in both (lower x, higher y), by rising x."""
    best: list[ParetoPoint] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def pareto(
    points: Sequence[ParetoPoint], label: str, *, height: int = 340
) -> tuple[Markup, Scale, Scale]:
    """Points in the plane, area by size, with the line of those that none beats.

    Returns the chart and its two axes (horizontal, vertical).
    """
    across = _padded([point.x for point in points], floor=0.0)
    upright = _padded([point.y for point in points], floor=None)
    largest = max(point.size for point in points) or 1.0

    def top(value: float) -> float:
        return height * (1 - upright.place(value))

    parts = []
    for tick in upright.ticks():
        level = f"{top(tick):.1f}"
        parts.append(_tag("line", class_="grid", x1=0, x2="100%", y1=level, y2=level))
    for tick in across.ticks():
        column = _percent(across.place(tick))
        parts.append(_tag("line", class_="grid", x1=column, x2=column, y1=0, y2=height))
    best = frontier(points)
    for one, two in itertools.pairwise(best):
        parts.append(
            _tag(
                "line",
                class_="frontier",
                x1=_percent(across.place(one.x)),
                x2=_percent(across.place(two.x)),
                y1=f"{top(one.y):.1f}",
                y2=f"{top(two.y):.1f}",
            )
        )
    circles = [
        _Circle(
            x=across.place(point.x) * _WIDE,
            y=top(point.y),
            radius=6 + 16 * math.sqrt(max(point.size, 0.0) / largest),
        )
        for point in points
    ]
    labels = _labels([point.name for point in points], circles, height)
    texts = []
    for number in sorted(range(len(points)), key=lambda index: -points[index].size):
        point, circle, label_at = points[number], circles[number], labels[number]
        place = _percent(circle.x / _WIDE)
        shape = _tag(
            "circle",
            class_=f"bubble {point.css}",
            cx=place,
            cy=f"{circle.y:.1f}",
            r=f"{circle.radius:.1f}",
        )
        parts.append(shape.replace("/>", f"><title>{escape(point.name)}</title></circle>"))
        # names on wide screens; on narrow ones numbers, with a list beneath the chart
        texts.append(
            f'<text class="name wide" x="{place}" y="{circle.y + label_at.dy:.1f}" '
            f'dx="{label_at.dx:.1f}" text-anchor="{label_at.anchor}">{escape(point.name)}</text>'
        )
        texts.append(
            f'<text class="name slim" x="{place}" y="{circle.y + 4:.1f}" '
            f'text-anchor="middle">{number + 1}</text>'
        )
    parts += texts
    return chart(height, label, parts, "pareto"), across, upright


def over_time(
    points: Sequence[tuple[float, float]],
    upright: Scale,
    label: str,
    *,
    marks: Sequence[bool],
    height: int,
) -> Markup:
    """Values by time, joined by a line: `points` are (place 0 to 1, value); marked ones are filled."""
    parts = []
    for tick in upright.ticks():
        level = f"{height * (1 - upright.place(tick)):.1f}"
        parts.append(_tag("line", class_="grid", x1=0, x2="100%", y1=level, y2=level))
    at = [(_percent(x), f"{height * (1 - upright.place(y)):.1f}") for x, y in points]
    for (x1, y1), (x2, y2) in itertools.pairwise(at):
        parts.append(_tag("line", class_="frontier", x1=x1, x2=x2, y1=y1, y2=y2))
    for (x, y), (_, value), marked in zip(at, points, marks, strict=True):
        shape = _tag("circle", class_=f"bubble {'int8' if marked else 'float'}", cx=x, cy=y, r=5)
        parts.append(shape.replace("/>", f"><title>{value:.4g}</title></circle>"))
    return chart(height, label, parts, "pareto")


# width in pixels that labels are placed for: about that of a desk screen
_WIDE = 900.0
_LETTER = 6.8


@dataclass(frozen=True, kw_only=True)
class _Circle:
    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class _Label:
    """Where a name stands beside its circle's centre, and how it is anchored."""

    dx: float
    dy: float
    anchor: str

    def box(self, circle: _Circle, letters: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels."""
        width = letters * _LETTER
        start = {"start": 0.0, "middle": -width / 2, "end": -width}[self.anchor]
        left, base = circle.x + self.dx + start, circle.y + self.dy
        return left, base - 11, left + width, base + 3


def _labels(names: Sequence[str], circles: Sequence[_Circle], height: int) -> list[_Label]:
    """A place for every name: the first beside its circle that covers least of the others."""
    taken = [(c.x - c.radius, c.y - c.radius, c.x + c.radius, c.y + c.radius) for c in circles]
    chosen = []
    for name, circle in zip(names, circles, strict=True):
        gap = circle.radius + 5
        places = (
            _Label(dx=gap, dy=4, anchor="start"),
            _Label(dx=-gap, dy=4, anchor="end"),
            _Label(dx=0, dy=-gap, anchor="middle"),
            _Label(dx=0, dy=gap + 9, anchor="middle"),
        )

        def covered(label: _Label, circle: _Circle = circle, letters: int = len(name)) -> float:
            box = label.box(circle, letters)
            outside = max(0.0, -box[0]) + max(0.0, box[2] - _WIDE)
            outside += max(0.0, -box[1]) + max(0.0, box[3] - height)
            return 100 * outside + sum(_shared(box, other) for other in taken)

        best = min(places, key=covered)
        chosen.append(best)
        taken.append(best.box(circle, len(name)))
    return chosen


def _shared(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Area that two boxes have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _padded(values: Sequence[float], floor: float | None) -> Scale:
    """An axis with room around the values."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or abs(high) * 0.1 or 1.0
    low = low - room if floor is None else max(floor, low - room)
    return Scale(low=low, high=high + room)
