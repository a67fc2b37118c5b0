"""The search on a real model: choices become QDQ graphs, and are judged on calibration images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import atomic, onnx_file
from edgekit.calibration import store
from edgekit.calibration.behind import ranges_behind
from edgekit.codec import from_json, to_record
from edgekit.errors import EdgekitError
from edgekit.preprocess import Preprocess, apply
from edgekit.quantization.activations import read_through_activation
from edgekit.quantization.assemble import placed, quantized
from edgekit.quantization.placement import Placement
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.onnxruntime import open_bytes
from edgekit.stages import calibrate, search
from edgekit.stages.agreement import Agreement
from edgekit.stages.blocks import find_blocks
from edgekit.stages.parity import ParityMeter
from edgekit.stages.quantize import QuantizeOptions, channel_means, rules_of, scheme_of
from edgekit.stages.search import Choice, SearchOptions, SearchResult, Trial
from edgekit.target import TargetProfile
from edgekit.types import Calibration, OnnxModel, Progress, Range, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 2
# the default first: when time is short, it alone is tried
RANGES = (
    Choice(method="percentile"),
    Choice(method="mse"),
    Choice(method="percentile", behind=True),
    Choice(method="mse", behind=True),
    Choice(method="minmax"),
)
JUDGED_IMAGES = 48
_SENSITIVITY_IMAGES = 4


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

    def run(
        self,
        options: SearchOptions,
        partial: Path | None = None,
        progress: Progress = no_progress,
    ) -> SearchResult:
        """Search; trials are kept in the folder `partial` so that an interrupted search goes on."""
        file = None if partial is None else partial / "trials.json"
        choices = [choice for choice in RANGES if self._through or not choice.behind]

        def remember(trials: Sequence[Trial]) -> None:
            if file is not None:
                atomic.write_json(file, to_record(tuple(trials)))

        return search.run(
            choices,
            self._attempt,
            lambda choice: self._sensitivities(choice, progress),
            self._share_without,
            options,
            corrects=bool(self._means),
            known=_known(file),
            remember=remember,
            progress=progress,
        )

    def calibration_of(self, choice: Choice) -> Calibration:
        """The calibration with the ranges of `choice`."""
        return calibrate.choose_ranges(
            self._calibration,
            choice.method,
            symmetric=self._symmetric,
            overrides=self._overrides(choice),
        )

    def _overrides(self, choice: Choice) -> dict[str, str | Range]:
        if not choice.behind:
            return {}
        return dict(ranges_behind(self._statistics, self._through, symmetric=self._symmetric))

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
        with open_bytes(data, SessionOptions()) as session:
            agreement = self._judge.score(session)
        return Trial(choice=choice, agreement=agreement, int8_mac_share=placement.int8_mac_share)

    def _placement(self, keep: Iterable[str] = ()) -> Placement:
        import onnx_ir as ir

        graph = ir.from_proto(self._proto)
        kept = (*self._always_float, *keep)
        return placed(graph, self._rules, self._calibration.ranges, kept)

    def _share_without(self, keep: Iterable[str]) -> float:
        return self._placement(keep).int8_mac_share

    def _sensitivities(self, choice: Choice, progress: Progress) -> Mapping[str, float]:
        """SQNR in dB of the worst block with only one layer in INT8, by layer."""
        layers = self._placement().compute
        found: dict[str, float] = {}
        for number, layer in enumerate(layers):
            progress(number, len(layers), "sensitivity of layers")
            data, _ = self._graph(choice, [other for other in layers if other != layer])
            meter = ParityMeter(self._blocks)
            with open_bytes(data, SessionOptions()) as session:
                for feed, outputs in zip(self._feeds, self._float_outputs, strict=True):
                    meter.add(outputs, session.run(feed))
            found[layer] = meter.report().sqnr_db
        return found


def _known(file: Path | None) -> tuple[Trial, ...]:
    """Trials of an interrupted run; a file that cannot be read counts as none."""
    if file is None or not file.is_file():
        return ()
    try:
        records: Any = json.loads(file.read_text(encoding="utf-8"))
        return tuple(from_json(Trial, record) for record in records)
    except (ValueError, TypeError, EdgekitError):
        return ()
