"""`edgekit profile` on real models: times by layer, losses beside them, a trace that opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit import cli
from tests.integration.conftest import RESNET20, Exported


def profile(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code = cli.run(["profile", *arguments, "--runs", "3", "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.out + captured.err
    found: dict[str, Any] = json.loads(captured.out)
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1.0)
    assert sum(kind["share"] for kind in found["operators"]) == pytest.approx(1.0)
    return found


def test_a_bundle_with_its_float_model(
    resnet_bundle: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(resnet_bundle.cache))
    trace = tmp_path / "trace.json"
    found = profile([str(resnet_bundle.bundle), "--trace", str(trace)], capsys)
    assert found["runtime"] == "onnxruntime" and found["remark"] == ""
    assert "golden" in found["inputs"]
    kinds = {kind["op_type"]: kind["count"] for kind in found["operators"]}
    assert kinds["QLinearConv"] >= 15
    convs = [layer for layer in found["layers"] if layer["op_type"] == "QLinearConv"]
    assert all(layer["name"].endswith("Conv") for layer in convs), "names are those of the file"
    losses = [layer["sqnr_db"] for layer in convs]
    assert all(loss is not None and 5 < loss < 70 for loss in losses)
    assert losses[0] > losses[-1], "noise adds up on the way"
    events = json.loads(trace.read_text())
    assert any(event.get("cat") == "Node" and event["ph"] == "X" for event in events)


def test_a_bundle_without_its_float_model_says_so(
    resnet_bundle: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    # this test's own cache is empty
    found = profile([str(resnet_bundle.bundle)], capsys)
    assert "--float" in found["remark"] and found["float"] is None
    assert all(layer["sqnr_db"] is None for layer in found["layers"])


def test_the_float_model_can_be_named(
    resnet_bundle: Exported, capsys: pytest.CaptureFixture[str], assets: Path
) -> None:
    manifest = json.loads((resnet_bundle.bundle / "manifest.json").read_text())
    (wanted,) = [s["output_sha256"][0] for s in manifest["chain"] if s["name"] == "prepare"]
    from edgekit.atomic import sha256_file

    (plain,) = [
        file
        for file in (resnet_bundle.cache / "entries").glob("prepare-*/model.onnx")
        if sha256_file(file) == wanted
    ]
    found = profile([str(resnet_bundle.bundle), "--float", str(plain)], capsys)
    assert found["float"] == str(plain)
    assert any(layer["sqnr_db"] is not None for layer in found["layers"])
    # a model that has nothing to do with it is refused
    other = str(assets / "models" / "yolov5n.onnx")
    assert cli.run(["profile", str(resnet_bundle.bundle), "--float", other]) == 8


def test_an_ncnn_bundle_with_its_float_model(
    ncnn_bundle: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = tmp_path / "trace.json"
    alone = profile([str(ncnn_bundle.bundle)], capsys)
    assert "--float" in alone["remark"] and alone["runtime"] == "ncnn"
    monkeypatch.setenv("EDGEKIT_CACHE", str(ncnn_bundle.cache))
    found = profile([str(ncnn_bundle.bundle), "--trace", str(trace)], capsys)
    assert found["remark"] == "" and found["float"].endswith("model.json")
    convolutions = [x for x in found["layers"] if x["op_type"].startswith("Convolution")]
    assert len(convolutions) > 60
    losses = [layer["sqnr_db"] for layer in convolutions]
    # integers that one layer hands to the next are compared as the real numbers they stand for
    assert all(loss is not None and 3 < loss < 80 for loss in losses)
    assert losses[0] > min(losses[-10:]), "noise adds up on the way"
    events = json.loads(trace.read_text())["traceEvents"]
    layers = [event for event in events if event["cat"] == "Node"]
    assert len(layers) == 3 * (len(found["layers"]) + 1)  # the input is no layer of the table
    assert {"name", "ph", "ts", "dur", "pid", "tid"} <= set(layers[0])
    assert [e["ts"] for e in layers] == sorted(e["ts"] for e in layers)
    # named, and refused where it is another model's
    named = profile([str(ncnn_bundle.bundle), "--float", found["float"]], capsys)
    assert named["layers"][5]["sqnr_db"] == found["layers"][5]["sqnr_db"]
    onnx_file = next((ncnn_bundle.cache / "entries").glob("prepare-*/model.onnx"))
    assert cli.run(["profile", str(ncnn_bundle.bundle), "--float", str(onnx_file)]) == 8


def test_a_checkpoint_by_modules_and_operators(
    assets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.json"
    checkpoint = str(assets / "models" / "resnet20-12fca82f.th")
    code = cli.run(
        ["profile", checkpoint, *RESNET20, "--runs", "3", "--trace", str(trace), "--json"]
    )
    # the profiler of torch may write to the process's own stdout, which belongs to the answer
    found = json.loads(capfd.readouterr().out)
    assert code == 0 and found["runtime"] == "torch"
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["layer1.0.conv1"]["op_type"] == "Conv2d"
    assert layers["linear"]["op_type"] == "Linear"
    assert all(layer["ms"] > 0 for layer in layers.values())
    assert any(kind["op_type"].startswith("aten::") for kind in found["operators"])
    assert "traceEvents" in json.loads(trace.read_text())


def test_people_get_tables(
    resnet_bundle: Exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(resnet_bundle.cache))
    arguments = [
        "profile",
        str(resnet_bundle.bundle),
        "--runs",
        "2",
        "--sort",
        "loss",
        "--top",
        "5",
    ]
    assert cli.run(arguments) == 0
    text = capsys.readouterr().out
    assert "QLinearConv" in text and "SQNR" in text and "Layers (5 of" in text
