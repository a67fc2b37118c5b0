"""Running an open model over many images with reading, inference and decoding side by side."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit import images, preprocess
from edgekit.cpu import available_cores
from edgekit.errors import BadInput, NotPossible, UsageError
from edgekit.metrics.datasets import Dataset, Sample, Truth
from edgekit.metrics.heads import HeadMatch
from edgekit.metrics.postprocess import Classification, Detections, Suppression
from edgekit.preprocess import Placement, Preprocess
from edgekit.runtimes.base import Session
from edgekit.stages.decoding import Decoder
from edgekit.types import Progress, TensorSpec, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_WORKERS = 8
_MOST_DECODING = 2
_SWITCH_S = 0.0005


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model found on one image of `height` x `width` pixels, and the labels where known.

    `detections` or `classification` is set, by the task. `truth` and `label` are in the model's
    class numbers.
    """

    sample: Sample
    height: int
    width: int
    detections: Detections | None = None
    classification: Classification | None = None
    truth: Truth | None = None
    label: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    sample: Sample
    tensor: NDArray[Any]
    placement: Placement
    truth: Truth | None


class Predictor:
    """One pass of a session over a data set.

    After `run` is exhausted, `notes` say what was noticed, and `skipped` are the messages of the
    images that could not be read.
    """

    def __init__(
        self,
        session: Session,
        dataset: Dataset,
        contract: Preprocess,
        *,
        head: str | None = None,
        suppression: Suppression | None = None,
        names: Sequence[str] = (),
        batch: int | None = None,
        workers: int | None = None,
        max_bad_share: float = 0.0,
    ) -> None:
        self.dataset = dataset
        self.contract = contract
        self.notes: list[str] = []
        self.skipped: list[str] = []
        self._session = session
        self._rule = suppression or Suppression()
        self._workers = workers or max(1, min(_MOST_WORKERS, available_cores() - 1))
        self._max_bad_share = max_bad_share
        self._turned: set[str] = set()
        self._size = (contract.height, contract.width)
        self._input = check_input(session, contract)
        self._batch = _batch_size(self._input, batch)
        known, self._numbers = self._numbering(tuple(names))
        self._decoder = Decoder(
            self._size, head=head, names=known, named=dataset.named, task=dataset.task
        )

    @property
    def match(self) -> HeadMatch:
        """The head that is used; known once the first image was run."""
        return self._decoder.match

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the model's numbering."""
        return self._decoder.names

    def _numbering(
        self, model: tuple[str, ...]
    ) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
        """The model's class names, and for each class of the data its number in the model.

        None stands for equal numbering.
        """
        import numpy as np

        data = self.dataset.names
        if not self.dataset.named:
            # numbers for names: the model's own say more, where it has them all
            return (model if len(model) >= len(data) else data), None
        if not model or not data or model == data:
            return (data or model), None
        if len(set(model)) == len(model) and set(data) <= set(model):
            place = {name: number for number, name in enumerate(model)}
            self.notes.append(
                "The classes of the data are matched with the model's by name: their order or "
                "number differs."
            )
            return model, np.array([place[name] for name in data], dtype=np.int64)
        if len(data) == len(model):
            first = next(i for i in range(len(data)) if data[i] != model[i])
            self.notes.append(
                f"The model's class names differ from the data's (class {first} is "
                f"'{model[first]}' and '{data[first]}'); classes are taken by number."
            )
            return data, None
        raise BadInput(
            f"The model knows {len(model)} classes ({', '.join(model[:3])}, …), the data "
            f"{len(data)} others ({', '.join(data[:3])}, …).",
            hint="Give the data that the model was trained for.",
        )

    def run(self, progress: Progress = no_progress) -> Iterator[Prediction]:
        """Yield a `Prediction` per readable image, in order."""
        import cv2

        total = len(self.dataset)
        loaders = ThreadPoolExecutor(self._workers, thread_name_prefix="edgekit-load")
        decoder = ThreadPoolExecutor(1, thread_name_prefix="edgekit-decode")
        # OpenCV's own threads would take the cores that the model runs on
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        # the model must not wait for its turn in the interpreter: the usual 5 ms are a fifth of a run
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            loaded = self._loaded(loaders)
            decoding: deque[Future[list[Prediction]]] = deque()
            done = 0
            while True:
                items = list(itertools.islice(loaded, self._batch))
                if items:
                    outputs = self._run_model(items)
                    decoding.append(decoder.submit(self._decode, outputs, items))
                # wait only at the end, or when decoding falls behind
                while decoding and (
                    not items or len(decoding) > _MOST_DECODING or decoding[0].done()
                ):
                    for prediction in decoding.popleft().result():
                        done += 1
                        progress(done + len(self.skipped), total, "evaluate")
                        yield prediction
                if not items:
                    break
            self._finish(done)
        finally:
            sys.setswitchinterval(interval)
            cv2.setNumThreads(threads)
            loaders.shutdown(wait=True, cancel_futures=True)
            decoder.shutdown(wait=True, cancel_futures=True)

    # --- reading ----------------------------------------------------------------------------------

    def _load(self, sample: Sample) -> _Loaded | BadInput:
        """Read and preprocess one image; the error is an answer, so that it can be counted."""
        try:
            image = sample.image()
            height, width = image.shape[:2]
            truth = None if sample.objects is None else sample.truth(height, width)
            if truth is not None and sample.is_turned(height):
                self._turned.add(sample.name)
            tensor, placement = preprocess.apply(image, self.contract)
        except BadInput as error:
            return error
        if truth is not None and self._numbers is not None:
            truth = dataclasses.replace(truth, classes=self._numbers[truth.classes])
        return _Loaded(sample=sample, tensor=tensor, placement=placement, truth=truth)

    def _loaded(self, loaders: ThreadPoolExecutor) -> Iterator[_Loaded]:
        """Readable images in order, a few of them ahead of the model."""
        ahead = max(2 * self._workers, self._batch) + self._batch
        waiting: deque[Future[_Loaded | BadInput]] = deque()
        samples = iter(self.dataset.samples)
        while True:
            for sample in itertools.islice(samples, ahead - len(waiting)):
                waiting.append(loaders.submit(self._load, sample))
            if not waiting:
                return
            result = waiting.popleft().result()
            if isinstance(result, _Loaded):
                yield result
                continue
            self.skipped.append(result.message)
            if self._max_bad_share == 0:
                raise result
            images.check_bad_share(self.skipped, len(self.dataset), self._max_bad_share)

    # --- running ----------------------------------------------------------------------------------

    def _run_model(self, items: list[_Loaded]) -> dict[str, NDArray[np.float32]]:
        """Outputs with a batch axis, one row per item at least."""
        import numpy as np

        tensors = [item.tensor for item in items]
        fixed = self._input.shape[0]
        if isinstance(fixed, int):
            # the last batch may be short of what a fixed model takes
            tensors += [tensors[-1]] * (fixed - len(tensors))
        feed = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        outputs = {}
        for name, value in self._session.run({self._input.name: feed}).items():
            if value.ndim == 0 or value.shape[0] != len(tensors):
                if len(tensors) > 1:
                    continue  # no output per image
                value = value[None]
            outputs[name] = value
        if not self._decoder.settled:
            self._decoder.settle(outputs)
        return outputs

    # --- decoding ---------------------------------------------------------------------------------

    def _decode(self, outputs: dict[str, NDArray[Any]], items: list[_Loaded]) -> list[Prediction]:
        import numpy as np

        value = np.asarray(outputs[self.match.output], dtype=np.float32)
        return [self._decode_one(value[i], item) for i, item in enumerate(items)]

    def _decode_one(self, output: NDArray[np.float32], item: _Loaded) -> Prediction:
        sample, placement = item.sample, item.placement
        answer = self._decoder.decode(output, placement, self._rule, sample.name)
        height, width = placement.source_height, placement.source_width
        if isinstance(answer, Detections):
            return Prediction(
                sample=sample, height=height, width=width, detections=answer, truth=item.truth
            )
        label = sample.label
        if label is not None and self._numbers is not None:
            label = int(self._numbers[label])
        return Prediction(
            sample=sample, height=height, width=width, classification=answer, label=label
        )

    def _finish(self, done: int) -> None:
        if not done:
            raise BadInput("No image could be used.", hint="Check the data's images.")
        if self.skipped:
            self.notes.append(
                f"{len(self.skipped)} images could not be read and were left out: {self.skipped[0]}"
            )
        if self._turned:
            self.notes.append(
                f"{len(self._turned)} images are turned by EXIF and were labelled as they are stored: "
                f"their boxes are turned along ({min(self._turned)})."
            )
        self.notes.extend(self._decoder.finish())


def check_input(session: Session, contract: Preprocess) -> TensorSpec:
    """The session's one image input, which the contract must fit."""
    if len(session.inputs) != 1:
        raise NotPossible(
            f"The model has {len(session.inputs)} inputs; edgekit takes one image input."
        )
    spec = session.inputs[0]
    wanted = contract.input_shape
    fits = len(spec.shape) == 4 and all(
        not isinstance(have, int) or have == want
        for have, want in zip(spec.shape[1:], wanted[1:], strict=True)
    )
    if not fits:
        raise BadInput(
            f"The model takes {spec.name} {list(spec.shape)}, the preprocessing gives "
            f"{list(wanted)}.",
            hint="Set the size with --imgsz, and --layout or --color as the model needs them.",
        )
    if spec.dtype != contract.dtype:
        raise BadInput(
            f"The model takes {spec.dtype}, the preprocessing gives {contract.dtype}.",
            hint="Correct dtype in the preprocessing contract (--preprocess FILE).",
        )
    return spec


def _batch_size(spec: TensorSpec, asked: int | None) -> int:
    fixed = spec.shape[0]
    if not isinstance(fixed, int):
        return asked or 1
    if asked is not None and asked != fixed:
        raise UsageError(
            f"The model runs batches of {fixed}, not {asked}.",
            hint=f"Leave --batch away, or give --batch {fixed}.",
        )
    return fixed
