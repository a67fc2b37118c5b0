"""Placement for TensorRT: QDQ in front of operators alone, and on the residual branch of an Add."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.quantization.placement import place
from edgekit.stages.quantize import rules_of
from edgekit.target_files import load_target
from edgekit.types import Range
from tests import tensorrt_graphs
from tests.graphs import GraphMaker, ranges_of, run, sqnr_db


def _placed(proto: onnx.ModelProto) -> tuple[set[str], set[str], set[str]]:
    placement = place(
        ir.from_proto(proto),
        rules_of(load_target(tensorrt_graphs.TARGET)),
        tensorrt_graphs.ranges(proto),
    )
    return set(placement.compute), set(placement.carry), set(placement.tensors)


def test_operands_of_layers_carry_integers_and_nothing_else_does() -> None:
    proto = tensorrt_graphs.residual_network()
    compute, carry, tensors = _placed(proto)
    assert compute == {"n_c1", "n_c2", "n_c3", "n_c4", "n_s4", "n_c5", "n_c6", "n_c7"}
    # identity: the tensor that the block reads anyway; shortcut: what its convolution made
    assert {"n_a2", "n_a4", "n_p5", "n_u6"} == carry
    assert "s4" in tensors and "c4" not in tensors and "c2" not in tensors
    # what a pool or a resize reads has the scale of what it makes
    assert {"m5", "p5", "j6", "u6"} <= tensors
    # nothing between a convolution and its activation, nothing on outputs
    assert not {"c0", "c1", "c3", "c5", "g5", "y", "x"} & tensors


def test_the_graph_is_read_in_float_by_everybody_else() -> None:
    proto = tensorrt_graphs.residual_network()
    explicit, _ = tensorrt_graphs.quantized(proto)
    nodes = {node.name: node for node in explicit.graph.node}
    assert list(nodes["n_a2"].input) == ["c2", "r0.dequantized"]
    assert list(nodes["n_a4"].input) == ["c4", "s4.dequantized"]
    assert list(nodes["n_j6"].input) == ["m5", "c6"]
    assert nodes["n_m5"].input[0] == "c5"
    assert [value.name for value in explicit.graph.output] == ["y"]
    assert nodes["n_y"].output[0] == "y"
    float_value, int8 = (run(model, tensorrt_graphs.feeds())[0] for model in (proto, explicit))
    assert sqnr_db(float_value, int8) > 20


def test_a_pool_shares_the_scale_of_what_it_makes() -> None:
    explicit, _ = tensorrt_graphs.quantized(tensorrt_graphs.residual_network())
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in explicit.graph.initializer}
    assert arrays["m5.scale"] == arrays["p5.scale"]
    assert arrays["j6.scale"] == arrays["u6.scale"]
    assert all(not value.any() for name, value in arrays.items() if name.endswith("zero_point"))


def test_an_addition_that_nothing_is_fused_with_stays_float() -> None:
    maker = GraphMaker()
    maker.conv("x", "a", (16, 16))
    maker.conv("a", "b", (16, 16))
    maker.node(
        "Add", ["a", "b"], "s"
    )  # a is read twice, b once: b's convolution takes the addition
    maker.conv("s", "c", (16, 16))
    maker.node("Add", ["s", "c"], "t")
    maker.node("Add", ["t", "s"], "u")  # neither comes from a convolution alone
    maker.conv("u", "y", (16, 16))
    proto = maker.model({"x": [1, 16, 8, 8]}, {"y": [1, 16, 8, 8]})
    placement = place(
        ir.from_proto(proto),
        rules_of(load_target(tensorrt_graphs.TARGET)),
        _ranges(proto),
    )
    assert "n_s" in placement.carry and "n_t" in placement.carry
    assert "n_u" not in placement.carry


def _ranges(proto: onnx.ModelProto) -> dict[str, Range]:
    names = ["x", "a", "b", "s", "c", "t", "u", "y"]
    return ranges_of(proto, names, {"x": np.ones((1, 16, 8, 8), np.float32)})


def test_layers_of_few_channels_stay_float_only_while_they_are_small() -> None:
    maker = GraphMaker()
    maker.conv("x", "c0", (16, 3), kernel=7)
    maker.node("Relu", ["c0"], "r0")
    maker.conv("r0", "c1", (16, 16))
    maker.node("GlobalAveragePool", ["c1"], "y")
    proto = maker.model({"x": [1, 3, 32, 32]}, {"y": [1, 16, 1, 1]})
    compute, _, _ = _placed_for(proto, ["x", "c0", "r0", "c1"])
    # half of the work is worth integers although it reads three channels
    assert "n_c0" in compute


def _placed_for(proto: onnx.ModelProto, names: list[str]) -> tuple[set[str], set[str], set[str]]:
    spans = ranges_of(proto, names, {"x": np.ones((1, 3, 32, 32), np.float32)})
    placement = place(ir.from_proto(proto), rules_of(load_target(tensorrt_graphs.TARGET)), spans)
    return set(placement.compute), set(placement.carry), set(placement.tensors)
