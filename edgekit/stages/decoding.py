"""From a session's outputs to typed answers: the head is settled once, then every image is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput
from edgekit.metrics.heads import HeadMatch, Size, choose_head
from edgekit.metrics.plausibility import Plausibility
from edgekit.metrics.postprocess import (
    Classification,
    Detections,
    Suppression,
    decode,
    suppress,
)
from edgekit.preprocess import Placement
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ANY_CLASS = 2**31 - 1


class Decoder:
    """Decodes the outputs of one model fed with inputs of `size` (height, width).

    `names` are the classes in the model's numbering; with `named` False they are mere numbers, and
    a classifier with more outputs than that gets as many. Attribute `match` is the head, once
    `settle` has seen the outputs of a run.
    """

    match: HeadMatch

    def __init__(
        self,
        size: Size,
        *,
        head: str | None = None,
        names: Sequence[str] = (),
        named: bool = True,
        task: str | None = None,
    ) -> None:
        self.names = tuple(names)
        self._size = size
        self._head = head
        self._named = named
        self._task = task

    @property
    def settled(self) -> bool:
        return hasattr(self, "match")

    def settle(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Choose the head by the shapes of a real run (batch axis included): a graph's own may be open.

        Raises BadInput when no head fits, or not the number of classes.
        """
        specs = [
            TensorSpec(name=name, shape=tuple(value.shape), dtype=str(value.dtype))
            for name, value in outputs.items()
        ]
        match = choose_head(
            specs,
            self._size,
            name=self._head,
            num_classes=len(self.names) or None,
            task=self._task,
        )
        known = match.num_classes
        if match.head.task == "classify":
            self._settle_classes(known)
        self.match = match
        self._plausibility = Plausibility(match, self._size, known or len(self.names) or _ANY_CLASS)

    def _settle_classes(self, known: int) -> None:
        """A classifier shows its classes in its shape: data without names gets that many."""
        wrong = self._named or len(self.names) > known
        if self.names and len(self.names) != known and wrong:
            raise BadInput(
                f"The model has {known} classes, the data {len(self.names)}.",
                hint="Give the data that the model was trained for.",
            )
        if len(self.names) < known:
            self.names = tuple(str(number) for number in range(known))

    def decode(
        self, output: NDArray[Any], placement: Placement, rule: Suppression, image: str
    ) -> Detections | Classification:
        """The answer for one image: `output` is its row of the head's output, without batch axis.

        Raises BadInput, naming `image`, for values that no right decoding gives.
        """
        import numpy as np

        values = np.asarray(output, dtype=np.float32)
        if self.match.head.task == "classify":
            return self._classify(values, image)
        classes = self.match.num_classes or len(self.names)
        candidates = decode(values, self.match, self._size, classes, rule)
        self._plausibility.see(values, candidates, image)
        return suppress(candidates, self.match, placement, rule)

    def _classify(self, values: NDArray[np.float32], image: str) -> Classification:
        import numpy as np

        logits = values.reshape(-1)
        if not np.isfinite(logits).all():
            raise BadInput(
                f"The model's output holds values that are not finite (on {image}).",
                hint="The model is broken, or fed the wrong input.",
            )
        return Classification(logits=logits)

    def finish(self) -> list[str]:
        """What was odd about all answers together. Raises BadInput when they cannot be true."""
        return self._plausibility.finish() if self.match.head.task == "detect" else []
