"""The search on an ncnn model: which method chooses the ranges, and which layers stay float.

The strategy is that of edgekit.stages.search, the judge that of edgekit.stages.agreement: calibration
images and the float model's own answers. What is particular here:

- Float layers are bought where they are cheap. A layer's noise is the error it alone makes at the
  outputs, as a share of the error of the whole INT8 model, block by block; noises add up (measured:
  0.068 against a sum of 0.071 on YOLO11n). Layers are ranked by noise for what they cost: MACs that
  leave INT8, and bytes.
- Where the head is known, only predictions count that the float model is sure of: the boxes of all
  others are noise by themselves.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import atomic, onnx_file
from edgekit.codec import from_json, to_record
from edgekit.errors import BadInput, EdgekitError
from edgekit.metrics.heads import choose_head
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes import open_session
from edgekit.stages import search
from edgekit.stages.agreement import Agreement
from edgekit.stages.blocks import find_blocks
from edgekit.stages.layout import HEADS
from edgekit.stages.quantize_ncnn import NcnnQuantizer
from edgekit.stages.search import Choice, SearchOptions, SearchResult, Trial
from edgekit.types import Progress, TensorSpec, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.builders.pnnx import NcnnModel

VERSION = 1
METHODS = ("mse", "percentile", "minmax", "entropy")
JUDGED_IMAGES = 32
_NOISE_IMAGES = 6
# confidence above which a prediction counts for the noise
_SURE = 0.05
# the .bin of an INT8 model shall not be larger than this share of the float one
_LEAST_SAVING = 0.35
# of the float size: what may be spent on float layers where INT8 alone is near that or above
_SMALLEST_ALLOWANCE = 0.02
# what a float layer costs at least, so that the tiniest are not bought for nothing
_LEAST_COST = 0.02


class NcnnSearch:
    """The search over one converted model and its calibration.

    `always` are layers that stay float whatever comes out. `pictures` are calibration images.
    """

    def __init__(
        self,
        quantizer: NcnnQuantizer,
        contract: Preprocess,
        pictures: Sequence[NDArray[np.uint8]],
        always: Iterable[str],
        *,
        head: str | None = None,
        names: Sequence[str] = (),
        task: str | None = None,
    ) -> None:
        self._quantizer = quantizer
        self._always = frozenset(always)
        model = quantizer.model
        name = onnx_file.main_input(model).name
        every = max(1, len(pictures) // _NOISE_IMAGES)
        self._feeds = [
            {name: apply(picture, contract)[0]} for picture in pictures[::every][:_NOISE_IMAGES]
        ]
        with open_session("onnxruntime", model.path) as session:
            self._expected = [session.run(feed) for feed in self._feeds]
            size = (contract.height, contract.width)
            self._head = _head_name(self._expected[0], size, head, task)
            blocks = find_blocks(model.path, self._head, self._feeds[0])
            self._judge = Agreement(
                session, pictures, contract, blocks, head=head, names=names, task=task
            )
        self._blocks = blocks
        self._masks = [
            {name: _sure(array, self._head) for name, array in outputs.items()}
            for outputs in self._expected
        ]
        self._float_bytes = _size(quantizer.float_model)
        smallest = _size(quantizer.quantized(METHODS[0], self._always))
        self._allowance = self._float_bytes * max(
            _LEAST_SAVING - smallest / self._float_bytes, _SMALLEST_ALLOWANCE
        )

    def run(
        self,
        options: SearchOptions,
        partial: Path | None = None,
        progress: Progress = no_progress,
    ) -> SearchResult:
        """Search; trials are kept in the folder `partial` so that an interrupted search goes on."""
        trials = None if partial is None else partial / "trials.json"
        noises = None if partial is None else partial / "noises.json"
        heads = tuple(name for name in self._quantizer.default_float() if name not in self._always)
        choices = [
            *([_choice(METHODS[0], heads)] if heads else []),
            *(_choice(method) for method in METHODS),
        ]
        self._least_share = options.least_share

        def remember(done: Sequence[Trial]) -> None:
            if trials is not None:
                atomic.write_json(trials, to_record(tuple(done)))

        return search.run(
            choices,
            self._attempt,
            lambda choice: self._ranking(choice, noises, progress),
            self._share_without,
            options,
            known=_known(trials),
            remember=remember,
            progress=progress,
        )

    def keep_of(self, choice: Choice) -> dict[str, str]:
        """The layers that `choice` leaves float, with the reason."""
        return dict.fromkeys(choice.keep_float, "the search left it float")

    def _attempt(self, choice: Choice) -> Trial:
        keep = self._always | set(choice.keep_float)
        with tempfile.TemporaryDirectory(prefix="edgekit-search-") as folder:
            engine = self._quantizer.write(
                self._quantizer.quantized(choice.method, keep), Path(folder)
            )
            with open_session("ncnn", engine.files) as session:
                agreement = self._judge.score(session)
        share = self._quantizer.known.share_without(frozenset(keep))
        return Trial(choice=choice, agreement=agreement, int8_mac_share=share)

    def _share_without(self, keep: Iterable[str]) -> float:
        """Share of the MACs in INT8; 0 when that many float layers would make the file too large."""
        chosen = frozenset(keep) - self._always
        layers = [x for x in self._quantizer.known.layers if x.name in chosen]
        # two bytes instead of one for each weight
        if sum(layer.values for layer in layers) > self._allowance:
            return 0.0
        return self._quantizer.known.share_without(chosen | self._always)

    def _ranking(
        self, choice: Choice, file: Path | None, progress: Progress
    ) -> Mapping[str, float]:
        """For each layer, how little it pays to leave it float, in dB: the lowest are first."""
        noises = self._noises(choice.method, file, progress)
        spent = 1.0 - self._least_share
        ranking = {}
        for layer in self._quantizer.known.layers:
            if layer.name not in noises:
                continue
            work = layer.macs / self._quantizer.known.total_macs / spent if spent > 0 else math.inf
            cost = max(work, layer.values / self._allowance) + _LEAST_COST
            ranking[layer.name] = -10 * math.log10(max(noises[layer.name], 1e-12) / cost)
        return ranking

    def _noises(self, method: str, file: Path | None, progress: Progress) -> dict[str, float]:
        """Noise of each layer alone, as a share of that of all together; mean over the blocks."""
        known = _stored(file, method)
        everything = self._energies(self._quantizer.quantized(method, self._always))
        names = [name for name in self._quantizer.names if name not in self._always]
        for number, name in enumerate(names):
            progress(number, len(names), "noise of layers")
            if name in known:
                continue
            alone = self._energies(self._quantizer.quantized(method, self._always, only=name))
            shares = [
                one / whole for one, whole in zip(alone, everything, strict=True) if whole > 0
            ]
            known[name] = sum(shares) / len(shares) if shares else 0.0
            if file is not None and number % 16 == 15:
                atomic.write_json(file, {"method": method, "noises": known})
        return known

    def _energies(self, model: NcnnModel) -> list[float]:
        """Summed squared error of each block over the noise images."""
        import numpy as np

        energies = [0.0] * len(self._blocks)
        with tempfile.TemporaryDirectory(prefix="edgekit-search-") as folder:
            engine = self._quantizer.write(model, Path(folder))
            with open_session("ncnn", engine.files) as session:
                found = [session.run(feed) for feed in self._feeds]
        for expected, masks, outputs in zip(self._expected, self._masks, found, strict=True):
            errors = {
                name: (outputs[name].astype(np.float64) - array) * masks[name]
                for name, array in expected.items()
            }
            for number, block in enumerate(self._blocks):
                energies[number] += float(np.square(block.take(errors[block.output])).sum())
        return energies


def _choice(method: str, keep: tuple[str, ...] = ()) -> Choice:
    return Choice(method=method, keep_float=keep, bias_correction=True)


def _size(model: NcnnModel) -> int:
    """Bytes of the model's .bin."""
    return sum(len(a.to_bytes()) for arrays in model.weights for a in arrays.values())


def _head_name(
    outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], head: str | None, task: str | None
) -> str | None:
    """The head that decodes these outputs, None when none does."""
    specs = [
        TensorSpec(name=name, shape=tuple(array.shape), dtype=str(array.dtype))
        for name, array in outputs.items()
    ]
    try:
        return choose_head(specs, size, name=head, task=task).head.name
    except BadInput:
        return None


def _sure(output: NDArray[Any], head: str | None) -> NDArray[Any] | float:
    """1 for the predictions of `output` [1, …] that have a confidence, 0 for the others.

    1 where the head is unknown, or nothing is found.
    """
    import numpy as np

    columns = HEADS.get(head or "")
    if columns is None or output.ndim != 3:
        return 1.0
    across = 1 if head == "yolov8" and output.shape[1] <= output.shape[2] else 2
    by_column = np.moveaxis(output, across, 1)
    start, stop = columns.get("classes", columns.get("score", (4, None)))
    confidence = by_column[:, start:stop].max(axis=1)
    if "objectness" in columns:
        low, high = columns["objectness"]
        confidence = confidence * by_column[:, low:high].max(axis=1)
    mask = (confidence > _SURE).astype(np.float64)
    return np.expand_dims(mask, across) if mask.any() else 1.0


def _known(file: Path | None) -> tuple[Trial, ...]:
    """Trials of an interrupted run; a file that cannot be read counts as none."""
    records = _read(file)
    try:
        return tuple(from_json(Trial, record) for record in records or ())
    except (ValueError, TypeError, EdgekitError):
        return ()


def _stored(file: Path | None, method: str) -> dict[str, float]:
    """Noises of an interrupted run, for the same method."""
    record = _read(file)
    if not isinstance(record, dict) or record.get("method") != method:
        return {}
    noises = record.get("noises")
    if not isinstance(noises, dict):
        return {}
    return {str(k): float(v) for k, v in noises.items() if isinstance(v, (int, float))}


def _read(file: Path | None) -> Any:
    if file is None or not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
