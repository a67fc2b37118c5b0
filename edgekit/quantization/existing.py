"""Quantization that a graph already carries: QuantizeLinear/DequantizeLinear of training or other tools.

It is a decision, not a suggestion: such nodes, their scales and zero points stay as they are, and
only what has none is filled in. A tensor x has quantization when a QuantizeLinear reads it; its
*fixed* value is what the DequantizeLinear behind that makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.types import QuantParams

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_MOVES = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze")
# operators that make integers out of activations, so that outputs jump where a value lies between two
ROUNDING = frozenset(
    {
        *("QuantizeLinear", "DynamicQuantizeLinear", "Round", "Floor", "Ceil"),
        *("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger"),
    }
)


def _array(value: Any) -> NDArray[Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def params_of(dequantize: Any) -> QuantParams | None:
    """Scale and zero point of a DequantizeLinear node; None when they are computed."""
    scale = _array(dequantize.inputs[1])
    if scale is None:
        return None
    if len(dequantize.inputs) > 2 and dequantize.inputs[2] is not None:
        zero = _array(dequantize.inputs[2])
        if zero is None:
            return None
    else:
        zero = np.zeros(scale.shape, np.uint8)
    given = dequantize.attributes.get("axis")
    axis = None if scale.size == 1 else (given.as_int() if given is not None else 1)
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    return QuantParams(scale=scale, zero_point=zero, axis=axis)


def maker_of(value: Any) -> Any:
    """The DequantizeLinear that makes `value`, None when another node does."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def fixed_params(value: Any) -> QuantParams | None:
    """What a dequantized activation is quantized with; None for other values."""
    node = maker_of(value)
    return None if node is None or weight_of(value) is not None else params_of(node)


def fixed_tensors(graph: Any) -> dict[str, QuantParams]:
    """Every dequantized activation of the graph by name, with what it is quantized with."""
    found: dict[str, QuantParams] = {}
    for node in graph:
        if node.op_type == "DequantizeLinear":
            params = fixed_params(node.outputs[0])
            if params is not None:
                found[node.outputs[0].name] = params
    return found


def weight_of(value: Any) -> Any:
    """The DequantizeLinear behind a constant that is stored in integers, or quantized in the graph.

    Found through nodes that move values; None when `value` is no such weight.
    """
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVES:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or params_of(node) is None:
        return None
    source = node.inputs[0]
    if _array(source) is not None:
        return node
    before = source.producer()
    if before is not None and before.op_type == "QuantizeLinear":
        return node if _array(before.inputs[0]) is not None else None
    return None


def has_quantizer(value: Any) -> bool:
    """Whether a QuantizeLinear reads `value`: it has a scale already."""
    return any(use.node.op_type == "QuantizeLinear" and use.idx == 0 for use in value.uses())


def is_settled(value: Any) -> bool:
    """Whether `value` needs no scale of its own: it is quantized, or was."""
    return has_quantizer(value) or fixed_params(value) is not None


def is_quantized(node: Any) -> bool:
    """Whether the layer reads integers on both sides already."""
    return (
        len(node.inputs) > 1
        and fixed_params(node.inputs[0]) is not None
        and weight_of(node.inputs[1]) is not None
    )


def share(graph: Any, operators: tuple[str, ...]) -> int:
    """Let every compute node read the quantized form of a tensor that has one; return how many changed.

    Only nodes of `operators` are changed: an addition may want the exact value.
    """
    changed = 0
    for node in graph:
        if node.op_type not in operators or node.inputs[0] is None:
            continue
        for use in node.inputs[0].uses():
            if use.node.op_type != "QuantizeLinear" or use.idx != 0:
                continue
            readers = [reader.node for reader in use.node.outputs[0].uses()]
            behind = [reader for reader in readers if reader.op_type == "DequantizeLinear"]
            if behind:
                node.replace_input_with(0, behind[0].outputs[0])
                changed += 1
                break
    return changed


def store_integers(graph: Any) -> int:
    """Replace QuantizeLinear of constants by the integers that it makes; return how many.

    round_half_even(w / scale) + zero_point in float32, saturated: what the operator computes
    (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html).
    """
    import onnx_ir as ir

    count = 0
    for node in list(graph):
        if node.op_type != "QuantizeLinear":
            continue
        weight, params = _array(node.inputs[0]), params_of(node)
        if weight is None or params is None or params.zero_point.dtype not in (np.int8, np.uint8):
            continue
        shape = [1] * weight.ndim
        if params.axis is not None:
            shape[params.axis] = -1
        scale = params.scale.reshape(shape) if params.axis is not None else params.scale
        zero = params.zero_point.reshape(shape) if params.axis is not None else params.zero_point
        limits = np.iinfo(params.zero_point.dtype)
        levels = np.rint(weight / scale) + zero.astype(np.float32)
        integers = np.clip(levels, limits.min, limits.max).astype(params.zero_point.dtype)
        result = node.outputs[0]
        name = f"{node.inputs[0].name}.{result.name}"
        value = ir.Value(name=name, const_value=ir.tensor(integers, name=name))
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
        graph.initializers[name] = value
        ir.convenience.replace_all_uses_with(result, value)
        graph.remove(node, safe=True)
        count += 1
    for name, value in list(graph.initializers.items()):  # the float weights are dead bytes now
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return count


def to_unsigned(graph: Any) -> int:
    """Turn int8 activations into uint8, zero point + 128; return how many scales were changed.

    (q + 128) - (zero + 128) = q - zero, and both types saturate at the same real values, so every
    dequantized value stays as it was, bit for bit. For runtimes whose integer kernels on x86 take
    unsigned activations only. Integers that anything but a DequantizeLinear reads stay signed.
    """
    import onnx_ir as ir

    count = 0
    for node in list(graph):
        if node.op_type != "QuantizeLinear" or _array(node.inputs[0]) is not None:
            continue
        result, params = node.outputs[0], params_of(node)
        readers = [use.node for use in result.uses()]
        if (
            params is None
            or params.axis is not None
            or params.zero_point.dtype != np.int8
            or result.is_graph_output()
            or any(name in node.attributes for name in ("output_dtype", "block_size"))
            or not all(r.op_type == "DequantizeLinear" and _same_grid(r, params) for r in readers)
        ):
            continue
        array = np.asarray(params.zero_point.astype(np.int16) + 128, dtype=np.uint8)
        name = f"{result.name}.unsigned_zero_point"
        zero = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        zero.shape, zero.type = zero.const_value.shape, ir.TensorType(zero.const_value.dtype)
        graph.initializers[name] = zero
        for user in (node, *readers):
            user.replace_input_with(2, zero)
        result.type = ir.TensorType(ir.DataType.UINT8)
        count += 1
    return count


def _same_grid(dequantize: Any, params: QuantParams) -> bool:
    found = params_of(dequantize)
    return (
        found is not None
        and found.zero_point.dtype == params.zero_point.dtype
        and bool(found.zero_point == params.zero_point and found.scale == params.scale)
    )


def signature(model: onnx.ModelProto) -> frozenset[tuple[str, bytes, str, bytes]]:
    """Every (kind, scale bytes, zero point type, zero point bytes) that the main graph quantizes with.

    Two graphs with the same one quantize with the same numbers, bit for bit. Kind is "weight" for
    constants, "activation" for the rest; scales that are computed are left out.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    graph = ir.from_proto(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    common.IdentityEliminationPass()(graph)
    found: set[tuple[str, bytes, str, bytes]] = set()
    for node in graph.graph:
        if node.op_type != "DequantizeLinear":
            continue
        params = params_of(node)
        if params is None:
            continue
        kind = "weight" if weight_of(node.outputs[0]) is not None else "activation"
        zero = params.zero_point
        found.add((kind, params.scale.tobytes(), str(zero.dtype), zero.tobytes()))
    return frozenset(found)


def holds_qdq(model: onnx.ModelProto) -> bool:
    """Whether the graph carries quantization of its own in the form that is kept."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def rounds(model: onnx.ModelProto) -> bool:
    """Whether the graph makes integers of activations: equal up to rounding is then all that can be asked."""
    alive = {value.name for value in model.graph.input}
    alive -= {item.name for item in model.graph.initializer}
    for node in model.graph.node:
        if not any(name in alive for name in node.input) or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type in ROUNDING:
            return True
        alive.update(node.output)
    return False


def to_float(model: Any) -> int:
    """Take existing quantization off: the float network that it belongs to; return how many pairs.

    Activations lose QuantizeLinear and DequantizeLinear, and with them their clipping; weights and
    biases become float constants on the grid that they were trained on. `model` (onnx_ir.Model) is
    changed in place. For what cannot read QDQ, and to know what INT8 gains.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    store_integers(model.graph)
    count = 0
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear":
            continue
        params = params_of(node)
        integers = _array(node.inputs[0])
        result = node.outputs[0]
        if integers is not None and params is not None:
            value = _dequantized(result.name, integers, params)
            model.graph.initializers[value.name] = value
            ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
        else:
            before = node.inputs[0].producer()
            if before is None or before.op_type != "QuantizeLinear":
                continue
            value, name = before.inputs[0], result.name
            is_output = result.is_graph_output()
            if is_output and (value.producer() is None or value.is_graph_output()):
                continue  # two outputs, or an input and an output, cannot be one tensor
            ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
            if is_output:
                result.name = None
                value.name = name
                value.shape, value.type = result.shape, result.type
        count += 1
    common.RemoveUnusedNodesPass()(model)
    return count


def _dequantized(name: str, integers: NDArray[Any], params: QuantParams) -> Any:
    """(q - zero point) * scale as a constant, float32."""
    import onnx_ir as ir

    shape = [1] * integers.ndim
    if params.axis is not None:
        shape[params.axis] = -1
    zero = params.zero_point.astype(np.float32)
    scale = params.scale
    if params.axis is not None:
        zero, scale = zero.reshape(shape), scale.reshape(shape)
    array = ((integers.astype(np.float32) - zero) * scale).astype(np.float32)
    value = ir.Value(name=f"{name}.float", const_value=ir.tensor(array, name=f"{name}.float"))
    value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
    return value
