"""How many calibration images are enough: INT8 against the number of images, each image run once.

The images, in the order of their hashes (a draw that depends on nothing else), are cut at the given
counts; each stretch is collected by itself, through the stage cache, and the statistics of n images
are those of the stretches up to n added up. So a study costs one calibration on the largest count,
and its largest row is bit for bit that calibration.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import BadInput, UsageError
from edgekit.pipeline.collecting import Subject, collect
from edgekit.preprocess import apply
from edgekit.target import TargetProfile
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.calibration.source import ImageSource
    from edgekit.metrics.datasets import Dataset
    from edgekit.stages.calibrate import CalibrateOptions
    from edgekit.types import Calibration, OnnxModel

JUDGED_IMAGES = 16
"""Images on which the outputs are compared with the float model's."""

# fewer images left over than this are too few to judge on
_LEAST_LEFT_OVER = 4


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """INT8 with the statistics of `images` images.

    sqnr_db: of the worst output block against the float model, higher is better; uncertainty: the
    estimated relative error of the ranges, nine tenths of the tensors are within it (None: too few
    images to tell); accuracy: mAP50-95 or top-1 as a fraction of 1, None without labelled data.
    """

    images: int
    sqnr_db: float
    block: str
    uncertainty: float | None
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """One row for each number of images, fewest first; `float_accuracy` is the float model's.

    `judged` images were compared; `judged_seen` says that the largest row was calibrated on them,
    for want of others. `calibration` is that of the largest row.
    """

    rows: tuple[StudyRow, ...]
    method: str
    judged: int
    judged_seen: bool
    metric: str | None
    float_accuracy: float | None
    calibration: Calibration


class _Part:
    """Some images of a source, by their numbers."""

    def __init__(self, source: ImageSource, numbers: Sequence[int]) -> None:
        self._source, self._numbers = source, tuple(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def name(self, index: int) -> str:
        return self._source.name(self._numbers[index])

    def fingerprint(self, index: int, *hash_file: Any) -> str:
        return self._source.fingerprint(self._numbers[index], *hash_file)

    def read(self, index: int) -> tuple[str, NDArray[np.uint8]]:
        return self._source.read(self._numbers[index])


def parse_counts(text: str) -> tuple[int, ...]:
    """ "8,32,128" → (8, 32, 128), rising. Raises UsageError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"The numbers of images {text!r} cannot be read.", hint="For example --study 8,32,128"
        )
    return tuple(sorted({int(part) for part in parts}))


def run(
    subject: Subject,
    source: ImageSource,
    counts: Sequence[int],
    target: TargetProfile,
    out: Path | None,
    options: CalibrateOptions,
    *,
    data: Dataset | None = None,
    progress: Progress = no_progress,
    say: Callable[[str], None] = lambda message: None,
) -> Study:
    """Quantize for `target` with the statistics of each number of images, and compare with float.

    `out` keeps the statistics of the largest number. Images that cannot be read are left out, and
    said; equal images count once. Raises BadInput when there are fewer images than the smallest
    count, and what calibrating and quantizing raise.
    """
    from edgekit.stages import calibrate

    numbers = _readable(source, options, say)
    counts = _possible(counts, len(numbers), say)
    held = numbers[counts[-1] :]
    seen = len(held) < _LEAST_LEFT_OVER
    # without others, the last ones of the largest row are what fewest rows have seen
    judged = numbers[-JUDGED_IMAGES:] if seen else held[:JUDGED_IMAGES]
    judge = _Judge(subject, [source.read(number)[1] for number in judged], target, data)
    float_accuracy = judge.float_accuracy(progress)
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgekit-study-") as name:
        folder = Path(name)
        whole: Path | None = None
        calibration: Calibration | None = None
        for start, stop in zip((0, *counts), counts, strict=False):
            part = _Part(source, numbers[start:stop])
            file = folder / f"part-{stop}.npz"
            calibration = collect(subject, part, file, options, progress, say)
            if whole is not None:
                merged = folder / f"all-{stop}.npz"
                calibration = calibrate.merge([whole, file], merged, options)
                file = merged
            whole = file
            rows.append(judge.row(calibration, options, folder / "int8.onnx", progress))
        assert calibration is not None and whole is not None
        if out is not None:
            _keep(whole, out)
            calibration = dataclasses.replace(calibration, path=out)
    return Study(
        rows=tuple(rows),
        method=options.method,
        judged=len(judged),
        judged_seen=seen,
        metric=judge.metric,
        float_accuracy=float_accuracy,
        calibration=calibration,
    )


def _readable(
    source: ImageSource, options: CalibrateOptions, say: Callable[[str], None]
) -> list[int]:
    """Numbers of the distinct images that can be decoded, in the order of their hashes."""
    from edgekit.images import check_bad_share

    found: dict[str, int] = {}
    bad = []
    for index in range(len(source)):
        try:
            found.setdefault(source.read(index)[0], index)
        except BadInput as error:
            bad.append(error.message)
            say(f"Left out: {error.message}")
    check_bad_share(bad, len(source), options.max_bad_share)
    return [found[sha256] for sha256 in sorted(found)]


def _possible(counts: Sequence[int], images: int, say: Callable[[str], None]) -> tuple[int, ...]:
    if counts[0] > images:
        raise BadInput(
            f"There are {images} usable images, the smallest number asked for is {counts[0]}.",
            hint="Ask for fewer (--study), or give more images.",
        )
    if counts[-1] > images:
        say(f"There are {images} usable images: that is the largest row.")
    return tuple(sorted({min(count, images) for count in counts}))


class _Judge:
    """INT8 models against the float one, on the same images."""

    def __init__(
        self,
        subject: Subject,
        pictures: Sequence[NDArray[np.uint8]],
        target: TargetProfile,
        data: Dataset | None,
    ) -> None:
        self._subject, self._target, self._data = subject, target, data
        self._feeds = [apply(picture, subject.contract)[0] for picture in pictures]
        self.metric: str | None = None

    def float_accuracy(self, progress: Progress) -> float | None:
        return self._accuracy(self._subject.model, progress)

    def _accuracy(self, model: OnnxModel, progress: Progress) -> float | None:
        if self._data is None:
            return None
        from edgekit.runtimes import open_session
        from edgekit.stages import evaluate

        head = self._subject.model.metadata.get(onnx_file.HEAD_KEY)
        options = evaluate.EvaluateOptions(head=head)
        with open_session("onnxruntime", model.path) as session:
            report = evaluate.run(session, self._data, self._subject.contract, options, progress)
        self.metric = report.metric
        return report.value

    def row(
        self, calibration: Calibration, options: CalibrateOptions, file: Path, progress: Progress
    ) -> StudyRow:
        import math

        from edgekit.calibration import store
        from edgekit.calibration.stability import stability
        from edgekit.stages import quantize

        done = quantize.run(
            self._subject.model,
            calibration,
            self._target,
            self._feeds,
            file,
            quantize.QuantizeOptions(),
            limits=None,
        )
        assert done.parity is not None
        worst = min(done.parity.blocks, key=lambda block: block.sqnr_db)
        steady = stability(
            store.read(calibration.path)[0],
            options.method,
            symmetric=options.symmetric,
            levels=options.levels,
            overrides=options.overrides,
        )
        return StudyRow(
            images=calibration.images,
            sqnr_db=worst.sqnr_db,
            block=worst.name,
            uncertainty=None if math.isnan(steady.p90) else steady.p90,
            accuracy=self._accuracy(done.model, progress),
        )


def _keep(file: Path, out: Path) -> None:
    import shutil

    from edgekit.atomic import replacing

    with replacing(out) as temporary:
        shutil.copyfile(file, temporary)
