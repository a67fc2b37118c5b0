"""Rewrites for pnnx: each computes the very same numbers, and leaves alone what it cannot say."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgekit.builders import ncnn_rewrites
from tests.graphs import run


def _graph(
    op_type: str,
    constants: list[np.ndarray],
    opset: int = 17,
    shape: tuple[int, ...] = (1, 8, 9, 12),
    **attributes: Any,
) -> onnx.ModelProto:
    """Sigmoid, then one node of `op_type` with these constant inputs."""
    names = [f"k{number}" for number in range(len(constants))]
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], name="first"),
        helper.make_node(op_type, ["s", *names], ["y"], name="node", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [
            numpy_helper.from_array(array, name)
            for array, name in zip(constants, names, strict=True)
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def _i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def _apply(rewrite: Any, model: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    graph = ir.from_proto(model)
    count = rewrite(graph)
    proto = ir.to_proto(graph)
    del proto.graph.value_info[:]
    return count, onnx.shape_inference.infer_shapes(proto, data_prop=True)


SLICES = [
    ([_i64(1, 0), _i64(9, 12), _i64(2, 3), _i64(2, 2)], "MaxPool"),
    ([_i64(0), _i64(2**31), _i64(-1), _i64(3)], "MaxPool"),
    ([_i64(-5, 1), _i64(100, -2), _i64(2, 3), _i64(2, 1)], "MaxPool"),
    ([_i64(0), _i64(8), _i64(1), _i64(2)], "Concat"),
    ([_i64(-1), _i64(-100), _i64(3), _i64(-1)], "Concat"),
    ([_i64(1, 1), _i64(8, 9), _i64(1, 2), _i64(3, 2)], "MaxPool"),
]


@pytest.mark.parametrize(("constants", "last"), SLICES)
def test_slices_with_steps(constants: list[np.ndarray], last: str) -> None:
    model = _graph("Slice", constants)
    count, after = _apply(ncnn_rewrites.strided_slices, model)
    assert count == 1
    assert after.graph.node[-1].op_type == last
    for node in after.graph.node:
        assert node.op_type != "Slice" or len(node.input) == 4
    x = np.random.default_rng(0).normal(size=(1, 8, 9, 12)).astype(np.float32)
    (before,), (now,) = run(model, {"x": x}), run(after, {"x": x})
    assert before.shape == now.shape
    assert np.array_equal(before, now)


def test_slices_without_steps_stay() -> None:
    for constants in ([_i64(1), _i64(5), _i64(1)], [_i64(1), _i64(5), _i64(1), _i64(1)]):
        count, after = _apply(ncnn_rewrites.strided_slices, _graph("Slice", constants))
        assert count == 0
        assert [node.op_type for node in after.graph.node] == ["Sigmoid", "Slice"]


@pytest.mark.parametrize(
    ("rewrite", "op_type", "constants", "opset", "attributes"),
    [
        (ncnn_rewrites.space_to_depth, "SpaceToDepth", [], 17, {"blocksize": 3}),
        (ncnn_rewrites.gathers, "Gather", [_i64(3, 1, 2, -1)], 17, {"axis": 1}),
        (ncnn_rewrites.tiles, "Tile", [_i64(1, 2, 1, 3)], 17, {}),
        (ncnn_rewrites.lower_opset, "ReduceMean", [_i64(1)], 18, {"keepdims": 1}),
        (ncnn_rewrites.lower_opset, "ReduceMax", [_i64(2, 3)], 20, {"keepdims": 0}),
    ],
)
def test_exact_rewrites(
    rewrite: Any, op_type: str, constants: list[np.ndarray], opset: int, attributes: dict[str, Any]
) -> None:
    shape = (1, 8, 9, 12)
    model = _graph(op_type, constants, opset, shape, **attributes)
    count, after = _apply(rewrite, model)
    assert count == 1
    left = [node for node in after.graph.node if node.op_type == op_type]
    assert not left or all(len(node.input) == 1 for node in left)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert np.array_equal(run(model, {"x": x})[0], run(after, {"x": x})[0])


@pytest.mark.parametrize("keepdims", [0, 1])
def test_sums_as_means(keepdims: int) -> None:
    model = _graph("ReduceSum", [_i64(1, 3)], keepdims=keepdims)
    count, after = _apply(ncnn_rewrites.reduce_sums, model)
    assert count == 1
    x = np.random.default_rng(0).normal(size=(1, 8, 9, 12)).astype(np.float32)
    before, now = run(model, {"x": x})[0], run(after, {"x": x})[0]
    assert before.shape == now.shape
    assert np.allclose(before, now, rtol=1e-6)


def test_a_split_into_equal_parts_in_a_newer_opset() -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3),
        helper.make_node("ReduceMean", ["a", "axes"], ["m"], keepdims=1),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 6, 4, 4))],
        [helper.make_empty_tensor_value_info(name) for name in ("y", "c")],
        [numpy_helper.from_array(_i64(2), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    count, after = _apply(ncnn_rewrites.lower_opset, model)
    assert count == 1
    assert after.opset_import[0].version == 17
    onnx.checker.check_model(after)
    x = np.random.default_rng(0).normal(size=(1, 6, 4, 4)).astype(np.float32)
    for one, other in zip(run(model, {"x": x}), run(after, {"x": x}), strict=True):
        assert np.array_equal(one, other)


def test_an_opset_with_operators_of_its_own_stays() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        helper.make_node("ReduceMean", ["g", "axes"], ["y"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 6, 4, 4))],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(_i64(1), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert _apply(ncnn_rewrites.lower_opset, onnx.shape_inference.infer_shapes(model))[0] == 0


def test_graph_outputs_keep_their_names() -> None:
    for what, rewrite in ncnn_rewrites.REWRITES:
        count, after = _apply(rewrite, _graph("Slice", SLICES[0][0]))
        assert [value.name for value in after.graph.output] == ["y"], what
        assert count == (1 if rewrite is ncnn_rewrites.strided_slices else 0)
