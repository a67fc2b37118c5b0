"""`edgekit compare` on real models: every column is there, failures stay in their rows, and a second
run works nothing out again."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from edgekit import cli
from edgekit.pipeline import compare as stage
from tests.integration.conftest import RESNET20, Exported

QUICK = ["--runs", "4", "--resamples", "50"]


def data(assets: Path, limit: int = 100) -> list[str]:
    return ["--data", str(assets / "cifar10" / "test.npz"), "--limit", str(limit)]


def pruned(assets: Path, path: Path, share: float = 0.3) -> Path:
    """ResNet-20 with the smallest weights of every convolution set to zero."""
    import torch

    checkpoint = torch.load(
        assets / "models" / "resnet20-12fca82f.th", map_location="cpu", weights_only=False
    )
    for name, weight in checkpoint["state_dict"].items():
        if "conv" in name and name.endswith("weight"):
            limit = weight.abs().flatten().kthvalue(int(share * weight.numel())).values
            weight[weight.abs() <= limit] = 0
    torch.save({"state_dict": checkpoint["state_dict"]}, path)
    return path


@pytest.fixture
def folder(assets: Path, tmp_path: Path) -> Path:
    """A folder of checkpoints: the published one, a sparse one, a damaged one."""
    made = tmp_path / "runs"
    made.mkdir()
    whole = assets / "models" / "resnet20-12fca82f.th"
    (made / "a_full.th").write_bytes(whole.read_bytes())
    pruned(assets, made / "b_sparse.th")
    (made / "c_damaged.th").write_bytes(whole.read_bytes()[:5000])
    return made


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code = cli.run(["compare", *arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.out + captured.err
    found: dict[str, Any] = json.loads(captured.out)
    return found


def timing(row: dict[str, Any], runtime: str, batch: int = 1) -> dict[str, Any]:
    (found,) = [t for t in row["timings"] if (t["runtime"], t["batch"]) == (runtime, batch)]
    return found


def test_a_folder_of_checkpoints_and_that_nothing_is_done_twice(
    assets: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [str(folder), *RESNET20, *data(assets), *QUICK, "--batch", "1,2"]
    found = answer(arguments, capsys)
    full, sparse, damaged = found["rows"]
    assert [row["name"] for row in found["rows"]] == ["a_full", "b_sparse", "c_damaged"]
    assert found["images"] == 100 and found["batches"] == [1, 2] and found["task"] == "classify"

    assert full["parameters"] == 269722
    assert full["macs"] == pytest.approx(40.6e6, rel=0.02)  # published: 41 M
    assert full["baseline"] == "" and full["drop"] is None
    assert full["architecture"] == sparse["architecture"] == "resnet20"
    assert full["accuracy"]["top1"] > 0.85
    for runtime in ("torch", "onnxruntime"):
        for batch in (1, 2):
            latency = timing(full, runtime, batch)["latency"]
            assert latency["runs"] == 4 and latency["batch"] == batch
            assert latency["p50_ms"] > 0 and latency["peak_rss_mb"] > 20
            speedup = timing(sparse, runtime, batch)["speedup"]
            assert speedup["low"] <= speedup["ratio"] <= speedup["high"]

    assert sparse["baseline"] == "a_full"
    assert sparse["sparsity"] == pytest.approx(0.3, abs=0.01)
    assert sparse["method"] == "sparse 30 %" and sparse["pruned_share"] == 0.0
    drop = sparse["drop"]
    assert drop["difference"] == pytest.approx(
        sparse["accuracy"]["top1"] - full["accuracy"]["top1"]
    )
    assert drop["low"] <= drop["difference"] <= drop["high"]

    assert damaged["timings"] == [] and damaged["accuracy"] is None
    assert "damaged" in damaged["errors"][0]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this was worked out before")

    monkeypatch.setattr(stage.scoring.evaluate, "measure", refuse)
    monkeypatch.setattr(stage.scoring.bootstrap, "paired_difference", refuse)
    monkeypatch.setattr(stage.timing, "measure_together", refuse)
    assert answer(arguments, capsys) == found
    with pytest.raises(AssertionError, match="worked out before"):
        answer([*arguments, "--fresh"], capsys)


def test_an_int8_target_adds_a_row_and_reuses_the_export(
    assets: Path,
    resnet_bundle: Exported,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the cache of the bundle's export: nothing is exported, calibrated or quantized again
    monkeypatch.setenv("EDGEKIT_CACHE", str(resnet_bundle.cache))
    model = assets / "models" / "resnet20-12fca82f.th"
    found = answer(
        [
            str(model), str(resnet_bundle.bundle), *RESNET20, *data(assets, 200), *QUICK,
            "--target", "x86-int8", "--images", str(resnet_bundle.images), "--method", "minmax",
        ],
        capsys,
    )  # fmt: skip
    plain, int8, bundle = found["rows"]
    assert (plain["precision"], int8["precision"], bundle["precision"]) == ("fp32", "int8", "int8")
    assert int8["made_from"] == plain["name"] and int8["method"] == "INT8"
    assert int8["compression"] > 2
    # forms that INT8 takes add zeros to kernels; the network is the same
    assert int8["macs"] == plain["macs"]
    assert [t["runtime"] for t in int8["timings"]] == ["onnxruntime"]
    # the bundle and the row are the same model
    assert bundle["size_mb"] == int8["size_mb"]
    assert bundle["accuracy"]["top1"] == int8["accuracy"]["top1"]
    manifest = json.loads((resnet_bundle.bundle / "manifest.json").read_text())
    assert int8["accuracy"]["top1"] == manifest["accuracy"]["int8"]
    assert plain["accuracy"]["top1"] == manifest["accuracy"]["float"]


def test_an_ablation_switches_off_one_thing_at_a_time(
    assets: Path,
    resnet_bundle: Exported,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(resnet_bundle.cache))
    found = answer(
        [
            str(assets / "models" / "resnet20-12fca82f.th"), *RESNET20, *data(assets), *QUICK,
            "--target", "x86-int8", "--images", str(resnet_bundle.images), "--method", "minmax",
            "--preset", "ablation",
        ],
        capsys,
    )  # fmt: skip
    rows = {row["variant"]: row for row in found["rows"]}
    assert next(iter(rows)) == ""
    assert {"INT8", "per-channel weights", "simplify", "runtime's graph optimizations"} <= set(rows)
    assert rows["INT8"]["precision"] == "fp32"
    assert rows["INT8"]["size_mb"] > 2 * rows[""]["size_mb"]
    assert rows["per-channel weights"]["size_mb"] < rows[""]["size_mb"], "fewer scales"
    for variant, row in rows.items():
        assert not row["errors"], (variant, row["errors"])
        assert row["accuracy"]["top1"] > 0.8
        assert row["baseline"] == ("everything on" if variant else "")


def test_models_with_a_fixed_batch_say_so(
    resnet_bundle: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer([str(resnet_bundle.bundle), "--batch", "1,8", *QUICK], capsys)
    (row,) = found["rows"]
    assert timing(row, "onnxruntime", 1)["latency"] is not None
    assert "fixed to batch 1" in timing(row, "onnxruntime", 8)["error"]


@pytest.mark.parametrize("form", ["md", "csv", "html", "json", "table"])
def test_every_format_holds_every_row(
    resnet_bundle: Exported, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EDGEKIT_CACHE", str(resnet_bundle.cache))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    arguments = ["compare", str(resnet_bundle.bundle), str(tmp_path / "broken.onnx"), *QUICK]
    assert cli.run([*arguments, "--format", form]) == 0
    text = capsys.readouterr().out
    assert "resnet20-x86-int8" in text and "broken" in text
    out = tmp_path / "table.txt"
    assert cli.run([*arguments, "--format", form, "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    assert "resnet20-x86-int8" in out.read_text()
    if form == "csv":
        lines = list(csv.DictReader(io.StringIO(text)))
        assert float(lines[0]["ONNX Runtime (ms)"]) > 0 and lines[1]["Error"]
    if form == "json":
        assert len(json.loads(out.read_text())["rows"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "No model"),
        (["x.pt", "--format", "pdf"], "Unknown format"),
        (["x.pt", "--preset", "prune"], "Unknown preset"),
        (["x.pt", "--batch", "1,two"], "not a list of sizes"),
        (["x.pt", "--target", "x86-int9"], "x86-int8"),
    ],
)
def test_wrong_usage_is_refused_at_once(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["compare", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_int8_target_needs_images(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(assets / "models" / "yolov5n.onnx")
    assert cli.run(["compare", model, "--target", "x86-int8"]) == 2
    assert "calibration images" in capsys.readouterr().err


@pytest.mark.slow
def test_the_published_pruning_table(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blood-cell YOLO11n at 0, 30 and 50 % pruning: the reference figures, and the layout."""
    models = [assets / "models" / f"yolo11n_cells{tail}.pt" for tail in ("", "_p30", "_p50")]
    found = answer(
        [
            *map(str, models), "--data", str(assets / "txl_pbc" / "data.yaml"),
            "--preset", "pruning", *QUICK,
        ],
        capsys,
    )  # fmt: skip
    rows = found["rows"]
    assert [row["parameters"] for row in rows] == [2_605_369, 1_381_953, 934_721]
    for row, expected in zip(rows, (0.752, 0.729, 0.695), strict=True):
        assert row["accuracy"]["map50_95"] == pytest.approx(expected, abs=0.003)
    reductions = [row["flops_reduction"] for row in rows]
    # 0.806, 0.409 and 0.295 GMACs
    assert reductions == pytest.approx([0.0, 0.493, 0.634], abs=0.005)
    assert {row["architecture"] for row in rows} == {"yolo11n"}
    assert 0 < rows[1]["pruned_share"] < rows[2]["pruned_share"] < 1
    assert cli.run([
        "compare", *map(str, models), "--data", str(assets / "txl_pbc" / "data.yaml"),
        "--preset", "pruning", *QUICK, "--format", "md",
    ]) == 0  # fmt: skip
    header = capsys.readouterr().out.splitlines()[0]
    for title in (
        "Pruned",
        "Params (M)",
        "FLOPs reduction",
        "PyTorch speed-up",
        "ONNX speed-up",
        "mAP50 (%)",
        "mAP50-95 (%)",
    ):
        assert title in header
