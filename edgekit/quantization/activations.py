"""Tensors that are read through one activation only: x * sigmoid(x) and its kin, found by structure."""

from __future__ import annotations

from typing import Any

_GATES = {"Sigmoid": "silu", "HardSigmoid": "hard_swish"}


def _is_hard_swish(gate: Any) -> bool:
    """Whether a HardSigmoid has the slope and offset of hard swish (1/6, 1/2)."""
    alpha, beta = gate.attributes.get("alpha"), gate.attributes.get("beta")
    slope = alpha.as_float() if alpha is not None else 0.2
    offset = beta.as_float() if beta is not None else 0.5
    return bool(abs(slope - 1 / 6) < 1e-4 and abs(offset - 0.5) < 1e-6)


def read_through_activation(graph: Any) -> dict[str, str]:
    """Tensor name → "silu" or "hard_swish", for tensors that nothing else reads."""
    found: dict[str, str] = {}
    for node in graph:
        source = node.inputs[0] if node.inputs else None
        if source is None or source.is_graph_output():
            continue
        readers = {use.node for use in source.uses()}
        if node.op_type == "HardSwish" and readers == {node}:
            found[source.name] = "hard_swish"
        elif node.op_type in _GATES:
            if node.op_type == "HardSigmoid" and not _is_hard_swish(node):
                continue
            behind = {use.node for use in node.outputs[0].uses()}
            if len(behind) == 1:
                (product,) = behind
                if product.op_type == "Mul" and readers == {node, product}:
                    found[source.name] = _GATES[node.op_type]
    return found
