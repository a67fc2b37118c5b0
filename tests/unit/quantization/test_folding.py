"""BatchNorm folding keeps the function and the names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.quantization.folding import fold_batch_norms
from tests.graphs import GraphMaker, run


def _norm(maker: GraphMaker, source: str, output: str, channels: int, **attributes: object) -> str:
    names = []
    for part in ("scale", "bias", "mean", "var"):
        values = maker.rng.uniform(0.2, 2.0, channels).astype(np.float32)
        names.append(maker.weight(f"{output}.{part}", values))
    return maker.node("BatchNormalization", [source, *names], output, **attributes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_conv_and_norm_become_one_conv(bias: bool, groups: int) -> None:
    maker = GraphMaker()
    maker.conv("x", "c", (8, 4), bias=bias, groups=groups)
    _norm(maker, "c", "y", 8, epsilon=1e-3)
    model = maker.model({"x": [1, 4, 9, 9]}, {"y": [1, 8, 9, 9]})
    graph = ir.from_proto(model)
    assert fold_batch_norms(graph) == 1
    folded = ir.to_proto(graph)
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    assert folded.graph.output[0].name == "y"
    x = np.random.default_rng(1).normal(size=(1, 4, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(
        run(folded, {"x": x})[0], run(model, {"x": x})[0], rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups: int) -> None:
    maker = GraphMaker()
    weight = maker.rng.normal(size=(4, 6 // groups, 2, 2)).astype(np.float32)
    maker.node("ConvTranspose", ["x", maker.weight("w", weight)], "c", strides=[2, 2], group=groups)
    _norm(maker, "c", "y", 6)
    model = maker.model({"x": [1, 4, 5, 5]}, {"y": [1, 6, 10, 10]})
    graph = ir.from_proto(model)
    assert fold_batch_norms(graph) == 1
    x = np.random.default_rng(2).normal(size=(1, 4, 5, 5)).astype(np.float32)
    got, want = run(ir.to_proto(graph), {"x": x})[0], run(model, {"x": x})[0]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_a_shared_convolution_is_left_alone() -> None:
    maker = GraphMaker()
    maker.conv("x", "c", (4, 4))
    _norm(maker, "c", "n", 4)
    maker.node("Add", ["c", "n"], "y")
    graph = ir.from_proto(maker.model({"x": [1, 4, 5, 5]}, {"y": [1, 4, 5, 5]}))
    assert fold_batch_norms(graph) == 0


def test_two_convolutions_that_share_a_weight_keep_their_own() -> None:
    maker = GraphMaker()
    maker.conv("x", "c", (4, 4), bias=False)
    maker.node("Conv", ["x", "c.w"], "d", pads=[1] * 4)
    _norm(maker, "c", "n", 4)
    maker.node("Add", ["n", "d"], "y")
    model = maker.model({"x": [1, 4, 5, 5]}, {"y": [1, 4, 5, 5]})
    graph = ir.from_proto(model)
    assert fold_batch_norms(graph) == 1
    x = np.random.default_rng(3).normal(size=(1, 4, 5, 5)).astype(np.float32)
    got, want = run(ir.to_proto(graph), {"x": x})[0], run(model, {"x": x})[0]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
