"""The evaluation's own machinery, on models that answer what the test wants.

The answers are written into the images: the first pixels hold a box and a class, so a session of a
few lines is a perfect detector, and every way of spoiling it has a known effect.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BadInput, NotPossible, UsageError
from edgekit.metrics.datasets import Dataset, Sample, Truth
from edgekit.preprocess import Preprocess
from edgekit.stages import evaluate
from edgekit.stages.evaluate import EvaluateOptions
from edgekit.types import TensorSpec

SIZE = 64
CELLS = 8 * 8 + 4 * 4 + 2 * 2
CONTRACT = Preprocess(height=SIZE, width=SIZE, resize="none", scale=1.0)
NAMES = ("a", "b", "c")


class Detector:
    """Reads box and class from the pixels; a `Session` in the layout of YOLOv8."""

    def __init__(self, batch: int | str = 1, classes: int = 3) -> None:
        self.inputs = (TensorSpec(name="x", shape=(batch, 3, SIZE, SIZE), dtype="float32"),)
        self.outputs = (TensorSpec(name="y", shape=(batch, 4 + classes, CELLS), dtype="float32"),)
        self.classes = classes
        self.batches: list[int] = []

    def run(self, feeds):
        images = feeds["x"]
        self.batches.append(len(images))
        output = np.zeros((len(images), 4 + self.classes, CELLS), np.float32)
        for row, image in enumerate(images):
            x1, y1, x2, y2, number, _ = image[0, 0, :6]
            output[row, :4, 3] = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
            output[row, 4 + int(number), 3] = 0.9
        return {"y": self.spoil(output)}

    def spoil(self, output):
        return output

    def close(self) -> None: ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...


class Classifier(Detector):
    def __init__(self, batch: int | str = 1, classes: int = 3) -> None:
        super().__init__(batch, classes)
        self.outputs = (TensorSpec(name="y", shape=(batch, classes), dtype="float32"),)

    def run(self, feeds):
        images = feeds["x"]
        self.batches.append(len(images))
        output = np.zeros((len(images), self.classes), np.float32)
        output[np.arange(len(images)), images[:, 0, 0, 4].astype(int)] = 5
        return {"y": self.spoil(output)}


def pixels(box, number, index=0):
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[0, :6, 0] = [*box, number, index]
    return image


def detection_data(count=10, names=NAMES, objects=True):
    generator = np.random.default_rng(0)
    samples = []
    for index in range(count):
        x, y = generator.integers(0, 30, 2)
        box, number = (x, y, x + 20, y + 25), index % len(names)
        samples.append(
            Sample(
                name=f"{index}",
                pixels=pixels(box, number, index),
                objects=Truth.of([box], [number]) if objects else None,
            )
        )
    return Dataset(task="detect", names=names, samples=tuple(samples), source=Path("made"))


def classification_data(count=10, names=NAMES, named=True):
    shown = names if named else tuple(str(number) for number in range(len(names)))
    samples = tuple(
        Sample(name=f"{i}", pixels=pixels((0, 0, 1, 1), i % len(names)), label=i % len(names))
        for i in range(count)
    )
    return Dataset(task="classify", names=shown, samples=samples, source=Path("made"), named=named)


def test_a_perfect_detector():
    heard = []
    report = evaluate.run(
        Detector(), detection_data(), CONTRACT, EvaluateOptions(), lambda *now: heard.append(now)
    )
    assert (report.task, report.images, report.map50_95, report.map50) == ("detect", 10, 1.0, 1.0)
    assert (report.precision, report.recall, report.top1) == (1.0, 1.0, None)
    assert report.per_class == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert report.settings["head"] == "yolov8" and report.settings["iou"] == 0.65
    assert report.value == 1.0 and report.notes == ()
    assert heard == [(i, 10, "evaluate") for i in range(1, 11)]


def test_a_perfect_classifier_and_one_that_says_one_thing():
    report = evaluate.run(Classifier(), classification_data(), CONTRACT)
    assert (report.top1, report.top5, report.map50_95) == (1.0, 1.0, None)
    assert report.confusion == ((4, 0, 0), (0, 3, 0), (0, 0, 3))

    class Stuck(Classifier):
        def spoil(self, output):
            return np.tile(np.float32([0, 1, 0]), (len(output), 1))

    report = evaluate.run(Stuck(), classification_data(), CONTRACT)
    assert report.top1 == 0.3
    assert "The answer on every image is 'b'" in report.notes[0]


@pytest.mark.parametrize(
    ("fixed", "asked", "batches"),
    [
        (1, None, [1] * 10),
        (4, None, [4, 4, 4]),
        ("batch", None, [1] * 10),
        ("batch", 4, [4, 4, 2]),
        ("batch", 32, [10]),
    ],
)
@pytest.mark.parametrize("kind", [Detector, Classifier])
def test_batches_give_the_same_figures(kind, fixed, asked, batches):
    session = kind(batch=fixed)
    data = detection_data() if kind is Detector else classification_data()
    report = evaluate.run(session, data, CONTRACT, EvaluateOptions(batch=asked))
    assert report.value == 1.0
    assert session.batches == batches


def test_a_fixed_batch_cannot_be_changed():
    with pytest.raises(UsageError, match="batches of 4, not 2"):
        evaluate.run(Detector(batch=4), detection_data(), CONTRACT, EvaluateOptions(batch=2))


def test_predictions_come_in_order_and_need_no_labels():
    data = detection_data(count=30, objects=False)
    found = list(evaluate.predictions(Detector(), data, CONTRACT, EvaluateOptions(workers=4)))
    assert [prediction.sample.name for prediction in found] == [str(i) for i in range(30)]
    for prediction in found:
        assert prediction.truth is None
        box = prediction.sample.pixels[0, :4, 0].astype(float)
        np.testing.assert_allclose(prediction.detections.boxes[0], box, atol=1e-4)
    with pytest.raises(BadInput, match="no label"):
        evaluate.run(Detector(), data, CONTRACT)


def test_only_a_few_images_are_held_at_a_time():
    alive, most = 0, 0
    lock = threading.Lock()

    class Counted(Sample):
        def image(self):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return super().image()

    template = detection_data(1).samples[0]
    data = Dataset(
        task="detect",
        names=NAMES,
        samples=tuple(
            Counted(name=str(i), pixels=template.pixels, objects=template.objects)
            for i in range(200)
        ),
        source=Path("made"),
    )

    class Slow(Detector):
        def run(self, feeds):
            nonlocal alive
            time.sleep(0.001)
            with lock:
                alive -= 1
            return super().run(feeds)

    options = EvaluateOptions(workers=2)
    assert evaluate.run(Slow(), data, CONTRACT, options).images == 200
    assert most <= 8


@pytest.mark.parametrize("where", ["model", "consumer"])
def test_an_interruption_stops_every_thread(where):
    before = threading.active_count()

    class Interrupted(Detector):
        def run(self, feeds):
            if where == "model" and len(self.batches) == 3:
                raise KeyboardInterrupt
            return super().run(feeds)

    iterator = evaluate.predictions(
        Interrupted(), detection_data(200), CONTRACT, EvaluateOptions(workers=4)
    )
    if where == "model":
        with pytest.raises(KeyboardInterrupt):
            list(iterator)
    else:
        next(iterator)
        iterator.close()
    assert threading.active_count() == before


def with_bad_images(tmp_path, bad, good):
    data = detection_data(good)
    broken = []
    for index in range(bad):
        path = tmp_path / f"bad{index}.jpg"
        path.write_bytes(b"\xff\xd8\xff\xe0 no picture")
        broken.append(Sample(name=path.name, path=path, objects=Truth.of([], [])))
    return Dataset(
        task="detect", names=NAMES, samples=(*data.samples, *broken), source=Path("made")
    )


def test_an_unreadable_image_is_an_error_that_names_it(tmp_path):
    with pytest.raises(BadInput, match=r"bad0\.jpg"):
        evaluate.run(Detector(), with_bad_images(tmp_path, 1, 9), CONTRACT)


def test_a_share_of_unreadable_images_may_be_allowed(tmp_path):
    data = with_bad_images(tmp_path, 2, 18)
    report = evaluate.run(Detector(), data, CONTRACT, EvaluateOptions(max_bad_share=0.1))
    assert (report.images, report.map50_95) == (18, 1.0)
    assert "2 images could not be read" in report.notes[0] and "bad0.jpg" in report.notes[0]
    with pytest.raises(BadInput, match="allowed are 5%"):
        evaluate.run(Detector(), data, CONTRACT, EvaluateOptions(max_bad_share=0.05))
    with pytest.raises(BadInput, match="No image could be used"):
        only_bad = with_bad_images(tmp_path, 2, 0)
        evaluate.run(Detector(), only_bad, CONTRACT, EvaluateOptions(max_bad_share=1.0))


def test_a_model_without_scores_is_measured_and_said():
    class Silent(Detector):
        def spoil(self, output):
            output[:, 4:] = 0
            return output

    report = evaluate.run(Silent(), detection_data(), CONTRACT)
    assert report.map50_95 == 0.0
    assert "No score on any image is above the threshold" in report.notes[0]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda output: output * np.nan, "not finite"),
        (lambda output: np.where(np.arange(7)[:, None] > 3, output * 20, output), "instead of 0"),
    ],
)
def test_answers_that_cannot_be_are_errors(spoil, reason):
    session = Detector()
    session.spoil = lambda output: spoil(output).astype(np.float32)
    with pytest.raises(BadInput, match=reason):
        evaluate.run(session, detection_data(), CONTRACT)


def test_classes_in_another_order_are_matched_by_name():
    # the model numbers c first; its answers are right in its own numbering
    data = detection_data(names=("c", "a", "b"))
    model = ("a", "b", "c", "never")

    class Renumbered(Detector):
        def spoil(self, output):
            # data class 0 is c, the model's 2; 1 is a, 0; 2 is b, 1
            output[:, 4:] = output[:, [5, 6, 4, 7]]
            return output

    session = Renumbered(classes=4)
    report = evaluate.run(session, data, CONTRACT, EvaluateOptions(names=model))
    assert report.map50_95 == 1.0
    assert set(report.per_class) == {"a", "b", "c"}
    assert "matched with the model's by name" in report.notes[0]


def test_labels_in_another_order_are_matched_by_name():
    class Renumbered(Classifier):
        def spoil(self, output):
            return output[:, [1, 2, 0]]

    data = classification_data(names=("c", "a", "b"))
    report = evaluate.run(Renumbered(), data, CONTRACT, EvaluateOptions(names=("a", "b", "c")))
    assert report.top1 == 1.0


def test_names_that_only_differ_are_taken_by_number_and_said():
    options = EvaluateOptions(names=("x", "b", "c"))
    report = evaluate.run(Detector(), detection_data(), CONTRACT, options)
    assert report.map50_95 == 1.0
    assert "class 0 is 'x' and 'a'" in report.notes[0]


def test_other_classes_are_an_error():
    with pytest.raises(BadInput, match="knows 4 classes"):
        evaluate.run(
            Detector(classes=4),
            detection_data(),
            CONTRACT,
            EvaluateOptions(names=("p", "q", "r", "s")),
        )
    with pytest.raises(BadInput, match="with 4 classes, but there are 3 names"):
        evaluate.run(Detector(classes=4), detection_data(), CONTRACT)
    with pytest.raises(BadInput, match="has 5 classes, the data 3"):
        evaluate.run(Classifier(classes=5), classification_data(), CONTRACT)


def test_data_without_names_may_have_fewer_classes_than_the_model():
    report = evaluate.run(Classifier(classes=7), classification_data(named=False), CONTRACT)
    assert report.top1 == 1.0 and len(report.confusion) == 7
    assert set(report.per_class) == {"0", "1", "2"}
    named = EvaluateOptions(names=("p", "q", "r"))
    report = evaluate.run(Classifier(), classification_data(named=False), CONTRACT, named)
    assert report.per_class == {"p": 1.0, "q": 1.0, "r": 1.0}
    with pytest.raises(BadInput, match="has 2 classes, the data 3"):
        evaluate.run(Classifier(classes=2), classification_data(2, named=False), CONTRACT)


def test_the_contract_must_fit_the_input():
    with pytest.raises(BadInput, match=r"takes x \[1, 3, 64, 64\].*gives \[1, 3, 32, 64\]"):
        evaluate.run(Detector(), detection_data(), CONTRACT.replace(height=32))
    with pytest.raises(BadInput, match="takes float32, the preprocessing gives uint8"):
        evaluate.run(Detector(), detection_data(), CONTRACT.replace(dtype="uint8"))
    session = Detector()
    session.inputs = session.inputs * 2
    with pytest.raises(NotPossible, match="2 inputs"):
        evaluate.run(session, detection_data(), CONTRACT)


def test_the_head_may_be_named():
    options = EvaluateOptions(head="yolov8")
    assert evaluate.run(Detector(), detection_data(), CONTRACT, options).map50_95 == 1.0
    with pytest.raises(BadInput, match="layout of the head 'yolo26'"):
        evaluate.run(Detector(), detection_data(), CONTRACT, EvaluateOptions(head="yolo26"))
    with pytest.raises(BadInput, match="for the task classify"):
        evaluate.run(Detector(), detection_data(), CONTRACT, EvaluateOptions(head="logits"))


def test_a_runtime_may_drop_the_batch_of_one():
    class Bare(Detector):
        def spoil(self, output):
            return output[0]

    assert evaluate.run(Bare(), detection_data(), CONTRACT).map50_95 == 1.0


def test_intervals_and_the_paired_difference():
    class Half(Detector):
        def spoil(self, output):
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen % 2:
                output[:, 4:] = 0
            return output

    data = detection_data(60)
    options = EvaluateOptions(resamples=200)
    full = evaluate.measure(Detector(), data, CONTRACT, options)
    half = evaluate.measure(Half(), data, CONTRACT, options)
    report = evaluate.report(half, options)
    low, high = report.intervals["map50_95"]
    assert 0.3 < low < report.map50_95 < high < 0.7
    assert report.settings["interval_resamples"] == 200
    apart = evaluate.difference(full, half, options)
    assert apart.estimate == pytest.approx(report.map50_95 - 1.0)
    assert apart.high < 0
    fewer = evaluate.measure(Detector(), data, CONTRACT, EvaluateOptions(limit=5))
    with pytest.raises(UsageError, match="same images"):
        evaluate.difference(full, fewer)


@pytest.mark.parametrize(
    "wrong",
    [{"conf": -0.1}, {"iou": 1.5}, {"max_det": 0}, {"batch": 0}, {"resamples": 1}, {"limit": 0}],
)
def test_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        EvaluateOptions(**wrong)
