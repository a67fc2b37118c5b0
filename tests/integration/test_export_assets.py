"""`edgekit export` on real checkpoints: every kind ends in a bundle that verifies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.cli import run


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def _folder_of(source: Path, count: int, target: Path) -> Path:
    """A folder of links to the first `count` images of `source`."""
    target.mkdir()
    for path in sorted(source.iterdir())[:count]:
        (target / path.name).symlink_to(path)
    return target


def _check_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(bundle), "--json"]) == 0
    answer = _json(capsys)
    assert answer["ok"] is True
    assert len(answer["checks"]) >= 5


def _export(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    code = run(["export", "--json", *arguments])
    answer = _json(capsys)
    assert code == 0, answer
    assert {"verdict", "bundle", "stages", "model", "latency", "accuracy"} <= set(answer)
    by_name = {stage["name"]: stage for stage in answer["stages"]}
    for name in ("export", "simplify", "prepare"):
        assert by_name[name]["parity"]["max_rel_error"] <= 1e-4
    return answer


def test_pruned_detector_keeps_every_shape(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("ultralytics")
    from edgekit.checkpoint import load

    checkpoint = assets / "models" / "yolo11n_cells_p50.pt"
    images = _folder_of(assets / "txl_pbc" / "images" / "train", 12, tmp_path / "images")
    data = str(assets / "txl_pbc" / "data.yaml")
    out = tmp_path / "bundle"
    arguments = [str(checkpoint), "-t", "x86-int8", "--images", str(images), "-o", str(out)]
    answer = _export([*arguments, "--data", data, "--limit", "24"], capsys)
    assert answer["model"]["params"] == 934_721
    assert answer["accuracy"]["metric"] == "map50_95"
    assert abs(answer["accuracy"]["float"] - answer["accuracy"]["int8"]) < 0.05
    assert answer["latency"]["speedup"]["low"] <= answer["latency"]["speedup"]["high"]
    _check_bundle(out, capsys)

    module = load(checkpoint).module
    wanted = Counter(
        tuple(m.weight.shape)
        for m in module.modules()
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    )
    manifest = json.loads((out / "manifest.json").read_text())
    export_sha = manifest["chain"][0]["output_sha256"][0]
    (exported,) = [
        path
        for path in (tmp_path / "edgekit-cache").rglob("model.onnx")
        if path.parent.name.startswith("export-")
    ]
    from edgekit.atomic import sha256_file

    assert sha256_file(exported) == export_sha
    graph = onnx.load(exported).graph
    used = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    found = Counter(tuple(i.dims) for i in graph.initializer if i.name in used)
    assert found == wanted

    # the same again is answered without a single heavy import
    code = (
        "import json, sys\n"
        "from edgekit.cli import run\n"
        f"code = run({['export', '--json', *arguments, '--data', data, '--limit', '24']!r})\n"
        "print(json.dumps([m for m in ('torch', 'onnx', 'onnxruntime', 'onnx_ir') "
        "if m in sys.modules]), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["unchanged"] is True
    assert all(stage["cached"] for stage in again["stages"])
    assert json.loads(done.stderr.strip().splitlines()[-1]) == []


def test_prepared_graph_of_the_pruned_detector_has_only_batchnorm_less(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ultralytics")
    checkpoint = assets / "models" / "yolo11n_cells_p50.pt"
    images = _folder_of(assets / "txl_pbc" / "images" / "train", 3, tmp_path / "images")
    out = tmp_path / "bundle"
    _export([str(checkpoint), "-t", "x86-fp32", "--images", str(images), "-o", str(out)], capsys)
    graph = onnx.load(out / "onnxruntime" / "model.onnx").graph
    used = {
        name
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose")
        for name in node.input[1:]
    }
    total = sum(int(np.prod(i.dims)) for i in graph.initializer if i.name in used)
    assert total == 929_561


def test_onnx_detector(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = _folder_of(assets / "coco" / "calib", 8, tmp_path / "images")
    out = tmp_path / "bundle"
    answer = _export(
        [
            str(assets / "models" / "yolov5n.onnx"),
            "-t",
            "x86-int8",
            "--images",
            str(images),
            "-o",
            str(out),
        ],
        capsys,
    )
    assert "assumed" in answer["warnings"][0]
    quantize = next(stage for stage in answer["stages"] if stage["name"] == "quantize")
    assert quantize["parity"]["cosine"] > 0.9
    _check_bundle(out, capsys)
    int8 = onnx.load(out / "onnxruntime" / "model.onnx")
    assert answer["precision"] in ("int8", "fp32")
    if answer["precision"] == "int8":
        assert sum(i.data_type == onnx.TensorProto.INT8 for i in int8.graph.initializer) > 50


def test_state_dict_with_an_architecture(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "bundle"
    imagenet = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--color", "rgb"]
    answer = _export(
        [
            str(assets / "models" / "resnet20-12fca82f.th"),
            *("--arch", "tests.architectures:resnet20", "--imgsz", "32", "--resize", "none"),
            *imagenet,
            *("--scale", "1/255", "-t", "x86-int8"),
            *("--images", str(assets / "cifar10" / "calib.npz")),
            *("--data", str(assets / "cifar10" / "test.npz"), "--limit", "1000", "-o", str(out)),
        ],
        capsys,
    )
    assert answer["warnings"] == []
    assert answer["accuracy"]["metric"] == "top1"
    assert answer["accuracy"]["float"] > 0.89
    assert abs(answer["accuracy"]["float"] - answer["accuracy"]["int8"]) <= 0.01
    _check_bundle(out, capsys)


@pytest.mark.slow
def test_full_size_ultralytics_detector(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ultralytics")
    images = _folder_of(assets / "coco" / "calib", 16, tmp_path / "images")
    out = tmp_path / "bundle"
    checkpoint = assets / "models" / "yolo11n_w8.pt"
    _export([str(checkpoint), "-t", "x86-int8", "--images", str(images), "-o", str(out)], capsys)
    _check_bundle(out, capsys)
