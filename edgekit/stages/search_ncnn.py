"""The search on an ncnn model: which method chooses each range, and which layers stay float.

Everything is judged on calibration images with the float model's own answers as the truth
(edgekit.stages.agreement).

1. Every method is tried on the whole model; so is leaving a detector's last layers float.
2. Where that is not near enough, each layer's noise is measured: the error that it alone makes at the
   outputs, as a share of the error of the whole INT8 model, boxes and scores apart. Noises add up
   (measured: 0.068 against a sum of 0.071 on YOLO11n). The layers that make nearly all of it are
   measured by every method, and each takes the one with which its noise is least, where that is
   better on the whole.
3. Float layers are bought where they are cheap: layers are ranked by noise for what they cost, MACs
   that leave INT8 and bytes. The first of them are left float: as many as can be, then fewer and
   fewer, until that is worse twice. So what counts most is known first when the time is short.
   Where the model is broken even so, ever larger parts of the ranking stay float, whatever they cost.
4. Of everything tried, the one with the fewest float layers that is within a small distance of the
   best is taken.

Where the head is known, only predictions count that the float model is sure of: the boxes of all
others are noise by themselves.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit import atomic, onnx_file
from edgekit.codec import from_json, to_record
from edgekit.errors import EdgekitError
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes import open_session
from edgekit.stages.agreement import Agreement
from edgekit.stages.blocks import find_blocks
from edgekit.stages.noise import SURE, NoiseMeter, head_name, loudest
from edgekit.stages.quantize_ncnn import NcnnQuantizer
from edgekit.stages.search import MENDING_PARTS, Choice, SearchOptions, SearchResult, Trial
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.builders.pnnx import NcnnModel
    from edgekit.stages.ncnn_layers import NcnnLayerInfo

T = TypeVar("T", list[Any], dict[str, Any])

VERSION = 2
METHODS = ("mse", "percentile", "minmax", "entropy")
"""What is tried on the whole model, the default first."""
PER_LAYER = ("mse", "percentile", "minmax")
"""What a layer may choose from by itself."""
PER_LAYER_CHOICE = "per-layer"
"""The method of a choice in which each layer has one of its own."""
JUDGED_IMAGES = 48
ENOUGH = 0.985
"""Agreement that ends the search."""
BROKEN = 0.85
"""Agreement below which a model is no good; less sure boxes count here than in other searches, so that
it is lower."""
WITHIN = 0.003
"""How far from the best trial one with fewer float layers may be: between INT8 layers ncnn computes in
float anyway where the activation is not ReLU, so a float layer costs little time."""
_NOISE_IMAGES = 6
# the .bin of an INT8 model shall not be larger than this share of the float one
_LEAST_SAVING = 0.35
# how many of the ranking are left float: dense where single layers matter
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# fewer and fewer float layers: so many times worse ends it
_WORSE = 2
# of the float size: what may be spent on float layers where INT8 alone is near that or above
_SMALLEST_ALLOWANCE = 0.02
# what a float layer costs at least, so that the tiniest are not bought for nothing
_LEAST_COST = 0.003


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
        self.methods: dict[str, str] = {}
        model = quantizer.model
        name = onnx_file.main_input(model).name
        every = max(1, len(pictures) // _NOISE_IMAGES)
        self._feeds = [
            {name: apply(picture, contract)[0]} for picture in pictures[::every][:_NOISE_IMAGES]
        ]
        size = (contract.height, contract.width)
        with open_session("onnxruntime", model.path) as session:
            expected = [session.run(feed) for feed in self._feeds]
            blocks = find_blocks(
                model.path, head_name(expected[0], size, head, task), self._feeds[0]
            )
            self._judge = Agreement(
                session,
                pictures,
                contract,
                blocks,
                head=head,
                names=names,
                task=task,
                confident=SURE,
            )
        self._noise = NoiseMeter(blocks, expected, size, head, task)
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
        clock: Callable[[], float] = time.monotonic,
    ) -> SearchResult:
        """Search; what was found is kept in the folder `partial`, so that a second run goes on there.

        At least the default is tried, however short the time.
        """
        log = _Log(partial, progress)
        late = clock() + options.seconds

        def tried(choice: Choice) -> Trial:
            return log.trial(choice, self._attempt)

        heads = tuple(name for name in self._quantizer.default_float() if name not in self._always)
        for choice in (
            *([_choice(METHODS[0], heads)] if heads else []),
            *(_choice(method) for method in METHODS),
        ):
            if not log.trials or clock() < late:
                tried(choice)
        noises: dict[str, float] = {}
        if log.best.agreement < options.enough and clock() < late:
            whole = [trial for trial in log.trials if not trial.choice.keep_float] or log.trials
            base = max(whole, key=lambda trial: trial.agreement)
            method = base.choice.method
            by_method = self._noises(method, log, lambda: clock() < late)
            noises = {name: found[method] for name, found in by_method.items()}
            self.methods = {
                name: min(found, key=lambda own: found[own]) for name, found in by_method.items()
            }
            # measured on few images: what is least for every layer need not be best for the whole
            if clock() < late and tried(_choice(PER_LAYER_CHOICE)).agreement >= base.agreement:
                method = PER_LAYER_CHOICE
                noises = {name: min(found.values()) for name, found in by_method.items()}
            chosen = self._affordable(self._ranking(noises, options), options.least_share)
            counts = (*(c for c in _COUNTS if c < len(chosen)), len(chosen))
            worse = 0
            for count in reversed(counts):
                if clock() >= late or worse == _WORSE:
                    break
                trial = tried(_choice(method, tuple(chosen[:count])))
                worse = 0 if trial.agreement >= self._bar(log, options) else worse + 1
            patient = late + (options.patience - 1) * options.seconds
            loudest_first = sorted(noises, key=lambda name: -noises[name])
            for part in MENDING_PARTS:
                kept = loudest_first[: math.ceil(part * len(loudest_first))]
                if log.best.agreement >= options.broken or clock() >= patient:
                    break
                if self._quantizer.known.share_without(self._always.union(kept)) > 0:
                    tried(_choice(method, tuple(kept)))
        near = [t for t in log.trials if t.agreement >= self._bar(log, options)]
        taken = min(near, key=lambda trial: (len(trial.choice.keep_float), -trial.agreement))
        return SearchResult(
            best=taken,
            trials=tuple(log.trials),
            sensitivity_db={n: -10 * math.log10(max(x, 1e-12)) for n, x in noises.items()},
            out_of_time=clock() >= late,
        )

    @staticmethod
    def _bar(log: _Log, options: SearchOptions) -> float:
        """The agreement that is as good as the best."""
        return min(log.best.agreement - options.within, options.enough)

    def methods_of(self, choice: Choice) -> dict[str, str]:
        """The method of each layer that has one of its own in `choice`, by its name."""
        return self.methods if choice.method == PER_LAYER_CHOICE else {}

    def _attempt(self, choice: Choice) -> Trial:
        keep = self._always | set(choice.keep_float)
        with tempfile.TemporaryDirectory(prefix="edgekit-search-") as folder:
            model = self._quantizer.quantized(
                METHODS[0] if choice.method == PER_LAYER_CHOICE else choice.method,
                keep,
                methods=self.methods_of(choice),
            )
            engine = self._quantizer.write(model, Path(folder))
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

    def _ranking(self, noises: Mapping[str, float], options: SearchOptions) -> list[str]:
        """Layers by what leaving them float brings for what it costs, the best first."""
        spent = max(1.0 - options.least_share, 1e-9)

        def worth(layer: NcnnLayerInfo) -> float:
            work = layer.macs / self._quantizer.known.total_macs / spent
            cost = max(work, layer.values / self._allowance) + _LEAST_COST
            return noises[layer.name] / cost

        known = [layer for layer in self._quantizer.known.layers if layer.name in noises]
        return [layer.name for layer in sorted(known, key=worth, reverse=True)]

    def _affordable(self, ranking: Sequence[str], least_share: float) -> list[str]:
        """The layers that can be float together, in order; one too large is passed over."""
        chosen: list[str] = []
        for name in ranking:
            if len(chosen) < _COUNTS[-1] and self._share_without((*chosen, name)) >= least_share:
                chosen.append(name)
        return chosen

    def _noises(
        self, method: str, log: _Log, time_left: Callable[[], bool]
    ) -> dict[str, dict[str, float]]:
        """Layer → method → its noise, as a share of that of all layers by `method`.

        The mean over the meanings. Every layer is measured by `method`; by the other methods only those
        that make nearly all of the noise, the loudest first. Layers for which the time did not last
        are not among them.
        """
        everything = self._energies(self._quantizer.quantized(method, self._always))
        found: dict[str, dict[str, float]] = {}

        def measure(name: str, own: str) -> None:
            alone = log.noise(name, own, lambda: self._alone(name, own))
            shares = [a / b for a, b in zip(alone, everything, strict=True) if b > 0]
            found.setdefault(name, {})[own] = sum(shares) / len(shares) if shares else 0.0

        names = [name for name in self._quantizer.names if name not in self._always]
        for number, name in enumerate(names):
            if not time_left():
                break
            log.progress(number, len(names), "noise of layers")
            measure(name, method)
        loud = loudest({name: noise[method] for name, noise in found.items()})
        for number, name in enumerate(loud):
            for own in PER_LAYER:
                if own == method or not time_left():
                    continue
                log.progress(number, len(loud), "noise of layers by other methods")
                measure(name, own)
        log.save()
        return found

    def _alone(self, name: str, method: str) -> list[float]:
        return self._energies(self._quantizer.quantized(method, self._always, only=name))

    def _energies(self, model: NcnnModel) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="edgekit-search-") as folder:
            engine = self._quantizer.write(model, Path(folder))
            with open_session("ncnn", engine.files) as session:
                return self._noise.energies([session.run(feed) for feed in self._feeds])


def _choice(method: str, keep: tuple[str, ...] = ()) -> Choice:
    return Choice(method=method, keep_float=keep, bias_correction=True)


def _size(model: NcnnModel) -> int:
    """Bytes of the model's .bin."""
    return sum(len(a.to_bytes()) for arrays in model.weights for a in arrays.values())


class _Log:
    """What a search has found so far, kept in a folder; a file that cannot be read counts as none."""

    def __init__(self, folder: Path | None, progress: Progress) -> None:
        self.trials: list[Trial] = []
        self.progress = progress
        self._folder = folder
        self._unsaved = 0
        self._known: dict[Choice, Trial] = {}
        self._noises: dict[str, list[float]] = {}
        for record in self._read("trials.json", list):
            try:
                trial = from_json(Trial, record)
            except (ValueError, TypeError, EdgekitError):
                break
            self._known[trial.choice] = trial
        for key, energies in self._read("noises.json", dict).items():
            if isinstance(energies, list) and all(isinstance(x, (int, float)) for x in energies):
                self._noises[key] = [float(x) for x in energies]

    @property
    def best(self) -> Trial:
        return max(self.trials, key=lambda trial: trial.agreement)

    def trial(self, choice: Choice, attempt: Callable[[Choice], Trial]) -> Trial:
        """The trial of `choice`, made now or in an interrupted run."""
        if choice not in self._known:
            self._known[choice] = attempt(choice)
        self.trials.append(self._known[choice])
        if self._folder is not None:
            atomic.write_json(self._folder / "trials.json", to_record(tuple(self._known.values())))
        self.progress(len(self.trials), 0, "search")
        return self._known[choice]

    def noise(self, layer: str, method: str, measure: Callable[[], list[float]]) -> list[float]:
        """The error energies of one layer with one method, measured now or before."""
        key = f"{method} {layer}"
        if key not in self._noises:
            self._noises[key] = measure()
            self._unsaved += 1
            if self._unsaved >= 32:
                self.save()
        return self._noises[key]

    def save(self) -> None:
        """Write the noises that were measured."""
        if self._folder is not None and self._unsaved:
            atomic.write_json(self._folder / "noises.json", self._noises)
        self._unsaved = 0

    def _read(self, name: str, kind: type[T]) -> T:
        if self._folder is None or not (self._folder / name).is_file():
            return kind()
        try:
            value = json.loads((self._folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return kind()
        return value if isinstance(value, kind) else kind()
