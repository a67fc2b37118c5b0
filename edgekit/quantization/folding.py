"""BatchNorm folding: a Conv followed by a BatchNormalization becomes one Conv.

With g, b, m, v the scale, bias, mean and variance of the normalization and k = g / sqrt(v + eps):
W'[o] = W[o] * k[o] and c'[o] = (c[o] - m[o]) * k[o] + b[o]. Computed in float64, rounded once.
Source: ONNX BatchNormalization (inference), https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fold_batch_norms(model: Any) -> int:
    """Fold every BatchNormalization that follows a Conv or ConvTranspose; return how many.

    `model` (onnx_ir.Model) is changed in place. A normalization stays where the convolution's
    output is used elsewhere too, or where a weight is not a constant.
    """
    folded = 0
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and _fold_one(model.graph, node):
            folded += 1
    return folded


def _constant(value: Any) -> NDArray[np.float64] | None:
    tensor = None if value is None else value.const_value
    return None if tensor is None else np.asarray(tensor.numpy(), dtype=np.float64)


def _fold_one(graph: Any, norm: Any) -> bool:
    import onnx_ir as ir

    convolved = norm.inputs[0]
    conv = None if convolved is None else convolved.producer()
    if conv is None or conv.op_type not in ("Conv", "ConvTranspose"):
        return False
    if len(convolved.uses()) != 1 or convolved.is_graph_output():
        return False
    training = norm.attributes.get("training_mode")
    if training is not None and training.as_int():
        return False
    weight = _constant(conv.inputs[1])
    statistics = [_constant(value) for value in norm.inputs[1:5]]
    if weight is None or any(value is None for value in statistics):
        return False
    gamma, beta, mean, variance = (value for value in statistics if value is not None)
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = _constant(conv.inputs[2]) if has_bias else np.zeros_like(mean)
    if bias is None:
        return False
    epsilon = norm.attributes.get("epsilon")
    factor = gamma / np.sqrt(variance + (epsilon.as_float() if epsilon is not None else 1e-5))

    if conv.op_type == "Conv":  # weight [C_out, C_in / groups, kH, kW]
        folded_weight = weight * factor.reshape((-1,) + (1,) * (weight.ndim - 1))
    else:  # weight [C_in, C_out / groups, kH, kW]; output channel = group * (C_out / groups) + column
        groups_attribute = conv.attributes.get("group")
        groups = groups_attribute.as_int() if groups_attribute is not None else 1
        per_group = factor.reshape(groups, 1, weight.shape[1])
        shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
        spread = per_group.reshape(per_group.shape + (1,) * (weight.ndim - 2))
        folded_weight = (weight.reshape(shape) * spread).reshape(weight.shape)
    folded_bias = (bias - mean) * factor + beta

    dtype = conv.inputs[1].const_value.numpy().dtype
    stem = convolved.name or norm.outputs[0].name
    new_weight = ir.Value(
        name=f"{conv.inputs[1].name}.folded.{stem}",
        const_value=ir.tensor(
            folded_weight.astype(dtype), name=f"{conv.inputs[1].name}.folded.{stem}"
        ),
    )
    new_bias = ir.Value(
        name=f"{stem}.bias.folded",
        const_value=ir.tensor(folded_bias.astype(dtype), name=f"{stem}.bias.folded"),
    )
    for value in (new_weight, new_bias):
        value.shape = value.const_value.shape
        value.type = ir.TensorType(value.const_value.dtype)
        graph.initializers[value.name] = value
    conv.replace_input_with(1, new_weight)
    if len(conv.inputs) > 2:
        conv.replace_input_with(2, new_bias)
    else:
        conv.resize_inputs(3)
        conv.replace_input_with(2, new_bias)
    # the Conv takes over the normalization's output, so that names in the graph stay
    result = norm.outputs[0]
    name = result.name
    ir.convenience.replace_all_uses_with(result, convolved, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    result.name = None
    convolved.name = name
    return True
