"""Charts: what is drawn where, and nothing of the data that is not escaped."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("markupsafe")

from edgekit.report import svg
from edgekit.report.svg import ParetoPoint, Scale


def parsed(picture: str) -> ElementTree.Element:
    """The SVG as XML: a chart that does not parse would break the page."""
    return ElementTree.fromstring(picture)


def percent(text: str | None) -> float:
    assert text is not None and text.endswith("%")
    return float(text[:-1])


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (3.94, 12.6), (-0.278, 11.1), (0, 1e-3), (-30, 1e6), (71, 79.2)]
)
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    scale = Scale(low=low, high=high)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(ticks)}
    assert len({round(step / max(steps), 6) for step in steps}) == 1
    for tick in ticks:
        assert float(svg.tick_text(tick).replace("−", "-")) == pytest.approx(tick, abs=1e-9)


def test_a_flat_axis_has_one_place() -> None:
    scale = Scale(low=2.0, high=2.0)
    assert scale.place(2.0) == 0.5
    assert scale.ticks() == [2.0]


def test_distribution_puts_every_run_into_a_bar() -> None:
    samples = [1.0] * 10 + [9.0] * 5
    scale = Scale(low=0.0, high=10.0)
    tree = parsed(svg.distribution(samples, scale, "runs", "int8", p50=1.0, p99=9.0, bins=10))
    bars = [item for item in tree if item.tag == "rect"]
    assert [percent(bar.get("x")) for bar in bars] == [10.0, 90.0]
    heights = [float(bar.get("height", "0")) for bar in bars]
    assert heights[0] == pytest.approx(2 * heights[1])
    marks = {
        item.get("class"): percent(item.get("x1"))
        for item in tree
        if item.tag == "line" and "mark" in item.get("class", "")
    }
    assert marks == {"mark median": 10.0, "mark tail": 90.0}


def test_a_percentile_beyond_the_axis_is_not_drawn_at_its_end() -> None:
    picture = svg.distribution([1.0], Scale(low=0, high=2), "runs", "float", p50=1.0, p99=50.0)
    assert "median" in picture and "tail" not in picture


def test_activation_shades_the_range_and_marks_what_is_outside() -> None:
    bars = [(-4.0, -2.0, 3), (-2.0, 0.0, 100), (0.0, 2.0, 50), (2.0, 4.0, 1)]
    picture, scale = svg.activation(bars, -2.0, 2.0, "tensor")
    tree = parsed(picture)
    assert (scale.low, scale.high) == (-4.0, 4.0)
    shaded = next(item for item in tree if item.get("class") == "range")
    assert (percent(shaded.get("x")), percent(shaded.get("width"))) == (25.0, 50.0)
    values = [item.get("class") for item in tree if item.get("class", "").startswith("value")]
    assert values == ["value outside", "value", "value", "value outside"]


def point(name: str, x: float, y: float, size: float = 1.0) -> ParetoPoint:
    return ParetoPoint(name=name, x=x, y=y, size=size, css="float")


def test_the_frontier_holds_what_no_other_beats() -> None:
    points = [
        point("slow", 9, 80),
        point("dominated", 9.5, 70),
        point("quick", 2, 60),
        point("middle", 5, 70),
        point("worse", 5, 65),
    ]
    assert [item.name for item in svg.frontier(points)] == ["quick", "middle", "slow"]


def test_pareto_area_follows_size() -> None:
    picture, _, upright = svg.pareto([point("a", 1, 50, 16.0), point("b", 2, 60, 4.0)], "plane")
    tree = parsed(picture)
    radii = {
        circle.find("title").text: float(circle.get("r", "0")) for circle in tree.iter("circle")
    }  # type: ignore[union-attr]
    assert radii["a"] - 6 == pytest.approx(2 * (radii["b"] - 6))
    heights = {
        circle.find("title").text: float(circle.get("cy", "0")) for circle in tree.iter("circle")
    }  # type: ignore[union-attr]
    assert heights["b"] < heights["a"], "higher accuracy lies further up"
    assert upright.low < 50 and upright.high > 60


def test_names_are_escaped() -> None:
    evil = '<script>alert(1)</script>"&'
    picture, _, _ = svg.pareto([point(evil, 1, 2), point("b", 2, 3)], evil)
    parsed(picture)
    assert "<script" not in picture
    assert not re.search(r'aria-label="[^"]*<', picture)


def test_names_keep_clear_of_other_points() -> None:
    close = [
        point("left one", 4.0, 69.3), point("right one", 4.3, 69.4), point("far away", 9.0, 75.0, 9.0),
        point("the last at the border", 9.6, 70.0),
    ]  # fmt: skip
    circles = [
        svg._Circle(x=x, y=y, radius=12) for x, y in ((100, 300), (140, 296), (800, 20), (880, 290))
    ]
    labels = svg._labels([item.name for item in close], circles, 340)
    boxes = [
        label.box(circle, len(item.name))
        for label, circle, item in zip(labels, circles, close, strict=True)
    ]
    for number, box in enumerate(boxes):
        assert box[0] >= 0 and box[2] <= 900 and box[1] >= 0 and box[3] <= 340
        for other, circle in enumerate(circles):
            ring = (circle.x - 11, circle.y - 11, circle.x + 11, circle.y + 11)
            assert other == number or svg._shared(box, ring) == 0
        for rest in boxes[number + 1 :]:
            assert svg._shared(box, rest) == 0
