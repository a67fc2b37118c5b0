"""Where INT8 loses accuracy, layer by layer: what each layer does to the outputs, and why.

For every layer that is computed in INT8:

- `alone_db`: SQNR of the worst output block with only this layer in INT8;
- `node_db`: SQNR of its output tensor in the whole INT8 model, with all noise that reached it;
- `weight_db`: SQNR of its weights, 10 log10(sum W^2 / sum (W - W_q)^2);
- `input` and `output`: what clipping and rounding do to the tensors that it reads and makes, from
  their histograms.

A suggestion names the knob that mends the largest of these (`edgekit.stages.debug_advice`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.block import Block
from edgekit.calibration import store
from edgekit.errors import NotPossible
from edgekit.quantization.assemble import quantized
from edgekit.quantization.placement import Placement
from edgekit.quantization.rules import channel_axis, fused_output
from edgekit.quantization.scheme import (
    activation_params,
    choose_weight_scale,
    dequantize_weight,
    quantize_weight,
)
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.onnxruntime import open_bytes
from edgekit.stages import debug_advice, layer_loss
from edgekit.stages.blocks import find_blocks
from edgekit.stages.debug_advice import Knobs, TensorError
from edgekit.stages.parity import ParityMeter
from edgekit.stages.quantize import (
    QuantizeOptions,
    channel_means,
    check_calibration,
    rules_of,
    scheme_of,
)
from edgekit.target import TargetProfile
from edgekit.types import Calibration, OnnxModel, Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.quantization.scheme import Scheme

ALONE_IMAGES = 4
"""Images on which each layer is tried alone."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One INT8 layer; SQNR in dB, inf where nothing is lost. See the module's text.

    `mac_share` is its part of the model's MACs, `suggestion` "" where it does no harm.
    """

    name: str
    op_type: str
    mac_share: float
    alone_db: float
    node_db: float
    weight_db: float
    input: TensorError
    output: TensorError
    suggestion: str


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """SQNR in dB of the worst output block for one image: its noise beside the images' mean signal."""

    name: str
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class DebugReport:
    """The whole model: `layers` ranked by `alone_db` and `images` by SQNR, the worst first.

    `sqnr_db` is that of the worst block, named in `block`, with every layer in INT8. `nodes` maps
    each tensor of the float graph, in order, to its SQNR with accumulated noise. `floats` maps layers
    left float to the reason.
    """

    sqnr_db: float
    block: str
    layers: tuple[LayerReport, ...]
    nodes: Mapping[str, float]
    images: tuple[ImageReport, ...]
    floats: Mapping[str, str]


def run(
    model: OnnxModel,
    calibration: Calibration,
    profile: TargetProfile,
    feeds: Mapping[str, NDArray[Any]],
    options: QuantizeOptions,
    progress: Progress = no_progress,
) -> DebugReport:
    """Debug the INT8 model that `quantize` would make of `model` with `calibration`.

    `feeds` maps image names to input tensors; at least one. Raises NotPossible for a float target
    and where no layer can be INT8, BadInput when the calibration is that of another graph.
    """
    return _Debugger(model, calibration, profile, feeds, options).report(progress)


class _Debugger:
    def __init__(
        self,
        model: OnnxModel,
        calibration: Calibration,
        profile: TargetProfile,
        feeds: Mapping[str, NDArray[Any]],
        options: QuantizeOptions,
    ) -> None:
        check_calibration(calibration, model)
        self._model = model
        self._calibration = calibration
        self._rules = rules_of(profile)
        self._options = options
        self._scheme = scheme_of(profile, options)
        self._statistics, _ = store.read(calibration.path)
        self._means = channel_means(self._statistics) if options.bias_correction else {}
        self._proto = onnx_file.load(model.path)
        name = onnx_file.main_input(model).name
        self._names = list(feeds)
        self._feeds = [{name: tensor} for tensor in feeds.values()]
        head = model.metadata.get(onnx_file.HEAD_KEY)
        self._blocks = find_blocks(model.path, head, self._feeds[0])
        with open_session("onnxruntime", model.path) as session:
            self._expected = [session.run(feed) for feed in self._feeds]

    def report(self, progress: Progress) -> DebugReport:
        whole, placement = self._quantized(())
        if not placement.compute:
            reasons = "; ".join(sorted(set(placement.floats.values())))
            raise NotPossible(f"No layer of {self._model.path.name} is INT8: {reasons}.")
        blocks = self._meter(whole, len(self._feeds)).report().blocks
        worst = min(blocks, key=lambda block: block.sqnr_db)
        nodes = self._nodes(whole, progress)
        layers = self._layers(placement, nodes, progress)
        return DebugReport(
            sqnr_db=worst.sqnr_db,
            block=worst.name,
            layers=tuple(sorted(layers, key=lambda layer: layer.alone_db)),
            nodes=nodes,
            images=tuple(
                sorted(
                    rank_images(whole, self._names, self._feeds, self._expected, self._blocks),
                    key=lambda image: image.sqnr_db,
                )
            ),
            floats=placement.floats,
        )

    def _quantized(self, keep: Sequence[str]) -> tuple[bytes, Placement]:
        import onnx_ir as ir

        graph = ir.from_proto(self._proto)
        ranges = self._calibration.ranges
        kept = (*self._options.keep_float, *keep)
        placement = quantized(graph, self._rules, ranges, self._scheme, kept, self._means)
        return ir.to_proto(graph).SerializeToString(), placement

    def _meter(self, data: bytes, count: int) -> ParityMeter:
        meter = ParityMeter(self._blocks)
        with open_bytes(data, SessionOptions()) as session:
            for feed, expected in list(zip(self._feeds, self._expected, strict=True))[:count]:
                meter.add(expected, session.run(feed))
        return meter

    def _nodes(self, data: bytes, progress: Progress) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="edgekit-debug-") as folder:
            candidate = Path(folder) / "int8.onnx"
            candidate.write_bytes(data)
            found = layer_loss.run(
                self._model.path, candidate, self._feeds[:ALONE_IMAGES], progress=progress
            )
        made = [name for node in self._proto.graph.node for name in node.output]
        return {name: found[name] for name in made if name in found}

    def _layers(
        self, placement: Placement, nodes: Mapping[str, float], progress: Progress
    ) -> list[LayerReport]:
        import onnx_ir as ir

        graph = ir.from_proto(self._proto).graph
        by_name = {node.name: node for node in graph}
        total = sum(placement.macs.values()) or 1
        methods = debug_advice.Methods(self._statistics, self._scheme)
        found = []
        for number, name in enumerate(placement.compute):
            progress(number, len(placement.compute), "each layer alone")
            node = by_name[name]
            others = [other for other in placement.compute if other != name]
            alone = self._meter(self._quantized(others)[0], ALONE_IMAGES).report().sqnr_db
            result = fused_output(node, self._rules)
            source = placement.tensors.get(node.inputs[0].name, "")
            made = placement.tensors.get(result.name, "")
            knobs = Knobs(
                node=name,
                alone_db=alone,
                weight_db={
                    key: _weight_db(node, scheme)
                    for key, scheme in debug_advice.weight_schemes(self._scheme).items()
                },
                input=self._tensor_error(source),
                output=self._tensor_error(made),
                input_name=source,
                output_name=made,
            )
            found.append(
                LayerReport(
                    name=name,
                    op_type=node.op_type,
                    mac_share=placement.macs.get(name, 0) / total,
                    alone_db=alone,
                    node_db=nodes.get(result.name, math.inf),
                    weight_db=knobs.weight_db[debug_advice.AS_IT_IS],
                    input=knobs.input,
                    output=knobs.output,
                    suggestion=debug_advice.suggest(knobs, methods, self._calibration.method),
                )
            )
        return found

    def _tensor_error(self, tensor: str) -> TensorError:
        span = self._calibration.ranges[tensor]
        params = activation_params(span, self._scheme)
        return debug_advice.tensor_error(self._statistics.histogram(tensor), params)


def rank_images(
    data: bytes,
    names: Sequence[str],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    expected: Sequence[Mapping[str, NDArray[Any]]],
    blocks: Sequence[Block],
) -> list[ImageReport]:
    """The noise of the INT8 model `data` on each image, beside `expected`, the float outputs."""
    import numpy as np

    signals, noises = [], []
    with open_bytes(data, SessionOptions()) as session:
        for feed, wanted in zip(feeds, expected, strict=True):
            found = session.run(feed)
            wide = [block.take(wanted[block.output]) for block in blocks]
            other = [block.take(found[block.output]) for block in blocks]
            signals.append([_energy(array) for array in wide])
            noises.append([_energy(a - b) for a, b in zip(wide, other, strict=True)])
    # beside the mean signal: an image on which a block is nearly silent is not a bad one
    usual = np.mean(signals, axis=0)
    return [
        ImageReport(
            name=name,
            sqnr_db=min(debug_advice.decibels(*pair) for pair in zip(usual, noise, strict=True)),
        )
        for name, noise in zip(names, noises, strict=True)
    ]


def _energy(array: NDArray[Any]) -> float:
    import numpy as np

    wide = array.astype(np.float64)
    return float(np.vdot(wide, wide))


def _weight_db(node: Any, scheme: Scheme) -> float:
    import numpy as np

    weight: NDArray[np.float32] = np.asarray(node.inputs[1].const_value.numpy())
    axis = channel_axis(node) if scheme.per_channel else None
    scale = choose_weight_scale(weight, axis, scheme)
    stored = dequantize_weight(quantize_weight(weight, scale, axis, scheme), scale, axis)
    wide = weight.astype(np.float64)
    return debug_advice.decibels(float((wide**2).sum()), float(((wide - stored) ** 2).sum()))
