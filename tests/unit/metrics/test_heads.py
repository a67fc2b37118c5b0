"""Every decoder on outputs made from known boxes, and the choice of a head by shapes."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import BadInput, UsageError
from edgekit.metrics.decoders import (
    Limits,
    cells,
    decode_yolo26,
    decode_yolov5,
    decode_yolov8,
    decode_yolox,
)
from edgekit.metrics.heads import HEADS, choose_head, detect_head
from edgekit.types import TensorSpec

SIZE = (64, 96)
CELLS = 8 * 12 + 4 * 6 + 2 * 3
# (x1, y1, x2, y2), class, score
OBJECTS = [((10.0, 12.0, 30.0, 52.0), 1, 0.75), ((40.0, 8.0, 95.0, 24.0), 0, 0.5)]


def spec(*shape, name="output"):
    return TensorSpec(name=name, shape=shape, dtype="float32")


def centred(box):
    x1, y1, x2, y2 = box
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def expect(found, objects=OBJECTS):
    order = np.argsort(-found.scores, kind="stable")
    assert found.boxes.dtype == np.float32 and found.classes.dtype == np.int64
    assert found.classes[order].tolist() == [number for _, number, _ in objects]
    np.testing.assert_allclose(found.scores[order], [score for *_, score in objects], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[order], [box for box, *_ in objects], rtol=1e-5)


def yolov5_output(count=3 * CELLS, classes=3):
    output = np.zeros((count, 5 + classes), np.float32)
    for row, (box, number, score) in zip((7, count - 1), OBJECTS, strict=True):
        output[row, :4] = centred(box)
        output[row, 4] = 0.8
        output[row, 5 + number] = score / 0.8
    return output


def test_yolov5():
    expect(decode_yolov5(yolov5_output(), SIZE, 3, Limits()))


def test_yolov5_counts_a_prediction_for_every_class_above_the_threshold():
    output = yolov5_output()
    output[7, 5] = 0.25  # a second class on the first object: 0.8 * 0.25
    found = decode_yolov5(output, SIZE, 3, Limits())
    assert sorted(found.scores.tolist()) == pytest.approx([0.2, 0.5, 0.75])
    expect(decode_yolov5(output, SIZE, 3, Limits(multi_label=False)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_yolov8(transposed, multi_label):
    output = np.zeros((4 + 3, CELLS), np.float32)
    for column, (box, number, score) in zip((0, CELLS - 1), OBJECTS, strict=True):
        output[:4, column] = centred(box)
        output[4 + number, column] = score
    output = np.ascontiguousarray(output.T) if transposed else output
    expect(decode_yolov8(output, SIZE, 3, Limits(multi_label=multi_label)))


def test_yolo26():
    output = np.zeros((300, 6), np.float32)
    for row, (box, number, score) in enumerate(OBJECTS):
        output[row] = [*box, score, number]
    expect(decode_yolo26(output, SIZE, 3, Limits()))


def test_yolox_decodes_cells_of_every_stride():
    # one object per map: in a cell of stride 8, 16 and 32
    objects = [
        ((10.0, 12.0, 30.0, 52.0), 1, 0.75),
        ((40.0, 8.0, 95.0, 24.0), 0, 0.5),
        ((66.0, 34.0, 94.0, 62.0), 2, 0.25),
    ]
    output = np.zeros((CELLS, 8), np.float32)
    first = {8: 0, 16: 96, 32: 96 + 24}
    for (box, number, score), stride in zip(objects, (8, 16, 32), strict=True):
        cx, cy, width, height = centred(box)
        column, line = int(cx // stride), int(cy // stride)
        row = first[stride] + line * (SIZE[1] // stride) + column
        output[row, :4] = [
            cx / stride - column,
            cy / stride - line,
            np.log(width / stride),
            np.log(height / stride),
        ]
        output[row, 4] = 0.8
        output[row, 5 + number] = score / 0.8
    expect(decode_yolox(output, SIZE, 3, Limits()), objects)


def test_the_threshold_is_above_and_the_best_are_kept_with_ties_in_order():
    output = np.zeros((4 + 1, CELLS), np.float32)
    output[4, :10] = [0.1, 0.3, 0.3, 0.2, 0.3, 0.3, 0.1, 0.9, 0.3, 0.2]
    output[0] = np.arange(CELLS)  # cx tells the cells apart
    assert len(decode_yolov8(output, SIZE, 1, Limits(conf=0.3))) == 1
    found = decode_yolov8(output, SIZE, 1, Limits(count=4))
    assert found.boxes[:, 0].tolist() == [1, 2, 4, 7]


def test_a_broken_model_with_every_score_high_stays_cheap():
    output = np.full((4 + 80, 8400), 0.5, np.float32)
    assert len(decode_yolov8(output, (640, 640), 80, Limits())) == 10_000


@pytest.mark.parametrize(
    ("shape", "size", "classes", "head"),
    [
        ((1, 25200, 85), (640, 640), 80, "yolov5"),
        ((1, 25200, 85), (640, 640), None, "yolov5"),
        ((1, 84, 8400), (640, 640), 80, "yolov8"),
        ((1, 84, 8400), (640, 640), None, "yolov8"),
        ((1, 8400, 84), (640, 640), 80, "yolov8"),
        ((1, 7, 720), (192, 192), 3, "yolov8"),  # two strides, as the cells example
        ((1, 7, 2100), (320, 320), 3, "yolov8"),
        ((1, 5, 8400), (640, 640), 1, "yolov8"),
        ((1, 8400, 85), (640, 640), 80, "yolox"),
        ((1, 8400, 6), (640, 640), 1, "yolox"),
        ((1, 8400, 6), (640, 640), 2, "yolov8"),
        ((1, 25200, 6), (640, 640), 1, "yolov5"),
        ((1, 300, 6), (640, 640), 80, "yolo26"),
        ((1, 300, 6), (640, 640), None, "yolo26"),
        ((1, 8400, 85), (640, 640), None, None),  # YOLOX of 80, or YOLOv8 turned of 81
        ((1, 84, 8400), (640, 640), 3, None),
        ((1, 1000), (224, 224), 1000, "logits"),
        ((1, 10, 1, 1), (32, 32), 10, "logits"),
        ((10,), (32, 32), None, "logits"),
        ((1, "n", 85), (640, 640), 80, None),
        ((1, 64, 80, 80), (640, 640), 80, None),
    ],
)
def test_the_head_is_told_by_shapes(shape, size, classes, head):
    assert detect_head([spec(*shape)], classes, size) == head


def test_the_output_of_several_is_found():
    outputs = [
        spec(1, 3, 80, 80, 85, name="raw"),
        spec(1, 25200, 85, name="boxes"),
        spec(1, 64, 8, 8, name="mask"),
    ]
    match = choose_head(outputs, (640, 640), num_classes=80, task="detect")
    assert (match.head.name, match.output, match.num_classes) == ("yolov5", "boxes", 80)


def test_another_number_of_classes_is_said():
    with pytest.raises(BadInput, match=r"'yolov8' with 80 classes, but there are 3 names"):
        choose_head([spec(1, 84, 8400)], (640, 640), num_classes=3, task="detect")
    with pytest.raises(BadInput, match="80 classes, but there are 81"):
        choose_head([spec(1, 84, 8400)], (640, 640), num_classes=81, name="yolov8")


def test_a_chosen_head_must_fit():
    with pytest.raises(UsageError) as error:
        choose_head([spec(1, 84, 8400)], (640, 640), name="yolo8")
    assert "yolov8" in error.value.hint
    with pytest.raises(BadInput, match="layout of the head 'yolo26'"):
        choose_head([spec(1, 84, 8400)], (640, 640), name="yolo26")
    with pytest.raises(BadInput, match="for the task classify"):
        choose_head([spec(1, 84, 8400)], (640, 640), name="logits", task="detect")
    with pytest.raises(BadInput, match=r"fit no head.*detect"):
        choose_head([spec(1, 10)], (32, 32), num_classes=10, task="detect")
    # predictions of an unusual count are decoded where the head is named
    match = choose_head([spec(1, 500, 85)], (640, 640), name="yolov5", num_classes=80)
    assert match.num_classes == 80


def test_of_two_heads_that_fit_one_must_be_chosen():
    assert cells((640, 640), (8, 16, 32)) == 8400
    with pytest.raises(BadInput, match="fit the heads yolov8 and yolox") as error:
        choose_head([spec(1, 8400, 85)], (640, 640))
    assert "--head" in error.value.hint


def test_every_head_has_what_its_task_needs():
    for name, head in HEADS.items():
        assert head.name == name
        assert (head.decode is None) == (head.task == "classify")
