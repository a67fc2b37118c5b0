"""Accuracy of an open model, on any runtime, on labelled data.

Images are read and preprocessed by a pool of threads, the model runs in the calling thread, and
decoding with suppression happens in a third place, so that a run costs little more than the bare
inference. All queues are bounded: memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput, UsageError
from edgekit.metrics import bootstrap, classification, detection
from edgekit.metrics.bootstrap import Interval
from edgekit.metrics.classification import ClassificationFigures
from edgekit.metrics.datasets import Dataset
from edgekit.metrics.detection import DetectionFigures, ImageResult
from edgekit.metrics.postprocess import Suppression
from edgekit.preprocess import Preprocess
from edgekit.runtimes.base import Session
from edgekit.stages.predict import Prediction, Predictor
from edgekit.types import AccuracyReport, Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How accuracy is measured.

    head: a decoder's name, None to tell it from the shapes. conf, iou, candidates, max_det,
    multi_label: see `Suppression`. limit: so many images, spread evenly. workers: threads that read
    images, None for the cores but one. batch: images per run, None for what the model fixes, or 1.
    names: the model's own class names; where the data's names are in another order, classes are
    matched by name. resamples: for confidence intervals, 0 for none. max_bad_share: images that may
    be unreadable before it is an error.
    """

    head: str | None = None
    conf: float = 0.001
    iou: float = 0.65
    candidates: int = 10_000
    max_det: int = 300
    multi_label: bool = True
    limit: int | None = None
    workers: int | None = None
    batch: int | None = None
    names: tuple[str, ...] = ()
    resamples: int = 0
    confidence: float = 0.95
    seed: int = 0
    max_bad_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("conf", "iou", "max_bad_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must lie in 0..1, got {value}.")
        for name in ("candidates", "max_det", "limit", "workers", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, got {value}.")
        if self.resamples < 0 or self.resamples == 1:
            raise UsageError(f"resamples must be 0 or at least 2, got {self.resamples}.")
        if not 0 < self.confidence < 1:
            raise UsageError(f"confidence must lie between 0 and 1, got {self.confidence}.")

    @property
    def suppression(self) -> Suppression:
        return Suppression(
            conf=self.conf,
            iou=self.iou,
            candidates=self.candidates,
            max_det=self.max_det,
            multi_label=self.multi_label,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """An evaluation with what comparisons need: `images` names the samples that were counted."""

    task: str
    images: tuple[str, ...]
    figures: DetectionFigures | ClassificationFigures = field(repr=False)
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    def statistic(self, weights: NDArray[np.float64]) -> float:
        """mAP50-95 or top-1 with image i counted weights[i] times."""
        if isinstance(self.figures, DetectionFigures):
            return self.figures.matches.mean_average_precision(weights)
        return self.figures.weighted(weights)


def _predictor(
    session: Session, dataset: Dataset, contract: Preprocess, options: EvaluateOptions
) -> Predictor:
    return Predictor(
        session,
        dataset if options.limit is None else dataset.limited(options.limit),
        contract,
        head=options.head,
        suppression=options.suppression,
        names=options.names,
        batch=options.batch,
        workers=options.workers,
        max_bad_share=options.max_bad_share,
    )


def predictions(
    session: Session,
    dataset: Dataset,
    contract: Preprocess,
    options: EvaluateOptions | None = None,
    progress: Progress = no_progress,
) -> Iterator[Prediction]:
    """Yield what the model finds on each image, in the data set's order; labels are not needed.

    Closing the iterator stops its threads. Raises what `run` raises.
    """
    yield from _predictor(session, dataset, contract, options or EvaluateOptions()).run(progress)


def measure(
    session: Session,
    dataset: Dataset,
    contract: Preprocess,
    options: EvaluateOptions | None = None,
    progress: Progress = no_progress,
    see: Callable[[Prediction, Sequence[str]], object] | None = None,
) -> Outcome:
    """Run the model over the data and compute its figures; see `run` for what it raises.

    `see` gets every prediction with the class names, before the next one.
    """
    options = options or EvaluateOptions()
    predictor = _predictor(session, dataset, contract, options)
    counted: list[str] = []
    results: list[ImageResult] = []
    ranked: list[NDArray[np.int64]] = []
    labels: list[int] = []
    with ThreadPoolExecutor(1, thread_name_prefix="edgekit-match") as matcher:
        for prediction in predictor.run(progress):
            if see is not None:
                see(prediction, predictor.names)
            counted.append(prediction.sample.name)
            if prediction.detections is not None and prediction.truth is not None:
                result = ImageResult(found=prediction.detections, truth=prediction.truth)
                matcher.submit(getattr, result, "match")  # beside the model's next run
                results.append(result)
            elif prediction.classification is not None and prediction.label is not None:
                ranked.append(prediction.classification.ranked(5))
                labels.append(prediction.label)
            else:
                raise BadInput(
                    f"{prediction.sample.name} has no label for the task {dataset.task}."
                )
    figures: DetectionFigures | ClassificationFigures
    settings: dict[str, Any] = {"head": predictor.match.head.name, "split": dataset.split}
    notes = [*predictor.dataset.notes, *predictor.notes]
    if dataset.task == "detect":
        figures = detection.evaluate(results, predictor.names)
        settings.update(_detection_settings(predictor, options, figures))
        if not figures.per_class:
            notes.append("The data has no box to find: every figure is 0.")
    else:
        figures = classification.evaluate(ranked, labels, predictor.names)
        if len(ranked) > 1 and len({int(best[0]) for best in ranked}) == 1:
            notes.append(
                f"The answer on every image is '{predictor.names[int(ranked[0][0])]}': the model "
                "is broken, or fed the wrong input."
            )
    return Outcome(
        task=dataset.task,
        images=tuple(counted),
        figures=figures,
        settings=settings,
        notes=tuple(notes),
    )


def _detection_settings(
    predictor: Predictor, options: EvaluateOptions, figures: DetectionFigures
) -> dict[str, Any]:
    settings: dict[str, Any] = {"conf": options.conf, "max_det": options.max_det}
    if predictor.match.head.suppressed:
        settings["nms"] = "in the model"
    else:
        settings.update(
            nms="class-wise",
            iou=options.iou,
            candidates=options.candidates,
            multi_label=options.multi_label,
        )
    settings["precision_recall"] = "mean over classes at the best mean F1, IoU 0.5"
    settings["precision_recall_confidence"] = figures.point.confidence
    return settings


def report(outcome: Outcome, options: EvaluateOptions | None = None) -> AccuracyReport:
    """The figures of an outcome, with intervals when `options.resamples` asks for them."""
    options = options or EvaluateOptions()
    figures = outcome.figures
    settings = dict(outcome.settings)
    intervals: dict[str, tuple[float, ...]] = {}
    names = ("map50_95",) if outcome.task == "detect" else ("top1", "top5")
    if options.resamples and len(outcome.images) > 1:
        for name in names:
            found = bootstrap.interval(
                (lambda weights: figures.weighted(weights, top=5))
                if name == "top5" and isinstance(figures, ClassificationFigures)
                else outcome.statistic,
                len(outcome.images),
                resamples=options.resamples,
                confidence=options.confidence,
                seed=options.seed,
            )
            intervals[name] = (found.low, found.high)
        settings["interval_confidence"] = options.confidence
        settings["interval_resamples"] = options.resamples
    if isinstance(figures, DetectionFigures):
        return AccuracyReport(
            task=outcome.task,
            images=len(outcome.images),
            map50_95=figures.map50_95,
            map50=figures.map50,
            map75=figures.map75,
            precision=figures.point.precision,
            recall=figures.point.recall,
            per_class=figures.per_class,
            settings=settings,
            intervals=intervals,
            notes=outcome.notes,
        )
    return AccuracyReport(
        task=outcome.task,
        images=len(outcome.images),
        top1=figures.top1,
        top5=figures.top5,
        per_class=figures.per_class,
        settings=settings,
        intervals=intervals,
        confusion=tuple(tuple(row) for row in figures.confusion.tolist()),
        notes=outcome.notes,
    )


def difference(first: Outcome, second: Outcome, options: EvaluateOptions | None = None) -> Interval:
    """`second` minus `first` in mAP50-95 or top-1 on the same images, with its paired interval.

    Raises UsageError when the two did not see the same images.
    """
    options = options or EvaluateOptions()
    if (first.task, first.images) != (second.task, second.images):
        raise UsageError("Two evaluations can only be compared on the same images.")
    return bootstrap.paired_difference(
        first.statistic,
        second.statistic,
        len(first.images),
        resamples=options.resamples or 1000,
        confidence=options.confidence,
        seed=options.seed,
    )


def run(
    session: Session,
    dataset: Dataset,
    contract: Preprocess,
    options: EvaluateOptions | None = None,
    progress: Progress = no_progress,
    see: Callable[[Prediction, Sequence[str]], object] | None = None,
) -> AccuracyReport:
    """Measure accuracy: mAP by the COCO protocol for detection data, top-1 and top-5 else.

    Raises BadInput for an image that cannot be read (beyond `max_bad_share`), a contract that does
    not fit the model's input, a head that does not fit the outputs, data of other classes, and
    outputs that no right decoding gives (scores outside 0..1, boxes outside the image). A model
    that finds nothing at all is measured, and a note says so.
    """
    options = options or EvaluateOptions()
    return report(measure(session, dataset, contract, options, progress, see), options)
