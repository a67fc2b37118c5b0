"""Predictions written out as images, one file for each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgekit import atomic
from edgekit.errors import UsageError
from edgekit.report.drawing import Marked, draw_boxes, draw_ranking, encode
from edgekit.stages.predict import Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RANKED = 5


class ImageWriter:
    """Writes predictions under `out`, each to the path of its sample with the suffix .jpg.

    `names` are the class names in the model's numbering. Of detections those with a score of `conf`
    or more are drawn; with `labels` the labelled boxes, too, as thin white lines. `count` images with
    `marks` boxes have been written.
    """

    def __init__(
        self, out: Path, names: Sequence[str], *, conf: float = 0.25, labels: bool = True
    ) -> None:
        self.out = Path(out)
        self.count = 0
        self.marks = 0
        self._names = tuple(names)
        self._conf = conf
        self._labels = labels
        self._used: set[Path] = set()

    def write(self, prediction: Prediction) -> Path:
        """Draw one prediction and return the file. Raises UsageError before a source is overwritten."""
        target = self._target(prediction)
        drawn = self._drawn(prediction)
        atomic.write_bytes(target, encode(drawn, ".jpg"))
        self.count += 1
        return target

    def _target(self, prediction: Prediction) -> Path:
        sample = prediction.sample
        parts = [
            part
            for part in PurePosixPath(sample.name.replace("\\", "/")).parts
            if part not in ("/", "..", ".") and not part.endswith(":")
        ]
        place = Path(*parts) if parts else Path("image")
        target = self.out / place.with_name(place.stem + ".jpg")
        number = 1
        while target in self._used:
            number += 1
            target = target.with_name(f"{place.stem}-{number}.jpg")
        self._used.add(target)
        if sample.path is not None and target.resolve() == sample.path.resolve():
            raise UsageError(
                f"Writing to {self.out} would overwrite the image {sample.path}.",
                hint="Choose another folder.",
            )
        return target

    def _drawn(self, prediction: Prediction) -> NDArray[np.uint8]:
        image = prediction.sample.image()
        found = prediction.detections
        if found is None:
            assert prediction.classification is not None
            probabilities = prediction.classification.probabilities()
            ranked = [
                (self._name(int(number)), float(probabilities[number]))
                for number in prediction.classification.ranked(_RANKED)
            ]
            label = None if prediction.label is None else self._name(prediction.label)
            return draw_ranking(image, ranked, label)
        marks = [
            Marked(box=_corners(box), number=number, name=self._name(number), score=score)
            for box, score, number in zip(
                found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
            )
            if score >= self._conf
        ]
        self.marks += len(marks)
        if prediction.truth is not None and self._labels:
            marks += [
                Marked(box=_corners(box), number=number, name=self._name(number))
                for box, number in zip(
                    prediction.truth.boxes.tolist(), prediction.truth.classes.tolist(), strict=True
                )
            ]
        return draw_boxes(image, marks)

    def _name(self, number: int) -> str:
        return self._names[number] if 0 <= number < len(self._names) else str(number)


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1, y1, x2, y2
