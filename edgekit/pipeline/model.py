"""The Python API: open a model or bundle, give it an image, get typed answers.

import edgekit

with edgekit.load("best-x86-int8") as model:
    for found in model.predict("photo.jpg"):
        print(found.name, found.score, found.box)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit import images as reader
from edgekit.checkpoint import LoadOptions
from edgekit.errors import BadInput
from edgekit.metrics.datasets import Dataset, Sample
from edgekit.metrics.postprocess import Classification, Detections, Suppression
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes.base import SessionOptions
from edgekit.stages.decoding import Decoder
from edgekit.stages.opening import NamedModel, describe
from edgekit.stages.predict import Prediction, Predictor, check_input
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One found object: corners in pixels of the image as given, score in 0..1, class."""

    x1: float
    y1: float
    x2: float
    y2: float
    score: float
    class_id: int
    name: str

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2)"""
        return self.x1, self.y1, self.x2, self.y2


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionResult:
    """What was found on one image of `height` x `width` pixels, best first.

    boxes float32 [N, 4] (x1, y1, x2, y2) in pixels of the image as given, scores float32 [N],
    class_ids int64 [N]; iterating gives `Detection`s.
    """

    height: int
    width: int
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, number in zip(
            self.boxes.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True
        ):
            yield Detection(
                x1=box[0],
                y1=box[1],
                x2=box[2],
                y2=box[3],
                score=score,
                class_id=number,
                name=_name(self.names, number),
            )

    def draw(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of the RGB image [h, w, 3] with the boxes drawn in."""
        from edgekit.report.drawing import Marked, draw_boxes

        marks = [
            Marked(box=found.box, number=found.class_id, name=found.name, score=found.score)
            for found in self
        ]
        return draw_boxes(image, marks)


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """A class and its probability."""

    class_id: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationResult:
    """The answer on one image of `height` x `width` pixels: probabilities float32 [K]."""

    height: int
    width: int
    probabilities: NDArray[np.float32]
    names: tuple[str, ...] = field(repr=False)

    def top(self, count: int = 5) -> tuple[ClassScore, ...]:
        """The `count` most probable classes, best first."""
        import numpy as np

        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return tuple(
            ClassScore(
                class_id=int(number),
                name=_name(self.names, int(number)),
                probability=float(self.probabilities[number]),
            )
            for number in order
        )

    @property
    def best(self) -> ClassScore:
        """The most probable class."""
        return self.top(1)[0]

    def draw(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of the RGB image [h, w, 3] above a strip with the five best classes."""
        from edgekit.report.drawing import draw_ranking

        return draw_ranking(image, [(item.name, item.probability) for item in self.top(5)])


Result = DetectionResult | ClassificationResult


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)


class Model:
    """An open model that takes images; see `load`. Use it as a context manager, or `close` it.

    `contract` is the preprocessing that every image goes through, `warning` is not empty when it
    had to be assumed, `names` are the class names, `runtime` and `precision` say what runs.
    """

    def __init__(
        self,
        described: NamedModel,
        *,
        overrides: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
        head: str | None = None,
        options: SessionOptions | None = None,
    ) -> None:
        resolved = described.contract(overrides, size)
        self.described = described
        self.contract: Preprocess = resolved.contract
        self.warning = resolved.warning
        self.runtime = described.runtime
        self.precision = described.precision
        self._head = head or described.checkpoint.head
        self._session = described.open(self.contract, options)
        self._input = check_input(self._session, self.contract)
        self._decoder = self._new_decoder()

    def _new_decoder(self) -> Decoder:
        return Decoder(
            (self.contract.height, self.contract.width),
            head=self._head,
            names=self.described.checkpoint.names,
            task=self.described.checkpoint.task,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Class names; numbers where the model does not name its classes."""
        return self._decoder.names

    @property
    def task(self) -> str | None:
        """ "detect" or "classify"; None until the first image for a model that does not say."""
        if self._decoder.settled:
            return self._decoder.match.head.task
        return self.described.checkpoint.task

    def predict(
        self,
        image: str | Path | NDArray[np.uint8],
        *,
        conf: float = 0.25,
        iou: float = 0.65,
        max_det: int = 300,
    ) -> Result:
        """What the model sees on one image: a file, or RGB pixels uint8 [h, w, 3].

        conf: lowest score of a detection; iou: overlap above which the weaker box of a class is
        dropped (heads that suppress inside the model ignore it); max_det: boxes kept.
        Raises BadInput for an image that cannot be read, and for outputs that fit no head.
        """
        pixels, name = _pixels(image)
        tensor, placement = apply(pixels, self.contract)
        outputs = self._outputs(tensor)
        rule = Suppression(conf=conf, iou=iou, max_det=max_det, multi_label=False)
        row = outputs[self._decoder.match.output][0]
        answer = self._decoder.decode(row, placement, rule, name)
        return self._typed(answer, placement.source_height, placement.source_width)

    def predict_all(
        self,
        images: Path | str | Iterable[str | Path],
        *,
        conf: float = 0.25,
        iou: float = 0.65,
        max_det: int = 300,
        batch: int | None = None,
        workers: int | None = None,
        progress: Progress = no_progress,
    ) -> Iterator[tuple[Path, Result]]:
        """Yield (file, answer) for a folder or a list of image files, in order.

        Files are read ahead by `workers` threads while the model runs. Raises as `predict`.
        """
        if isinstance(images, (str, Path)):
            files = reader.list_images(Path(images))
        else:
            files = [Path(image) for image in images]
        if not files:
            return
        samples = tuple(Sample(name=str(file), path=file) for file in files)
        for prediction in self.predictions(
            samples,
            Suppression(conf=conf, iou=iou, max_det=max_det, multi_label=False),
            batch=batch,
            workers=workers,
            progress=progress,
        ):
            assert prediction.sample.path is not None
            yield prediction.sample.path, self.result_of(prediction)

    def predictions(
        self,
        samples: tuple[Sample, ...],
        rule: Suppression,
        *,
        batch: int | None = None,
        workers: int | None = None,
        skipped: list[str] | None = None,
        progress: Progress = no_progress,
    ) -> Iterator[Prediction]:
        """What `edgekit.stages.predict.Predictor` yields for these samples.

        With `skipped`, images that cannot be read are left out and their messages added to it; at
        least one must be readable.
        """
        if not self._decoder.settled:
            self._settle()
        assert self.task is not None
        data = Dataset(
            task=self.task, names=self.names, samples=samples, source=Path(samples[0].name)
        )
        predictor = Predictor(
            self._session,
            data,
            self.contract,
            head=self._head,
            suppression=rule,
            names=self.names,
            batch=batch,
            workers=workers,
            max_bad_share=0.0 if skipped is None else 1.0,
        )
        yield from predictor.run(progress)
        if skipped is not None:
            skipped.extend(predictor.skipped)

    def result_of(self, prediction: Prediction) -> Result:
        """The typed answer of a `Prediction`."""
        answer: Detections | Classification | None = prediction.detections
        if answer is None:
            answer = prediction.classification
        assert answer is not None
        return self._typed(answer, prediction.height, prediction.width)

    def _settle(self) -> None:
        """Learn the head, and with it task and names, from a run on a grey image."""
        import numpy as np

        grey = np.full((self.contract.height, self.contract.width, 3), 114, dtype=np.uint8)
        self._outputs(apply(grey, self.contract)[0])

    def _outputs(self, tensor: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The outputs of one image, with a batch axis; the head is settled on the first call."""
        import numpy as np

        fixed = self._input.shape[0]
        if isinstance(fixed, int) and fixed > 1:
            tensor = np.repeat(tensor, fixed, axis=0)
        outputs = {}
        for name, value in self._session.run({self._input.name: tensor}).items():
            if value.ndim == 0 or value.shape[0] != len(tensor):
                if len(tensor) > 1:
                    continue  # no output per image
                value = value[None]
            outputs[name] = value
        if not self._decoder.settled:
            self._decoder.settle(outputs)
        return outputs

    def _typed(self, answer: Detections | Classification, height: int, width: int) -> Result:
        if isinstance(answer, Detections):
            return DetectionResult(
                height=height,
                width=width,
                boxes=answer.boxes,
                scores=answer.scores,
                class_ids=answer.classes,
                names=self.names,
            )
        return ClassificationResult(
            height=height, width=width, probabilities=answer.probabilities(), names=self.names
        )

    def close(self) -> None:
        """Close the session; the model cannot be used after that."""
        self._session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _pixels(image: str | Path | NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
    """RGB pixels and a name for messages."""
    if isinstance(image, (str, Path)):
        return reader.read(Path(image)), str(image)
    import numpy as np

    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise BadInput(
            f"An image must be uint8 RGB [h, w, 3], not {array.dtype} {list(array.shape)}.",
            hint="Files are read by giving their path; OpenCV's BGR needs image[:, :, ::-1].",
        )
    return array, "the image"


def load(
    model: str | Path,
    *,
    threads: int = 1,
    runtime: str | None = None,
    imgsz: int | tuple[int, int] | None = None,
    head: str | None = None,
    preprocess: Mapping[str, Any] | Preprocess | None = None,
    options: LoadOptions | None = None,
) -> Model:
    """Open a bundle, an ONNX file or a checkpoint for prediction.

    threads: of the runtime. runtime: which one of a bundle's. imgsz: input size (side, or height
    and width) where the model leaves it open. head: the decoder's name where it cannot be told.
    preprocess: fields of the contract, or all of it, over what the model says. options: how a
    checkpoint is loaded (architecture of a state_dict, trust, weights).
    Raises the errors of edgekit.errors: BadInput, UsageError, MissingDependency and so on.
    """
    size = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    overrides = preprocess.to_dict() if isinstance(preprocess, Preprocess) else preprocess
    if overrides:
        overrides = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in overrides.items()
        }
    return Model(
        describe(Path(model), options, runtime=runtime),
        overrides=overrides,
        size=size,
        head=head,
        options=SessionOptions(threads=threads),
    )
