"""Multiply-accumulate operations of a graph, node by node, for one image."""

from __future__ import annotations

import math
from typing import Any

COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def static_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of an onnx_ir.Value with every dimension known, the batch taken as 1; None otherwise."""
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape)
    if value.shape is None:
        return None
    sizes: list[int] = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif axis == 0:
            sizes.append(1)
        else:
            return None
    return tuple(sizes)


def node_macs(node: Any) -> int | None:
    """MACs of one node for a batch of 1; 0 for operators that are not counted, None if shapes are unknown.

    Conv: output elements x (C_in / groups) x kernel; ConvTranspose: input elements x (C_out /
    groups) x kernel; Gemm and MatMul: output elements x inner dimension. Bias adds are not counted.
    """
    if node.op_type not in COUNTED:
        return 0
    inputs = [static_shape(value) for value in node.inputs]
    output = static_shape(node.outputs[0])
    if len(inputs) < 2 or inputs[1] is None:
        return None
    weight = inputs[1]
    if node.op_type == "Conv":
        return None if output is None else math.prod(output) * math.prod(weight[1:])
    if inputs[0] is None:
        return None
    if node.op_type == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(weight[1:])
    if output is None:
        return None
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transA")
        first = inputs[0]
        inner = first[0] if transposed is not None and transposed.as_int() else first[-1]
        return math.prod(output) * inner
    return math.prod(output) * inputs[0][-1]


def graph_macs(graph: Any) -> dict[str, int]:
    """MACs by node name for every counted node of the main graph whose shapes are known."""
    counted: dict[str, int] = {}
    for node in graph:
        if node.op_type in COUNTED:
            macs = node_macs(node)
            if macs is not None:
                counted[node.name] = macs
    return counted
