"""Layers found again by their weights: plain, transposed, shared, and those that cannot be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from edgekit.builders.ncnn_match import match_layers
from edgekit.builders.pnnx import NcnnModel
from edgekit.formats import ncnn_bin
from edgekit.formats.ncnn_param import NcnnGraph, NcnnLayer
from tests.graphs import GraphMaker


def _model(*weights: tuple[str, np.ndarray]) -> NcnnModel:
    layers = [NcnnLayer(type="Input", name="in0", outputs=("in0",))]
    arrays: list[dict[str, ncnn_bin.Array]] = [{}]
    for number, (kind, array) in enumerate(weights):
        size = 2 if kind == "InnerProduct" else 6
        params = {0: str(array.shape[0]), size: str(array.size)}
        layers.append(
            NcnnLayer(
                type=kind, name=f"l{number}", inputs=("in0",), outputs=(f"{number}",), params=params
            )
        )
        arrays.append({"weight": ncnn_bin.stored(array, ncnn_bin.FP32)})
    return NcnnModel(graph=NcnnGraph(layers=tuple(layers)), weights=arrays)


def _conv(maker: GraphMaker, source: str, output: str, weight: str) -> str:
    return maker.node("Conv", [source, weight], output, pads=[1, 1, 1, 1])


def test_layers_and_nodes(tmp_path: Path) -> None:
    maker = GraphMaker()
    shared = maker.rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
    alone = maker.rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
    matrix = maker.rng.normal(size=(16, 5)).astype(np.float32)
    rows = maker.rng.normal(size=(3, 5)).astype(np.float32)
    maker.weight("shared", shared)
    maker.weight("alone", alone)
    maker.weight("matrix", matrix)
    maker.weight("rows", rows)
    first = _conv(maker, "x", "first", "shared")
    second = _conv(maker, first, "second", "alone")
    third = _conv(maker, second, "third", "shared")
    flat = maker.node("Flatten", [maker.node("GlobalAveragePool", [third], "pooled")], "flat")
    wide = maker.node("Concat", [flat, flat, flat, flat], "wide", axis=1)
    product = maker.node("MatMul", [wide, "matrix"], "product")
    maker.node("Gemm", [product, "rows"], "y", transB=1)
    path = tmp_path / "model.onnx"
    onnx.save(maker.model({"x": [1, 4, 8, 8]}, {"y": [1, 3]}), path)

    model = _model(
        ("Convolution", shared),
        ("Convolution", alone),
        ("Convolution", shared),
        ("InnerProduct", np.ascontiguousarray(matrix.T)),
        ("InnerProduct", rows),
        ("Convolution", alone * 2),
    )
    found = match_layers(model, path)
    assert {place: (match.node, match.tensor) for place, match in found.items()} == {
        1: ("n_first", "x"),
        2: ("n_second", "first"),
        3: ("n_third", "second"),
        4: ("n_product", "wide"),
        5: ("n_y", "product"),
    }
    # one of the two that share their weights is gone: which, cannot be told
    fewer = _model(("Convolution", shared), ("Convolution", alone))
    assert list(match_layers(fewer, path)) == [2]


def test_negative_zero_is_zero(tmp_path: Path) -> None:
    maker = GraphMaker()
    weight = np.zeros((1, 1, 1, 1), np.float32)
    maker.node("Conv", ["x", maker.weight("w", -weight)], "y")
    model = maker.model({"x": [1, 1, 2, 2]}, {"y": [1, 1, 2, 2]})
    onnx.save(model, tmp_path / "m.onnx")
    assert list(match_layers(_model(("Convolution", weight)), tmp_path / "m.onnx")) == [1]


def test_weights_of_other_types_match_nothing(tmp_path: Path) -> None:
    weight = np.ones((1, 1, 1, 1), np.float64)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [1, 1, 2, 2])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert match_layers(_model(("Convolution", weight)), tmp_path / "m.onnx") == {}
