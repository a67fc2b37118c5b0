"""What a runtime can compute in INT8: the rules of a target, and the layers that they choose.

The rules are about structure, never about names of nodes or models.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.quantization import existing
from edgekit.quantization.macs import static_shape

FUSED_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Activations that disappear into the convolution: their clipping is that of the integer range."""

SAME_SCALE = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Split",
        "Gather",
    }
)
"""Operators that only move or select values: output and input must share scale and zero point."""

# The last layers stay float only as long as they are a small part of the work
_HEAD_SHARE = 0.12


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a runtime on an instruction set can do with integers; from the target profile.

    `operators` compute, `follow` carry; `keep_float` names rules ("head", "depthwise", "gemv",
    "first") or operator types; convolutions whose input has fewer than `min_channels` channels stay
    float, the smallest up to `small_share` of the MACs; inputs of a join whose amax differ by
    more than `max_range_ratio` keep scales of their own. `operands_only`: only what an INT8 operator
    reads is quantized (`operands`). `forms`: what is computed in another form there, see `forms` and
    `integer_forms`.
    """

    operators: tuple[str, ...]
    follow: tuple[str, ...]
    keep_float: tuple[str, ...] = ("head",)
    min_channels: int = 0
    max_range_ratio: float = 16.0
    forms: tuple[str, ...] = ()
    small_share: float = 1.0
    operands_only: bool = False


def is_constant(value: Any) -> bool:
    return value is not None and value.const_value is not None


def is_float(value: Any) -> bool:
    import onnx_ir as ir

    return value is not None and (value.dtype is None or value.dtype == ir.DataType.FLOAT)


def _attribute(node: Any, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def channel_axis(node: Any) -> int | None:
    """Axis of the weight's output channels; None for operators without one."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        # per-channel needs one group: with more, axis 1 repeats per group
        return 1 if _attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul":
        shape = static_shape(node.inputs[1])
        return None if shape is None or len(shape) != 2 else 1
    return None


def can_compute(node: Any, rules: Rules) -> str:
    """Why a compute node cannot be INT8, "" when it can."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if not is_constant(weight) and existing.weight_of(weight) is None:
        return "its weight is not a constant"
    if not is_float(node.inputs[0]) or not is_float(weight):
        return "it does not compute in float32"
    if node.op_type == "Gemm":
        alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
        if (alpha is not None and alpha.as_float() != 1.0) or (
            beta is not None and beta.as_float() != 1.0
        ):
            return "its alpha or beta is not 1"
        if _attribute(node, "transA", 0):
            return "its input is transposed"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not is_constant(bias) and existing.weight_of(bias) is None:
        return "its bias is not a constant"
    if node.op_type in rules.keep_float:
        return f"the profile keeps {node.op_type} float"
    shape = static_shape(weight) or ()
    if node.op_type == "Conv":
        groups = _attribute(node, "group", 1)
        if "depthwise" in rules.keep_float and groups > 1 and shape[1] == 1:
            return "the profile keeps depthwise convolutions float"
    if "gemv" in rules.keep_float and node.op_type in ("Gemm", "MatMul"):
        output = static_shape(node.outputs[0])
        if output is None or len(output) < 2 or all(size == 1 for size in output[:-1]):
            return "a matrix-vector product gains nothing"
    return ""


def fused_output(node: Any, rules: Rules) -> Any:
    """The value that carries the node's result to the outside: behind a fused activation, if any."""
    value = node.outputs[0]
    uses = value.uses()
    if len(uses) == 1 and not value.is_graph_output():
        consumer = uses[0].node
        if consumer.op_type in FUSED_ACTIVATIONS and _clips_to_zero_or_range(consumer):
            return consumer.outputs[0]
    return value


def results(node: Any, rules: Rules) -> list[Any]:
    """The values that carry a node's results to the outside.

    Where the runtime fuses an activation (behind compute nodes and Add) the value in front of it
    gets no scale of its own: a QuantizeLinear there would only round twice.
    """
    if node.op_type == "Add" or node.op_type in rules.operators:
        return [fused_output(node, rules)]
    return list(node.outputs)


def _clips_to_zero_or_range(node: Any) -> bool:
    """Whether the activation is a clip with constant bounds that an integer range can express."""
    if node.op_type == "Relu":
        return True
    return all(value is None or is_constant(value) for value in node.inputs[1:])


def head_nodes(graph: Any, macs: Mapping[str, int], rules: Rules) -> dict[str, str]:
    """Convolutions behind which no other real one lies: a detection head's last layers, by structure.

    They stay float when they are convolutions, because what they make is read as boxes and scores;
    a classifier's last Gemm has one meaning and is quantized. When the set is more than a small
    part of the work it is left alone.
    """
    total = sum(macs.values()) or 1
    compute = [node for node in graph if node.op_type in rules.operators]
    real = {node for node in compute if not is_weighted_sum(node)}
    reaches: dict[Any, bool] = {}

    for node in reversed(list(graph)):
        behind = False
        for output in node.outputs:
            for use in output.uses():
                behind = behind or use.node in real or _is_classifier(use.node)
                behind = behind or reaches.get(use.node, False)
        reaches[node] = behind
    found = {
        node.name: "a last layer of the head"
        for node in compute
        if node.op_type == "Conv" and not reaches[node]
    }
    share = sum(macs.get(name, 0) for name in found) / total
    return found if share <= _HEAD_SHARE else {}


def _few_channels(graph: Any, macs: Mapping[str, int], rules: Rules) -> dict[str, str]:
    """Convolutions of few input channels that stay float: the smallest, up to the share of the MACs
    that the rules give them together."""
    found = []
    for node in graph:
        if node.op_type == "Conv" and "Conv" in rules.operators and len(node.inputs) > 1:
            shape = static_shape(node.inputs[1])
            grouped = _attribute(node, "group", 1) != 1
            if shape is not None and not grouped and shape[1] < rules.min_channels:
                found.append((macs.get(node.name, 0), node.name, shape[1]))
    room = rules.small_share * sum(macs.values())
    reasons: dict[str, str] = {}
    for count, name, channels in sorted(found):
        room -= count
        if room < 0:
            break
        reasons[name] = f"it reads {channels} channels, the profile wants {rules.min_channels}"
    return reasons


def _is_classifier(node: Any) -> bool:
    """Whether the node is a fully connected layer: what lies before one is no head, however small it is."""
    if node.op_type not in ("Gemm", "MatMul") or len(node.inputs) < 2:
        return False
    return is_constant(node.inputs[1]) or existing.weight_of(node.inputs[1]) is not None


def is_weighted_sum(node: Any) -> bool:
    """A 1x1 convolution to one channel (a DFL's, say): arithmetic, not a layer."""
    shape = static_shape(node.inputs[1]) if len(node.inputs) > 1 else None
    return node.op_type == "Conv" and shape is not None and math.prod(shape) == shape[1]


def data_inputs(node: Any) -> list[Any]:
    """Inputs that carry activations: not constants, shapes, indices or empty slots."""
    values = [value for value in node.inputs if value is not None and not is_constant(value)]
    return [value for value in values if is_float(value)]


def resize_keeps_values(node: Any) -> bool:
    mode = node.attributes.get("mode")
    return mode is None or mode.as_string() == "nearest"


def shares_scale(node: Any) -> bool:
    """Whether the node's output holds only values of its input."""
    if node.op_type == "Resize":
        return resize_keeps_values(node)
    return node.op_type in SAME_SCALE


def compute_nodes(
    graph: Any, rules: Rules, keep: Collection[str], macs: Mapping[str, int]
) -> tuple[list[Any], dict[str, str]]:
    """Compute nodes that become INT8, and the others with the reason each stays float."""
    floats: dict[str, str] = {}
    head = head_nodes(graph, macs, rules) if "head" in rules.keep_float else {}
    few = _few_channels(graph, macs, rules)
    chosen = []
    first_seen = False
    for node in graph:
        if node.op_type not in rules.operators:
            continue
        if existing.is_quantized(node):
            chosen.append(node)  # whoever trained it so has decided
            continue
        reason = can_compute(node, rules) or head.get(node.name, "") or few.get(node.name, "")
        if not reason and not first_seen and "first" in rules.keep_float:
            reason = "the profile keeps the first layer float"
        first_seen = True
        if not reason and node.name in keep:
            reason = "asked to stay float"
        if reason:
            floats[node.name] = reason
        else:
            chosen.append(node)
    return chosen, floats
