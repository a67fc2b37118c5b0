"""What a graph says of itself: counted by hand here, read from the file there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.stages import model_facts
from tests.graphs import GraphMaker


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path


def two_convs(width: int = 8, inputs: str | int = 16) -> GraphMaker:
    make = GraphMaker()
    make.conv("x", "a", (width, 3), strides=[2, 2])
    make.node("Relu", ["a"], "b")
    make.conv("b", "c", (4, width), kernel=1)
    return make


def test_macs_weights_and_channels_are_counted(tmp_path: Path) -> None:
    model = two_convs().model({"x": [1, 3, 16, 16]}, {"c": [1, 4, 8, 8]})
    facts = model_facts.read(save(model, tmp_path / "m.onnx"))
    assert facts.macs == 8 * 8 * 8 * 3 * 9 + 4 * 8 * 8 * 8
    assert facts.weights == 8 * 3 * 9 + 4 * 8
    assert facts.channels == 12
    assert facts.zero_share == 0.0 and facts.ternary_share == 0.0


def test_free_dimensions_take_the_contracts_shape(tmp_path: Path) -> None:
    model = two_convs().model({"x": ["batch", 3, "h", "w"]}, {"c": ["batch", 4, "h2", "w2"]})
    path = save(model, tmp_path / "m.onnx")
    assert model_facts.read(path).macs is None
    assert model_facts.read(path, (1, 3, 16, 16)).macs == 8 * 8 * 8 * 3 * 9 + 4 * 8 * 8 * 8


def test_pruned_networks_share_their_structure(tmp_path: Path) -> None:
    shapes = {"x": [1, 3, 16, 16]}, {"c": [1, 4, 8, 8]}
    full = model_facts.read(save(two_convs(8).model(*shapes), tmp_path / "full.onnx"))
    pruned = model_facts.read(save(two_convs(5).model(*shapes), tmp_path / "pruned.onnx"))
    other = GraphMaker()
    other.conv("x", "a", (8, 3), kernel=5, strides=[2, 2])
    other.conv("a", "c", (4, 8), kernel=1)
    changed = model_facts.read(save(other.model(*shapes), tmp_path / "other.onnx"))
    assert pruned.structure == full.structure
    assert changed.structure != full.structure
    assert (full.channels, pruned.channels) == (12, 9)


def test_zeros_and_ternary_layers(tmp_path: Path) -> None:
    make = GraphMaker()
    rng = np.random.default_rng(0)
    signs = rng.integers(-1, 2, (6, 3, 3, 3)).astype(np.float32)
    scale = rng.uniform(0.1, 2, (6, 1, 1, 1)).astype(np.float32)
    make.node("Conv", ["x", make.weight("w", signs * scale)], "a", pads=[1, 1, 1, 1])
    sparse = rng.normal(size=(10, 6, 1, 1)).astype(np.float32)
    sparse[:5] = 0
    make.node("Conv", ["a", make.weight("v", sparse)], "c")
    model = make.model({"x": [1, 3, 8, 8]}, {"c": [1, 10, 8, 8]})
    facts = model_facts.read(save(model, tmp_path / "m.onnx"))
    zeros = int((signs == 0).sum()) + 30
    assert facts.weights == 162 + 60
    assert facts.zero_share == pytest.approx(zeros / 222)
    assert facts.ternary_share == pytest.approx(162 / 222), (
        "rows of six values are too short to tell"
    )


def test_quantized_weights_are_seen_through_their_zero_points(tmp_path: Path) -> None:
    weight = np.array([[[[3]], [[5]]], [[[7]], [[7]]]], np.uint8)  # [2, 2, 1, 1]
    tensors = [
        numpy_helper.from_array(weight, "q"),
        numpy_helper.from_array(np.array([0.1, 0.2], np.float32), "s"),
        numpy_helper.from_array(np.array([3, 7], np.uint8), "z"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    facts = model_facts.read(save(model, tmp_path / "m.onnx"))
    assert facts.macs == 4 * 4 * 2 * 2
    assert facts.zero_share == 0.75


def test_integer_convolutions_count_as_convolutions(tmp_path: Path) -> None:
    tensors = [
        numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "w"),
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
        numpy_helper.from_array(np.int8(0), "wz"),
    ]
    node = helper.make_node(
        "QLinearConv", ["x", "s", "z", "w", "s", "wz", "s", "z"], ["y"], pads=[1, 1, 1, 1]
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [1, 4, 8, 8])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    facts = model_facts.read(save(model, tmp_path / "m.onnx"))
    assert facts.macs == 8 * 8 * 4 * 27
    assert facts.weights == 108
