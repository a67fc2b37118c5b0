"""mAP on cases computed by hand, the second implementation against the library, weights."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.metrics import detection
from edgekit.metrics.datasets import Truth
from edgekit.metrics.detection import ImageResult
from edgekit.metrics.matching import match
from edgekit.metrics.postprocess import Detections


def found(*rows):
    """rows of (x1, y1, x2, y2, score, class), sorted by falling score."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    table = table[np.argsort(-table[:, 4], kind="stable")]
    return Detections(
        boxes=table[:, :4].astype(np.float32),
        scores=table[:, 4].astype(np.float32),
        classes=table[:, 5].astype(np.int64),
    )


def truth(*rows, crowd=None):
    """rows of (x1, y1, x2, y2, class)."""
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Truth.of(table[:, :4].tolist(), table[:, 4].astype(int).tolist(), crowd)


def figures(*pairs, names=("a", "b")):
    return detection.evaluate([ImageResult(found=f, truth=t) for f, t in pairs], names)


BOX = (10.0, 10.0, 50.0, 50.0)
AWAY = (100.0, 100.0, 140.0, 140.0)


def test_perfect():
    result = figures((found((*BOX, 0.9, 0)), truth((*BOX, 0))))
    assert (result.map50_95, result.map50, result.map75) == (1.0, 1.0, 1.0)
    assert result.per_class == {"a": 1.0}  # b never occurs and does not count
    assert (result.point.precision, result.point.recall) == (1.0, 1.0)


def test_a_better_scored_miss_halves_the_precision():
    result = figures((found((*BOX, 0.5, 0), (*AWAY, 0.9, 0)), truth((*BOX, 0))))
    assert result.map50_95 == pytest.approx(0.5)


def test_half_found():
    # recall reaches 0.5 with precision 1: 51 of the 101 recall points
    result = figures((found((*BOX, 0.9, 0)), truth((*BOX, 0), (*AWAY, 0))))
    assert result.map50 == pytest.approx(51 / 101)
    assert (result.point.precision, result.point.recall) == (1.0, 0.5)


def test_overlap_decides_at_which_thresholds_a_box_counts():
    # 40 x 40 against 40 x 30 inside it: IoU 0.75, which the threshold 0.75 accepts
    result = figures((found((10, 10, 50, 40, 0.9, 0)), truth((*BOX, 0))))
    assert (result.map50, result.map75) == (1.0, 1.0)
    assert result.map50_95 == pytest.approx(0.6)


def test_a_second_box_on_the_same_object_is_a_miss():
    result = figures((found((*BOX, 0.9, 0), (*BOX, 0.8, 0)), truth((*BOX, 0), (*AWAY, 0))))
    assert result.map50 == pytest.approx(51 / 101)


def test_what_lies_in_a_crowd_does_not_count():
    inside = [(x, 10.0, x + 20.0, 30.0, 0.95, 0) for x in (200.0, 230.0, 260.0)]
    labels = truth((*BOX, 0), (190.0, 0.0, 300.0, 40.0, 0), crowd=[False, True])
    assert figures((found((*BOX, 0.5, 0), *inside), labels)).map50_95 == 1.0
    # without the crowd mark the same boxes are misses ahead of the hit
    unmarked = truth((*BOX, 0), (190.0, 0.0, 300.0, 40.0, 0))
    assert figures((found((*BOX, 0.5, 0), *inside), unmarked)).map50_95 < 0.3


def test_the_wrong_class_is_a_miss_for_both():
    result = figures((found((*BOX, 0.9, 1)), truth((*BOX, 0), (*AWAY, 1))))
    assert result.map50_95 == 0.0
    assert result.per_class == {"a": 0.0, "b": 0.0}


def test_boxes_on_a_background_image_cost_precision():
    background = (found((*BOX, 0.95, 0)), truth())
    result = figures((found((*BOX, 0.9, 0)), truth((*BOX, 0))), background)
    assert result.map50_95 == pytest.approx(0.5)


def test_nothing_found_and_nothing_there():
    assert figures((found(), truth((*BOX, 0)))).map50_95 == 0.0
    empty = figures((found(), truth()))
    assert (empty.map50_95, empty.point.recall, empty.per_class) == (0.0, 0.0, {})


def test_the_best_f1_is_found_at_one_confidence_for_all_classes():
    # class a: hit 0.9, miss 0.3; class b: hit 0.5. At 0.5: a (1, 1), b (1, 1)
    result = figures(
        (found((*BOX, 0.9, 0), (*AWAY, 0.3, 0)), truth((*BOX, 0))),
        (found((*BOX, 0.5, 1)), truth((*BOX, 1))),
    )
    assert result.point.confidence == pytest.approx(0.5)
    assert (result.point.precision, result.point.recall) == (1.0, 1.0)


def random_results(seed, images=25, classes=4):
    generator = np.random.default_rng(seed)
    results = []
    for _ in range(images):
        objects, crowd, boxes = [], [], []
        for _ in range(generator.integers(0, 6)):
            x, y = generator.uniform(0, 200, 2)
            width, height = generator.uniform(10, 80, 2)
            number = int(generator.integers(0, classes))
            objects.append((x, y, x + width, y + height, number))
            crowd.append(bool(generator.random() < 0.15))
            for _ in range(generator.integers(0, 4)):
                moved = np.array([x, y, x + width, y + height]) + generator.normal(0, 4, 4)
                label = number if generator.random() < 0.8 else int(generator.integers(0, classes))
                boxes.append((*moved, generator.random(), label))
        for _ in range(generator.integers(0, 10)):
            x, y = generator.uniform(0, 200, 2)
            boxes.append((x, y, x + 30, y + 30, generator.random() * 0.5, generator.integers(4)))
        results.append(
            ImageResult(found=found(*boxes), truth=truth(*objects, crowd=np.array(crowd, bool)))
        )
    return results


@pytest.mark.parametrize("seed", range(6))
def test_the_resampled_figure_is_the_librarys(seed):
    results = random_results(seed)
    ours = match([(r.found, r.truth) for r in results], 5).average_precision()
    theirs = detection.average_precision(results, 5)
    assert np.isnan(ours[4]).all() and np.isnan(theirs[4]).all()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def librarys_own(results, classes):
    """The library on every box, all classes at once: nothing is left out for speed."""
    import faster_coco_eval

    truth, boxes = [], []
    for image, result in enumerate(results, start=1):
        for (x, y, right, low), number, crowd in zip(
            result.truth.boxes, result.truth.classes, result.truth.crowd, strict=True
        ):
            sides = [float(x), float(y), float(right - x), float(low - y)]
            truth.append(
                {
                    **{"id": len(truth) + 1, "image_id": image, "category_id": int(number)},
                    **{"bbox": sides, "area": sides[2] * sides[3], "iscrowd": int(crowd)},
                }
            )
        found = result.found
        for (x, y, right, low), number, score in zip(
            found.boxes.astype(np.float64), found.classes, found.scores, strict=True
        ):
            sides = [float(x), float(y), float(right - x), float(low - y)]
            boxes.append(
                {
                    **{"image_id": image, "category_id": int(number), "bbox": sides},
                    **{"score": float(score), "segmentation": []},
                }
            )
    reference = faster_coco_eval.COCO(
        {
            "images": [{"id": image} for image in range(1, len(results) + 1)],
            "annotations": truth,
            "categories": [{"id": number, "name": str(number)} for number in range(classes)],
        }
    )
    evaluation = faster_coco_eval.COCOeval_faster(reference, reference.loadRes(boxes), "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, 1e10]], ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    table = evaluation.eval["precision"][:, :, :, 0, 0].mean(axis=1).T
    return np.where(table < 0, np.nan, table)


@pytest.mark.parametrize("pairs", [1, 60, 6000])
@pytest.mark.parametrize("seed", range(4))
def test_what_the_library_is_spared_changes_nothing(seed, pairs, monkeypatch):
    monkeypatch.setattr(detection, "_PAIRS", pairs)
    results = random_results(seed)
    np.testing.assert_allclose(
        detection.average_precision(results, 5), librarys_own(results, 5), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_counts_an_image_so_many_times(seed):
    results = random_results(seed)
    weights = np.random.default_rng(seed).integers(0, 3, len(results))
    repeated = [
        result for result, count in zip(results, weights, strict=True) for _ in range(count)
    ]
    ours = match([(r.found, r.truth) for r in results], 4).average_precision(weights)
    theirs = detection.average_precision(repeated, 4)
    # the library ranks the copies of a score one after another; the figures differ by that only
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02)
    left_out = [result for result, count in zip(results, weights, strict=True) if count]
    once = match([(r.found, r.truth) for r in results], 4).average_precision(weights > 0)
    np.testing.assert_allclose(once, detection.average_precision(left_out, 4), rtol=0, atol=1e-12)


def test_only_the_hundred_best_of_a_class_count():
    misses = [(300.0, 300.0, 310.0, 310.0, 0.9, 0)] * 100
    result = figures((found(*misses, (*BOX, 0.5, 0)), truth((*BOX, 0))))
    assert result.map50_95 == 0.0
    assert result.matches.mean_average_precision() == 0.0
