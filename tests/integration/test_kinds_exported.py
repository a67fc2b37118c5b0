"""Every kind of compressed checkpoint: exported, and the ONNX compared with the torch network itself.

What each is compared with is made here, not by edgekit's loader: the network that was saved.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from edgekit import checkpoint as checkpoints
from edgekit import onnx_file
from edgekit.checkpoint import LoadOptions
from edgekit.errors import NotPossible, UsageError
from edgekit.preprocess import Preprocess
from edgekit.quantization import existing
from edgekit.runtimes import open_session
from edgekit.stages import calibrate, dequantize, export, inspect, prepare, quantize, simplify
from edgekit.target_files import load_target
from tests import bitlinear
from tests.architectures import resnet20

CONTRACT = Preprocess(height=32, width=32, resize="stretch")
ARCH = "tests.architectures:resnet20"
FEEDS = [
    np.random.default_rng(seed).normal(0, 1, (1, 3, 32, 32)).astype(np.float32) for seed in range(3)
]


def network(seed: int = 0) -> nn.Module:
    """A ResNet-20 with normalization that does something."""
    torch.manual_seed(seed)
    model = resnet20()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.1)
    return model.eval()


def exported(path: Path, options: LoadOptions, out: Path) -> tuple[Path, tuple[str, ...]]:
    loaded = checkpoints.load(path, options)
    done = export.run(loaded, CONTRACT, FEEDS, out, export.ExportOptions())
    return done.model.path, loaded.notes + done.notes


def worst(model: nn.Module, path: Path) -> float:
    """max|torch - ONNX| / max|torch| over the inputs."""
    error = largest = 0.0
    with open_session("onnxruntime", path) as session, torch.no_grad():
        for feed in FEEDS:
            expected = model(torch.from_numpy(feed)).numpy()
            (got,) = session.run({session.inputs[0].name: feed}).values()
            error = max(error, float(np.abs(got - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    return error / largest


def save_masks(folder: Path) -> tuple[Path, LoadOptions, nn.Module]:
    model = network()
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            prune.l1_unstructured(part, "weight", 0.6)
    torch.save(model.state_dict(), folder / "m.pt")
    return folder / "m.pt", LoadOptions(arch=ARCH), model


def ternary_state(model: nn.Module) -> dict[str, Any]:
    """The state_dict with codes, wp and wn; `model` gets the weights that they stand for."""
    state = model.state_dict()
    for name, part in model.named_modules():
        if not isinstance(part, nn.Conv2d) or name == "conv1":
            continue
        limit = 0.7 * part.weight.abs().mean()
        codes = (part.weight > limit).to(torch.int8) - (part.weight < -limit).to(torch.int8)
        wp, wn = torch.rand(()) * 0.2 + 0.05, torch.rand(()) * 0.2 + 0.05
        part.weight.data = torch.where(codes > 0, wp, torch.where(codes < 0, -wn, torch.zeros(())))
        del state[f"{name}.weight"]
        state.update({f"{name}.weight_codes": codes, f"{name}.wp": wp, f"{name}.wn": wn})
    return state


def save_codes(folder: Path) -> tuple[Path, LoadOptions, nn.Module]:
    model = network()
    torch.save(ternary_state(model), folder / "m.pt")
    return folder / "m.pt", LoadOptions(arch=ARCH), model


def save_pt2(folder: Path) -> tuple[Path, LoadOptions, nn.Module]:
    model = network()
    program = torch.export.export(model, (torch.from_numpy(FEEDS[0]),))
    torch.export.save(program, folder / "m.pt2")
    return folder / "m.pt2", LoadOptions(), model


def save_safetensors(folder: Path) -> tuple[Path, LoadOptions, nn.Module]:
    model = network()
    header: dict[str, Any] = {}
    data = b""
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    for key, tensor in model.state_dict().items():
        raw = tensor.numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        header[key] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": place,
        }
        data += raw
    text = json.dumps(header).encode()
    (folder / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder / "m.safetensors", LoadOptions(arch=ARCH), model


def save_ema(folder: Path, weights: str) -> tuple[Path, LoadOptions, nn.Module]:
    model, ema = network(0), network(1)
    torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, folder / "m.pt")
    chosen = model if weights == "model" else ema
    return folder / "m.pt", LoadOptions(arch=ARCH, weights=weights), chosen


def save_bitlinear(folder: Path, kind: str) -> tuple[Path, LoadOptions, nn.Module]:
    torch.manual_seed(0)
    model = getattr(bitlinear, kind)()
    images = torch.randn(200, 3, 32, 32)
    # something to learn: which half of the image is brighter, in ten steps
    labels = (
        (images[:, :, :16].mean((1, 2, 3)) - images[:, :, 16:].mean((1, 2, 3))) * 60 + 5
    ).long()
    start = bitlinear.train(model, images, labels.clamp(0, 9), 1)
    assert bitlinear.train(model, images, labels.clamp(0, 9), 4) < start
    torch.save(model.state_dict(), folder / "m.pt")
    return folder / "m.pt", LoadOptions(arch=f"tests.bitlinear:{kind}"), model


KINDS: dict[str, Callable[[Path], tuple[Path, LoadOptions, nn.Module]]] = {
    "attached pruning masks": save_masks,
    "ternary codes and scales": save_codes,
    "pt2": save_pt2,
    "safetensors": save_safetensors,
    "EMA by default": lambda folder: save_ema(folder, "auto"),
    "--weights ema": lambda folder: save_ema(folder, "ema"),
    "--weights model": lambda folder: save_ema(folder, "model"),
    "BitLinear, fixed scale": lambda folder: save_bitlinear(folder, "fixed"),
    "BitLinear, learned scale": lambda folder: save_bitlinear(folder, "learned"),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_exported_graph_computes_what_torch_does(tmp_path: Path, kind: str) -> None:
    path, options, model = KINDS[kind](tmp_path)
    onnx_path, _ = exported(path, options, tmp_path / "m.onnx")
    error = worst(model, onnx_path)
    print(f"{kind}: max_rel_error {error:.1e}")
    assert error <= 1e-4


@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_bitlinear_layers_are_ternary(tmp_path: Path, kind: str) -> None:
    path, options, model = save_bitlinear(tmp_path, kind)
    loaded = checkpoints.load(path, options)
    proto = inspect.graph_of(loaded.module, CONTRACT.input_shape)
    found = inspect.inspect_graph(
        proto, name="m", kind="state_dict", input_shape=(1, 3, 32, 32), size_bytes=0
    )
    assert [f.name for f in found.layers if f.ternary] == ["body.0", "body.1", "body.2"]
    for fact, layer in zip([f for f in found.layers if f.ternary], model.body, strict=True):
        expected = float(layer.ternary().detach().abs().max())
        assert fact.wp[-1] == pytest.approx(expected, rel=1e-5)
        assert fact.wn[-1] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A ResNet-20, dynamically quantized by onnxruntime."""
    from onnxruntime.quantization import quantize_dynamic

    folder = tmp_path_factory.mktemp("dynamic")
    model = network()
    torch.onnx.export(
        model, (torch.from_numpy(FEEDS[0]),), str(folder / "f.onnx"), opset_version=17, dynamo=False
    )
    quantize_dynamic(folder / "f.onnx", folder / "d.onnx")
    return folder / "d.onnx", model


def test_dynamic_int8_is_taken_as_it_is(tmp_path: Path, dynamic: tuple[Path, nn.Module]) -> None:
    path, model = dynamic
    onnx_path, notes = exported(path, LoadOptions(), tmp_path / "m.onnx")
    assert any("dynamically quantized" in note for note in notes)
    assert worst(model, onnx_path) < 0.1
    with pytest.raises(NotPossible) as raised:
        quantize.observed_tensors(onnx_file.describe(onnx_path), load_target("x86-int8"))
    assert "--dequantize" in raised.value.hint


def test_dynamic_int8_becomes_float_again(tmp_path: Path, dynamic: tuple[Path, nn.Module]) -> None:
    path, model = dynamic
    done = dequantize.run(onnx_file.describe(path), FEEDS, tmp_path / "m.onnx")
    kinds = {node.op_type for node in onnx.load(done.model.path).graph.node}
    assert not kinds & {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
    error = worst(model, done.model.path)
    print(f"dynamic INT8 --dequantize: max_rel_error {error:.1e}, {done.parity.sqnr_db:.1f} dB")
    assert error < 0.05
    assert done.parity is not None and done.parity.sqnr_db > 25
    # the float graph with the integers' weights computes exactly this: no activation is rounded
    rounded = onnx.load(path.with_name("f.onnx"))
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    changed = 0
    for item in rounded.graph.initializer:
        if f"{item.name}_quantized" in stored:
            integers = stored[f"{item.name}_quantized"].astype(np.float64)
            integers -= stored[f"{item.name}_zero_point"]
            weight = (integers * stored[f"{item.name}_scale"]).astype(np.float32)
            weight = weight if list(weight.shape) == list(item.dims) else weight.T
            item.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weight), item.name))
            changed += 1
    assert changed == 20
    onnx.save(rounded, tmp_path / "rounded.onnx")
    with (
        open_session("onnxruntime", tmp_path / "rounded.onnx") as first,
        open_session("onnxruntime", done.model.path) as second,
    ):
        for feed in FEEDS:
            (wanted,) = first.run({first.inputs[0].name: feed}).values()
            (got,) = second.run({second.inputs[0].name: feed}).values()
            np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    names = quantize.observed_tensors(done.model, load_target("x86-int8"))
    assert len(names) > 20


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_static_int8_of_another_tool(
    tmp_path: Path, dynamic: tuple[Path, nn.Module], form: str
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    path, model = dynamic

    class Reader(CalibrationDataReader):
        feeds = iter(FEEDS)

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self.feeds, None)
            return None if feed is None else {name: feed}

    source = path.with_name("f.onnx")
    name = onnx.load(source).graph.input[0].name
    given = tmp_path / "given.onnx"
    quantize_static(source, given, Reader(), quant_format=QuantFormat[form])
    loaded = checkpoints.load(given)
    assert any("already quantized" in note for note in loaded.notes)
    taken = export.run(loaded, CONTRACT, FEEDS, tmp_path / "e.onnx", export.ExportOptions()).model
    assert worst(model, taken.path) < 0.2
    simple = simplify.run(taken, FEEDS, tmp_path / "s.onnx", simplify.SimplifyOptions()).model
    ready = prepare.run(simple, FEEDS, tmp_path / "p.onnx").model
    wanted = existing.signature(onnx.load(given))
    assert existing.signature(onnx.load(ready.path)) == wanted
    profile = load_target("x86-int8")
    if form == "QOperator":
        with pytest.raises(NotPossible) as raised:
            quantize.observed_tensors(ready, profile)
        assert "float target" in raised.value.hint
        return
    # every scale is there: calibration has nothing to say, and quantizing changes nothing
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=np.zeros(2, np.int64))
    calibration = calibrate.run(
        ready,
        tmp_path / "i.npz",
        CONTRACT,
        tmp_path / "c.npz",
        calibrate.CalibrateOptions(tensors=quantize.observed_tensors(ready, profile)),
    )
    done = quantize.run(
        ready, calibration, profile, FEEDS, tmp_path / "q.onnx", quantize.QuantizeOptions()
    )
    # activations are unsigned there, the same real values: every int8 zero point + 128
    unsigned = {
        (
            (
                kind,
                scale,
                "uint8",
                (np.frombuffer(zero, np.int8).astype(int) + 128).astype("u1").tobytes(),
            )
            if (kind, dtype) == ("activation", "int8")
            else (kind, scale, dtype, zero)
        )
        for kind, scale, dtype, zero in wanted
    }
    assert existing.signature(onnx.load(done.model.path)) == unsigned
    assert len(done.placement.compute) == 20
    # the kernels of unsigned activations round at other places than those that dequantize first
    assert done.parity is not None and done.parity.max_rel_error < 0.02


def test_the_command_makes_it_float(tmp_path: Path, dynamic: tuple[Path, nn.Module]) -> None:
    from click.testing import CliRunner

    from edgekit.cli import group

    out = tmp_path / "float.onnx"
    arguments = ["simplify", str(dynamic[0]), "--dequantize", "--out", str(out), "--json"]
    done = CliRunner().invoke(group, arguments, catch_exceptions=False)
    notes = json.loads(done.stdout)["notes"]
    assert "20 dynamic INT8 layers turned into float" in notes
    assert any("onnxsim" in note for note in notes)
    assert "ConvInteger" not in {node.op_type for node in onnx.load(out).graph.node}


def test_dequantize_is_for_quantized_models(tmp_path: Path) -> None:
    path, options, _ = save_pt2(tmp_path)
    loaded = checkpoints.load(path, options)
    with pytest.raises(UsageError, match="nothing to dequantize"):
        export.run(
            loaded, CONTRACT, FEEDS, tmp_path / "x.onnx", export.ExportOptions(dequantize=True)
        )
