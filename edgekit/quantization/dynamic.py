"""Dynamically quantized layers (DynamicQuantizeLinear, ConvInteger, MatMulInteger) turned back to float.

What onnxruntime's dynamic quantization writes for a layer, with one scale of the weight or one per
output channel:

    xq, sx, zx = DynamicQuantizeLinear(x)
    y = Cast(ConvInteger(xq, wq, zx, zw)) * (sx * sw)

Since xq - zx stands for x / sx, this is Conv(x, (wq - zw) * sw) but for the rounding of x. Sources:
https://onnx.ai/onnx/operators/onnx__ConvInteger.html, onnx__MatMulInteger.html,
onnx__DynamicQuantizeLinear.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import NotPossible

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT_OPERATOR = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
DYNAMIC = "DynamicQuantizeLinear"


@dataclass(frozen=True)
class DynamicLayer:
    """One integer layer with what surrounds it; values and nodes are those of onnx_ir.

    `sources`: the float tensors that it reads (two where the second is no constant). `weight`: the
    float weight, None where there is none. `result`: the value that has taken on all scales.
    """

    node: Any
    sources: tuple[Any, ...]
    weight: NDArray[np.float32] | None
    result: Any


def _constant(value: Any) -> NDArray[Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _input(node: Any, index: int) -> Any:
    return node.inputs[index] if index < len(node.inputs) else None


def read_layer(node: Any) -> DynamicLayer:
    """What the ConvInteger or MatMulInteger `node` stands for. Raises NotPossible for another form."""
    quantizers = [_quantizer(node.inputs[0])]
    integers = _constant(node.inputs[1])
    if integers is None:
        quantizers.append(_quantizer(node.inputs[1]))
    if any(found is None for found in quantizers):
        raise _strange(node, "its input is not made by DynamicQuantizeLinear")
    pending = [found.outputs[1] for found in quantizers]
    result, factor = _scaled(node, pending)
    weight = None
    if integers is not None:
        zero = _constant(_input(node, 3))
        if _input(node, 3) is not None and zero is None:
            raise _strange(node, "the zero point of its weight is computed")
        weight = _weight(node, integers, zero, factor)
    elif factor.size != 1 or factor.item() != 1:
        raise _strange(node, "the product of two activations has a scale of its own")
    return DynamicLayer(node, tuple(found.inputs[0] for found in quantizers), weight, result)


def _quantizer(value: Any) -> Any:
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == DYNAMIC else None


def _scaled(node: Any, pending: list[Any]) -> tuple[Any, NDArray[np.float64]]:
    """Follow the Cast and the products behind `node` until every scale in `pending` was met.

    Returns the value there and the product of the constants on the way.
    """
    value = node.outputs[0]
    factor = np.ones((), np.float64)
    left = list(pending)
    while left:
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            raise _strange(node, "its integers are read by more than one operator")
        reader = uses[0].node
        if reader.op_type == "Cast":
            value = reader.outputs[0]
            continue
        if reader.op_type != "Mul":
            raise _strange(node, f"its integers go into {reader.op_type}")
        other = reader.inputs[1 - uses[0].idx]
        scales, constant = _product(node, other)
        for scale in scales:
            if not any(scale is wanted for wanted in left):
                raise _strange(node, f"it is multiplied by '{scale.name}'")
            left = [wanted for wanted in left if wanted is not scale]
        factor = factor * constant
        value = reader.outputs[0]
    return value, factor


def _product(node: Any, value: Any) -> tuple[list[Any], NDArray[np.float64]]:
    """(factors that are no constants, product of the constants) of a tree of Mul."""
    constant = _constant(value)
    if constant is not None:
        return [], constant.astype(np.float64)
    producer = value.producer()
    if producer is not None and producer.op_type == "Mul":
        first, a = _product(node, producer.inputs[0])
        second, b = _product(node, producer.inputs[1])
        return first + second, a * b
    return [value], np.ones((), np.float64)


def _weight(
    node: Any, integers: NDArray[Any], zero: NDArray[Any] | None, factor: NDArray[np.float64]
) -> NDArray[np.float32]:
    """(integers - zero) * factor in the layout of the float operator's weight."""
    channels_first = node.op_type == "ConvInteger"
    centred = integers.astype(np.float64)
    if zero is not None:
        along = zero.astype(np.float64)
        if channels_first and along.size > 1:
            along = along.reshape(-1, *[1] * (integers.ndim - 1))
        centred = centred - along
    if factor.size == 1:
        return (centred * factor.reshape(())).astype(np.float32)
    # the factor multiplies the output: [.., C, 1, 1] of a convolution, [.., C] of a product
    axis = 1 if channels_first else integers.ndim - 1
    shape = (1,) * (integers.ndim - factor.ndim) + factor.shape
    channels = integers.shape[0] if channels_first else integers.shape[-1]
    if len(shape) != integers.ndim or shape[axis] != channels or factor.size != channels:
        raise _strange(node, f"its scale has the shape {list(factor.shape)}")
    spread = (
        factor.reshape(-1, *[1] * (integers.ndim - 1)) if channels_first else factor.reshape(-1)
    )
    return (centred * spread).astype(np.float32)


def _strange(node: Any, what: str) -> NotPossible:
    return NotPossible(
        f"The dynamically quantized layer '{node.name}' cannot be turned back into float: {what}.",
        hint="Export the float model that it was made of.",
    )


def to_float(model: Any) -> int:
    """Put a Conv or MatMul in the place of every integer one; return how many.

    `model` (onnx_ir.Model) is changed in place; its constants must be initializers. Raises
    NotPossible for a layer of another form, before anything was changed.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    layers = [read_layer(node) for node in model.graph if node.op_type in FLOAT_OPERATOR]
    for layer in layers:
        node = layer.node
        inputs = list(layer.sources)
        if layer.weight is not None:
            name = f"{node.inputs[1].name}.float.{node.name}"
            weight = ir.Value(name=name, const_value=ir.tensor(layer.weight, name=name))
            weight.shape = weight.const_value.shape
            weight.type = ir.TensorType(weight.const_value.dtype)
            model.graph.initializers[name] = weight
            inputs.append(weight)
        made = ir.Node(
            "",
            FLOAT_OPERATOR[node.op_type],
            inputs=inputs,
            attributes=list(node.attributes.values()),
            name=node.name,
        )
        result = layer.result
        name, made.outputs[0].shape = result.name, result.shape
        made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(result, made.outputs[0], replace_graph_outputs=True)
        result.name = None
        made.outputs[0].name = name
    common.RemoveUnusedNodesPass()(model)
    return len(layers)
