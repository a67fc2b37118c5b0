"""Placement is about structure: which nodes compute, which carry, what stays float and why."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgekit.quantization.placement import observed, place
from edgekit.quantization.rules import Rules
from edgekit.types import Range
from tests.graphs import GraphMaker

RULES = Rules(
    operators=("Conv", "Gemm", "MatMul"),
    follow=("Relu", "Clip", "MaxPool", "Concat", "Add", "Sigmoid", "Mul", "Resize", "Reshape"),
)


def _uniform(model: ir.Model, rules: Rules = RULES, amax: float = 1.0) -> dict[str, Range]:
    return {name: Range(low=-amax, high=amax) for name in observed(model, rules)}


def _detector(mixed: bool = True) -> ir.Model:
    """A trunk and a head that joins boxes and scores; one large and one small output convolution."""
    maker = GraphMaker()
    maker.conv("x", "c1", (16, 3))
    maker.node("Relu", ["c1"], "r1")
    maker.conv("r1", "c2", (16, 16))
    maker.node("Sigmoid", ["c2"], "s2")
    maker.node("Mul", ["c2", "s2"], "m2")
    maker.node("Concat", ["r1", "m2"], "j", axis=1)
    maker.conv("j", "c3", (32, 32))
    maker.node("Relu", ["c3"], "r3")
    maker.conv("r3", "box", (4, 32), kernel=1)
    maker.conv("r3", "cls", (2, 32), kernel=1)
    maker.node("Sigmoid", ["cls"], "score")
    maker.node("Concat", ["box", "score"], "y", axis=1)
    return ir.from_proto(maker.model({"x": [1, 3, 16, 16]}, {"y": [1, 6, 16, 16]}))


def test_the_head_stays_float_by_structure_and_the_trunk_is_int8() -> None:
    model = _detector()
    placement = place(model, RULES, _uniform(model))
    assert set(placement.compute) == {"n_c1", "n_c2", "n_c3"}
    assert set(placement.floats) == {"n_box", "n_cls"}
    assert "n_y" not in placement.carry
    assert placement.int8_mac_share > 0.9


def test_followers_carry_only_between_integers() -> None:
    model = _detector()
    placement = place(model, RULES, _uniform(model))
    assert {"n_s2", "n_m2", "n_j"} <= set(placement.carry)
    assert "n_score" not in placement.carry


def _joined(read_as_float: bool) -> ir.Model:
    maker = GraphMaker()
    maker.conv("x", "a", (8, 8))
    maker.conv("a", "b", (8, 8))
    maker.node("Concat", ["a", "b"], "j", axis=1)
    maker.conv("j", "c", (8, 16))
    outputs = {"c": [1, 8, 8, 8]}
    if read_as_float:
        maker.node("Softmax", ["j"], "p", axis=1)
        outputs["p"] = [1, 16, 8, 8]
    return ir.from_proto(maker.model({"x": [1, 8, 8, 8]}, outputs))


@pytest.mark.parametrize("read_as_float", [True, False])
def test_a_join_of_very_different_ranges_is_split_where_it_is_read_as_float(
    read_as_float: bool,
) -> None:
    model = _joined(read_as_float)
    rules = Rules(operators=RULES.operators, follow=RULES.follow, keep_float=())
    ranges = _uniform(model, rules)
    assert "n_j" in place(model, rules, ranges).carry
    ranges["a"] = Range(low=0.0, high=100.0)
    assert ("n_j" in place(model, rules, ranges).carry) is not read_as_float


def test_nothing_is_quantized_between_an_add_and_its_activation() -> None:
    maker = GraphMaker()
    maker.conv("x", "a", (8, 8))
    maker.conv("a", "b", (8, 8))
    maker.node("Add", ["a", "b"], "s")
    maker.node("Relu", ["s"], "r")
    maker.conv("r", "c", (8, 8))
    maker.conv("c", "y", (8, 8))
    model = ir.from_proto(maker.model({"x": [1, 8, 8, 8]}, {"y": [1, 8, 8, 8]}))
    placement = place(model, RULES, _uniform(model))
    assert "n_s" in placement.carry
    assert "r" in placement.tensors and "s" not in placement.tensors


def test_a_fused_activation_is_quantized_behind_it() -> None:
    model = _detector()
    placement = place(model, RULES, _uniform(model))
    assert "r1" in placement.tensors
    assert "c1" not in placement.tensors
    assert "c2" in placement.tensors  # SiLU is not a clip: its input needs a scale of its own


def test_value_moving_operators_share_the_scale_of_their_input() -> None:
    maker = GraphMaker()
    maker.conv("x", "c1", (8, 8))
    maker.node("MaxPool", ["c1"], "p", kernel_shape=[2, 2], strides=[2, 2])
    maker.conv("p", "c2", (8, 8))
    maker.conv("c2", "y", (8, 8))
    model = ir.from_proto(maker.model({"x": [1, 8, 16, 16]}, {"y": [1, 8, 8, 8]}))
    placement = place(
        model, Rules(operators=RULES.operators, follow=RULES.follow, keep_float=()), _uniform(model)
    )
    assert placement.tensors["p"] == "c1"
    assert "n_p" in placement.carry


@pytest.mark.parametrize(
    ("keep_float", "words"),
    [
        (("depthwise",), "depthwise"),
        (("first",), "first"),
        (("Conv",), "Conv"),
    ],
)
def test_rules_of_the_profile_keep_layers_float(keep_float: tuple[str, ...], words: str) -> None:
    maker = GraphMaker()
    maker.conv("x", "c1", (8, 8), groups=8)
    maker.conv("c1", "y", (8, 8))
    model = ir.from_proto(maker.model({"x": [1, 8, 8, 8]}, {"y": [1, 8, 8, 8]}))
    rules = Rules(operators=("Conv",), follow=(), keep_float=keep_float)
    assert words in place(model, rules, _uniform(model, rules)).floats["n_c1"]


def test_few_channels_and_asked_for_nodes_stay_float() -> None:
    model = _detector()
    rules = Rules(operators=RULES.operators, follow=RULES.follow, min_channels=8)
    placement = place(model, rules, _uniform(model), keep=("n_c2",))
    assert "3 channels" in placement.floats["n_c1"]
    assert placement.floats["n_c2"] == "asked to stay float"


def test_a_node_without_a_range_stays_float() -> None:
    model = _detector()
    ranges = _uniform(model)
    del ranges["r3"]
    assert "r3" in place(model, RULES, ranges).floats["n_c3"]


def test_dynamic_weights_and_scaled_gemm_stay_float() -> None:
    maker = GraphMaker()
    maker.node("Reshape", ["x", maker.weight("shape", __import__("numpy").array([4, 8]))], "a")
    maker.node("Transpose", ["a"], "t", perm=[1, 0])
    maker.node("MatMul", ["a", "t"], "m")
    maker.weight("w", __import__("numpy").ones((4, 3), "float32"))
    maker.node("Gemm", ["m", "w"], "y", alpha=0.5)
    model = ir.from_proto(maker.model({"x": [1, 32]}, {"y": [4, 3]}))
    placement = place(model, RULES, _uniform(model))
    assert placement.compute == ()
    assert "constant" in placement.floats["n_m"]
    assert "alpha" in placement.floats["n_y"]
