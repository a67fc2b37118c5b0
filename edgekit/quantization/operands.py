"""Which followers read integers where QDQ stands in front of operators alone, as TensorRT wants it.

TensorRT fuses a convolution with what comes behind it (activation, addition, the next
QuantizeLinear), whatever that is, so nothing may stand between them. A QuantizeLinear belongs in
front of the operator that wants integers:

- MaxPool and a nearest Resize only select values: where their result is read as integers, so is what
  they read, with the same scale;
- an Add behind a convolution becomes part of it, with the other branch (the residual) as a further
  operand; only that one gets QDQ. With QDQ on both the convolution would have to write integers
  first, and the addition would run by itself.

Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html,
"Q/DQ layer-placement recommendations".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_POINTWISE = frozenset(
    {
        *("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu"),
        *("Selu", "Softplus", "Mish", "Gelu", "PRelu"),
    }
)
_GATES = frozenset({"Sigmoid", "HardSigmoid"})


def made_by(value: Any, compute: set[Any]) -> Any:
    """The node of `compute` that `value` comes from through its activation alone; None: no such.

    Every value on the way must have the next step as its only reader, or the runtime cannot fuse it.
    """
    node = value.producer()
    if node is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    if node in compute:
        return node
    if node.op_type in _POINTWISE:
        source, readers = node.inputs[0], 1
    elif node.op_type == "Mul" and len(node.inputs) == 2:
        # x * sigmoid(x)
        pairs = [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]
        gated = [
            x
            for x, gate in pairs
            if gate.producer() is not None
            and gate.producer().op_type in _GATES
            and gate.producer().inputs[0] is x
        ]
        if not gated:
            return None
        source, readers = gated[0], 2
    else:
        return None
    maker = source.producer()
    alone = not source.is_graph_output() and len(source.uses()) == readers
    return maker if alone and maker in compute else None


def residual(add: Any, compute: set[Any], depth: dict[Any, int]) -> Any:
    """The operand of `add` that is to be read as integers; None where no convolution is fused with it.

    Where both operands come from convolutions (a shortcut that changes the shape), the runtime fuses
    the addition with the later one, by `depth`: the other operand is the residual.
    """
    if len(add.inputs) != 2 or any(value is None for value in add.inputs):
        return None
    makers = [made_by(value, compute) for value in add.inputs]
    if all(maker is None for maker in makers):
        return None
    if makers[0] is None or makers[1] is None:
        return add.inputs[0] if makers[0] is None else add.inputs[1]
    return add.inputs[0] if depth[makers[0]] <= depth[makers[1]] else add.inputs[1]


def carried(
    graph: Any,
    followers: Sequence[Any],
    compute: Sequence[Any],
    wanted: set[Any],
    *,
    moves: Callable[[Any], bool],
    known: Callable[[Any], bool],
) -> tuple[list[Any], set[Any]]:
    """The followers that read integers, in graph order, and the values that they read so.

    `wanted` are the values that the `compute` nodes read as integers; `moves` tells whether a node
    only selects values, `known` whether a value has a range.
    """
    possible, computing = set(followers), set(compute)
    depth = _depths(graph, computing)
    demanded, read = set(wanted), set()
    carry = []
    for node in reversed(list(graph)):
        if node not in possible:
            continue
        value = None
        if node.op_type == "Add":
            value = residual(node, computing, depth)
        elif moves(node) and demanded.intersection(node.outputs):
            value = node.inputs[0]
        if value is None or value.const_value is not None or not known(value):
            continue
        carry.append(node)
        demanded.add(value)
        read.add(value)
    return carry[::-1], read


def _depths(graph: Any, compute: set[Any]) -> dict[Any, int]:
    """For each node, the most compute nodes on a way from the input to it, itself included."""
    depth: dict[Any, int] = {}
    for node in graph:
        before = [
            depth.get(value.producer(), 0)
            for value in node.inputs
            if value is not None and value.producer() is not None
        ]
        depth[node] = max(before, default=0) + (node in compute)
    return depth
