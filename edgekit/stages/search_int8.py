"""The search on a real model: choices become QDQ graphs, and are judged on calibration images."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import cpu, onnx_file
from edgekit.calibration import store
from edgekit.calibration.behind import ranges_behind
from edgekit.codec import from_json, to_record
from edgekit.preprocess import Preprocess, apply
from edgekit.quantization.activations import read_through_activation
from edgekit.quantization.assemble import placed, quantized
from edgekit.quantization.placement import Placement
from edgekit.quantization.stretches import stretches
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.onnxruntime import open_bytes
from edgekit.stages import calibrate, pace, search
from edgekit.stages.agreement import Agreement
from edgekit.stages.blocks import find_blocks
from edgekit.stages.noise import NoiseMeter, worth_float
from edgekit.stages.parity import INT8_LIMITS, ParityMeter, broken_block
from edgekit.stages.quantize import QuantizeOptions, channel_means, rules_of, scheme_of
from edgekit.stages.search import Choice, Pace, SearchOptions, SearchResult, Trial
from edgekit.stages.search_notes import SearchNotes
from edgekit.stages.weight_room import WeightRoom, initializer_bytes
from edgekit.target import TargetProfile
from edgekit.types import Calibration, OnnxModel, Progress, Range, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 4
# the default first: when time is short, it alone is tried
RANGES = (
    Choice(method="percentile"),
    Choice(method="mse"),
    Choice(method="percentile", behind=True),
    Choice(method="mse", behind=True),
    Choice(method="minmax"),
)
# with fewer, agreement is too uncertain to tell candidates apart: on 48 images of COCO the order of two
# candidates half a point of mAP apart came out wrong
JUDGED_IMAGES = 128
_SENSITIVITY_IMAGES = 4
# a little more than INT8_LIMITS asks for: the parity check looks at other images
_SOUND = dataclasses.replace(INT8_LIMITS, min_cosine=0.83, min_sqnr_db=4.5)
_UNSOUND = 0.5


class Int8Search:
    """The search over one prepared graph and its calibration."""

    def __init__(
        self,
        model: OnnxModel,
        calibration: Calibration,
        profile: TargetProfile,
        contract: Preprocess,
        pictures: Sequence[NDArray[np.uint8]],
        options: QuantizeOptions,
        *,
        head: str | None = None,
        names: Sequence[str] = (),
        task: str | None = None,
    ) -> None:
        import onnx_ir as ir

        self._model = model
        self._calibration = calibration
        self._profile = profile
        self._rules = rules_of(profile)
        self._scheme = scheme_of(profile, options)
        self._always_float = options.keep_float
        self._symmetric = self._scheme.symmetric_activations
        self._statistics, _ = store.read(calibration.path)
        self._means = channel_means(self._statistics)
        self._proto = onnx_file.load(model.path)
        self._through = {
            tensor: name
            for tensor, name in read_through_activation(ir.from_proto(self._proto).graph).items()
            if tensor in calibration.ranges
        }
        # where only operands are quantized, nothing is in front of an activation
        carried = set(self._placement().tensors.values())
        self._through = {t: name for t, name in self._through.items() if t in carried}
        self._ranges: dict[tuple[str, bool], dict[str, Range]] = {}
        name = onnx_file.main_input(model).name
        self._feeds = [
            {name: apply(picture, contract)[0]} for picture in pictures[:_SENSITIVITY_IMAGES]
        ]
        self._blocks = find_blocks(model.path, head, self._feeds[0])
        with open_session("onnxruntime", model.path) as session:
            self._judge = Agreement(
                session, pictures, contract, self._blocks, head=head, names=names, task=task
            )
            self._float_outputs = [session.run(feed) for feed in self._feeds]
        size = (contract.height, contract.width)
        self._noise = NoiseMeter(self._blocks, self._float_outputs, size, head, task)

    @property
    def timed(self) -> bool:
        """Whether candidates can be timed here: in ONNX Runtime, on the target's architecture."""
        profile = self._profile
        return profile.runtime.name == "onnxruntime" and profile.device.arch == cpu.detect().arch

    def run(
        self,
        options: SearchOptions,
        partial: Path | None = None,
        progress: Progress = no_progress,
    ) -> SearchResult:
        """Search; what was found is kept in the folder `partial` so that an interrupted search goes on."""
        notes = SearchNotes(partial)
        choices = [choice for choice in RANGES if self._through or not choice.behind]
        layers = self._placement().compute
        room = self._weight_room(choices[0], layers)

        def race(candidates: Sequence[Choice | None]) -> Sequence[Pace]:
            key = to_record(tuple(candidates))
            return notes.recall("paces", key, _paces, lambda: self._race(candidates))

        return search.run(
            choices,
            self._attempt,
            lambda choice: self._sensitivities(choice, notes, room, progress),
            self._share_without,
            options,
            fits=room.fits if room else lambda names: True,
            corrects=bool(self._means),
            race=race if self.timed else None,
            stretches=stretches(self._float_graph(), layers) if self.timed else (),
            known=notes.trials(),
            remember=notes.remember,
            # its own CPU time: on a busy machine a search takes longer, and finds the same
            clock=time.process_time,
            progress=progress,
        )

    def faster_float(self, choice: Choice, options: SearchOptions) -> tuple[str, ...]:
        """The layers that make the model of `choice` faster when they are left float."""
        groups = stretches(self._float_graph(), self._placement().compute)
        if not groups or not self.timed:
            return ()
        return search.faster_float(
            choice, groups, self._race, self._share_without, options.least_share
        )

    def calibration_of(self, choice: Choice) -> Calibration:
        """The calibration with the ranges of `choice`."""
        return calibration_of(self._model, self._calibration, choice, self._symmetric)

    def _float_graph(self) -> Any:
        import onnx_ir as ir

        return ir.from_proto(self._proto).graph

    def _race(self, candidates: Sequence[Choice | None]) -> list[Pace]:
        models = [
            self._proto.SerializeToString()
            if choice is None
            else self._graph(choice, choice.keep_float)[0]
            for choice in candidates
        ]
        return pace.race(models, self._feeds[0], threads=self._profile.measure.threads)

    def _ranges_of(self, choice: Choice) -> dict[str, Range]:
        key = (choice.method, choice.behind)
        if key not in self._ranges:
            self._ranges[key] = self.calibration_of(choice).ranges
        return self._ranges[key]

    def _graph(self, choice: Choice, keep: Iterable[str]) -> tuple[bytes, Placement]:
        import onnx_ir as ir

        graph = ir.from_proto(self._proto)
        ranges = self._ranges_of(choice)
        means = self._means if choice.bias_correction else None
        kept = (*self._always_float, *keep)
        placement = quantized(graph, self._rules, ranges, self._scheme, kept, means)
        return ir.to_proto(graph).SerializeToString(), placement

    def _attempt(self, choice: Choice) -> Trial:
        data, placement = self._graph(choice, choice.keep_float)
        meter = ParityMeter(self._blocks)
        with open_bytes(data, SessionOptions()) as session:
            agreement = self._judge.score(session)
            for feed, outputs in zip(self._feeds, self._float_outputs, strict=True):
                meter.add(outputs, session.run(feed))
        if broken_block(meter.report(), _SOUND) is not None:
            # what the parity check would refuse is worth less than anything that it takes, and broken
            agreement *= _UNSOUND
        return Trial(choice=choice, agreement=agreement, int8_mac_share=placement.int8_mac_share)

    def _placement(self, keep: Iterable[str] = ()) -> Placement:
        import onnx_ir as ir

        graph = ir.from_proto(self._proto)
        kept = (*self._always_float, *keep)
        return placed(graph, self._rules, self._calibration.ranges, kept)

    def _share_without(self, keep: Iterable[str]) -> float:
        return self._placement(keep).int8_mac_share

    def _weight_room(self, choice: Choice, layers: Sequence[str]) -> WeightRoom | None:
        """The room for float weights; None where the file holds all weights in float anyway."""
        import onnx

        if self._scheme.explicit_weights:
            return None
        whole = onnx.load_model_from_string(self._graph(choice, ())[0])
        return WeightRoom(self._proto, layers, initializer_bytes(whole))

    def _sensitivities(
        self, choice: Choice, notes: SearchNotes, room: WeightRoom | None, progress: Progress
    ) -> Mapping[str, float]:
        """SQNR in dB of the worst block with only one layer in INT8, by layer, see `worth_float`."""
        placement = self._placement()
        layers = placement.compute
        found: dict[str, list[float]] = {}
        for number, layer in enumerate(layers):
            progress(number, len(layers), "sensitivity of layers")
            key = [to_record(dataclasses.replace(choice, keep_float=())), layer]
            alone = functools.partial(self._alone, choice, layer, layers)
            found[layer] = notes.recall("sensitivities", key, _numbers, alone)
        sqnr_db = {layer: values[0] for layer, values in found.items()}
        energies = {layer: values[1:] for layer, values in found.items()}
        order = self._order(sqnr_db, energies, placement, room)
        return {layer: sqnr_db[layer] for layer in order}

    def _order(
        self,
        sqnr_db: Mapping[str, float],
        energies: Mapping[str, Sequence[float]],
        placement: Placement,
        room: WeightRoom | None,
    ) -> list[str]:
        """The layers of `sqnr_db`, those to be left float first."""
        if room is None:
            # where all weights are in the file in float, only the lost block counts: YOLO11n keeps 39.7 of
            # mAP50-95 by it and its pruned kin 69.0, by harm for cost 39.4 and 68.7
            return sorted(sqnr_db, key=lambda layer: sqnr_db[layer])
        total = sum(placement.macs.values()) or 1
        weights = room.shares()
        cost = {
            layer: max(placement.macs.get(layer, 0) / total, weights.get(layer, 0.0))
            for layer in sqnr_db
        }
        return worth_float(sqnr_db, energies, cost)

    def _alone(self, choice: Choice, layer: str, layers: Sequence[str]) -> list[float]:
        """SQNR of the worst block, then the noise of each meaning, with only `layer` in INT8."""
        data, _ = self._graph(choice, [other for other in layers if other != layer])
        meter = ParityMeter(self._blocks)
        with open_bytes(data, SessionOptions()) as session:
            found = [session.run(feed) for feed in self._feeds]
        for outputs, expected in zip(found, self._float_outputs, strict=True):
            meter.add(expected, outputs)
        return [meter.report().sqnr_db, *self._noise.energies(found)]


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]


def _paces(records: Any) -> list[Pace]:
    return [from_json(Pace, record) for record in records]


def calibration_of(
    model: OnnxModel, calibration: Calibration, choice: Choice, symmetric: bool
) -> Calibration:
    """The calibration with the ranges of `choice`, from its statistics of the prepared graph `model`."""
    overrides: dict[str, str | Range] = {}
    if choice.behind:
        import onnx_ir as ir

        statistics, _ = store.read(calibration.path)
        through = read_through_activation(ir.from_proto(onnx_file.load(model.path)).graph)
        seen = {tensor: kind for tensor, kind in through.items() if tensor in calibration.ranges}
        overrides = dict(ranges_behind(statistics, seen, symmetric=symmetric))
    return calibrate.choose_ranges(
        calibration, choice.method, symmetric=symmetric, overrides=overrides
    )
