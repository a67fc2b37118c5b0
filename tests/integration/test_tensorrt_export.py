"""`edgekit export` to TensorRT targets on real models: everything that can be proved without the board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.builders import tensorrt_rtx
from edgekit.cli import run
from edgekit.formats import tensorrt_cache
from edgekit.quantization.macs import graph_macs
from edgekit.stages import convert_tensorrt
from tests.integration.test_export_assets import _folder_of
from tests.integration.test_ncnn_export import CIFAR


def _export(arguments: list[str], capsys: pytest.CaptureFixture[str], expected: int = 0) -> Any:
    code = run(["export", "--json", *arguments])
    answer = json.loads(capsys.readouterr().out)
    assert code == expected, answer
    return answer


def _resnet(assets: Path, target: str, out: Path, *more: str) -> list[str]:
    model = str(assets / "models" / "resnet20-12fca82f.th")
    return [model, *CIFAR, "-t", target, "-o", str(out), *more]


def _few_pictures(assets: Path, out: Path, count: int = 64) -> str:
    with np.load(assets / "cifar10" / "calib.npz") as archive:
        np.savez(out, images=archive["images"][:count])
    return str(out)


def int8_share_of_convolutions(path: Path, sm: str) -> tuple[float, list[str]]:
    """Share of the convolutions' MACs that TensorRT-RTX computes in Int8, and those meant to be but not."""
    report = tensorrt_rtx.inspect(path, sm)
    assert report.parsed and report.built, report.errors
    datatypes = report.datatypes()
    graph = ir.load(str(path)).graph
    macs = graph_macs(graph)
    total = int8 = 0
    missed = []
    for node in graph:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        makers = [value.producer() for value in node.inputs[:2]]
        meant = all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
        found = datatypes.get(node.name)
        if meant and found != "Int8":
            missed.append(f"{node.name}: {found}")
        if node.op_type == "Conv":
            total += macs[node.name]
            int8 += macs[node.name] if found == "Int8" else 0
    return int8 / total, missed


def _demand_int8(bundle: Path, least: float = 0.9, sms: tuple[str, ...] = ("8.6", "8.9")) -> None:
    if not tensorrt_rtx.available():
        pytest.skip("TensorRT-RTX is not installed")
    for name in (convert_tensorrt.QDQ_FP32, convert_tensorrt.QDQ_FP16):
        for sm in sms:
            share, missed = int8_share_of_convolutions(bundle / "tensorrt" / name, sm)
            assert not missed and share >= least, (name, sm, share, missed)
    # the float graph parses and builds, too
    report = tensorrt_rtx.inspect(bundle / "tensorrt" / convert_tensorrt.FLOAT, sms[0])
    assert report.parsed and report.built, report.errors


def _demand_one_set_of_scales(bundle: Path) -> None:
    """The caches' scales are those of the QDQ graph, bit for bit; min-max covers at least as much."""
    folder = bundle / "tensorrt"
    explicit = onnx.load(str(folder / convert_tensorrt.QDQ_FP32))
    placed = convert_tensorrt.placed_scales(explicit)
    entropy = tensorrt_cache.read(folder / convert_tensorrt.ENTROPY)
    widest = tensorrt_cache.read(folder / convert_tensorrt.MINMAX)
    assert entropy.algorithm == "EntropyCalibration2" and widest.algorithm == "MinMaxCalibration"
    assert placed and set(placed) <= set(entropy.scales)
    bits = {name: np.float32(scale).tobytes() for name, scale in placed.items()}
    assert bits == {name: np.float32(entropy.scales[name]).tobytes() for name in placed}
    for name, scale in entropy.scales.items():
        assert widest.scales[name] >= scale * (1 - 1e-6), name
    plain = ir.load(str(folder / convert_tensorrt.FLOAT)).graph
    known = {value.name for value in plain.inputs}
    known |= {output.name for node in plain for output in node.outputs}
    assert set(entropy.scales) <= known
    assert {value.name for value in (*plain.inputs, *plain.outputs)} <= set(entropy.scales)


def test_a_jetson_bundle_holds_what_every_tensorrt_builds_from(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    images = _few_pictures(assets, tmp_path / "calib.npz")
    arguments = ["--method", "percentile", "--calibration-batches", "3", "--images", images]
    answer = _export(_resnet(assets, "jetson-int8", out, *arguments), capsys)
    assert answer["precision"] == "int8" and answer["latency"]["int8"] is None
    assert "on the device" in answer["verdict"]

    manifest = json.loads((out / "manifest.json").read_text())
    main, stand_in = manifest["models"]
    assert (main["runtime"], main["precision"]) == ("tensorrt", "int8")
    assert (stand_in["runtime"], stand_in["files"]) == (
        "onnxruntime",
        ["tensorrt/model_qdq_fp32.onnx"],
    )
    details = manifest["details"]["tensorrt"]
    assert set(details["files"]) == {"float", "qdq_fp32", "qdq_fp16", "entropy", "minmax"}
    assert set(details["files"].values()) <= set(main["files"])
    assert [len(list((out / "tensorrt").glob("calibration_batch_*.npy"))), 3] == [3, 3]
    assert np.load(out / details["batches"][0]).shape == (1, 3, 32, 32)

    for name, opset in (
        ("model.onnx", 17),
        ("model_qdq_fp32.onnx", 17),
        ("model_qdq_fp16.onnx", 19),
    ):
        model = onnx.load(str(out / "tensorrt" / name))
        assert model.opset_import[0].version == opset
        onnx.checker.check_model(model, full_check=True)
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    _demand_one_set_of_scales(out)
    _demand_int8(out, least=0.98)

    assert run(["verify", str(out), "--json"]) == 0
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["golden outputs (tensorrt)"]["skipped"]
    assert not checks["golden outputs (onnxruntime)"]["skipped"]
    # the stand-in evaluates the graph that the board builds from
    data = str(assets / "cifar10" / "calib.npz")
    code = run(["evaluate", str(out), "--runtime", "onnxruntime", "--data", data, "--json"])
    answer = json.loads(capsys.readouterr().out)
    # exported without labelled images: nothing to expect
    assert code == 0 and answer["top1"] > 0.9 and "expected" not in answer


def test_a_float16_bundle_has_a_graph_for_both_kinds_of_builders(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    images = _few_pictures(assets, tmp_path / "calib.npz", 8)
    _export(_resnet(assets, "jetson-orin-nano-fp16", out, "--images", images), capsys)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["models"][0]["precision"] == "fp16"
    assert manifest["details"]["tensorrt"]["files"] == {
        "float": "tensorrt/model.onnx",
        "float_fp16": "tensorrt/model_fp16.onnx",
    }
    if tensorrt_rtx.available():
        report = tensorrt_rtx.inspect(out / "tensorrt" / "model_fp16.onnx", "8.6")
        layers = {
            n.name for n in ir.load(str(out / "tensorrt/model.onnx")).graph if n.op_type == "Conv"
        }
        assert {report.datatypes()[name] for name in layers} == {"Half"}
    assert run(["verify", str(out)]) == 0


def test_what_the_board_would_refuse_is_refused_here(
    tmp_path: Path, assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import tensorrt_graphs

    model = tensorrt_graphs.residual_network()
    model.graph.node.append(onnx.helper.make_node("Hardmax", ["y"], ["z"], name="n_hard", axis=1))
    model.graph.output[0].name = "z"
    onnx.save(model, tmp_path / "m.onnx")
    images = _few_pictures(assets, tmp_path / "calib.npz", 8)
    arguments = [str(tmp_path / "m.onnx"), *CIFAR[4:], "--resize", "none", "-t", "jetson-int8"]
    arguments += ["--images", images, "--method", "minmax", "-o", str(tmp_path / "out")]
    answer = _export(arguments, capsys, expected=4)
    assert "n_hard" in answer["error"] and "Hardmax" in answer["error"]
    assert not (tmp_path / "out").exists()


def test_options_of_tensorrt_need_a_tensorrt_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], assets: Path
) -> None:
    arguments = _resnet(assets, "x86-fp32", tmp_path / "out", "--half-io")
    assert "TensorRT" in _export(arguments, capsys, expected=2)["error"]
    arguments = _resnet(assets, "cuda-int8", tmp_path / "out", "--max-p99-ms", "5", "--images", "x")
    assert "on its device" in _export(arguments, capsys, expected=4)["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "limit"),
    # points of mAP50-95 or top-1 that the QDQ graph may lose, evaluated on the CPU
    [("yolo11n_cells_p50.pt", 0.6), ("resnet20-12fca82f.th", 0.3)],
)
def test_accuracy_by_tensorrts_rules(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, limit: float
) -> None:
    out = tmp_path / "bundle"
    if model.startswith("resnet"):
        data = str(assets / "cifar10" / "test.npz")
        images = str(assets / "cifar10" / "calib.npz")
        arguments = _resnet(assets, "jetson-int8", out)
    else:
        pytest.importorskip("ultralytics")
        data = str(assets / "txl_pbc" / "data.yaml")
        images = str(_folder_of(assets / "txl_pbc" / "images" / "train", 256, tmp_path / "images"))
        arguments = [str(assets / "models" / model), "-t", "jetson-int8", "-o", str(out)]
    answer = _export([*arguments, "--images", images, "--data", data], capsys)
    accuracy = answer["accuracy"]
    assert 100 * (accuracy["float"] - accuracy["int8"]) <= limit, accuracy
    expected = json.loads((out / "manifest.json").read_text())["details"]["tensorrt"]
    assert expected["expected_accuracy"]["value"] == accuracy["int8"]
    if model.startswith("resnet"):
        few = ["--limit", "500", "--json"]
        assert run(["evaluate", str(out), "--runtime", "onnxruntime", "--data", data, *few]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["expected"]["value"] == accuracy["int8"]
        assert told["expected"]["points"] == pytest.approx(
            100 * (told["top1"] - accuracy["int8"]), abs=1e-9
        )
    _demand_one_set_of_scales(out)
    _demand_int8(out)
