"""Parity: the figures, the limits, and the blocks found in graphs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.block import Block, whole
from edgekit.errors import VerificationFailed
from edgekit.stages.blocks import find_blocks
from edgekit.stages.divergence import first_divergence
from edgekit.stages.layout import Layout
from edgekit.stages.parity import (
    FLOAT_LIMITS,
    INT8_LIMITS,
    ParityLimits,
    ParityMeter,
    broken_block,
    compare,
    demand,
)
from edgekit.stages.regions import regions_of

Nodes = list[onnx.NodeProto]


def _graph(
    nodes: Nodes,
    inputs: dict[str, list[int | str]],
    outputs: list[str],
    constants: dict[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _make(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"n_{output}", **attributes)


def _f(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# --- figures ------------------------------------------------------------------------------------


def test_the_figures_are_those_of_their_formulas() -> None:
    random = np.random.default_rng(0)
    reference = [random.normal(size=(1, 5, 40)).astype(np.float32) for _ in range(3)]
    candidate = [a + random.normal(0, 0.01, a.shape).astype(np.float32) for a in reference]
    meter = ParityMeter(whole(["y"]))
    for one, other in zip(reference, candidate, strict=True):
        meter.add({"y": one}, {"y": other})
    report = meter.report()
    r = np.concatenate([a.ravel() for a in reference]).astype(np.float64)
    c = np.concatenate([a.ravel() for a in candidate]).astype(np.float64)
    assert report.samples == 3
    assert report.cosine == pytest.approx(r @ c / np.linalg.norm(r) / np.linalg.norm(c), rel=1e-12)
    assert report.sqnr_db == pytest.approx(10 * np.log10((r @ r) / ((r - c) @ (r - c))), rel=1e-12)
    assert report.max_abs_error == pytest.approx(np.abs(r - c).max(), rel=1e-12)
    assert report.max_rel_error == pytest.approx(np.abs(r - c).max() / np.abs(r).max(), rel=1e-12)


def test_equal_outputs_are_exact() -> None:
    array = _f(0, 0, 0)
    for reference in (array, _f(1, 2, 3)):
        block = compare({"y": reference}, {"y": reference.copy()}, whole(["y"])).blocks[0]
        assert (block.cosine, block.sqnr_db) == (1.0, math.inf)
        assert (block.max_abs_error, block.max_rel_error) == (0.0, 0.0)


def test_zeros_on_one_side_have_nothing_in_common() -> None:
    some, none = _f(1, 2, 3), _f(0, 0, 0)
    lost = compare({"y": some}, {"y": none}, whole(["y"])).blocks[0]
    assert (lost.cosine, lost.sqnr_db, lost.max_rel_error) == (0.0, 0.0, 1.0)
    invented = compare({"y": none}, {"y": some}, whole(["y"])).blocks[0]
    assert (invented.cosine, invented.sqnr_db) == (0.0, -math.inf)
    assert invented.max_rel_error == math.inf


def test_large_values_do_not_overflow() -> None:
    reference = np.full((1, 1000), 60000, dtype=np.float16)
    report = compare({"y": reference}, {"y": reference * np.float16(0.5)}, whole(["y"]))
    assert report.cosine == pytest.approx(1.0)
    assert report.sqnr_db == pytest.approx(10 * np.log10(4), rel=1e-3)


def test_a_block_of_zeros_counts_although_the_whole_looks_perfect() -> None:
    random = np.random.default_rng(0)
    boxes = random.uniform(0, 640, (1, 4, 500))
    scores = random.uniform(0, 1, (1, 3, 500)) ** 6
    reference = np.concatenate([boxes, scores], axis=1).astype(np.float32)
    candidate = reference.copy()
    candidate[:, 4:] = 0
    together = compare({"y": reference}, {"y": candidate}, whole(["y"]))
    assert together.blocks[0].cosine > 0.999999
    assert together.blocks[0].sqnr_db > 55
    blocks = (
        Block(name="boxes", output="y", axes=((), ((0, 4, 1),))),
        Block(name="scores", output="y", axes=((), ((4, 7, 1),))),
    )
    apart = compare({"y": reference}, {"y": candidate}, blocks)
    assert (apart.cosine, apart.sqnr_db) == (0.0, 0.0)
    worst = apart.worst
    assert worst is not None
    assert worst.name.startswith("scores")


def test_a_column_that_stands_still_is_found() -> None:
    random = np.random.default_rng(0)
    reference = random.uniform(0, 1, (1, 400, 80)).astype(np.float32)
    candidate = reference.copy()
    candidate[:, :, 7] = 0.1
    report = compare({"y": reference}, {"y": candidate}, whole(["y"]))
    assert report.blocks[0].cosine > 0.98
    assert [block.name for block in report.blocks] == ["y", "y column 7 (constant)"]
    assert report.cosine == 0.0
    # a class that the reference hardly ever gives may be lost
    reference[:, :, 7] *= 0.01
    candidate[:, :, 7] = 0
    assert len(compare({"y": reference}, {"y": candidate}, whole(["y"])).blocks) == 1
    # a handful of logits says nothing
    few = random.uniform(0, 1, (1, 10)).astype(np.float32)
    assert len(compare({"y": few}, {"y": few * 0}, whole(["y"])).blocks) == 1


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        ({"z": _f(1, 2)}, "no output 'y'; it has: z"),
        ({}, "has: none"),
        ({"y": _f(1, 2, 3)}, r"shape \[3\] instead of \[2\]"),
        ({"y": _f(1, 2)[None]}, r"shape \[1, 2\]"),
        ({"y": np.array([1.0, 2.0])}, "float64 instead of float32"),
        ({"y": _f(1, np.nan)}, r"'y' of the candidate holds nan \(1 of 2"),
        ({"y": _f(np.inf, 1)}, "of the candidate holds inf"),
    ],
)
def test_what_cannot_be_compared_is_named(candidate: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(VerificationFailed, match=text) as caught:
        compare({"y": _f(1, 2)}, candidate, whole(["y"]))
    assert caught.value.exit_code == 9


def test_nan_in_the_reference_is_named() -> None:
    with pytest.raises(VerificationFailed, match="of the reference holds nan"):
        compare({"y": _f(np.nan)}, {"y": _f(np.nan)}, whole(["y"]))


def test_whole_numbers_are_compared_too() -> None:
    reference = np.array([[3, 7, 2]], dtype=np.int64)
    assert compare({"y": reference}, {"y": reference}, whole(["y"])).cosine == 1.0
    report = compare({"y": reference}, {"y": reference + 1}, whole(["y"]))
    assert report.max_abs_error == 1.0


def test_limits_name_the_worst_block() -> None:
    reference = {"y": np.linspace(0.1, 1, 200, dtype=np.float32).reshape(1, 2, 100)}
    candidate = {"y": reference["y"].copy()}
    candidate["y"][0, 1, 3] *= 1.001
    blocks = (
        Block(name="first", output="y", axes=((), ((0, 1, 1),))),
        Block(name="second", output="y", axes=((), ((1, 2, 1),))),
    )
    report = compare(reference, candidate, blocks)
    demand(report, INT8_LIMITS, "quantize")
    assert broken_block(report, INT8_LIMITS) is None
    with pytest.raises(VerificationFailed, match=r"at simplify: block 'second' .* at node 7") as e:
        demand(report, FLOAT_LIMITS, "simplify", "It begins at node 7.")
    assert e.value.exit_code == 9


def test_noise_beside_the_other_scales_is_let_through() -> None:
    """Scores of a scale that sees nothing: all error, and yet nothing."""
    random = np.random.default_rng(0)
    reference = random.uniform(0, 1, (1, 100, 5)).astype(np.float32)
    reference[:, 50:] *= 1e-4
    candidate = reference.copy()
    candidate[:, 50:] = random.uniform(0, 1e-3, (1, 50, 5))
    blocks = (
        Block(name="near", output="y", axes=((), ((0, 50, 1),), ())),
        Block(name="far", output="y", axes=((), ((50, 100, 1),), ())),
    )
    report = compare({"y": reference}, {"y": candidate}, blocks)
    assert report.sqnr_db < 0
    assert broken_block(report, INT8_LIMITS) is None
    strict = ParityLimits(min_cosine=0.8, min_sqnr_db=4.0)
    broken = broken_block(report, strict)
    assert broken is not None
    assert broken[0].name == "far"
    candidate[:, 50:] = 0.05
    report = compare({"y": reference}, {"y": candidate}, blocks)
    assert broken_block(report, INT8_LIMITS) is not None


# --- regions ------------------------------------------------------------------------------------


def _covered(mask: np.ndarray) -> int:
    regions = regions_of(mask)
    total = np.zeros(mask.shape, dtype=int)
    for axes in regions:
        index = np.arange(mask.size).reshape(mask.shape)
        total.ravel()[Block(name="r", output="y", axes=axes).take(index).ravel()] += 1
    assert np.array_equal(total, mask.astype(int))
    return len(regions)


def test_regions_cover_a_mask_exactly_once() -> None:
    mask = np.zeros((1, 6, 10), dtype=bool)
    mask[:, 1:3, 4:] = True
    assert regions_of(mask) == [((), ((1, 3, 1),), ((4, 10, 1),))]
    mask = np.zeros((2, 12), dtype=bool)
    mask[:, 1::3] = True
    assert regions_of(mask) == [((), ((1, 11, 3),))]
    mask = np.zeros((1, 20, 5), dtype=bool)
    mask[:, :10, :2] = mask[:, 10:, 2:] = True
    assert _covered(mask) == 2
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = random.random((1, 6, 7)) < 0.5
        if mask.any():
            _covered(mask)


# --- blocks -------------------------------------------------------------------------------------


def _parts(model: onnx.ModelProto, **options: Any) -> dict[str, tuple[Any, ...]]:
    return {block.name: block.axes for block in find_blocks(model, **options)}


def test_an_output_that_joins_nothing_is_one_block() -> None:
    model = _graph(
        [_make("Relu", "x", "a"), _make("Transpose", "a", "y", perm=[0, 2, 1])],
        {"x": [1, 4, 6]},
        ["y"],
    )
    assert find_blocks(model) == (Block(name="y", output="y"),)


def test_joins_are_followed_through_everything_that_moves() -> None:
    """Two scales, each box and score joined, reshaped, joined again and turned: as detectors do."""
    nodes: Nodes = []
    for scale in "12":
        nodes += [
            _make("Relu", f"x{scale}", f"r{scale}"),
            _make("Exp", f"x{scale}", f"e{scale}"),
            _make("Split", f"r{scale} split", f"box{scale} rest{scale}", axis=1),
            _make("Slice", f"e{scale} from to axis", f"score{scale}"),
            _make("Concat", f"box{scale} score{scale}", f"both{scale}", axis=1),
            _make("Reshape", f"both{scale} shape", f"flat{scale}"),
            _make("Unsqueeze", f"flat{scale} zero", f"up{scale}"),
            _make("Squeeze", f"up{scale} zero", f"down{scale}"),
        ]
    nodes += [
        _make("Concat", "down1 down2", "all", axis=2),
        _make("Cast", "all", "cast", to=TensorProto.FLOAT),
        _make("Transpose", "cast", "turned", perm=[0, 2, 1]),
        _make("Identity", "turned", "y"),
    ]
    constants = {
        "split": np.array([2, 4]),
        "from": np.array([3]),
        "to": np.array([6]),
        "axis": np.array([1]),
        "shape": np.array([1, 5, -1]),
        "zero": np.array([0]),
    }
    model = _graph(nodes, {"x1": [1, 6, 4, 4], "x2": [1, 6, 2, 2]}, ["y"], constants)
    assert _parts(model) == {
        "y (n_r1)": ((), ((0, 16, 1),), ((0, 2, 1),)),
        "y (n_r2)": ((), ((16, 20, 1),), ((0, 2, 1),)),
        "y (n_e1)": ((), ((0, 16, 1),), ((2, 5, 1),)),
        "y (n_e2)": ((), ((16, 20, 1),), ((2, 5, 1),)),
    }


def test_interleaved_parts_become_steps() -> None:
    nodes = [
        _make("Relu", "x", "a"),
        _make("Exp", "x", "b"),
        _make("Unsqueeze", "a axis", "a1"),
        _make("Unsqueeze", "b axis", "b1"),
        _make("Concat", "a1 b1", "c", axis=2),
        _make("Flatten", "c", "y", axis=1),
    ]
    model = _graph(nodes, {"x": [1, 6]}, ["y"], {"axis": np.array([2])})
    assert _parts(model) == {"y (n_a)": ((), ((0, 11, 2),)), "y (n_b)": ((), ((1, 12, 2),))}


def test_constant_picks_are_followed_and_others_are_not() -> None:
    nodes = [
        _make("Relu", "x", "a"),
        _make("Exp", "x", "b"),
        _make("Concat", "a b", "c", axis=1),
        _make("Gather", "c order", "y", axis=1),
        _make("TopK", "b one", "values where", axis=1),
        _make("Gather", "c where", "z", axis=1),
    ]
    constants = {"order": np.array([7, 0, 1, 6]), "one": np.array([2])}
    model = _graph(nodes, {"x": [1, 4]}, ["y", "z"], constants)
    assert _parts(model) == {
        "y (n_a)": ((), ((1, 3, 1),)),
        "y (n_b)": ((), ((0, 4, 3),)),
        "z": (),
    }


def test_a_function_over_what_was_joined_is_looked_through() -> None:
    """YOLO11's scores: the scales are joined first, the sigmoid comes after; then all is scaled."""
    nodes = [
        _make("Relu", "x", "a"),
        _make("Exp", "x", "b"),
        _make("Concat", "a b", "c", axis=2),
        _make("Sigmoid", "c", "s"),
        _make("Mul", "s factor", "y"),
        _make("Mul", "a a", "z"),
    ]
    constants = {"factor": np.ones((1, 1, 8), np.float32)}
    model = _graph(nodes, {"x": [1, 3, 4]}, ["y", "z"], constants)
    assert _parts(model) == {
        "y (n_a)": ((), (), ((0, 4, 1),)),
        "y (n_b)": ((), (), ((4, 8, 1),)),
        "z": (),
    }


@pytest.mark.parametrize("quantized_join", [False, True])
def test_quantized_graphs_have_the_same_blocks(quantized_join: bool) -> None:
    def pair(name: str) -> Nodes:
        return [
            _make("QuantizeLinear", f"{name} scale zero", f"{name}_q"),
            _make("DequantizeLinear", f"{name}_q scale zero", f"{name}_d"),
        ]

    nodes = [_make("Relu", "x", "a"), _make("Exp", "x", "b"), *pair("a"), *pair("b")]
    if quantized_join:
        nodes += [
            helper.make_node(
                "QLinearConcat",
                ["scale", "zero", "a_q", "scale", "zero", "b_q", "scale", "zero"],
                ["c_q"],
                domain="com.microsoft",
                axis=1,
            ),
            _make("DequantizeLinear", "c_q scale zero", "y"),
        ]
    else:
        nodes += [
            _make("Concat", "a_d b_d", "c", axis=1),
            *pair("c"),
            _make("Identity", "c_d", "y"),
        ]
    constants = {"scale": np.float32(0.1), "zero": np.uint8(0)}
    model = _graph(nodes, {"x": [1, 4, 5]}, ["y"], constants)
    if quantized_join:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert _parts(model) == {
        "y (n_a)": ((), ((0, 4, 1),), ()),
        "y (n_b)": ((), ((4, 8, 1),), ()),
    }


def test_shapes_worked_out_at_run_time_are_followed() -> None:
    """An exported graph that was not simplified: Shape → Gather → Concat → Reshape; a free batch."""
    nodes = [
        _make("Relu", "x", "a"),
        _make("Exp", "x", "b"),
        _make("Shape", "x", "shape"),
        _make("Gather", "shape zero", "batch", axis=0),
        _make("Concat", "batch rest", "target", axis=0),
        _make("Reshape", "a target", "a1"),
        _make("Reshape", "b target", "b1"),
        _make("Concat", "a1 b1", "y", axis=2),
    ]
    constants = {"zero": np.array([0]), "rest": np.array([3, -1])}
    model = _graph(nodes, {"x": ["batch", 3, 4, 4]}, ["y"], constants)
    expected = {"y (n_a)": ((), (), ((0, 16, 1),)), "y (n_b)": ((), (), ((16, 32, 1),))}
    assert _parts(model) == expected
    feeds = {"x": np.zeros((2, 3, 4, 4), np.float32)}
    assert _parts(model, feeds=feeds) == expected
    for block in find_blocks(model):
        assert block.take(np.zeros((5, 3, 32))).shape == (5, 3, 16)


def test_every_output_has_blocks() -> None:
    nodes = [
        _make("Relu", "x", "a"),
        _make("Exp", "x", "b"),
        _make("Concat", "a b", "y", axis=1),
        _make("Concat", "b a", "z", axis=1),
        _make("Neg", "x", "w"),
    ]
    blocks = find_blocks(_graph(nodes, {"x": [1, 4]}, ["w", "y", "z"]))
    assert [block.output for block in blocks] == ["w", "y", "y", "z", "z"]


def test_inputs_that_cannot_be_guessed_leave_whole_outputs() -> None:
    nodes = [
        _make("Reshape", "x shape", "a"),
        _make("Exp", "a", "b"),
        _make("Relu", "a", "r"),
        _make("Concat", "r b", "y", axis=1),
    ]
    model = _graph(nodes, {"x": [1, "n"]}, ["y"], {"shape": np.array([1, 5, 7])})
    assert _parts(model) == {"y": ()}  # n = 1 does not fit 35 values
    feeds = {"images": np.zeros((1, 35), np.float32)}
    assert len(_parts(model, feeds=feeds)) == 2


def test_a_constant_part_and_hundreds_of_parts() -> None:
    nodes = [_make("Relu", "x", "a"), _make("Concat", "a pad", "y", axis=1)]
    model = _graph(nodes, {"x": [1, 4]}, ["y"], {"pad": np.zeros((1, 2), np.float32)})
    assert _parts(model) == {"y (n_a)": ((), ((0, 4, 1),)), "y (pad)": ((), ((4, 6, 1),))}
    many = [_make("Relu", "x", f"a{n}") for n in range(600)]
    many.append(_make("Concat", " ".join(f"a{n}" for n in range(600)), "y", axis=1))
    assert _parts(_graph(many, {"x": [1, 1]}, ["y"])) == {"y": ()}


# --- known heads --------------------------------------------------------------------------------


def _regions(head: str, shape: tuple[int, ...], size: tuple[int, ...]) -> dict[str, Any]:
    layout = Layout.of(head, shape, size)
    return {} if layout is None else {name: index[1:] for name, index in layout.regions}


def test_known_heads_have_columns_and_scales() -> None:
    v5 = _regions("yolov5", (1, 25200, 85), (1, 3, 640, 640))
    assert len(v5) == 12
    assert v5["objectness stride 16"] == (slice(19200, 24000), slice(4, 5))
    assert v5["classes stride 32"] == (slice(24000, 25200), slice(5, 85))
    v8 = _regions("yolov8", (1, 84, 8400), (1, 3, 640, 640))
    assert v8["classes stride 8"] == (slice(4, 84), slice(0, 6400))
    assert v8["wh stride 32"] == (slice(2, 4), slice(8000, 8400))
    assert _regions("yolov8", (1, 8400, 84), (1, 640, 640, 3))["xy stride 8"] == (
        slice(0, 6400),
        slice(0, 2),
    )
    two = _regions("yolov8", (1, 7, 720), (1, 3, 192, 192))
    assert two["classes stride 16"] == (slice(4, 7), slice(576, 720))
    end = _regions("yolo26", (1, 300, 6), (1, 3, 640, 640))
    assert end["score"] == (slice(None), slice(4, 5))
    assert set(_regions("yolov8", (1, 7, 999), (1, 3, 192, 192))) == {"xy", "wh", "classes"}
    for head, shape in (("logits", (1, 1000)), ("yolo26", (1, 300, 7)), ("yolov5", (1, 3, 4))):
        assert _regions(head, shape, (1, 3, 64, 64)) == {}


def test_a_head_splits_where_the_graph_does_not() -> None:
    model = _graph([_make("Relu", "x", "y")], {"x": [1, 7, 100]}, ["y"])
    assert _parts(model) == {"y": ()}
    assert _parts(model, head="yolov8") == {
        "y xy": ((), ((0, 2, 1),), ()),
        "y wh": ((), ((2, 4, 1),), ()),
        "y classes": ((), ((4, 7, 1),), ()),
    }
    assert _parts(model, head="something else") == {"y": ()}


# --- where it begins ----------------------------------------------------------------------------


def _chain(factor: float, extra: bool = False) -> onnx.ModelProto:
    nodes = [
        _make("Relu", "x", "a"),
        _make("Mul", "a two", "b"),
        _make("Exp", "b", "c"),
        _make("Mul", "c factor", "d"),
        _make("Sqrt", "d", "e"),
        _make("Neg", "e", "y"),
    ]
    if extra:
        nodes.insert(2, _make("Identity", "b", "unused"))
    constants = {"two": np.float32(2), "factor": np.float32(factor)}
    return _graph(nodes, {"x": [1, 50]}, ["y"], constants)


def test_the_first_node_that_parts_is_named(tmp_path: Path) -> None:
    feeds = {"x": np.linspace(-1, 1, 50, dtype=np.float32)[None]}
    assert first_divergence(_chain(1), _chain(1, extra=True), feeds, FLOAT_LIMITS) is None
    onnx.save(_chain(1.01), str(tmp_path / "b.onnx"))
    found = first_divergence(_chain(1), tmp_path / "b.onnx", feeds, FLOAT_LIMITS)
    assert found is not None
    assert (found.node, found.op_type, found.tensor) == ("n_d", "Mul", "d")
    assert str(found).startswith("It begins at the Mul node 'n_d' (max_rel_error 0.01")
    assert first_divergence(_chain(1), _chain(1.01), feeds, INT8_LIMITS) is None


def test_a_node_that_makes_nan_is_named() -> None:
    feeds = {"x": np.linspace(-1, 1, 50, dtype=np.float32)[None]}
    found = first_divergence(_chain(1), _chain(-1), feeds, ParityLimits())
    assert found is not None
    assert found.tensor == "e"
    assert "nan" in found.problem


def test_graphs_without_shared_names_part_nowhere() -> None:
    feeds = {"x": np.ones((1, 3), np.float32)}
    one = _graph([_make("Relu", "x", "y")], {"x": [1, 3]}, ["y"])
    other = _graph([_make("Neg", "q", "z")], {"q": [1, 3]}, ["z"])
    assert first_divergence(one, other, feeds, FLOAT_LIMITS) is None
