"""Whether decoded candidates can be true: how a wrong head, or a broken model, is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import BadInput
from edgekit.metrics.heads import Candidates, HeadMatch, Size

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PROBED_IMAGES = 8
_SCORE_TOLERANCE = 0.02
"""Quantized sigmoids may step a little over 1."""
_ENOUGH = 20
"""Candidates needed before a share of them means anything."""


class Plausibility:
    """Watches the candidates of an evaluation.

    `see` raises BadInput on what no right decoding gives: values that are not numbers, scores
    outside 0..1, classes that do not exist, boxes almost all outside the image, coordinates in
    fractions instead of pixels. `notes` says what is odd but possible: no candidate at all on any
    image (a model whose scores were quantized away does that, too).
    """

    def __init__(self, match: HeadMatch, size: Size, num_classes: int) -> None:
        self._match = match
        self._size = size
        self._num_classes = num_classes
        self.images = 0
        self.candidates = 0
        self.outside = 0
        self._largest = 0.0

    def see(self, output: NDArray[np.float32], found: Candidates, name: str) -> None:
        """Look at one image's raw output and candidates; `name` is the image's, for the message."""
        self.images += 1
        # one pass over the whole output; a sum is finite only if every value is
        if not np.isfinite(output.sum(dtype=np.float64)):
            raise BadInput(
                f"The model's output holds values that are not finite (on {name}).",
                hint="The model is broken, or fed the wrong input.",
            )
        if self.images <= _PROBED_IMAGES and self._match.head.scores is not None:
            scores = self._match.head.scores(output, self._num_classes)
            low, high = float(scores.min(initial=0.0)), float(scores.max(initial=0.0))
            if low < -_SCORE_TOLERANCE or high > 1 + _SCORE_TOLERANCE:
                raise BadInput(
                    f"Read as the head '{self._match.head.name}', scores lie in {low:.3g} to "
                    f"{high:.3g} instead of 0 to 1.",
                    hint="Choose another --head, or export the model with its sigmoid.",
                )
        if not len(found):
            return
        self._see_classes(found)
        self._see_boxes(found)

    def _see_classes(self, found: Candidates) -> None:
        low, high = int(found.classes.min()), int(found.classes.max())
        if low < 0 or high >= self._num_classes:
            raise BadInput(
                f"Read as the head '{self._match.head.name}', the model finds class "
                f"{low if low < 0 else high}, but there are {self._num_classes} names.",
                hint="Choose another --head, or give the data that the model was trained for.",
            )

    def _see_boxes(self, found: Candidates) -> None:
        height, width = self._size
        x1, y1, x2, y2 = found.boxes.T
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        outside = (cx < -0.5 * width) | (cx > 1.5 * width)
        outside |= (cy < -0.5 * height) | (cy > 1.5 * height)
        outside |= (x2 < x1) | (y2 < y1) | (x2 - x1 > 4 * width) | (y2 - y1 > 4 * height)
        self.candidates += len(found)
        self.outside += int(outside.sum())
        self._largest = max(self._largest, float(np.abs(found.boxes).max()))
        if self.candidates >= _ENOUGH and self.outside > 0.9 * self.candidates:
            raise BadInput(
                f"Read as the head '{self._match.head.name}', {self.outside} of "
                f"{self.candidates} boxes lie outside the image or are inside out.",
                hint="Choose another --head: these outputs are not such boxes.",
            )

    def finish(self) -> list[str]:
        """Notes on the whole run. Raises BadInput when every coordinate was a fraction."""
        if self.candidates >= _ENOUGH and self._largest <= 2.0:
            raise BadInput(
                f"Read as the head '{self._match.head.name}', every box lies within 2 pixels of "
                "the corner: the coordinates look like fractions of the image.",
                hint="Export the model with boxes in pixels, or choose another --head.",
            )
        notes = []
        if self.images and not self.candidates:
            notes.append(
                f"No score on any image is above the threshold: '{self._match.head.name}' is the "
                "wrong head, or the model lost its scores (quantized heads do)."
            )
        elif self.outside > 0.1 * self.candidates:
            share = self.outside / self.candidates
            notes.append(
                f"{share:.0%} of the boxes lie outside the image: is '{self._match.head.name}' the "
                "right head?"
            )
        return notes
