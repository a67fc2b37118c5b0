"""Quantization-aware training: the checkpoint's scales reach the INT8 graph bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

from edgekit import checkpoint as checkpoints
from edgekit.builders import build
from edgekit.checkpoint import LoadOptions
from edgekit.checkpoint.qat import FixedFakeQuantize, QuantizedLayer
from edgekit.errors import BadInput
from edgekit.metrics.datasets import open_dataset
from edgekit.preprocess import Preprocess, apply
from edgekit.quantization import existing
from edgekit.runtimes import open_session
from edgekit.stages import calibrate, evaluate, export, prepare, quantize, simplify
from edgekit.target_files import load_target
from edgekit.types import OnnxModel
from tests import qat_training
from tests.qat_training import cifar

CONTRACT = Preprocess(
    height=32, width=32, resize="stretch", mean=cifar.MEAN, std=cifar.STD
)  # the published weights' own
SEED_IMAGES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


def quickly_trained(model: nn.Module) -> nn.Module:
    """A few steps on noise: enough for scales of every quantizer."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    pixels = torch.from_numpy(SEED_IMAGES).permute(0, 3, 1, 2).float() / 255
    model.train()
    for part in pixels.split(8):
        optimizer.zero_grad()
        model((part - 0.45) / 0.225).square().mean().backward()
        optimizer.step()
    return model.eval()


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(
        {"state_dict": model.state_dict(), "edgekit": {"preprocess": cifar.PREPROCESS}}, path
    )
    return path


def scales_of(model: nn.Module) -> set[tuple[bytes, bytes]]:
    """(scale bytes, zero points as int64) of every fake quantizer that is switched on."""
    return {
        (part.scale.numpy().tobytes(), part.zero_point.to(torch.int64).numpy().tobytes())
        for part in model.modules()
        if isinstance(part, tq.FakeQuantizeBase) and int(part.fake_quant_enabled[0])
    }


def scales_in(path: Path) -> set[tuple[bytes, bytes]]:
    return {
        (scale, np.frombuffer(zero, dtype).astype(np.int64).tobytes())
        for _, scale, dtype, zero in existing.signature(onnx.load(path))
    }


def to_int8(path: Path, arch: str, images: np.ndarray, folder: Path) -> dict[str, OnnxModel]:
    """Every stage's model, from the checkpoint to what the runtime loads."""
    np.savez(folder / "images.npz", images=images, labels=np.zeros(len(images), np.int64))
    loaded = checkpoints.load(path, LoadOptions(arch=arch))
    assert any("quantization-aware training" in note for note in loaded.notes)
    feeds = [apply(image, CONTRACT)[0] for image in images[:4]]
    made = {}
    options = export.ExportOptions()
    made["export"] = export.run(loaded, CONTRACT, feeds, folder / "e.onnx", options).model
    simplified = simplify.run(made["export"], feeds, folder / "s.onnx", simplify.SimplifyOptions())
    assert "onnxsim" in simplified.notes[0]
    made["simplify"] = simplified.model
    made["prepare"] = prepare.run(made["simplify"], feeds, folder / "p.onnx").model
    profile = load_target("x86-int8")
    calibration = calibrate.run(
        made["prepare"],
        folder / "images.npz",
        CONTRACT,
        folder / "c.npz",
        calibrate.CalibrateOptions(tensors=quantize.observed_tensors(made["prepare"], profile)),
    )
    made["quantize"] = quantize.run(
        made["prepare"],
        calibration,
        profile,
        feeds,
        folder / "q.onnx",
        quantize.QuantizeOptions(),
    ).model
    engine = build(made["quantize"], profile, folder / "built")
    assert "19 of 19" in engine.notes[0]
    return made


@pytest.mark.parametrize("kind", ["eager8", "eager4", "fx"])
def test_scales_are_kept_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model = quickly_trained(getattr(qat_training, kind)())
    path = saved(model, tmp_path / "m.pt")
    wanted = scales_of(model)
    assert len(wanted) >= 40
    made = to_int8(path, f"tests.qat_training:{kind}", SEED_IMAGES, tmp_path)
    for stage, done in made.items():
        assert wanted <= scales_in(done.path), stage
    for stage in ("export", "simplify", "prepare"):
        assert scales_in(made[stage].path) == wanted, stage
    if kind == "eager4":
        graph = onnx.load(made["quantize"].path).graph
        stored = [onnx.numpy_helper.to_array(item) for item in graph.initializer]
        weights = [array for array in stored if array.dtype == np.int8 and array.ndim == 4]
        assert len(weights) == 19
        assert all(array.min() >= -8 and array.max() <= 7 for array in weights)
        assert any(array.min() == -8 or array.max() == 7 for array in weights)


def test_running_the_loaded_model_changes_no_scale(tmp_path: Path) -> None:
    model = qat_training.eager8()  # its observers are still switched on
    path = saved(quickly_trained(model), tmp_path / "m.pt")
    wanted = scales_of(model)
    loaded = checkpoints.load(path, LoadOptions(arch="tests.qat_training:eager8"))
    with torch.no_grad():
        loaded.module(torch.randn(4, 3, 32, 32) * 50)
    fixed = {
        (part.scale.numpy().tobytes(), part.zero_point.to(torch.int64).numpy().tobytes())
        for part in loaded.module.modules()
        if isinstance(part, FixedFakeQuantize)
    }
    assert fixed == wanted


def test_the_frozen_model_computes_what_the_trained_one_does(tmp_path: Path) -> None:
    for kind in ("eager8", "eager4", "fx"):
        model = quickly_trained(getattr(qat_training, kind)())
        model.apply(tq.disable_observer)
        loaded = checkpoints.load(
            saved(model, tmp_path / f"{kind}.pt"), LoadOptions(arch=f"tests.qat_training:{kind}")
        )
        image = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected, got = model(image), loaded.module(image)
        # the same but for a BatchNorm that is folded: a value may fall to the other side of a step
        assert float((expected - got).abs().max()) <= 0.02 * float(expected.abs().max())
        layers = [part for part in loaded.module.modules() if isinstance(part, QuantizedLayer)]
        assert len(layers) == 20


def test_quantization_can_be_taken_off(tmp_path: Path) -> None:
    path = saved(quickly_trained(qat_training.eager8()), tmp_path / "m.pt")
    loaded = checkpoints.load(path, LoadOptions(arch="tests.qat_training:eager8"))
    feeds = [apply(image, CONTRACT)[0] for image in SEED_IMAGES[:2]]
    options = export.ExportOptions(dequantize=True)
    done = export.run(loaded, CONTRACT, feeds, tmp_path / "f.onnx", options)
    assert "50 QDQ pairs taken off" in done.notes
    simple = simplify.run(done.model, feeds, tmp_path / "s.onnx", simplify.SimplifyOptions())
    assert "onnxsim" in simple.notes[0]
    kinds = {node.op_type for node in onnx.load(simple.model.path).graph.node}
    assert kinds == {"Conv", "Relu", "Add", "Slice", "Pad", "AveragePool", "Flatten", "Gemm"}


def test_a_quantizer_that_was_switched_off_is_left_out(tmp_path: Path) -> None:
    model = quickly_trained(qat_training.eager8())
    model.apply(tq.disable_fake_quant)
    loaded = checkpoints.load(
        saved(model, tmp_path / "m.pt"), LoadOptions(arch="tests.qat_training:eager8")
    )
    assert not any(isinstance(part, FixedFakeQuantize) for part in loaded.module.modules())
    assert any("switched off" in note for note in loaded.notes)


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    model = quickly_trained(qat_training.eager8())
    state = model.state_dict()
    key = next(key for key in state if key.endswith("weight_fake_quant.scale"))
    state[key] = torch.zeros_like(state[key])
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=key.removesuffix(".scale")):
        checkpoints.load(tmp_path / "m.pt", LoadOptions(arch="tests.qat_training:eager8"))


@pytest.mark.slow
def test_a_real_training_keeps_its_accuracy(assets: Path, tmp_path: Path) -> None:
    import train

    teacher = train.load_teacher(assets / "models" / "resnet20-12fca82f.th")
    images, labels = cifar.load(assets / "cifar10" / "calib.npz")
    model = qat_training.eager(8, teacher.state_dict())
    qat_training.train(model, teacher, images, labels, epochs=12)  # 240 steps
    reference = cifar.top1(model, *cifar.load(assets / "cifar10" / "test.npz"))
    assert reference > 0.91
    path = saved(model, tmp_path / "m.pt")
    with np.load(assets / "cifar10" / "calib.npz") as file:
        pixels = file["images"][:64]
    made = to_int8(path, "tests.qat_training:eager8", pixels, tmp_path)
    assert scales_of(model) <= scales_in(made["quantize"].path)
    with open_session("onnxruntime", made["quantize"].path) as session:
        report = evaluate.run(
            session,
            open_dataset(assets / "cifar10" / "test.npz"),
            CONTRACT,
            evaluate.EvaluateOptions(),
        )
    print(f"QAT: torch {100 * reference:.2f} %, INT8 {100 * report.value:.2f} %")
    assert abs(report.value - reference) <= 0.003
