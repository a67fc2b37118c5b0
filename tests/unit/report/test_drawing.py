"""Boxes and labels on images of every size."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.report import drawing
from edgekit.report.drawing import LEAST_SIDE, MOST_SIDE, Marked, class_color, draw_boxes, text_on


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def test_a_box_lies_where_it_was_found() -> None:
    mark = Marked(box=(100.0, 120.0, 300.0, 260.0), number=1, name="cell", score=0.9)
    drawn = draw_boxes(grey(400, 500), [mark])
    assert drawn.shape == (400, 500, 3)
    color = np.array(class_color(1))
    assert (drawn[200, 100] == color).all() and (drawn[260, 200] == color).all()
    assert (drawn[200, 200] == 90).all(), "the inside is left alone"
    assert (drawn[10, 10] == 90).all()


def test_the_image_itself_is_not_changed() -> None:
    image = grey(400, 400)
    draw_boxes(image, [Marked(box=(1, 1, 50, 50), number=0, name="x", score=1.0)])
    assert (image == 90).all()


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (32, 32), (20, 900), (640, 480), (3000, 4000)]
)
def test_any_size_is_brought_within_bounds(height: int, width: int) -> None:
    box = (0.1 * width, 0.1 * height, 0.9 * width, 0.9 * height)
    drawn = draw_boxes(
        grey(height, width), [Marked(box=box, number=0, name="a long name", score=0.5)]
    )
    longer = max(drawn.shape[:2])
    assert LEAST_SIDE <= longer <= max(MOST_SIDE, LEAST_SIDE)
    assert drawn.shape[0] / drawn.shape[1] == pytest.approx(height / width, rel=0.05)
    assert (drawn != 90).any()


def test_labels_of_boxes_at_the_border_stay_inside() -> None:
    name = "a name that is rather long"
    for box in ((-20, -20, 30, 30), (380, 380, 430, 430), (390, 2, 399, 9)):
        drawn = draw_boxes(grey(400, 400), [Marked(box=box, number=2, name=name, score=0.5)])
        filled = (drawn == np.array(class_color(2))).all(axis=2)
        assert filled.sum() > 500, "the label's ground is there"


def test_labels_are_drawn_beneath_what_was_found() -> None:
    box = (50.0, 50.0, 350.0, 350.0)
    truth = Marked(box=box, number=0, name="x")
    found = Marked(box=box, number=0, name="x", score=0.9)
    drawn = draw_boxes(grey(400, 400), [found, truth])
    assert (drawn[200, 50] == np.array(class_color(0))).all()


def test_text_can_be_read_on_every_class_color() -> None:
    def luminance(color: tuple[int, int, int]) -> float:
        parts = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
            for v in (c / 255 for c in color)
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for number in range(100):
        color = class_color(number)
        one, two = sorted((luminance(color), luminance(text_on(color))))
        assert (two + 0.05) / (one + 0.05) >= 4.5, color


def test_the_first_classes_have_colours_of_their_own() -> None:
    colors = [np.array(class_color(number), float) for number in range(8)]
    for i, one in enumerate(colors):
        for other in colors[i + 1 :]:
            assert np.abs(one - other).sum() > 60


def test_a_ranking_stands_beneath_the_image() -> None:
    ranked = [("plane", 0.7), ("bird", 0.2), ("ship", 0.1)]
    image = grey(32, 32)
    drawn = drawing.draw_ranking(image, ranked, label="bird")
    enlarged = 32 * int(drawing.scale_for(32, 32))
    assert drawn.shape[0] > enlarged
    assert (drawn[:enlarged, :enlarged] == 90).all()
    assert (drawn[enlarged:] > 100).any(), "there is text"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_encoded_images_decode(suffix: str) -> None:
    import cv2

    image = grey(40, 50)
    image[:, :, 0] = 200  # red
    data = drawing.encode(image, suffix)
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert back.shape == (40, 50, 3)
    assert abs(int(back[20, 20, 2]) - 200) < 8, "red is red"
