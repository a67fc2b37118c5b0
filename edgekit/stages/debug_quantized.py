"""Where an INT8 file loses accuracy, beside its float twin: the report of `debug`, from the file itself.

Scales, weights and biases are those that stand in the QDQ file, whoever made it. Layers are matched by
their names and tensors by theirs; distributions are those of the float model on the images given.

`alone_db` of a layer: the float model with this layer's weight, bias, input and output as the INT8 file
has them, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.calibration.histogram import Histogram
from edgekit.errors import BadInput
from edgekit.quantization import existing, retouch
from edgekit.quantization.macs import graph_macs
from edgekit.quantization.scheme import (
    Scheme,
    choose_weight_scale,
    dequantize_weight,
    quantize_weight,
)
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.observe import ObservedModel
from edgekit.runtimes.onnxruntime import open_bytes
from edgekit.stages import debug_advice, layer_loss
from edgekit.stages.blocks import find_blocks
from edgekit.stages.debug import ALONE_IMAGES, DebugReport, ImageReport, LayerReport, rank_images
from edgekit.stages.debug_advice import Knobs, TensorError
from edgekit.stages.parity import ParityMeter
from edgekit.types import OnnxModel, Progress, QuantParams, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FUSED = ("Relu", "Clip")
# the method in use is not known, so that every one may be suggested
_UNKNOWN = ""
_EXACT = TensorError(clipping_db=math.inf, rounding_db=math.inf, clipped_share=0.0)


def run(
    reference: OnnxModel,
    quantized: OnnxModel,
    feeds: Mapping[str, NDArray[Any]],
    progress: Progress = no_progress,
) -> DebugReport:
    """Take the QDQ model `quantized` apart beside the float `reference`.

    `feeds` maps image names to input tensors; at least one. Raises BadInput where the file has no layer
    in INT8 that the float model has too, and where inputs or outputs are not the same.
    """
    return _Debugger(reference, quantized, feeds).report(progress)


@dataclass(frozen=True)
class _Layer:
    """A quantized node, its float twin, and the tensors it reads and makes, with their parameters."""

    node: Any
    twin: Any
    source: str
    made: str
    read_with: QuantParams | None
    made_with: QuantParams | None


class _Distributions:
    """Histograms of the float model's tensors on the images."""

    def __init__(self, model: OnnxModel, tensors: Sequence[str], feeds: Sequence[Any]) -> None:
        self._found = {name: Histogram() for name in tensors}
        with ObservedModel(model.path, list(self._found), SessionOptions()) as observed:
            for feed in feeds:
                for name, array in observed.run(feed).items():
                    self._found[name].add(array)

    def histogram(self, name: str) -> Histogram:
        return self._found[name]


class _Debugger:
    def __init__(
        self, reference: OnnxModel, quantized: OnnxModel, feeds: Mapping[str, NDArray[Any]]
    ) -> None:
        import onnx_ir as ir

        self._reference, self._quantized = reference, quantized
        name = onnx_file.main_input(reference).name
        self._names = list(feeds)
        self._feeds = [{name: tensor} for tensor in feeds.values()]
        self._proto = onnx_file.load(reference.path)
        self._float = ir.from_proto(self._proto)
        self._graph = ir.from_proto(onnx_file.load(quantized.path))
        self._layers = self._matched()
        if not self._layers:
            raise BadInput(
                f"{quantized.path.name} has no layer in INT8 that {reference.path.name} has too.",
                hint="--float names the model that the INT8 file was made of, with the same node names.",
            )
        head = reference.metadata.get(onnx_file.HEAD_KEY)
        self._blocks = find_blocks(reference.path, head, self._feeds[0])
        with open_session("onnxruntime", reference.path) as session:
            self._expected = [session.run(feed) for feed in self._feeds]
        tensors = dict.fromkeys(
            tensor for layer in self._layers.values() for tensor in (layer.source, layer.made)
        )
        known = {value.name for value in self._float.graph.inputs}
        known |= {value.name for node in self._float.graph for value in node.outputs}
        self._distributions = _Distributions(
            reference, [tensor for tensor in tensors if tensor in known], self._feeds
        )
        self._known = known

    def _matched(self) -> dict[str, _Layer]:
        twins = {node.name: node for node in self._float.graph}
        found = {}
        for name, node in retouch.layers(self._graph.graph).items():
            twin = twins.get(name)
            if twin is None or twin.op_type != node.op_type or twin.inputs[1].const_value is None:
                continue
            made, params = self._made(node)
            found[name] = _Layer(
                node, twin, twin.inputs[0].name, made, retouch.input_params(node), params
            )
        return found

    def _made(self, node: Any) -> tuple[str, QuantParams | None]:
        """The tensor that the layer makes (behind its activation) and what it is quantized with."""
        value = node.outputs[0]
        for _ in range(2):
            users = [use.node for use in value.uses()]
            for user in users:
                if user.op_type == "QuantizeLinear" and user.inputs[0] is value:
                    for use in user.outputs[0].uses():
                        if use.node.op_type == "DequantizeLinear":
                            return value.name.removesuffix(".float"), existing.params_of(use.node)
            if len(users) != 1 or users[0].op_type not in _FUSED:
                break
            value = users[0].outputs[0]
        return value.name, None

    def report(self, progress: Progress) -> DebugReport:
        data = onnx_file.load(self._quantized.path).SerializeToString()
        blocks = self._meter(data, len(self._feeds)).report().blocks
        worst = min(blocks, key=lambda block: block.sqnr_db)
        nodes = layer_loss.run(
            self._reference.path,
            self._quantized.path,
            self._feeds[:ALONE_IMAGES],
            progress=progress,
        )
        macs = graph_macs(self._float.graph)
        total = sum(macs.values()) or 1
        layers = []
        for number, (name, layer) in enumerate(self._layers.items()):
            progress(number, len(self._layers), "each layer alone")
            layers.append(self._layer(name, layer, macs.get(name, 0) / total, nodes))
        floats = {
            node.name: "float in the file"
            for node in self._float.graph
            if node.op_type in ("Conv", "Gemm", "MatMul")
            and node.name in macs
            and node.name not in self._layers
        }
        images: list[ImageReport] = rank_images(
            data, self._names, self._feeds, self._expected, self._blocks
        )
        made = [name for node in self._proto.graph.node for name in node.output]
        return DebugReport(
            sqnr_db=worst.sqnr_db,
            block=worst.name,
            layers=tuple(sorted(layers, key=lambda layer: layer.alone_db)),
            nodes={name: nodes[name] for name in made if name in nodes},
            images=tuple(sorted(images, key=lambda image: image.sqnr_db)),
            floats=floats,
        )

    def _meter(self, data: bytes, count: int) -> ParityMeter:
        meter = ParityMeter(self._blocks)
        with open_bytes(data, SessionOptions()) as session:
            for feed, expected in list(zip(self._feeds, self._expected, strict=True))[:count]:
                meter.add(expected, session.run(feed))
        return meter

    def _layer(
        self, name: str, layer: _Layer, share: float, nodes: Mapping[str, float]
    ) -> LayerReport:
        import numpy as np

        weight = np.asarray(layer.twin.inputs[1].const_value.numpy())
        alone = self._meter(self._alone(name, layer), ALONE_IMAGES).report().sqnr_db
        scheme, axis = _scheme(layer)
        found = {debug_advice.AS_IT_IS: _weight_db(weight, layer)}
        for knob, other in debug_advice.weight_schemes(scheme).items():
            if knob != debug_advice.AS_IT_IS:
                found[knob] = _scheme_db(weight, axis if other.per_channel else None, other)
        knobs = Knobs(
            node=name,
            alone_db=alone,
            weight_db=found,
            input=self._error(layer.source, layer.read_with),
            output=self._error(layer.made, layer.made_with),
            input_name=layer.source,
            output_name=layer.made,
        )
        methods = debug_advice.Methods(self._distributions, scheme)
        return LayerReport(
            name=name,
            op_type=layer.node.op_type,
            mac_share=share,
            alone_db=alone,
            node_db=nodes.get(layer.made, math.inf),
            weight_db=found[debug_advice.AS_IT_IS],
            input=knobs.input,
            output=knobs.output,
            suggestion=debug_advice.suggest(knobs, methods, _UNKNOWN),
        )

    def _error(self, tensor: str, params: QuantParams | None) -> TensorError:
        if params is None or params.scale.size != 1 or tensor not in self._known:
            return _EXACT
        return debug_advice.tensor_error(self._distributions.histogram(tensor), params)

    def _alone(self, name: str, layer: _Layer) -> bytes:
        """The float model with this one layer as the INT8 file has it."""
        import numpy as np
        import onnx_ir as ir

        model = ir.from_proto(self._proto)
        node = next(node for node in model.graph if node.name == name)
        stood_for = retouch.stood_for(layer.node)
        weight = node.inputs[1].const_value.numpy()
        if stood_for.shape == weight.shape:
            _constant(model, node, 1, stood_for.astype(np.float32))
        bias = retouch.bias_of(layer.node)
        if bias is not None and (len(node.inputs) > 2) and bias.ndim == 1:
            _constant(model, node, 2, bias.astype(np.float32))
        if layer.read_with is not None:
            _round(model, node.inputs[0], layer.read_with, (node,), f"{name}.read")
        if layer.made_with is not None:
            made = next((v for n in model.graph for v in n.outputs if v.name == layer.made), None)
            if made is not None and not made.is_graph_output():
                readers = tuple(use.node for use in made.uses())
                _round(model, made, layer.made_with, readers, f"{name}.made")
        return bytes(ir.to_proto(model).SerializeToString())


def _constant(model: Any, node: Any, index: int, array: NDArray[Any]) -> None:
    import onnx_ir as ir

    name = f"{node.name}.debug.{index}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
    model.graph.initializers[name] = value
    node.replace_input_with(index, value)


def _round(model: Any, value: Any, params: QuantParams, readers: Sequence[Any], stem: str) -> None:
    """Let `readers` read `value` quantized and dequantized."""
    import numpy as np
    import onnx_ir as ir

    constants = []
    for part, array in (
        ("scale", np.asarray(params.scale, np.float32)),
        ("zero", np.asarray(params.zero_point)),
    ):
        name = f"{stem}.{part}"
        made = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        made.shape, made.type = made.const_value.shape, ir.TensorType(made.const_value.dtype)
        model.graph.initializers[name] = made
        constants.append(made)
    quantize = ir.Node("", "QuantizeLinear", inputs=[value, *constants], name=f"{stem}.q")
    quantize.outputs[0].name = f"{stem}.integers"
    dequantize = ir.Node(
        "", "DequantizeLinear", inputs=[quantize.outputs[0], *constants], name=f"{stem}.dq"
    )
    dequantize.outputs[0].name = f"{stem}.rounded"
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [quantize, dequantize])
    else:
        model.graph.insert_after(producer, [quantize, dequantize])
    for reader in readers:
        for index, read in enumerate(reader.inputs):
            if read is value:
                reader.replace_input_with(index, dequantize.outputs[0])


def _scheme(layer: _Layer) -> tuple[Scheme, int | None]:
    """The integers that the layer is computed with, and the axis of its weight's channels."""
    import numpy as np

    from edgekit.quantization.rules import channel_axis

    params = layer.read_with or layer.made_with
    kind = np.dtype(np.uint8) if params is None else params.zero_point.dtype
    zero = 0 if params is None else int(params.zero_point.reshape(-1)[0])
    largest = int(np.abs(retouch.integers_of(layer.node)).max(initial=0))
    bits = next(bits for bits in (4, 6, 7, 8) if largest < 2 ** (bits - 1) or bits == 8)
    return Scheme(
        activation_type="int8" if kind == np.int8 else "uint8",
        symmetric_activations=kind == np.int8 and zero == 0,
        per_channel=retouch.weight_params(layer.node).scale.size > 1,
        weight_bits=bits,
    ), channel_axis(layer.twin)


def _weight_db(weight: NDArray[np.floating], layer: _Layer) -> float:
    import numpy as np

    stored = retouch.stood_for(layer.node)
    if stored.shape != weight.shape:
        return math.inf
    wide = weight.astype(np.float64)
    return debug_advice.decibels(float((wide**2).sum()), float(((wide - stored) ** 2).sum()))


def _scheme_db(weight: NDArray[np.floating], axis: int | None, scheme: Scheme) -> float:
    import numpy as np

    scale = choose_weight_scale(weight, axis, scheme)
    stored = dequantize_weight(quantize_weight(weight, scale, axis, scheme), scale, axis)
    wide = weight.astype(np.float64)
    return debug_advice.decibels(float((wide**2).sum()), float(((wide - stored) ** 2).sum()))
