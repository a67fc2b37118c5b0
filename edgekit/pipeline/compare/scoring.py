"""Accuracy of each row on the same images, and the paired differences; through the stage cache.

What is kept of an evaluation is which detections were right on which image (or which images were
classified right), so that a difference with its interval is worked out without running anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import cpu
from edgekit.codec import to_record
from edgekit.errors import EdgekitError
from edgekit.metrics import bootstrap
from edgekit.metrics.classification import ClassificationFigures
from edgekit.metrics.detection import DetectionFigures
from edgekit.metrics.matching import Matches
from edgekit.pipeline.compare.candidates import Candidate
from edgekit.pipeline.runner import Outcome, StageRunner
from edgekit.report.comparison import Drop
from edgekit.require import versions_of
from edgekit.runtimes.base import SessionOptions
from edgekit.stages import evaluate
from edgekit.stages.opening import TORCH, open_session
from edgekit.types import AccuracyReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.metrics.datasets import Dataset

_VERSION = 1
_ARRAYS = (
    "image",
    "number",
    "score",
    "hit",
    "ignored",
    "object_image",
    "object_number",
)
_PACKAGES = {TORCH: "torch"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy of one model; `outcomes` (.npz) says image by image what was right, `images` which."""

    accuracy: AccuracyReport
    outcomes: Path
    images: tuple[str, ...]

    def statistic(self) -> Callable[[NDArray[Any]], float]:
        """mAP50-95 or top-1 as a function of how often each image is counted."""
        with np.load(self.outcomes, allow_pickle=False) as arrays:
            if "correct" in arrays:
                correct = arrays["correct"]
                return lambda weights: float(np.dot(weights, correct) / np.sum(weights))
            images, classes = (int(value) for value in arrays["sizes"])
            matches = Matches(
                images=images, num_classes=classes, **{name: arrays[name] for name in _ARRAYS}
            )
        return matches.mean_average_precision


@dataclass(frozen=True, kw_only=True)
class _Paired:
    """A cached difference, fractions of 1."""

    difference: float
    low: float
    high: float


def score(
    candidate: Candidate, dataset: Dataset, data_sha256: str, runner: StageRunner
) -> Outcome[Score] | None:
    """The accuracy of a row; what fails becomes an error of the row, and None."""
    form = candidate.deployed
    if form is None or candidate.contract is None:
        return None
    contract, model = candidate.contract, form.model
    options = evaluate.EvaluateOptions(head=candidate.head, names=candidate.names)
    package = _PACKAGES.get(model.runtime, model.runtime)
    fields = {
        "version": _VERSION,
        "libraries": versions_of(package, "faster_coco_eval", "numpy", "cv2"),
        "model": form.sha256,
        "runtime": model.runtime,
        "optimize": model.optimize,
        "preprocess": contract.to_dict(),
        "options": to_record(dataclasses.replace(options, workers=None)),
        "data": data_sha256,
        "isa": list(cpu.detect().isa),
    }

    def work(folder: Path) -> Score:
        settings = SessionOptions(
            threads=max(1, cpu.available_cores() - 1), optimize=model.optimize
        )
        with open_session(
            model.runtime, model.files, settings, load=model.load, contract=contract
        ) as session:
            outcome = evaluate.measure(session, dataset, contract, options, runner.progress)
        file = folder / "outcomes.npz"
        np.savez_compressed(file, allow_pickle=False, **_arrays(outcome.figures))
        return Score(
            accuracy=evaluate.report(outcome, options), outcomes=file, images=outcome.images
        )

    try:
        return runner.run("score", fields, Score, work)
    except EdgekitError as error:
        candidate.failed(error, "accuracy")
        return None


def _arrays(figures: DetectionFigures | ClassificationFigures) -> dict[str, Any]:
    if isinstance(figures, ClassificationFigures):
        return {"correct": figures.correct}
    matches = figures.matches
    sizes = np.array([matches.images, matches.num_classes], dtype=np.int64)
    return {"sizes": sizes, **{name: getattr(matches, name) for name in _ARRAYS}}


def drop(
    this: Outcome[Score], baseline: Outcome[Score], resamples: int, runner: StageRunner
) -> Drop | None:
    """This row's accuracy minus the baseline's; None when they did not see the same images."""
    if this.value.images != baseline.value.images:
        return None
    difference = this.value.accuracy.value - baseline.value.accuracy.value
    if not resamples:
        return Drop(difference=difference)

    def work(folder: Path) -> _Paired:
        found = bootstrap.paired_difference(
            baseline.value.statistic(),
            this.value.statistic(),
            len(this.value.images),
            resamples=resamples,
        )
        return _Paired(difference=found.estimate, low=found.low, high=found.high)

    fields = {
        "version": _VERSION,
        "this": this.key,
        "baseline": baseline.key,
        "resamples": resamples,
        "libraries": versions_of("numpy"),
    }
    paired = runner.run("paired", fields, _Paired, work).value
    return Drop(difference=difference, low=paired.low, high=paired.high)
