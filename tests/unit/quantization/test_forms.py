"""Forms: the same function, the operators that are faster, and nothing touched where they do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.quantization import assemble, forms
from edgekit.quantization.placement import Placement, observed
from edgekit.quantization.rules import Rules
from edgekit.quantization.scheme import Scheme
from edgekit.target import FORMS
from tests.graphs import GraphMaker, ranges_of, run, sqnr_db

FOLLOW = ("Relu", "Concat", "Add", "Sigmoid", "Mul", "Resize", "GlobalAveragePool")


def _rules(*wanted: str) -> Rules:
    followed = [name for form in wanted for name in forms.FOLLOWED.get(form, ())]
    return Rules(operators=("Conv",), follow=(*FOLLOW, *followed), keep_float=(), forms=wanted)


def _quantized(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], *wanted: str
) -> tuple[onnx.ModelProto, Placement]:
    rules = _rules(*wanted)
    graph = ir.from_proto(model)
    ranges = ranges_of(model, observed(ir.from_proto(model), _rules()), feeds)
    formed = ir.from_proto(model)
    forms.take(formed, wanted)
    ranges |= ranges_of(model, observed(formed, rules), feeds)
    placement = assemble.quantized(graph, rules, ranges, Scheme())
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    return proto, placement


def _kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _image(channels: int = 3, size: int = 24, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {"x": rng.random((batch, channels, size, size), dtype=np.float32)}


def _silu_network() -> onnx.ModelProto:
    maker = GraphMaker(1)
    maker.conv("x", "c1", (16, 3))
    maker.node("Sigmoid", ["c1"], "s1")
    maker.node("Mul", ["s1", "c1"], "m1")
    maker.conv("m1", "c2", (8, 16))
    return maker.model({"x": [1, 3, 24, 24]}, {"c2": [1, 8, 24, 24]})


def test_silu_is_one_float_operator_between_integers() -> None:
    model, feeds = _silu_network(), _image()
    plain, _ = _quantized(model, feeds)
    formed, placement = _quantized(model, feeds, "silu")
    assert _kinds(formed)["QuickGelu"] == 1
    assert not _kinds(formed)["Sigmoid"] and not _kinds(formed)["Mul"]
    assert "s1" not in placement.tensors and {"c1", "m1"} <= placement.tensors.keys()
    expected = run(model, feeds)[0]
    # without the rounding of the gate there is less noise
    assert sqnr_db(expected, run(formed, feeds)[0]) >= sqnr_db(expected, run(plain, feeds)[0]) - 0.5


def test_silu_in_float_stays_the_same_function() -> None:
    model, feeds = _silu_network(), _image()
    graph = ir.from_proto(model)
    assert forms.take(graph, ("silu",)) == 1
    np.testing.assert_allclose(
        run(ir.to_proto(graph), feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-6
    )


def test_a_gate_of_something_else_is_no_silu() -> None:
    maker = GraphMaker(1)
    maker.conv("x", "c1", (8, 3))
    maker.conv("x", "c2", (8, 3))
    maker.node("Sigmoid", ["c1"], "s1")
    maker.node("Mul", ["s1", "c2"], "m1")
    graph = ir.from_proto(maker.model({"x": [1, 3, 8, 8]}, {"m1": [1, 8, 8, 8]}))
    assert forms.take(graph, FORMS) == 0


@pytest.mark.parametrize("axis", [1, -3])
def test_softmax_over_an_outer_axis_is_spread(axis: int) -> None:
    maker = GraphMaker(2)
    maker.node("Softmax", ["x"], "y", axis=axis)
    model = maker.model({"x": [1, 16, 4, 100]}, {"y": [1, 16, 4, 100]})
    # large values: without the maximum taken off, exp would overflow
    feeds = {"x": np.random.default_rng(0).normal(0, 60, (1, 16, 4, 100)).astype(np.float32)}
    graph = ir.from_proto(model)
    assert forms.take(graph, ("softmax",)) == 1
    formed = ir.to_proto(graph)
    onnx.checker.check_model(formed)
    assert not _kinds(formed)["Softmax"]
    np.testing.assert_allclose(run(formed, feeds)[0], run(model, feeds)[0], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("axis", [-1, 2])
def test_softmax_over_rows_stays(axis: int) -> None:
    maker = GraphMaker(2)
    maker.node("Softmax", ["x"], "y", axis=axis)
    graph = ir.from_proto(maker.model({"x": [1, 4, 32, 16]}, {"y": [1, 4, 32, 16]}))
    assert forms.take(graph, ("softmax",)) == 0


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        (6, 2, [2, 2, 2, 2]),
        (3, 2, [1, 1, 1, 1]),
        (7, 2, [3, 3, 3, 3]),
        (3, 2, [0, 0, 1, 1]),
        (3, 2, [0, 0, 0, 0]),
        (2, 2, [0, 0, 0, 0]),
        (4, 4, [0, 0, 0, 0]),
        (7, 4, [2, 3, 2, 3]),
        (5, 3, [1, 2, 1, 2]),
    ],
)
def test_blocks_as_channels_give_the_same_integers(
    kernel: int, stride: int, pads: Sequence[int]
) -> None:
    maker = GraphMaker(3)
    maker.conv("x", "c1", (8, 3), kernel=kernel, strides=[stride] * 2, pads=list(pads))
    maker.node("Relu", ["c1"], "r1")
    size = [(24 + pads[a] + pads[a + 2] - kernel) // stride + 1 for a in (0, 1)]
    model = maker.model({"x": [1, 3, 24, 24]}, {"r1": [1, 8, *size]})
    feeds = _image()
    plain, _ = _quantized(model, feeds)
    formed, _ = _quantized(model, feeds, "few_channels")
    (conv,) = (node for node in formed.graph.node if node.op_type == "Conv")
    strides = next(a.ints for a in conv.attribute if a.name == "strides")
    assert list(strides) == [1, 1]
    for optimize in (True, False):
        np.testing.assert_array_equal(
            run(formed, feeds, optimize)[0], run(plain, feeds, optimize)[0]
        )


def test_blocks_as_channels_with_a_free_batch_size() -> None:
    maker = GraphMaker(3)
    maker.conv("x", "c1", (8, 3), strides=[2, 2])
    model = maker.model({"x": ["n", 3, 24, 24]}, {"c1": ["n", 8, 12, 12]})
    feeds = _image(batch=3)
    plain, _ = _quantized(model, feeds)
    formed, _ = _quantized(model, feeds, "few_channels")
    assert _kinds(formed)["Reshape"] == 3
    np.testing.assert_array_equal(run(formed, feeds)[0], run(plain, feeds)[0])


@pytest.mark.parametrize(
    ("channels", "attributes", "size"),
    [
        (16, {"strides": [2, 2]}, 24),
        (3, {"strides": [1, 1]}, 24),
        (3, {"strides": [2, 1]}, 24),
        (3, {"strides": [2, 2]}, 25),
        (3, {"strides": [2, 2], "dilations": [2, 2]}, 24),
    ],
)
def test_other_convolutions_are_left_alone(
    channels: int, attributes: dict[str, Any], size: int
) -> None:
    maker = GraphMaker(3)
    maker.conv("x", "c1", (8, channels), **attributes)
    model = onnx.shape_inference.infer_shapes(
        maker.model({"x": [1, channels, size, size]}, {"c1": [1, 8, "h", "w"]})
    )
    formed, _ = _quantized(model, _image(channels, size), "few_channels")
    assert not _kinds(formed)["Reshape"]


@pytest.mark.parametrize(
    ("mode", "nearest", "factors", "taken"),
    [
        ("asymmetric", "floor", (2, 2), True),
        ("asymmetric", "floor", (3, 2), True),
        ("half_pixel", "round_prefer_floor", (2, 2), True),
        ("half_pixel", "round_prefer_floor", (3, 3), True),
        ("asymmetric", "round_prefer_floor", (2, 2), True),
        ("asymmetric", "round_prefer_floor", (3, 3), False),
        ("align_corners", "floor", (2, 2), False),
    ],
)
def test_nearest_enlargement_is_copies(
    mode: str, nearest: str, factors: tuple[int, int], taken: bool
) -> None:
    maker = GraphMaker(4)
    maker.conv("x", "c1", (8, 3))
    scales = maker.weight("scales", np.array([1, 1, *factors], np.float32))
    maker.node(
        "Resize",
        ["c1", "", scales],
        "e",
        mode="nearest",
        coordinate_transformation_mode=mode,
        nearest_mode=nearest,
    )
    maker.conv("e", "c2", (4, 8))
    size = [8 * factors[0], 8 * factors[1]]
    model = maker.model({"x": [1, 3, 8, 8]}, {"c2": [1, 4, *size]})
    feeds = _image(size=8)
    plain, _ = _quantized(model, feeds)
    formed, _ = _quantized(model, feeds, "resize")
    assert bool(_kinds(formed)["Resize"]) is not taken
    for optimize in (True, False):
        np.testing.assert_array_equal(
            run(formed, feeds, optimize)[0], run(plain, feeds, optimize)[0]
        )


def test_hard_swish_and_hard_sigmoid_run_on_integers() -> None:
    maker = GraphMaker(5)
    maker.conv("x", "c1", (16, 3), spread=3.0)
    maker.node("HardSwish", ["c1"], "h1")
    maker.node("GlobalAveragePool", ["h1"], "g")
    maker.conv("g", "c2", (16, 16), kernel=1)
    maker.node("HardSigmoid", ["c2"], "h2", alpha=1 / 6, beta=0.5)
    maker.node("Mul", ["h1", "h2"], "m")
    maker.conv("m", "c3", (8, 16), kernel=1)
    model = maker.model({"x": [1, 3, 24, 24]}, {"c3": [1, 8, 24, 24]})
    feeds = _image()
    plain, _ = _quantized(model, feeds)
    formed, _ = _quantized(model, feeds, "hard_swish")
    kinds = _kinds(formed)
    assert not kinds["HardSwish"] and not kinds["HardSigmoid"] and kinds["Add"] == 2
    expected = run(model, feeds)[0]
    found = sqnr_db(expected, run(formed, feeds)[0])
    # the gate is rounded to 1/255 on top of what is rounded in any case
    assert found > 30 and found > sqnr_db(expected, run(plain, feeds)[0]) - 6


def test_what_only_a_join_reads_takes_its_scale() -> None:
    maker = GraphMaker(6)
    maker.conv("x", "a", (8, 3), spread=2.0)
    maker.conv("x", "b", (8, 3))
    maker.conv("b", "d", (8, 8))
    maker.node("Concat", ["a", "b", "d"], "j", axis=1)
    maker.conv("j", "c", (8, 24))
    model = maker.model({"x": [1, 3, 24, 24]}, {"c": [1, 8, 24, 24]})
    feeds = _image()
    plain, apart = _quantized(model, feeds)
    formed, together = _quantized(model, feeds, "concat")
    assert (apart.tensors["a"], apart.tensors["b"], apart.tensors["d"]) == ("a", "b", "d")
    # b is read by a convolution too, which wants its finer scale
    assert (together.tensors["a"], together.tensors["b"], together.tensors["d"]) == ("j", "b", "j")
    expected = run(model, feeds)[0]
    assert sqnr_db(expected, run(formed, feeds)[0]) >= sqnr_db(expected, run(plain, feeds)[0]) - 0.5
