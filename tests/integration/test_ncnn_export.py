"""`edgekit export` to ncnn targets on real models: bundles that verify, and the figures they must reach."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit import cpu
from edgekit.builders.ncnn_int8 import QUANTIZABLE
from edgekit.cli import run
from edgekit.formats import ncnn_bin, ncnn_json, ncnn_param, ncnn_table
from tests.integration.test_export_assets import _folder_of

pytest.importorskip("ncnn")

CIFAR = [
    *("--arch", "tests.architectures:resnet20", "--imgsz", "32", "--resize", "none"),
    *(
        "--mean",
        "0.485,0.456,0.406",
        "--std",
        "0.229,0.224,0.225",
        "--color",
        "rgb",
        "--scale",
        "1/255",
    ),
]

# for targets that the test machine's own architecture is not
FOREIGN, FOREIGN_FLOAT = ("arm-int8", "arm-fp32")
if cpu.detect().arch == "aarch64":
    FOREIGN, FOREIGN_FLOAT = ("x86-ncnn-int8", "x86-ncnn-fp32")


def _export(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    code = run(["export", "--json", *arguments])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0, answer
    return answer


def _stage(answer: Any, name: str) -> Any:
    return next(stage for stage in answer["stages"] if stage["name"] == name)


def _resnet(assets: Path, target: str, out: Path, *more: str) -> list[str]:
    model = str(assets / "models" / "resnet20-12fca82f.th")
    images = str(assets / "cifar10" / "calib.npz")
    return [model, *CIFAR, "-t", target, "--images", images, "-o", str(out), *more]


def _verified(bundle: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    assert run(["verify", str(bundle), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    names = [check["name"] for check in answer["checks"]]
    assert "golden outputs (ncnn)" in names
    assert not next(c for c in answer["checks"] if c["name"] == "golden outputs (ncnn)").get(
        "skipped"
    )
    return json.loads((bundle / "manifest.json").read_text())


def test_an_int8_model_for_another_architecture(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    data = ["--data", str(assets / "cifar10" / "test.npz"), "--limit", "1000"]
    arguments = _resnet(assets, FOREIGN, out, *data)
    answer = _export(arguments, capsys)
    assert answer["precision"] == "int8"
    assert answer["latency"] == {"float": None, "int8": None, "speedup": None}
    assert abs(answer["accuracy"]["float"] - answer["accuracy"]["int8"]) <= 0.01
    assert "not timed" in _stage(answer, "measure")["notes"][0]
    convert = _stage(answer, "convert")
    assert convert["parity"]["max_rel_error"] <= 1e-4
    assert any("Slice with steps" in note for note in convert["notes"])

    manifest = _verified(out, capsys)
    (model,) = manifest["models"]
    assert model["runtime"] == "ncnn"
    assert model["files"] == [f"ncnn/model.{kind}" for kind in ("json", "param", "bin", "table")]
    assert manifest["latency"] is None
    assert manifest["golden"]["runtime"] == "ncnn"
    assert set(manifest["versions"]) >= {"ncnn", "pnnx"}
    assert [step["name"] for step in manifest["chain"]] == [
        "export", "simplify", "prepare", "convert", "calibrate", "quantize",
    ]  # fmt: skip
    search = manifest["details"]["quantization"]["search"]
    assert {trial["choice"]["method"] for trial in search} >= {
        "mse",
        "percentile",
        "minmax",
        "entropy",
    }

    sidecar = ncnn_json.read(out / "ncnn" / "model.json")
    assert sidecar.precision == "int8"
    assert sidecar.options["use_int8_inference"] is True
    assert sidecar.inputs[0].shape == (1, 3, 32, 32)
    graph = ncnn_param.read(out / "ncnn" / "model.param")
    weights = ncnn_bin.read(out / "ncnn" / "model.bin", graph)
    int8 = [layer for layer in graph.layers if layer.type in QUANTIZABLE and layer.integer(8)]
    assert len(int8) == 20
    assert sum(layer.integer(8) > 100 for layer in int8) >= 9
    # the table says what the file holds, and makes the same scales again
    table = ncnn_table.read(out / "ncnn" / "model.table")
    assert set(table.layers) == {layer.name for layer in int8}

    # the same again is answered without one heavy import
    code = (
        "import json, sys\n"
        "from edgekit.cli import run\n"
        f"code = run({['export', '--json', *arguments]!r})\n"
        "print(json.dumps([m for m in ('torch', 'onnx', 'onnxruntime', 'onnx_ir', 'ncnn') "
        "if m in sys.modules]), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["unchanged"] is True
    assert all(stage["cached"] for stage in again["stages"])
    assert json.loads(done.stderr.strip().splitlines()[-1]) == []

    # with the stock tool's kind of table the scales are those of the table
    copy = tmp_path / "stock.table"
    copy.write_text((out / "ncnn" / "model.table").read_text())
    with_table = tmp_path / "with-table"
    _export(_resnet(assets, FOREIGN, with_table, "--ncnn-table", str(copy)), capsys)
    _verified(with_table, capsys)
    other_graph = ncnn_param.read(with_table / "ncnn" / "model.param")
    other = ncnn_bin.read(with_table / "ncnn" / "model.bin", other_graph)
    assert other_graph == graph
    for one, two in zip(weights, other, strict=True):
        if "input_scale" in one:
            assert two["input_scale"].values[0] == pytest.approx(
                one["input_scale"].values[0], rel=1e-4
            )


@pytest.mark.parametrize(
    "target", ["x86-ncnn-fp32", "arm-fp32", "arm-fp16", "arm-bf16", "rpi5-fp16"]
)
def test_float_targets(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    out = tmp_path / "bundle"
    answer = _export(_resnet(assets, target, out), capsys)
    precision = target.rpartition("-")[2]
    assert answer["precision"] == precision
    assert answer["latency"]["int8"] is None
    timed = (answer["latency"]["float"] is not None) == (
        target.startswith("x86") == (cpu.detect().arch == "x86_64")
    )
    assert timed
    manifest = _verified(out, capsys)
    assert manifest["models"][0]["precision"] == precision
    assert [step["name"] for step in manifest["chain"]][-1] == "convert"
    assert not (out / "calibration.npz").exists()
    size = (out / "ncnn" / "model.bin").stat().st_size
    assert size < (600_000 if "16" in precision else 1_200_000)


def test_onnx_runtime_on_arm(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    out = tmp_path / "bundle"
    answer = _export(_resnet(assets, "arm-ort-int8", out), capsys)
    if cpu.detect().arch != "aarch64":
        assert answer["latency"]["float"] is None
        assert "not counted" in _stage(answer, "build")["notes"][0]
    graph = onnx.load(out / "onnxruntime" / "model.onnx").graph
    zero_points = {item.name: item.data_type for item in graph.initializer}
    signed = {
        zero_points[node.input[2]]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[2] in zero_points
    }
    assert signed == {onnx.TensorProto.INT8}
    assert run(["verify", str(out), "--json"]) == 0


def test_a_pruned_detector_timed_against_its_float_model(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ultralytics")
    target = "x86-ncnn-int8" if cpu.detect().arch == "x86_64" else "arm-int8"
    images = _folder_of(assets / "txl_pbc" / "images" / "train", 16, tmp_path / "images")
    out = tmp_path / "bundle"
    model = str(assets / "models" / "yolo11n_cells_p50.pt")
    keep = "/layers/layers.0/conv/Conv"
    answer = _export(
        [
            model,
            "-t",
            target,
            "--images",
            str(images),
            "-o",
            str(out),
            "--method",
            "mse",
            "--keep-float",
            keep,
        ],
        capsys,
    )
    assert answer["latency"]["speedup"]["low"] <= answer["latency"]["speedup"]["high"]
    manifest = _verified(out, capsys)
    quantization = manifest["details"]["quantization"]
    assert quantization["float_layers"][keep] == "asked to stay float"
    # without a search a detector's last layers stay float
    assert "a last layer of the head" in quantization["float_layers"].values()
    assert quantization["search"] == []
    assert manifest["latency"]["float"]["runtime"] == "ncnn"
    if answer["precision"] == "int8":
        assert quantization["int8_mac_share"] > 0.85
        # bench and evaluate read the bundle
        assert run(["bench", str(out), "--runs", "5", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["p50_ms"] > 0
        data = str(assets / "txl_pbc" / "data.yaml")
        assert run(["evaluate", str(out), "--data", data, "--limit", "8", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["map50_95"] > 0.3


def test_what_cannot_be_is_refused_early(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(code: int, words: str, *arguments: str) -> None:
        assert run(["export", "--json", *arguments]) == code
        answer = json.loads(capsys.readouterr().out)
        assert words in answer["error"], answer
        assert not out.exists()

    out = tmp_path / "bundle"
    arguments = _resnet(assets, FOREIGN_FLOAT, out)
    refused(4, "cannot be checked here", *arguments, "--max-p99-ms", "5")
    refused(2, "--ncnn-table is for INT8 targets", *arguments, "--ncnn-table", "x.table")
    other = tmp_path / "other.table"
    other.write_text("conv_of_another_param_0 1\nconv_of_another 2\n")
    refused(8, "'conv_of_another'", *_resnet(assets, FOREIGN, out, "--ncnn-table", str(other)))
    refused(8, "No node 'nothing'", *_resnet(assets, FOREIGN, out, "--keep-float", "nothing"))


# --- the figures: validation images enter here and nowhere else ---------------------------------------


def _figures(answer: Any, bundle: Path) -> tuple[float, float, float, float]:
    """(float, INT8 accuracy in per cent, share of MACs in INT8, size of .bin against float32's)."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    share = manifest["details"]["quantization"]["int8_mac_share"]
    graph = ncnn_param.read(bundle / "ncnn" / "model.param")
    weights = ncnn_bin.read(bundle / "ncnn" / "model.bin", graph)
    whole = sum(
        4 * a.values.size for arrays in weights for n, a in arrays.items() if "scale" not in n
    )
    size = (bundle / "ncnn" / "model.bin").stat().st_size / whole
    accuracy = answer["accuracy"]
    return 100 * accuracy["float"], 100 * accuracy["int8"], share, size


def _coco(assets: Path, folder: Path) -> Path:
    """The data file of the COCO photos: class names in the order of their ids, as models have them."""
    labels = json.loads((assets / "coco" / "instances_val2017.json").read_text())
    names = [c["name"] for c in sorted(labels["categories"], key=lambda c: c["id"])]
    data = folder / "coco.yaml"
    lines = [
        f"path: {assets / 'coco'}",
        "val: val2017",
        "annotations: instances_val2017.json",
        f"names: {json.dumps(names)}",
    ]
    data.write_text("\n".join(lines) + "\n")
    return data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "target", "least"),
    [
        ("yolo11n_cells_p50.pt", "arm-int8", -0.5),
        ("yolo11n_cells_p50.pt", "x86-ncnn-int8", -0.5),
        ("yolov5n.onnx", "rpi5-int8", 30.0),
        ("yolo11n_w8.pt", "rpi5-int8", 39.0),
    ],
)
def test_detectors_keep_their_accuracy(
    assets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    target: str,
    least: float,
) -> None:
    pytest.importorskip("ultralytics")
    if "cells" in model:
        images, data = assets / "txl_pbc" / "images" / "train", assets / "txl_pbc" / "data.yaml"
    else:
        images, data = assets / "coco" / "calib", _coco(assets, tmp_path)
    out = tmp_path / "bundle"
    arguments = [str(assets / "models" / model), "-t", target, "--images", str(images)]
    # time is no matter here: a machine that is busy shall find what a quiet one finds
    arguments += ["--data", str(data), "-o", str(out), "--search-seconds", "1500"]
    answer = _export(arguments, capsys)
    if answer["precision"] != "int8":  # slower here than float: the board decides
        assert target.startswith("x86")
        return
    plain, int8, share, size = _figures(answer, out)
    assert int8 >= (plain + least if least < 0 else least)
    assert share >= 0.85
    assert size <= 0.35
    _verified(out, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["arm-int8", "rpi5-int8", "arm-ort-int8"])
def test_a_classifier_keeps_its_accuracy(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    out = tmp_path / "bundle"
    data = str(assets / "cifar10" / "test.npz")
    answer = _export(_resnet(assets, target, out, "--data", data), capsys)
    assert answer["accuracy"]["float"] == pytest.approx(0.9173, abs=2e-4)
    assert answer["accuracy"]["int8"] >= answer["accuracy"]["float"] - 0.002
