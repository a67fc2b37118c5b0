"""A wrong head, or a broken model, is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import BadInput
from edgekit.metrics.heads import HEADS, HeadMatch, Limits
from edgekit.metrics.plausibility import Plausibility

SIZE = (64, 96)
CELLS = 8 * 12 + 4 * 6 + 2 * 3


def watch(head, outputs, classes=3):
    match = HeadMatch(head=HEADS[head], output="output", num_classes=classes)
    watcher = Plausibility(match, SIZE, classes)
    for number, output in enumerate(outputs):
        watcher.see(output, match.head.decode(output, SIZE, classes, Limits()), f"{number}.jpg")
    return watcher.finish()


def yolov8_output(seed=0):
    generator = np.random.default_rng(seed)
    output = generator.uniform(0, 1, (7, CELLS)).astype(np.float32)
    output[0] *= SIZE[1]
    output[1] *= SIZE[0]
    output[2:4] *= 30
    return output


def test_plausible_boxes_pass_without_a_word():
    assert watch("yolov8", [yolov8_output(0), yolov8_output(1)]) == []


def test_no_score_at_all_is_a_note():
    output = yolov8_output()
    output[4:] = 0
    (note,) = watch("yolov8", [output] * 3)
    assert "No score on any image" in note and "yolov8" in note


def test_logits_instead_of_scores():
    output = yolov8_output()
    output[4:] = np.random.default_rng(1).normal(0, 4, output[4:].shape)
    with pytest.raises(BadInput, match=r"scores lie in -.* instead of 0 to 1"):
        watch("yolov8", [output])


def test_quantized_sigmoids_may_step_over_one():
    output = yolov8_output()
    output[4, 3] = 1.004
    assert watch("yolov8", [output]) == []


def test_boxes_outside_the_image():
    output = yolov8_output()
    output[:2] += 5000
    with pytest.raises(BadInput, match="outside the image"):
        watch("yolov8", [output])


def test_some_boxes_outside_are_a_note():
    output = yolov8_output()
    output[0, : CELLS // 4] += 5000
    (note,) = watch("yolov8", [output])
    assert "lie outside the image" in note


def test_decoded_boxes_read_as_undecoded():
    generator = np.random.default_rng(0)
    output = generator.uniform(0, 1, (CELLS, 8)).astype(np.float32)
    output[:, :4] *= 60  # centres and sides in pixels, as a decoded export gives them
    with pytest.raises(BadInput, match="outside the image"):
        watch("yolox", [output])


def test_undecoded_boxes_read_as_decoded():
    generator = np.random.default_rng(0)
    output = generator.uniform(0, 1, (3 * CELLS, 8)).astype(np.float32)
    output[:, 2:4] = generator.normal(-1, 0.5, (3 * CELLS, 2))  # logarithms: sides below 0
    with pytest.raises(BadInput, match="inside out"):
        watch("yolov5", [output])


def test_coordinates_as_fractions_of_the_image():
    output = yolov8_output()
    output[:4] = np.random.default_rng(0).uniform(0, 1, (4, CELLS))
    with pytest.raises(BadInput, match="fractions of the image"):
        watch("yolov8", [output])


def test_values_that_are_not_finite():
    for value in (np.nan, np.inf):
        output = yolov8_output()
        output[0, 5] = value
        with pytest.raises(BadInput, match=r"not finite \(on 0\.jpg\)"):
            watch("yolov8", [output])


def test_a_class_that_does_not_exist():
    output = np.zeros((300, 6), np.float32)
    output[0] = [10, 10, 20, 20, 0.9, 7]
    with pytest.raises(BadInput, match="class 7, but there are 3 names"):
        watch("yolo26", [output])
