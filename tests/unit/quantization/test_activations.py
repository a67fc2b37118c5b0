"""Tensors read through one activation are found by structure."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.quantization.activations import read_through_activation
from tests.graphs import GraphMaker


def _found(maker: GraphMaker) -> dict[str, str]:
    model = maker.model({"x": [1, 8, 8, 8]}, {"y": [1, 8, 8, 8]})
    return read_through_activation(ir.from_proto(model).graph)


def test_silu_and_hard_swish() -> None:
    maker = GraphMaker()
    maker.conv("x", "c1", (8, 8))
    maker.node("Sigmoid", ["c1"], "s1")
    maker.node("Mul", ["c1", "s1"], "m1")
    maker.conv("m1", "c2", (8, 8))
    maker.node("HardSwish", ["c2"], "h2")
    maker.conv("h2", "c3", (8, 8))
    maker.node("HardSigmoid", ["c3"], "s3", alpha=1 / 6, beta=0.5)
    maker.node("Mul", ["c3", "s3"], "y")
    assert _found(maker) == {"c1": "silu", "c2": "hard_swish", "c3": "hard_swish"}


def test_other_readers_and_other_slopes_do_not_count() -> None:
    maker = GraphMaker()
    maker.conv("x", "c1", (8, 8))
    maker.node("Sigmoid", ["c1"], "s1")
    maker.node("Mul", ["c1", "s1"], "m1")
    maker.node("Add", ["c1", "m1"], "a")
    maker.node("HardSigmoid", ["a"], "s2")
    maker.node("Mul", ["a", "s2"], "y")
    assert _found(maker) == {}
