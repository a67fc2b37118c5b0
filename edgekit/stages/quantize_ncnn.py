"""Float ncnn + Calibration → INT8 ncnn.

The ranges are those that the one Calibration store gives for the tensors of the ONNX graph; layers
that could not be matched get theirs from statistics of the same kind, collected on the ncnn graph
(edgekit.stages.collect_ncnn). Weights are rounded by GPTQ (edgekit.stages.round_ncnn); biases take
back what rounding adds to the mean output (edgekit.quantization.bias_correction), where the
Calibration holds the channel means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.builders import ncnn as builder
from edgekit.builders import ncnn_int8
from edgekit.builders.ncnn_int8 import LayerScale
from edgekit.builders.pnnx import NcnnModel
from edgekit.calibration import store
from edgekit.calibration.methods import choose
from edgekit.errors import BadInput, NotPossible
from edgekit.formats import ncnn_bin, ncnn_json, ncnn_table
from edgekit.formats.ncnn_bin import Array
from edgekit.formats.ncnn_table import Table
from edgekit.quantization import ternary
from edgekit.quantization.bias_correction import mean_shift
from edgekit.quantization.macs import graph_macs
from edgekit.quantization.rules import Rules, head_nodes
from edgekit.runtimes import open_session
from edgekit.stages import ncnn_layers, round_ncnn
from edgekit.stages.ncnn_layers import NcnnLayerInfo
from edgekit.stages.parity import INT8_LIMITS, compare_sessions, demand
from edgekit.stages.quantize import channel_means
from edgekit.target import Quantize
from edgekit.types import (
    Calibration,
    Engine,
    OnnxModel,
    ParityReport,
    Progress,
    Range,
    no_progress,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 1
TABLE = "model.table"


@dataclass(frozen=True, kw_only=True)
class QuantizedNcnn:
    """An INT8 ncnn model: its files, which layers are INT8 and which stay float for what reason.

    `weight_bits` are the fewest that an INT8 layer has.
    """

    engine: Engine
    compute: tuple[str, ...]
    floats: dict[str, str]
    int8_mac_share: float
    weight_bits: int
    parity: ParityReport | None
    notes: tuple[str, ...]


class NcnnQuantizer:
    """Makes INT8 models of one float ncnn model, with ranges of any method and any layers left float.

    `model` is the prepared ONNX graph that `engine` was converted from and `calibration` was
    collected on; `feed` is an input tensor of a real image. Raises BadInput when the calibration is
    that of another graph.
    """

    def __init__(
        self,
        engine: Engine,
        model: OnnxModel,
        calibration: Calibration,
        rules: Quantize,
        feed: NDArray[Any],
    ) -> None:
        import onnx_ir as ir

        if calibration.graph_sha256 != model.sha256:
            raise BadInput(
                f"The calibration was collected on another graph "
                f"({calibration.graph_sha256[:12]}…) than {model.path.name} "
                f"({model.sha256[:12]}…).",
                hint="Calibrate this model: `edgekit calibrate`.",
            )
        self.engine = engine
        self.model = model
        self._rules = rules
        self.float_model = ncnn_layers.load(engine)
        self.known = ncnn_layers.survey(engine, self.float_model, model, feed)
        self._graph = ir.load(str(model.path)).graph
        self._nodes = {node.name: node for node in self._graph}
        self._statistics = [store.read(calibration.path)[0]]
        self._means = channel_means(self._statistics[0])
        self._ranges: dict[str, dict[str, Range]] = {}
        self._levels: dict[int, NDArray[np.int8]] = {}
        self._table: dict[int, LayerScale] | None = None
        self._ternary = self._ternary_scales()

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Blobs whose statistics must be collected on the ncnn graph."""
        return tuple(
            dict.fromkeys(layer.tensor for layer in self.known.layers if not layer.matched)
        )

    def add_statistics(self, path: Path) -> None:
        """Take in statistics of the blobs in `unmatched` (edgekit.stages.collect_ncnn)."""
        self._statistics.append(store.read(path)[0])
        self._ranges.clear()

    def round_weights(
        self, feeds: Sequence[NDArray[Any]], progress: Progress = no_progress
    ) -> None:
        """Round the weights with what enters the layers in view (edgekit.stages.round_ncnn).

        `feeds` are input tensors of real images. Without it, weights are rounded to the nearest level.
        """
        bits = {layer.place: self.bits(layer) for layer in self.known.layers}
        # ternary weights lie on their scale already
        layers = [layer for layer in self.known.layers if layer.place not in self._ternary]
        self._levels = round_ncnn.run(self.float_model, self.model, layers, bits, feeds, progress)

    def take_table(self, table: Table) -> dict[str, str]:
        """Use the scales of a calibration table; returns the layers that it leaves float, with why.

        Raises BadInput when the table is that of another model.
        """
        self._table = ncnn_int8.plan_of_table(self.float_model, table)
        return {
            layer.name: "the table leaves it float"
            for layer in self.known.layers
            if layer.place not in self._table
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers that can be INT8, in the order of the graph."""
        return tuple(layer.name for layer in self.known.layers)

    def ranges(self, method: str) -> Mapping[str, Range]:
        """Symmetric ranges of all observed tensors and blobs by `method`."""
        if method not in self._ranges:
            chosen: dict[str, Range] = {}
            for statistics in self._statistics:
                chosen.update(choose(statistics, method, symmetric=True))
            self._ranges[method] = chosen
        return self._ranges[method]

    def bits(self, layer: NcnnLayerInfo) -> int:
        """Bits of the layer's weights: 6 where Winograd's sums hold no more."""
        winograd = ncnn_int8.uses_winograd(self.float_model.graph.layers[layer.place])
        return 6 if self._rules.winograd and winograd else 8

    def plan(
        self, method: str, keep: Collection[str], methods: Mapping[str, str] | None = None
    ) -> dict[int, LayerScale]:
        """How every layer that is not in `keep` and whose input's range is known is quantized.

        `methods` gives single layers another method than `method`. A table that was taken in decides
        alone.
        """
        chosen: dict[int, LayerScale] = {}
        if self._table is not None:
            return {
                layer.place: self._table[layer.place]
                for layer in self.known.layers
                if layer.place in self._table and layer.name not in keep
            }
        for layer in self.known.layers:
            ranges = self.ranges((methods or {}).get(layer.name, method))
            if layer.name not in keep and layer.tensor in ranges:
                amax = ranges[layer.tensor].amax
                scale = LayerScale.of_range(amax, self.bits(layer))
                own = self._ternary.get(layer.place)
                chosen[layer.place] = dataclasses.replace(scale, weight_scales=own)
        return chosen

    def _ternary_scales(self) -> dict[int, tuple[float, ...]]:
        """Weight scales of the ternary layers, by place: both levels on integers as exactly as can be.

        ncnn multiplies by its scales, so they are 1 over the steps of edgekit.quantization.ternary.
        """
        import numpy as np

        found: dict[int, tuple[float, ...]] = {}
        for layer in self.known.layers:
            place = layer.place
            groups = ncnn_int8.groups_of(self.float_model.graph.layers[place])
            weight = self.float_model.weights[place]["weight"].floats().reshape(groups, -1)
            steps = ternary.weight_scale(weight, 0, ncnn_int8.WEIGHT_LIMITS[self.bits(layer)])
            if steps is not None:
                found[place] = tuple((np.float32(1.0) / steps).astype(np.float32).tolist())
        return found

    def quantized(
        self,
        method: str,
        keep: Collection[str],
        *,
        methods: Mapping[str, str] | None = None,
        only: str | None = None,
    ) -> NcnnModel:
        """The model in INT8 but for `keep`, its float weights in float16 where that holds them.

        `methods` as in `plan`. With `only`, that layer alone is in INT8, and all others are as they
        were.
        """
        plan = self.plan(method, keep, methods)
        if only is not None:
            places = {layer.place for layer in self.known.layers if layer.name == only}
            plan = {place: scale for place, scale in plan.items() if place in places}
        made = ncnn_int8.quantize(self.float_model, plan, self._levels)
        weights: list[Mapping[str, Array]] = list(made.weights)
        for layer in self.known.layers:
            if layer.place in plan and layer.matched and self._table is None:
                weights[layer.place] = self._corrected(layer, weights[layer.place])
        if only is None:
            weights = [_compact(arrays) for arrays in weights]
        return dataclasses.replace(made, weights=weights)

    def _corrected(self, layer: NcnnLayerInfo, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """The arrays of an INT8 layer with its bias corrected, where its input's means are known."""
        import numpy as np

        mean, node = self._means.get(layer.tensor), self._nodes.get(layer.name)
        if mean is None or node is None or "bias" not in arrays:
            return arrays
        scales = arrays["weight_scales"].values.astype(np.float64)
        levels = arrays["weight"].floats().astype(np.float64).reshape(scales.size, -1)
        exact = self.float_model.weights[layer.place]["weight"].floats().astype(np.float64)
        error = (levels / scales[:, None]).reshape(-1) - exact
        shape = tuple(int(size) for size in node.inputs[1].shape)
        if node.op_type == "Conv":
            error = error.reshape(shape)
        else:  # ncnn has the matrix as [outputs, inputs]
            transposed = node.attributes.get("transB")
            by_rows = node.op_type == "Gemm" and transposed is not None and transposed.as_int()
            error = error.reshape(shape) if by_rows else error.reshape(shape[::-1]).T
        shift = mean_shift(node, error, mean)
        if shift is None or shift.size != arrays["bias"].values.size:
            return arrays
        return {**arrays, "bias": ncnn_bin.plain(arrays["bias"].values - shift)}

    def default_float(self) -> dict[str, str]:
        """Layers that stay float where nothing is searched, with the reason: a detector's last ones."""
        macs = graph_macs(self._graph)
        rules = Rules(operators=("Conv", "Gemm"), follow=(), keep_float=("head",))
        return head_nodes(self._graph, macs, rules)

    def always_float(self, asked: Sequence[str]) -> dict[str, str]:
        """Layers that stay float whatever is searched, with the reason.

        `asked` are the user's: nodes of the prepared graph, or ncnn layers by their own names.
        Raises BadInput for a name that neither has.
        """
        reasons: dict[str, str] = {}
        types = {layer.name: self._kind(layer) for layer in self.known.layers}
        for rule, reason in (
            ("Conv", "the profile keeps Conv float"),
            ("Gemm", "the profile keeps Gemm float"),
            ("depthwise", "the profile keeps depthwise convolutions float"),
            ("head", "a last layer of the head"),
        ):
            if rule in self._rules.keep_float:
                heads = self.default_float() if rule == "head" else {}
                for name, kind in types.items():
                    if kind == rule or name in heads:
                        reasons[name] = reason
        if "first" in self._rules.keep_float and self.known.layers:
            reasons[self.known.layers[0].name] = "the profile keeps the first layer float"
        own = {
            self.float_model.graph.layers[layer.place].name: layer.name
            for layer in self.known.layers
        }
        for name in asked:
            found = name if name in types else own.get(name)
            if found is None and name not in self._nodes:
                raise BadInput(f"No node '{name}' in {self.model.path.name}, asked to stay float.")
            if found is not None:
                reasons[found] = "asked to stay float"
        return reasons

    def _kind(self, layer: NcnnLayerInfo) -> str:
        kind = self.float_model.graph.layers[layer.place].type
        return {"ConvolutionDepthWise": "depthwise", "InnerProduct": "Gemm"}.get(kind, "Conv")

    def write(self, model: NcnnModel, out: Path) -> Engine:
        """Write an INT8 model into the folder `out`; inputs and outputs are the float model's."""
        sidecar = ncnn_json.read(self.engine.files[0])
        return builder.write(model, sidecar.inputs, sidecar.outputs, "int8", out)


def _compact(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """Float weights in float16 where that holds them: beside INT8, its rounding is nothing."""
    weight = arrays.get("weight")
    if weight is None or weight.tag != ncnn_bin.FP32:
        return arrays
    try:
        return {**arrays, "weight": ncnn_bin.stored(weight.floats(), ncnn_bin.FP16)}
    except NotPossible:
        return arrays


def run(
    quantizer: NcnnQuantizer,
    method: str,
    keep: Mapping[str, str],
    feeds: Sequence[NDArray[Any]],
    out: Path,
    methods: Mapping[str, str] | None = None,
) -> QuantizedNcnn:
    """Write the INT8 model and its table into `out`; `keep` maps layers left float to the reason.

    Ranges are chosen by `method`, for single layers by what `methods` gives them.
    `feeds`, input tensors of real images, are for the parity with the float model. Raises
    NotPossible when no layer can be INT8, VerificationFailed when the result is another model.
    """
    floats = dict(keep)
    plan = quantizer.plan(method, floats, methods)
    for layer in quantizer.known.layers:
        if layer.name not in floats and layer.place not in plan:
            floats[layer.name] = f"no calibrated range for '{layer.tensor}'"
    layers = [layer for layer in quantizer.known.layers if layer.name not in floats]
    if not layers:
        reasons = "; ".join(sorted(set(floats.values()))) or "it has no convolution"
        raise NotPossible(
            f"No layer of {quantizer.model.path.name} can be INT8 in ncnn: {reasons}."
        )
    made = quantizer.quantized(method, floats, methods=methods)
    engine = quantizer.write(made, out)
    ncnn_table.write(ncnn_table.of_layers(made.graph, made.weights), out / TABLE)
    engine = dataclasses.replace(engine, files=(*engine.files, out / TABLE))
    parity = None
    if feeds:
        name = onnx_file.main_input(quantizer.model).name
        head = quantizer.model.metadata.get(onnx_file.HEAD_KEY)
        with (
            open_session("ncnn", quantizer.engine.files) as reference,
            open_session("ncnn", engine.files) as candidate,
        ):
            parity = compare_sessions(
                reference, candidate, [{name: f} for f in feeds], quantizer.model.path, head
            )
        demand(parity, INT8_LIMITS, "quantize")
    share = quantizer.known.share_without(frozenset(floats))
    bits = {quantizer.bits(layer) for layer in layers}
    unmatched = [layer for layer in quantizer.known.layers if not layer.matched]
    notes = [
        f"{len(layers)} of {len(quantizer.known.layers)} layers, {share:.1%} of the MACs in INT8",
        f"{' and '.join(str(b) for b in sorted(bits))}-bit weights per channel",
    ]
    if unmatched:
        notes.append(f"{len(unmatched)} layers calibrated on the ncnn graph")
    return QuantizedNcnn(
        engine=engine,
        compute=tuple(layer.name for layer in layers),
        floats=floats,
        int8_mac_share=share,
        weight_bits=min(bits),
        parity=parity,
        notes=tuple(notes),
    )
