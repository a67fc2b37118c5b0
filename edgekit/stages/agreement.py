"""How much of the float model's own answers a candidate keeps, on calibration images.

No label enters: the float model's answers are the truth, so that a search can be judged without ever
seeing an image that accuracy is reported on.

- detection: mAP50-95 of the candidate against the float model's detections of confidence 0.25 and
  more (1 = the same boxes);
- classification: mean over the images of sum_k min(p_k, q_k) of the class probabilities;
- other outputs: 1 - noise / signal of the worst block, not below 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput
from edgekit.metrics.datasets.base import Truth
from edgekit.metrics.detection import ImageResult, average_precision
from edgekit.metrics.postprocess import Classification, Detections, Suppression
from edgekit.preprocess import Preprocess, apply
from edgekit.stages.decoding import Decoder
from edgekit.stages.parity import ParityMeter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.block import Block
    from edgekit.runtimes.base import Session

_CONFIDENT = 0.25


class Agreement:
    """The judge of one float model: opened once, then asked about candidates.

    `confident`: detections of the float model below it are no truth. More boxes tell nearer candidates
    apart, and let more of the float model's own mistakes count.
    """

    def __init__(
        self,
        reference: Session,
        pictures: Sequence[NDArray[np.uint8]],
        contract: Preprocess,
        blocks: Sequence[Block],
        *,
        head: str | None = None,
        names: Sequence[str] = (),
        task: str | None = None,
        confident: float = _CONFIDENT,
    ) -> None:
        if not pictures:
            raise BadInput("Agreement needs at least one image.")
        self._input = reference.inputs[0].name
        self._blocks = blocks
        self._confident = confident
        self._pictures = pictures
        self._contract = contract
        # kept only where numbers are compared: a detector's outputs of a hundred images are a gigabyte
        self._outputs: list[dict[str, NDArray[Any]]] = []
        size = (contract.height, contract.width)
        self._decoder: Decoder | None = Decoder(
            size, head=head, names=names, named=bool(names), task=task
        )
        try:
            first, _ = apply(pictures[0], contract)
            self._decoder.settle(reference.run({self._input: first}))
        except BadInput:
            # outputs that no head explains are compared as numbers
            self._decoder = None
        self._answers = [] if self._decoder is None else list(self._run(reference))
        if self._decoder is not None and self._decoder.match.head.task == "detect":
            certain = sum(
                int((answer.scores >= confident).sum())
                for answer in self._answers
                if isinstance(answer, Detections)
            )
            if not certain:
                self._decoder = None
        if self._decoder is None:
            self._outputs = list(self._numbers_of(reference))

    def _numbers_of(self, session: Session) -> Iterator[dict[str, NDArray[Any]]]:
        for picture in self._pictures:
            yield session.run({self._input: apply(picture, self._contract)[0]})

    def _run(self, session: Session) -> Iterator[Detections | Classification]:
        """What `session` sees on each image, decoded."""
        assert self._decoder is not None
        for number, picture in enumerate(self._pictures):
            feed, placement = apply(picture, self._contract)
            row = session.run({self._input: feed})[self._decoder.match.output][0]
            yield self._decoder.decode(row, placement, Suppression(), f"calibration image {number}")

    def score(self, candidate: Session) -> float:
        """Agreement of `candidate` with the float model, 0 to 1."""
        if self._decoder is None:
            return self._numbers(self._numbers_of(candidate))
        try:
            answers = list(self._run(candidate))
        except BadInput:
            # values that no right decoding gives: as far from the float model as can be
            return 0.0
        if self._decoder.match.head.task == "detect":
            return self._detections(answers)
        return self._classes(answers)

    def _numbers(self, found: Iterable[dict[str, NDArray[Any]]]) -> float:
        meter = ParityMeter(self._blocks)
        for reference, outputs in zip(self._outputs, found, strict=True):
            meter.add(reference, outputs)
        noise = max(10 ** (-block.sqnr_db / 10) for block in meter.report().blocks)
        return max(0.0, 1.0 - noise)

    def _classes(self, answers: Sequence[Any]) -> float:
        import numpy as np

        return float(
            np.mean(
                [
                    np.minimum(one.probabilities(), other.probabilities()).sum()
                    for one, other in zip(self._answers, answers, strict=True)
                    if isinstance(one, Classification)
                ]
            )
        )

    def _detections(self, answers: Sequence[Any]) -> float:
        import numpy as np

        assert self._decoder is not None
        results = []
        for answer, found in zip(self._answers, answers, strict=True):
            assert isinstance(answer, Detections)
            sure = answer.scores >= self._confident
            truth = Truth.of(answer.boxes[sure].tolist(), answer.classes[sure].tolist())
            results.append(ImageResult(found=found, truth=truth))
        count = self._decoder.match.num_classes or len(self._decoder.names)
        return float(np.nanmean(average_precision(results, count)))
