"""Multiply-accumulates of every layer of a graph: from inferred shapes, else from those of one run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.quantization.macs import graph_macs
from edgekit.runtimes.base import SessionOptions

if TYPE_CHECKING:
    import onnx

# operator → (index of its weight, the float operator it stands for)
LAYERS = {
    "Conv": (1, "Conv"),
    "ConvTranspose": (1, "ConvTranspose"),
    "Gemm": (1, "Gemm"),
    "MatMul": (1, "MatMul"),
    "ConvInteger": (1, "Conv"),
    "MatMulInteger": (1, "MatMul"),
    "QLinearConv": (3, "Conv"),
    "QLinearMatMul": (3, "MatMul"),
    "QGemm": (3, "Gemm"),
}


def count_macs(model: onnx.ModelProto, input_shape: tuple[int, ...] | None) -> dict[int, int]:
    """MACs of one image by the place of the node, products of activations included.

    Where shapes cannot be inferred and the input's shape is known, the graph is run once and asked.
    """
    inferred = layer_macs(model, input_shape)
    wanted = [p for p, node in enumerate(model.graph.node) if node.op_type in LAYERS]
    if input_shape is None or all(place in inferred for place in wanted):
        return inferred
    try:
        return {**inferred, **_measured(model, wanted, input_shape)}
    except EdgekitError:  # a graph that does not run still has layers to look at
        return inferred


def _measured(
    model: onnx.ModelProto, wanted: list[int], input_shape: tuple[int, ...]
) -> dict[int, int]:
    """MACs from the shapes of a run on zeros."""
    import onnx

    from edgekit.runtimes.onnxruntime import OnnxRuntimeSession

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shapes = {item.name: tuple(item.dims) for item in copy.graph.initializer}
    present = {value.name for value in copy.graph.output}
    fed = {value.name for value in copy.graph.input}
    for place in wanted:
        node = copy.graph.node[place]
        for name in (node.input[0], node.input[LAYERS[node.op_type][0]], node.output[0]):
            if name not in shapes and name not in present and name not in fed:
                copy.graph.output.append(onnx.ValueInfoProto(name=name))
                present.add(name)
    with OnnxRuntimeSession(copy.SerializeToString(), SessionOptions(), name="model") as session:
        feeds = {
            spec.name: np.zeros(
                [
                    size if isinstance(size, int) else input_shape[axis] if axis < 4 else 1
                    for axis, size in enumerate(spec.shape)
                ],
                spec.dtype,
            )
            for spec in session.inputs
        }
        for name, array in {**feeds, **session.run(feeds)}.items():
            shapes[name] = array.shape
    return {place: _macs(copy.graph.node[place], shapes) for place in wanted}


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    place, kind = LAYERS[node.op_type]
    source, weight = shapes[node.input[0]], shapes[node.input[place]]
    output = shapes[node.output[0]]
    if kind == "Conv":
        return math.prod(output) * math.prod(weight[1:])
    if kind == "ConvTranspose":
        return math.prod(source) * math.prod(weight[1:])
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(output) * (source[0] if transposed else source[-1])


def layer_macs(model: onnx.ModelProto, input_shape: tuple[int, ...] | None) -> dict[int, int]:
    """Multiply-accumulates of one image by the place of the node in the graph; float and integer layers.

    `input_shape` fixes free dimensions of an image input. Layers of unknown shapes are left out.
    """
    import onnx
    import onnx_ir as ir

    plain = _float_view(model)
    initializers = {item.name for item in plain.graph.initializer}
    for value in plain.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in initializers:
            continue
        for axis, dim in enumerate(dims):
            size = 1 if axis == 0 else dim.dim_value
            if not size and input_shape is not None and len(dims) == len(input_shape):
                size = input_shape[axis]
            if size:
                dim.Clear()
                dim.dim_value = size
    del plain.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(plain, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    return {int(name): macs for name, macs in graph_macs(ir.from_proto(inferred).graph).items()}


def _float_view(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose integer layers stand as their float ones: shapes are all that counts here."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = f"{number}"
        if node.op_type not in LAYERS or node.op_type == LAYERS[node.op_type][1]:
            continue
        place, kind = LAYERS[node.op_type]
        first, second = node.input[0], node.input[place]
        del node.input[:]
        node.input.extend([first, second])
        node.op_type, node.domain = kind, ""
        kept = [item for item in node.attribute if item.name not in ("alpha", "beta")]
        del node.attribute[:]
        node.attribute.extend(kept)
    return copy
