"""Forms of operators that a runtime computes faster, taken before placement: float graph to float graph.

Which forms a target takes is data (`forms` in its [quantize] section), because what is faster is a
matter of the runtime and the instruction set:

- "silu": x * sigmoid(x) becomes one com.microsoft::QuickGelu with alpha 1. Between integers it is
  DequantizeLinear, one float operator, QuantizeLinear. As two operators ONNX Runtime gives each a
  DequantizeLinear of its own and does not fuse them any more, and its 8-bit kernels look Sigmoid up
  byte by byte.
- "softmax": a softmax over an axis with a large inner size becomes max, subtract, exp, sum and divide,
  each of which runs along the inner axis. The kernel copies the tensor twice and takes short rows one
  at a time.

The other forms are taken behind the insertion of QDQ (`integer_forms`) or are a matter of scales
("concat", see `placement`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from edgekit.quantization.macs import static_shape

FOLLOWED = {"silu": ("QuickGelu",), "hard_swish": ("HardSwish", "HardSigmoid")}
"""Operator types that run between integers on both sides once a form is taken."""

CONTRIB_DOMAIN = "com.microsoft"

# below this inner size the kernel's own way is as fast
_INNER = 64


def take(model: Any, forms: Collection[str]) -> int:
    """Give `model` (onnx_ir.Model, changed in place) the float forms among `forms`; return how many.

    Tensors keep their names; what disappears is the tensor between the two parts of an activation.
    """
    taken = 0
    for node in list(model.graph):
        if "silu" in forms and node.op_type == "Sigmoid":
            taken += _fuse_silu(model, node)
        elif "softmax" in forms and node.op_type == "Softmax":
            taken += _spread_softmax(model, node)
    return taken


def _fuse_silu(model: Any, gate: Any) -> bool:
    import onnx_ir as ir

    source, weight = gate.inputs[0], gate.outputs[0]
    uses = list(weight.uses())
    if len(uses) != 1 or weight.is_graph_output() or uses[0].node.op_type != "Mul":
        return False
    product = uses[0].node
    if product.inputs[1 - uses[0].idx] is not source:
        return False
    if source.dtype is not None and source.dtype != ir.DataType.FLOAT:
        return False
    fused = ir.Node(
        CONTRIB_DOMAIN,
        "QuickGelu",
        inputs=[source],
        attributes=[ir.AttrFloat32("alpha", 1.0)],
        name=product.name,
    )
    _replace(model.graph, product, fused)
    model.graph.remove(gate, safe=True)
    model.graph.opset_imports.setdefault(CONTRIB_DOMAIN, 1)
    return True


def _replace(graph: Any, old: Any, new: Any) -> None:
    """Put `new` where `old` is; its output takes over name, shape, type and readers."""
    import onnx_ir as ir

    result, made = old.outputs[0], new.outputs[0]
    made.shape, made.type = result.shape, result.type
    graph.insert_after(old, [new])
    ir.convenience.replace_all_uses_with(result, made, replace_graph_outputs=True)
    name = result.name
    graph.remove(old, safe=True)
    result.name = None
    made.name = name


def _spread_softmax(model: Any, node: Any) -> bool:
    """softmax(x) = exp(x - max x) / sum exp(x - max x), along one axis."""
    import onnx_ir as ir

    shape = static_shape(node.inputs[0])
    attribute = node.attributes.get("axis")
    opset = model.graph.opset_imports.get("", 0)
    if shape is None or opset < 13:
        return False
    axis = (-1 if attribute is None else int(attribute.as_int())) % len(shape)
    if math.prod(shape[axis + 1 :]) < _INNER or shape[axis] < 2:
        return False
    graph, source = model.graph, node.inputs[0]
    stem = node.name or node.outputs[0].name
    axes = ir.Value(
        name=f"{stem}.axes", const_value=ir.tensor(np.array([axis]), name=f"{stem}.axes")
    )
    axes.shape, axes.type = axes.const_value.shape, ir.TensorType(ir.DataType.INT64)
    graph.initializers[axes.name] = axes
    reduced = [*shape[:axis], 1, *shape[axis + 1 :]]

    def made(op_type: str, inputs: list[Any], sizes: list[int], attributes: list[Any]) -> Any:
        name = f"{stem}.{op_type.lower()}"
        result = ir.Node("", op_type, inputs=inputs, attributes=attributes, name=name)
        result.outputs[0].name = f"{name}.output"
        result.outputs[0].shape, result.outputs[0].type = ir.Shape(sizes), source.type
        return result

    keep = ir.AttrInt64("keepdims", 1)
    if opset >= 18:
        largest = made("ReduceMax", [source, axes], reduced, [keep])
    else:
        largest = made("ReduceMax", [source], reduced, [ir.AttrInt64s("axes", [axis]), keep])
    lowered = made("Sub", [source, largest.outputs[0]], list(shape), [])
    grown = made("Exp", [lowered.outputs[0]], list(shape), [])
    total = made("ReduceSum", [grown.outputs[0], axes], reduced, [keep])
    share = ir.Node("", "Div", inputs=[grown.outputs[0], total.outputs[0]], name=stem)
    graph.insert_before(node, [largest, lowered, grown, total])
    _replace(graph, node, share)
    return True
