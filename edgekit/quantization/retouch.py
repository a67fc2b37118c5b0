"""Changing what a QDQ graph already holds: the integers of a layer's weight, and its bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantization import existing
from edgekit.quantization.scheme import quantize_bias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import QuantParams


def layers(graph: Any) -> dict[str, Any]:
    """Conv, Gemm and MatMul nodes that read integers on both sides, by name, in graph order.

    Those that share a weight with another layer are left out: changing one would change the other.
    """
    found = {}
    for node in graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not existing.is_quantized(node):
            continue
        dequantize = existing.weight_of(node.inputs[1])
        if dequantize is not existing.maker_of(node.inputs[1]):
            continue  # moved on its way: its axes are not those of the layer
        if dequantize is not None and len(dequantize.outputs[0].uses()) == 1:
            found[node.name] = node
    return found


def input_params(node: Any) -> QuantParams | None:
    """Scale and zero point of the tensor that the layer reads."""
    return existing.fixed_params(node.inputs[0])


def weight_params(node: Any) -> QuantParams:
    """Scale and zero point of the layer's weight."""
    found = existing.params_of(existing.weight_of(node.inputs[1]))
    assert found is not None
    return found


def weight_shape(node: Any) -> tuple[int, ...]:
    """Shape of the layer's weight."""
    source = existing.weight_of(node.inputs[1]).inputs[0]
    constant = source if source.const_value is not None else source.producer().inputs[0]
    return tuple(int(size) for size in constant.const_value.shape)


def integers_of(node: Any) -> NDArray[np.int64]:
    """The integers of the layer's weight; those that a QuantizeLinear makes of float ones too."""
    source = existing.weight_of(node.inputs[1]).inputs[0]
    if source.const_value is not None:
        return np.asarray(source.const_value.numpy(), np.int64)
    params = weight_params(node)
    weight = np.asarray(source.producer().inputs[0].const_value.numpy(), np.float64)
    scale = np.asarray(params.scale, np.float64)
    if params.axis is not None:
        shape = [1] * weight.ndim
        shape[params.axis] = -1
        scale = scale.reshape(shape)
    return np.clip(np.rint(weight / scale), -128, 127).astype(np.int64)


def stood_for(node: Any) -> NDArray[np.float64]:
    """What the layer's weight stands for, float64 of its shape."""
    params = weight_params(node)
    scale = np.asarray(params.scale, np.float64)
    integers = integers_of(node)
    if params.axis is not None:
        shape = [1] * integers.ndim
        shape[params.axis] = -1
        scale = scale.reshape(shape)
    return integers * scale


def set_levels(node: Any, levels: NDArray[np.int8]) -> None:
    """Let the weight stand for `levels` (int8, the weight's shape) at the scale it has.

    Where float weights stand behind a QuantizeLinear they become exactly levels * scale.
    """
    dequantize = existing.weight_of(node.inputs[1])
    source = dequantize.inputs[0]
    if source.const_value is not None:
        _replace(source, levels)
        return
    params = weight_params(node)
    scale = np.asarray(params.scale, np.float32)
    if params.axis is not None:
        shape = [1] * levels.ndim
        shape[params.axis] = -1
        scale = scale.reshape(shape)
    _replace(source.producer().inputs[0], (levels * scale).astype(np.float32))


def bias_of(node: Any) -> NDArray[np.float64] | None:
    """The bias in real numbers, float64 [C_out]; None where the layer has none, or no constant one."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy(), np.float64)
    node = existing.maker_of(value)
    if node is None or node.inputs[0].const_value is None:
        return None
    params = existing.params_of(node)
    if params is None:
        return None
    integers = np.asarray(node.inputs[0].const_value.numpy(), np.float64)
    return integers * np.asarray(params.scale, np.float64)


def can_shift(node: Any) -> bool:
    """Whether the layer has a bias of channels that can be changed, or a place for one."""
    if node.op_type not in ("Conv", "Gemm"):
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True
    if len(value.uses()) > 1:
        return False
    bias = bias_of(node)
    return bias is not None and bias.ndim == 1 and bias.size == _outputs(node)


def shift_bias(model: Any, node: Any, shift: NDArray[np.float64]) -> None:
    """Take `shift` float64 [C_out] off the layer's bias, which keeps its type; `can_shift` holds.

    A layer without a bias gets one: int32 where its weights are stored in integers.
    """
    bias = bias_of(node)
    wanted = (np.zeros(shift.shape) if bias is None else bias) - shift
    value = node.inputs[2] if len(node.inputs) > 2 else None
    source, weight = input_params(node), weight_params(node)
    if value is None:
        stored = existing.weight_of(node.inputs[1]).inputs[0].const_value is not None
        _add_bias(model, node, wanted, source if stored else None, weight)
    elif value.const_value is not None:
        _replace(value, wanted.astype(np.float32))
    else:
        dequantize = existing.maker_of(value)
        params = existing.params_of(dequantize)
        assert params is not None
        one = np.float32(1.0)
        integers = quantize_bias(wanted, np.asarray(one), np.asarray(params.scale, np.float32))
        _replace(dequantize.inputs[0], integers)


def _outputs(node: Any) -> int:
    shape = weight_shape(node)
    if node.op_type == "Conv":
        return shape[0]
    transposed = node.attributes.get("transB")
    return shape[0 if transposed is not None and transposed.as_int() else 1]


def _add_bias(
    model: Any,
    node: Any,
    bias: NDArray[np.float64],
    source: QuantParams | None,
    weight: QuantParams,
) -> None:
    import onnx_ir as ir

    def constant(name: str, array: NDArray[Any]) -> Any:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
        model.graph.initializers[name] = value
        return value

    node.resize_inputs(3)
    stem = f"{node.name}.bias"
    if source is None:
        node.replace_input_with(2, constant(f"{stem}.added", bias.astype(np.float32)))
        return
    wide = np.asarray(source.scale, np.float64) * np.asarray(weight.scale, np.float64)
    units = np.asarray(wide, np.float32)
    integers = quantize_bias(bias, np.asarray(np.float32(1.0)), units)
    inputs = [
        constant(f"{stem}.int32", integers),
        constant(f"{stem}.scale", units),
        constant(f"{stem}.zero_point", np.zeros(units.shape, np.int32)),
    ]
    attributes = [ir.AttrInt64("axis", 0)] if units.ndim else []
    made = ir.Node(
        "", "DequantizeLinear", inputs=inputs, attributes=attributes, name=f"{stem}.dq.n"
    )
    made.outputs[0].name = f"{stem}.dq"
    model.graph.insert_before(node, [made])
    node.replace_input_with(2, made.outputs[0])


def _replace(value: Any, array: NDArray[Any]) -> None:
    import onnx_ir as ir

    value.const_value = ir.tensor(array, name=value.name)
    value.shape = value.const_value.shape
