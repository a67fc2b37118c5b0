"""A stage that changes what the model computes is refused, and the error names the node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit import onnx_file
from edgekit.errors import VerificationFailed
from edgekit.preprocess import Preprocess
from edgekit.stages import calibrate, export, prepare, quantize, simplify
from edgekit.stages.divergence import checked_parity
from edgekit.stages.parity import FLOAT_LIMITS
from edgekit.target_files import load_target
from edgekit.types import Checkpoint, OnnxModel, Range
from tests.graphs import GraphMaker

SHAPE = [1, 3, 16, 16]


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    maker = GraphMaker(2)
    for number, (source, made) in enumerate([("x", "a"), ("b", "c"), ("d", "e")]):
        maker.conv(source, made, (8, 3 if number == 0 else 8), bias=made != "e")
        maker.node("Relu", [made], chr(ord(made) + 1))
    path = tmp_path / "m.onnx"
    onnx.save(maker.model({"x": SHAPE}, {"f": [1, 8, 16, 16]}), str(path))
    return onnx_file.describe(path)


def feeds(seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.random(SHAPE, dtype=np.float32) for _ in range(2)]


def spoil(proto: onnx.ModelProto, name: str, factor: float) -> None:
    for item in proto.graph.initializer:
        if item.name == name:
            array = numpy_helper.to_array(item) * np.float32(factor)
            item.CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
            return
    raise AssertionError(name)


def test_prepare_names_the_node(
    model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(graph: Any) -> str:
        import onnx_ir as ir

        value = graph.graph.initializers["c.w"]
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name="c.w")
        return ""

    monkeypatch.setattr(prepare, "BEFORE", (*prepare.BEFORE, breaks))
    with pytest.raises(VerificationFailed) as caught:
        prepare.run(model, feeds(), tmp_path / "p.onnx")
    assert "Parity breaks at prepare" in caught.value.message
    assert "It begins at the Conv node 'n_c'" in caught.value.message


def test_simplify_passes_a_rung_over_and_names_the_node(
    model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child(tool: str, source: Path, out: Path, time_limit_s: float) -> str:
        proto = onnx.load(str(source))
        if tool == "onnxsim":
            spoil(proto, "e.w", -1.0)
        onnx.save(proto, str(out))
        return ""

    monkeypatch.setattr(simplify, "_in_child", child)
    done = simplify.run(model, feeds(), tmp_path / "s.onnx", simplify.SimplifyOptions())
    refused = [note for note in done.notes if note.startswith("onnxsim not used")]
    assert "It begins at the Conv node 'n_e'" in refused[0]
    assert done.notes[0].startswith("onnxslim")


def test_quantize_names_the_node(model: OnnxModel, tmp_path: Path) -> None:
    pixels = (np.stack([feed[0].transpose(1, 2, 0) for feed in feeds()]) * 255).astype(np.uint8)
    np.savez(tmp_path / "i.npz", images=pixels)
    contract = Preprocess(height=16, width=16)
    made = calibrate.run(model, tmp_path / "i.npz", contract, tmp_path / "c.npz")
    # what the second convolution makes is cut off nearly everywhere
    spans = {"d": Range(low=0.0, high=made.ranges["d"].high / 200)}
    narrow = calibrate.open_calibration(made.path, "minmax", symmetric=False, overrides=spans)
    options = quantize.QuantizeOptions()
    profile = load_target("x86-int8")
    with pytest.raises(VerificationFailed) as caught:
        quantize.run(model, narrow, profile, feeds(), tmp_path / "q.onnx", options)
    assert "Parity breaks at quantize" in caught.value.message
    assert "node 'n_e'" in caught.value.message
    measured = quantize.run(
        model, narrow, profile, feeds(), tmp_path / "q.onnx", options, limits=None
    )
    assert measured.parity is not None and measured.parity.sqnr_db < 4


def test_a_tensor_that_becomes_nan_is_named(model: OnnxModel, tmp_path: Path) -> None:
    proto = onnx.load(str(model.path))
    spoil(proto, "c.b", float("nan"))
    onnx.save(proto, str(tmp_path / "n.onnx"))
    named = [{"x": feed} for feed in feeds()]
    with pytest.raises(VerificationFailed) as caught:
        checked_parity(
            "stage", model.path, tmp_path / "n.onnx", named, FLOAT_LIMITS, blocks_of=model.path
        )
    assert caught.value.message.startswith("stage: ")
    assert (
        "nan" in caught.value.message and "It begins at the Conv node 'n_c'" in caught.value.message
    )


def test_export_of_a_module_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3),
    ).eval()
    torchscript = export.LADDER[0][1]

    def wrong(*arguments: Any) -> None:
        torchscript(*arguments)
        out = arguments[3]
        proto = onnx.load(str(out))
        spoil(proto, "2.bias", 3.0)
        onnx.save(proto, str(out))

    monkeypatch.setattr(export, "LADDER", (("TorchScript exporter", wrong), *export.LADDER[1:]))
    checkpoint = Checkpoint(
        path=tmp_path / "m.pt",
        sha256="0" * 64,
        kind="module",
        module=module,
        input_shape=(1, 3, 16, 16),
    )
    contract = Preprocess(height=16, width=16)
    out = tmp_path / "e.onnx"
    done = export.run(checkpoint, contract, feeds(), out, export.ExportOptions())
    refused = [note for note in done.notes if note.startswith("not used")]
    assert "Parity breaks at export (TorchScript exporter)" in refused[0]
    assert "It begins at or behind the Conv node '/2/Conv'" in refused[0]
    assert "behind the module '1', which is still right" in refused[0]
    assert "dynamo" in done.notes[0]
