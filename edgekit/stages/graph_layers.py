"""The layers of a graph with their weights as real numbers, whatever form these are stored in.

Float weights, weights behind DequantizeLinear (and QuantizeLinear before it), weights of QLinear and
of dynamically quantized operators, with Transpose, Reshape and Identity in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import EdgekitError, NotPossible
from edgekit.quantization import dynamic
from edgekit.quantization.rules import channel_axis
from edgekit.runtimes.base import SessionOptions

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

# integer operator → (float operator, places of the weight, its scale, its zero point)
_QLINEAR = {
    "QLinearConv": ("Conv", 3, 4, 5),
    "QLinearMatMul": ("MatMul", 3, 4, 5),
    "QGemm": ("Gemm", 3, 4, 5),
}
_FLOAT = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOVES = ("Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze")
# inputs that hold scales and zero points, not parameters
_QUANTIZERS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
}
# constants of these say where and how, not what was learned
_MOST_NODES = 200
_SETTINGS = ("Resize", "Pad", "Clip", "Slice", "Reshape", "Tile", "Expand", "Pow", "Gather")


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """One Conv, ConvTranspose, Gemm or MatMul with a constant weight.

    `weight`: real values in the shape they are stored in; `axis` its output channels. `stored` is
    the element type in the file ("float32", "int8"), `integers` the stored integers or None,
    `scale` the weight's scale [] or [C], `input_scale` the one of the activation that enters, None
    where there is none. `precision`: "int8" when both are integers, "int8 weights" when only the
    weight is, else the float type. `bias` counts its elements.
    """

    name: str
    kind: str
    weight: NDArray[Any]
    stored: str
    axis: int | None
    bias: int
    macs: int | None
    groups: int = 1
    integers: NDArray[Any] | None = None
    scale: NDArray[Any] | None = None
    input_scale: float | None = None
    precision: str = "float32"


@dataclass(frozen=True)
class _Weight:
    """A weight on its way to the layer: real values, stored integers, scale, and how it is stored."""

    values: NDArray[Any]
    stored: str
    integers: NDArray[Any] | None = None
    scale: NDArray[Any] | None = None


def opened(model: onnx.ModelProto) -> Any:
    """`model` as onnx_ir with its constants as initializers, each node knowing its old place."""
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    graph = ir.from_proto(model)
    for place, node in enumerate(graph.graph):
        node.meta["edgekit.place"] = place
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    return graph


def layers(model: onnx.ModelProto, macs: dict[int, int]) -> Iterator[GraphLayer]:
    """Every layer of the main graph whose weight is a constant, in graph order.

    `macs` is what `layer_macs.count_macs` gives.
    """
    for node in opened(model).graph:
        found = _layer(node)
        if found is not None:
            yield _described(node, *found, macs.get(node.meta["edgekit.place"]))


def parameters(model: onnx.ModelProto) -> tuple[int, int]:
    """(elements, bytes) of what was learned: weights, biases, normalization; no scales, no settings."""
    count = size = 0
    for value in opened(model).graph.initializers.values():
        tensor = value.const_value
        uses = value.uses()
        array_type = tensor.dtype.name
        if not tensor.shape or not uses or array_type in ("INT64", "BOOL", "STRING"):
            continue
        if all(_is_setting(use.node.op_type, use.idx) for use in uses):
            continue
        count += tensor.size
        size += tensor.nbytes
    return count, size


def _is_setting(operator: str, index: int) -> bool:
    return (operator in _SETTINGS and index > 0) or index in _QUANTIZERS.get(operator, ())


def _constant(value: Any) -> NDArray[Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _layer(node: Any) -> tuple[str, _Weight] | None:
    """(float operator, weight) of a layer; None for what is none or has a computed weight."""
    if node.op_type in _FLOAT and len(node.inputs) > 1:
        weight = _follow(node.inputs[1])
        if weight is None and node.op_type == "MatMul":
            weight = _follow(node.inputs[0])
        return None if weight is None or weight.values.ndim < 2 else (node.op_type, weight)
    if node.op_type in _QLINEAR:
        kind, at, scale_at, zero_at = _QLINEAR[node.op_type]
        integers, scale = _constant(node.inputs[at]), _constant(node.inputs[scale_at])
        if integers is None or scale is None:
            return None
        axis = 0 if kind == "Conv" else integers.ndim - 1
        zero = _constant(node.inputs[zero_at]) if len(node.inputs) > zero_at else None
        return kind, _dequantized(integers, scale, zero, axis)
    if node.op_type in dynamic.FLOAT_OPERATOR:
        integers = _constant(node.inputs[1])
        if integers is None:
            return None
        kind = dynamic.FLOAT_OPERATOR[node.op_type]
        zero = _constant(node.inputs[3]) if len(node.inputs) > 3 else None
        one = np.ones((), np.float32)
        plain = _dequantized(integers, one, zero, 0 if kind == "Conv" else integers.ndim - 1)
        try:
            values = dynamic.read_layer(node).weight
        except NotPossible:  # without its scale: zeros and levels are right all the same
            return kind, plain
        assert values is not None
        return kind, _Weight(values, plain.stored, plain.integers)
    return None


def _follow(value: Any) -> _Weight | None:
    """The constant behind `value`, through what quantizes or moves it."""
    array = _constant(value)
    if array is not None:
        return _Weight(array, str(array.dtype))
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type in _MOVES:
        inner = _follow(node.inputs[0])
        # a moved weight keeps its stored shape: values, zeros and levels are the same
        return inner
    if node.op_type != "DequantizeLinear":
        return _computed(value)
    scale = _constant(node.inputs[1])
    zero = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None:
        return None
    given = node.attributes.get("axis")
    axis = given.as_int() if given is not None else 1
    integers = _constant(node.inputs[0])
    if integers is not None:
        return _dequantized(integers, scale, zero, axis)
    before = node.inputs[0].producer()
    if before is None or before.op_type != "QuantizeLinear":
        return None
    inner = _follow(before.inputs[0])
    if inner is None:
        return None
    integers = quantized(inner.values, scale, zero, axis)
    made = _dequantized(integers, scale, zero, axis)
    return _Weight(made.values, inner.stored, made.integers, made.scale)


def _computed(value: Any) -> _Weight | None:
    """A weight that the graph computes from constants alone (ternary from latent weights): its value."""
    import onnx
    import onnx_ir as ir

    nodes: dict[Any, None] = {}
    constants: dict[str, Any] = {}
    todo = [value]
    while todo:
        item = todo.pop()
        if item is None or item.name in constants:
            continue
        if item.const_value is not None:
            constants[item.name] = item.const_value
            continue
        node = item.producer()
        if node is None or len(nodes) > _MOST_NODES:
            return None
        nodes[node] = None
        todo.extend(node.inputs)
    places = {node: node.meta.get("edgekit.place", -1) for node in nodes}
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in sorted(nodes, key=lambda node: places[node])],
        "weight",
        [],
        [onnx.ValueInfoProto(name=value.name)],
        [ir.to_proto(ir.tensor(tensor.numpy(), name=name)) for name, tensor in constants.items()],
    )
    domains = value.producer().graph.opset_imports
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    from edgekit.runtimes.onnxruntime import OnnxRuntimeSession

    try:
        with OnnxRuntimeSession(model.SerializeToString(), SessionOptions()) as session:
            (array,) = session.run({}).values()
    except EdgekitError:
        return None
    return _Weight(array, str(array.dtype))


def _spread(array: NDArray[Any], axis: int, rank: int) -> NDArray[Any]:
    if array.size == 1:
        return array.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return array.reshape(shape)


def quantized(
    weight: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int
) -> NDArray[Any]:
    """What QuantizeLinear makes of `weight`: integers of the zero point's type (uint8 without one)."""
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    levels = np.rint(weight / _spread(scale, axis, weight.ndim))
    if zero is not None:
        levels = levels + _spread(zero, axis, weight.ndim).astype(np.float32)
    info = np.iinfo(dtype)
    result: NDArray[Any] = np.clip(levels, info.min, info.max).astype(dtype)
    return result


def _dequantized(
    integers: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int
) -> _Weight:
    centred = integers.astype(np.float32)
    if zero is not None:
        centred = centred - _spread(zero.astype(np.float32), axis, integers.ndim)
    values = centred * _spread(scale, axis, integers.ndim)
    return _Weight(values, str(integers.dtype), integers, scale)


def _described(node: Any, kind: str, weight: _Weight, macs: int | None) -> GraphLayer:
    groups = node.attributes.get("group")
    bias_at = {"QLinearConv": 8, "QGemm": 6}.get(node.op_type, 2)
    bias = 0
    if node.op_type not in dynamic.FLOAT_OPERATOR and len(node.inputs) > bias_at:
        found = _follow(node.inputs[bias_at])
        bias = 0 if found is None else found.values.size
    integer_input, input_scale = _input_of(node)
    precision = weight.stored
    if weight.integers is not None:
        bits = "int8" if weight.integers.dtype.itemsize == 1 else str(weight.integers.dtype)
        precision = bits if integer_input else f"{bits} weights"
    if kind == "Conv":
        axis: int | None = 0
    elif kind == node.op_type:
        axis = channel_axis(node)
        if axis is None and kind == "MatMul" and weight.values.ndim == 2:
            axis = 1
    else:
        axis = weight.values.ndim - 1
    return GraphLayer(
        name=node.name or node.outputs[0].name,
        kind=kind,
        weight=weight.values,
        stored=weight.stored,
        axis=axis,
        bias=bias,
        macs=macs,
        groups=groups.as_int() if groups is not None else 1,
        integers=weight.integers,
        scale=weight.scale,
        input_scale=input_scale,
        precision=precision,
    )


def _input_of(node: Any) -> tuple[bool, float | None]:
    """Whether the activation that enters is made of integers, and its scale where it is fixed."""
    if node.op_type in dynamic.FLOAT_OPERATOR:
        return True, None
    if node.op_type in _QLINEAR:
        scale = _constant(node.inputs[1])
        return True, None if scale is None else float(scale.reshape(-1)[0])
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if maker is None or maker.op_type != "DequantizeLinear":
        return False, None
    scale = _constant(maker.inputs[1])
    return True, None if scale is None else float(scale.reshape(-1)[0])
