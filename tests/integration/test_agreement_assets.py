"""Agreement with the float model: 1 for itself, less for INT8, nothing for a broken model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import images
from edgekit.preprocess import Preprocess
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.onnxruntime import open_bytes
from edgekit.stages.agreement import Agreement
from edgekit.stages.blocks import find_blocks
from tests.graphs import GraphMaker


def _with_scores(model: onnx.ModelProto, factor: float) -> bytes:
    """The detector with its objectness and class scores multiplied."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    output = changed.graph.output[0].name
    for node in changed.graph.node:
        for index, name in enumerate(node.output):
            if name == output:
                node.output[index] = "plain"
    scale = np.ones(85, np.float32)
    scale[4:] = factor
    changed.graph.initializer.append(onnx.numpy_helper.from_array(scale, "by_column"))
    changed.graph.node.append(onnx.helper.make_node("Mul", ["plain", "by_column"], [output]))
    return changed.SerializeToString()


def test_a_detector(assets: Path) -> None:
    path = assets / "models" / "yolov5n.onnx"
    contract = Preprocess(height=640, width=640)
    pictures = [images.read(p) for p in images.list_images(assets / "coco" / "calib")[:6]]
    with open_session("onnxruntime", path) as session:
        judge = Agreement(session, pictures, contract, find_blocks(path), task="detect")
        assert judge.score(session) == pytest.approx(1.0)
    model = onnx.load(path)
    with open_bytes(_with_scores(model, 0.9), SessionOptions()) as milder:
        assert 0.9 < judge.score(milder) <= 1.0
    with open_bytes(_with_scores(model, 0.0), SessionOptions()) as silent:
        assert judge.score(silent) == 0.0


def test_outputs_that_no_head_explains_are_compared_as_numbers(tmp_path: Path) -> None:
    maker = GraphMaker()
    maker.conv("x", "y", (5, 3))
    model = maker.model({"x": [1, 3, 32, 32]}, {"y": [1, 5, 32, 32]})
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    pictures = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)]
    contract = Preprocess(height=32, width=32, resize="none")
    other = onnx.ModelProto()
    other.CopyFrom(model)
    weight = onnx.numpy_helper.to_array(other.graph.initializer[0]) * np.float32(1.1)
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "y.w"))
    with open_session("onnxruntime", path) as session:
        judge = Agreement(session, pictures, contract, find_blocks(path))
        assert judge.score(session) == 1.0
    with open_bytes(other.SerializeToString(), SessionOptions()) as near:
        assert 0.9 < judge.score(near) < 1.0
