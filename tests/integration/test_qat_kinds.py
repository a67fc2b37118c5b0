"""The other forms in which quantization-aware training is saved: PT2E programs and whole modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

from edgekit import checkpoint as checkpoints
from edgekit.builders import build
from edgekit.checkpoint import LoadOptions
from edgekit.cli import run
from edgekit.errors import BadInput
from edgekit.quantization import existing
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.stages import export, prepare, quantize, simplify
from edgekit.target_files import load_target
from tests import pt2e_training, qat_training
from tests.integration.test_qat import CONTRACT, quickly_trained, saved, scales_in

FEEDS = [
    np.random.default_rng(seed).normal(0, 1, (1, 3, 32, 32)).astype(np.float32) for seed in range(3)
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, set]:
    path = tmp_path_factory.mktemp("pt2e") / "m.pt2"
    converted, scales = pt2e_training.save(pt2e_training.prepared(), path)
    return path, converted, scales


def run_plainly(path: Path) -> list[np.ndarray]:
    """Outputs without the runtime's own rewrites."""
    with open_session("onnxruntime", path, SessionOptions(optimize=False)) as session:
        return [next(iter(session.run({session.inputs[0].name: feed}).values())) for feed in FEEDS]


def test_scales_of_a_pt2e_program_are_kept_bit_for_bit(
    tmp_path: Path, program: tuple[Path, nn.Module, set]
) -> None:
    path, converted, wanted = program
    assert len(wanted) >= 40
    loaded = checkpoints.load(path)
    exported = export.run(loaded, CONTRACT, FEEDS, tmp_path / "e.onnx", export.ExportOptions())
    simple = simplify.run(
        exported.model, FEEDS, tmp_path / "s.onnx", simplify.SimplifyOptions()
    ).model
    ready = prepare.run(simple, FEEDS, tmp_path / "p.onnx").model
    for model in (exported.model, simple, ready):
        assert scales_in(model.path) == wanted
    with torch.no_grad():
        for feed, got in zip(FEEDS, run_plainly(ready.path), strict=True):
            expected = converted(torch.from_numpy(feed)).numpy()
            # a value may fall to the other side of a step
            assert np.abs(got - expected).max() <= 0.05 * np.abs(expected).max()

    profile = load_target("x86-int8")
    assert not quantize.needs_calibration(ready, profile)
    assert quantize.uncalibrated_layers(ready, profile) == ()
    done = quantize.run(
        ready,
        quantize.no_calibration(ready),
        profile,
        FEEDS,
        tmp_path / "q.onnx",
        quantize.QuantizeOptions(),
    )
    assert done.placement.int8_mac_share == 1.0
    # this runtime takes unsigned activations: the grid is the same, its integers are 128 higher
    got = scales_in(done.model.path)
    activations = {(scale, zero) for scale, zero in wanted if len(scale) == 4}
    assert wanted - activations <= got
    shifted = {
        (scale, (np.frombuffer(zero, np.int64) + 128).tobytes()) for scale, zero in activations
    }
    assert shifted <= got
    for before, after in zip(run_plainly(ready.path), run_plainly(done.model.path), strict=True):
        # biases became integers, so a value may fall to the other side of a step
        assert np.abs(after - before).max() <= 0.1 * np.abs(before).max()
    assert "19 of 19" in build(done.model, profile, tmp_path / "built").notes[0]


def test_a_program_that_was_not_converted_is_refused(tmp_path: Path) -> None:
    torch.save(pt2e_training.prepared().state_dict(), tmp_path / "m.pt")
    with pytest.raises(BadInput, match="middle of its training") as raised:
        checkpoints.load(tmp_path / "m.pt", LoadOptions(arch="tests.pt2e_training:prepared"))
    assert "convert_pt2e" in raised.value.hint


def test_unsigned_integers_compute_the_same(tmp_path: Path) -> None:
    """to_unsigned on its own: bit for bit, and only where nobody reads the integers."""
    import onnx_ir as ir
    from onnx import TensorProto, helper

    def zero(name: str, value: int) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.INT8, [], [value])

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "s", "z"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2]),
        helper.make_node("DequantizeLinear", ["d", "s", "z"], ["y"]),
        helper.make_node("QuantizeLinear", ["b", "s", "z"], ["integers"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 31, 31]),
            helper.make_tensor_value_info("integers", TensorProto.INT8, [1, 3, 32, 32]),
        ],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [0.013]), zero("z", -6)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    changed = ir.load(str(tmp_path / "a.onnx"))
    assert existing.to_unsigned(changed.graph) == 1  # a alone: the others' integers are read
    ir.save(changed, str(tmp_path / "b.onnx"))
    onnx.checker.check_model(onnx.load(tmp_path / "b.onnx"))
    with (
        open_session("onnxruntime", tmp_path / "a.onnx") as first,
        open_session("onnxruntime", tmp_path / "b.onnx") as second,
    ):
        for feed in FEEDS:
            for one, other in zip(
                first.run({"x": feed}).values(), second.run({"x": feed}).values(), strict=True
            ):
                np.testing.assert_array_equal(one, other)


# --- whole modules ------------------------------------------------------------------------------


def fx_sequential() -> nn.Module:
    """A prepared FX network that torch can pickle: no annotated code of its own in it."""
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )
    mapping = tq.QConfigMapping().set_global(qat_training.config())
    made: nn.Module = prepare_qat_fx(network.train(), mapping, (torch.zeros(1, 3, 32, 32),))
    made.meta.clear()
    return made


@pytest.mark.parametrize("make", [qat_training.eager8, fx_sequential], ids=["eager", "FX"])
def test_whole_modules_load_with_trust(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    model = quickly_trained(make())
    for part in model.modules():
        part.__dict__.pop("qconfig", None)  # holds local functions, which torch cannot pickle
    path = tmp_path / "m.pt"
    torch.save(model, path)
    with pytest.raises(BadInput, match=r"FakeQuantize.* not on the list") as raised:
        checkpoints.load(path)
    assert "--trust-checkpoint" in raised.value.hint and "--arch" in raised.value.hint
    loaded = checkpoints.load(path, LoadOptions(trust=True))
    assert any("quantization-aware training" in note for note in loaded.notes)
    model.apply(tq.disable_observer)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, got = model(image), loaded.module(image)
    assert float((expected - got).abs().max()) <= 0.02 * float(expected.abs().max())


# --- calibration only of what lacks a scale -------------------------------------------------------


def prepared_of(kind: str, folder: Path) -> object:
    model = quickly_trained(getattr(qat_training, kind)())
    loaded = checkpoints.load(
        saved(model, folder / "m.pt"), LoadOptions(arch=f"tests.qat_training:{kind}")
    )
    exported = export.run(loaded, CONTRACT, FEEDS, folder / "e.onnx", export.ExportOptions()).model
    simple = simplify.run(exported, FEEDS, folder / "s.onnx", simplify.SimplifyOptions()).model
    return prepare.run(simple, FEEDS, folder / "p.onnx").model


def test_only_tensors_without_a_scale_are_observed(tmp_path: Path) -> None:
    profile = load_target("x86-int8")
    # eager mode quantizes neither a shortcut that is padded nor what its last pooling makes
    for kind, expected, layers in (("fx", [], 0), ("eager8", ["AveragePool", "Pad", "Pad"], 1)):
        (tmp_path / kind).mkdir()
        ready = prepared_of(kind, tmp_path / kind)
        graph = onnx.load(ready.path).graph
        makers = {name: node.op_type for node in graph.node for name in node.output}
        assert quantize.needs_calibration(ready, profile) is bool(expected)
        assert len(quantize.uncalibrated_layers(ready, profile)) == layers
        if expected:
            names = quantize.observed_tensors(ready, profile)
            assert sorted(makers[name] for name in names) == expected


@pytest.fixture
def answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments] + ["--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def test_a_model_with_all_scales_is_exported_without_images(
    tmp_path: Path, answer: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    path = saved(quickly_trained(qat_training.fx()), tmp_path / "m.pt")
    bundle = tmp_path / "bundle"
    command = ("export", path, "--arch", "tests.qat_training:fx", "--target", "x86-int8")
    code, first = answer(*command, "--out", bundle)
    assert code == 0, first
    assert "calibrate" in [stage["name"] for stage in first["stages"]]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert not (bundle / "calibration.npz").exists()
    assert "calibrate" not in [step["name"] for step in manifest["chain"]]
    code, checked = answer("verify", bundle)
    assert code == 0 and checked["ok"], checked
    code, again = answer(*command, "--out", bundle)
    assert all(stage["cached"] for stage in again["stages"] if stage["name"] != "calibrate")


def test_a_layer_without_scales_needs_images(
    tmp_path: Path, answer: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    path = saved(quickly_trained(qat_training.eager8()), tmp_path / "m.pt")
    command = ("export", path, "--arch", "tests.qat_training:eager8", "--target", "x86-int8")
    code, refused = answer(*command, "--out", tmp_path / "bundle")
    assert code == 2
    assert "Gemm" in refused["error"] and "--images" in refused["hint"]
    network = qat_training.resnet.resnet20().eval()
    torch.onnx.export(
        network, (torch.from_numpy(FEEDS[0]),), str(tmp_path / "f.onnx"), dynamo=False
    )
    code, refused = answer("export", tmp_path / "f.onnx", "--target", "x86-int8")
    assert code == 2
    assert "calibrates" in refused["error"] and "--images" in refused["hint"]
