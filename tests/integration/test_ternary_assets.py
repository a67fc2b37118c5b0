"""A ResNet-20 with trained ternary weights, made by the example: found, and kept in INT8."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "ternary"))

import cifar
import train

from edgekit import checkpoint as checkpoints
from edgekit.checkpoint import LoadOptions
from edgekit.metrics.datasets import open_dataset
from edgekit.preprocess import apply
from edgekit.quantization.ternary import error_bound, find_levels
from edgekit.runtimes import open_session
from edgekit.stages import calibrate, evaluate, export, inspect, prepare, quantize, simplify
from edgekit.stages.opening import describe
from edgekit.target_files import load_target
from edgekit.types import OnnxModel

EXAMPLE = Path(train.__file__).parent
OPTIONS = LoadOptions(arch="resnet:resnet20", code=(EXAMPLE,))


def trained(
    assets: Path, out: Path, epochs: int, count: int = 1000, codes: bool = False
) -> list[str]:
    """Train and save as the example does; the names of the ternary layers."""
    torch.manual_seed(0)
    teacher = train.load_teacher(assets / "models" / "resnet20-12fca82f.th")
    images, labels = cifar.load(assets / "cifar10" / "calib.npz")
    model = train.train(teacher, images[:count], labels[:count], epochs=epochs, verbose=False)
    names = train.ternary_layers(teacher)
    state: dict[str, Any] = train.plain_state(model)
    stored = train.coded_state(state, names) if codes else state
    torch.save({"state_dict": stored, "edgekit": {"preprocess": cifar.PREPROCESS}}, out)
    return names


def quantized(
    assets: Path, path: Path, folder: Path, target: str
) -> tuple[OnnxModel, OnnxModel, Any]:
    """(prepared float graph, INT8 graph, its placement)."""
    loaded = checkpoints.load(path, OPTIONS)
    contract = loaded.preprocess
    assert contract is not None
    with np.load(assets / "cifar10" / "calib.npz") as file:
        pixels = file["images"][:128]
    np.savez(folder / "images.npz", images=pixels, labels=np.zeros(len(pixels), np.int64))
    feeds = [apply(image, contract)[0] for image in pixels[:4]]
    done = export.run(loaded, contract, feeds, folder / "e.onnx", export.ExportOptions())
    simple = simplify.run(done.model, feeds, folder / "s.onnx", simplify.SimplifyOptions())
    ready = prepare.run(simple.model, feeds, folder / "p.onnx").model
    profile = load_target(target)
    calibration = calibrate.run(
        ready,
        folder / "images.npz",
        contract,
        folder / "c.npz",
        calibrate.CalibrateOptions(tensors=quantize.observed_tensors(ready, profile)),
    )
    made = quantize.run(
        ready, calibration, profile, feeds, folder / "q.onnx", quantize.QuantizeOptions()
    )
    return ready, made.model, made.placement


def ternary_convs(path: Path) -> list[str]:
    """Convolutions of a float graph whose weights are ternary, channel by channel."""
    graph = onnx.load(path).graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv" and find_levels(values[node.input[1]]) is not None
    ]


def check_int8(ready: OnnxModel, int8: OnnxModel, placement: Any) -> None:
    """Every ternary Conv is INT8, and its integers stand for its levels within the bound."""
    names = ternary_convs(ready.path)
    assert len(names) == 18 and set(names) <= set(placement.compute)
    floats = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load(ready.path).graph.initializer
    }
    graph = onnx.load(int8.path).graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    nodes = {node.name: node for node in onnx.load(ready.path).graph.node}
    for node in graph.node:
        if node.name in names:
            dequantize = makers[node.input[1]]
            integers, scale = (values[name] for name in dequantize.input[:2])
            weight = floats[nodes[node.name].input[1]].astype(np.float64)
            back = integers * scale.astype(np.float64).reshape(-1, 1, 1, 1)
            largest = np.abs(weight).max(axis=(1, 2, 3))
            error = np.abs(back - weight).max(axis=(1, 2, 3))
            limit = 127 if np.abs(integers).max() > 63 else 63
            assert (error <= error_bound(limit) * largest * (1 + 1e-5)).all()
            assert all(len(np.unique(row)) <= 3 for row in integers)


@pytest.mark.parametrize("codes", [False, True], ids=["float tensors", "codes and scales"])
def test_exactly_the_ternary_layers_are_found_and_quantized(
    assets: Path, tmp_path: Path, codes: bool
) -> None:
    names = trained(assets, tmp_path / "t.pt", epochs=1, count=50, codes=codes)
    found = inspect.run(describe(tmp_path / "t.pt", OPTIONS))
    assert [layer.name for layer in found.layers if layer.ternary] == names
    assert all(not layer.per_channel for layer in found.layers if layer.ternary)
    assert found.ternary_share > 0.98 and found.theoretical_compression > 13
    check_int8(*quantized(assets, tmp_path / "t.pt", tmp_path, "x86-int8"))


@pytest.mark.slow
def test_int8_keeps_the_accuracy_of_a_real_training(assets: Path, tmp_path: Path) -> None:
    names = trained(assets, tmp_path / "t.pt", epochs=25)
    found = inspect.run(describe(tmp_path / "t.pt", OPTIONS))
    assert [layer.name for layer in found.layers if layer.ternary] == names
    ready, int8, placement = quantized(assets, tmp_path / "t.pt", tmp_path, "x86-int8")
    check_int8(ready, int8, placement)
    contract = checkpoints.load(tmp_path / "t.pt", OPTIONS).preprocess
    assert contract is not None
    top1 = {}
    for name, model in (("float", ready), ("int8", int8)):
        with open_session("onnxruntime", model.path) as session:
            top1[name] = evaluate.run(
                session,
                open_dataset(assets / "cifar10" / "test.npz"),
                contract,
                evaluate.EvaluateOptions(),
            ).value
    print(f"ternary ResNet-20: float {100 * top1['float']:.2f} %, INT8 {100 * top1['int8']:.2f} %")
    assert top1["float"] > 0.84
    assert abs(top1["int8"] - top1["float"]) <= 0.005
