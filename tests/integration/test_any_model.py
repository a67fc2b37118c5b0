"""The commands that take any model: checkpoints, ONNX files and bundles side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit import cli
from tests.integration.conftest import RESNET20, Exported


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = cli.run([*arguments, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


def test_a_bundle_is_verified_against_its_checkpoint(
    assets: Path, cells_bundle: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(assets / "models" / "yolo11n_cells_p50.pt")
    images = ["--images", str(cells_bundle.images), "--limit", "2"]
    code, found = run(["verify", str(cells_bundle.bundle), checkpoint, *images], capsys)
    assert code == 0 and found["ok"]
    blocks = [check["name"] for check in found["checks"] if check["name"].startswith("block")]
    assert len(blocks) >= 6, "boxes and classes of each stride are told apart"
    # another network with the same interface is not taken for it
    other = str(assets / "models" / "yolo11n_cells.pt")
    code, found = run(["verify", other, checkpoint, *images], capsys)
    assert code == 9 and not found["ok"]


def test_a_checkpoint_is_timed_against_its_bundle(
    assets: Path, resnet_bundle: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(assets / "models" / "resnet20-12fca82f.th")
    code, found = run(
        [
            "bench",
            checkpoint,
            "--against",
            str(resnet_bundle.bundle),
            *bench_flags(),
            "--runs",
            "3",
        ],
        capsys,
    )
    assert code == 0
    assert (found["runtime"], found["runs"]) == ("torch", 3)
    assert found["against"]["other"]["runtime"] == "onnxruntime"
    assert found["peak_rss_mb"] > found["against"]["other"]["peak_rss_mb"], (
        "each has its own memory"
    )


def bench_flags() -> list[str]:
    """How the checkpoint is loaded; what it is fed with does not change its speed."""
    return RESNET20[: RESNET20.index("--resize")]


def test_a_runtime_that_a_bundle_lacks_is_refused(
    cells_bundle: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--images", str(cells_bundle.images), "--out", str(tmp_path / "out")]
    code, found = run(["draw", str(cells_bundle.bundle), *images, "--runtime", "ncnn"], capsys)
    assert code == 8 and "no model for ncnn" in found["error"]
    assert "onnxruntime" in found["hint"]


@pytest.mark.slow
def test_an_ncnn_model_goes_through_every_command(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A runtime that is plugged into RUNTIMES works everywhere at once."""
    pytest.importorskip("ncnn")
    checkpoint = assets / "models" / "yolo11n_cells_p50.pt"
    images = assets / "txl_pbc" / "images" / "val"
    sample = str(sorted(images.iterdir())[0])
    data = ["--data", str(assets / "txl_pbc" / "data.yaml"), "--limit", "8"]
    bundle = str(tmp_path / "cells-ncnn")
    target = ["--target", "x86-ncnn-fp32", "--images", sample]
    code, found = run(["export", str(checkpoint), *target, "--out", bundle, "--report"], capsys)
    assert code == 0
    assert "<!doctype html>" in Path(found["report"]).read_text()

    code, evaluated = run(["evaluate", bundle, *data, "--resamples", "0"], capsys)
    assert code == 0 and evaluated["runtime"] == "ncnn" and evaluated["map50_95"] > 0.5
    code, drawn = run(["draw", bundle, "--images", sample, "--out", str(tmp_path / "out")], capsys)
    assert code == 0 and drawn["boxes"] > 3
    code, timed = run(["bench", bundle, "--runs", "3"], capsys)
    assert code == 0 and timed["runtime"] == "ncnn"
    code, verified = run(["verify", bundle, str(checkpoint), "--images", sample], capsys)
    assert code == 0 and verified["ok"]
    code, profiled = run(["profile", bundle, "--runs", "3"], capsys)
    assert code == 0 and profiled["runtime"] == "ncnn"
    kinds = {kind["op_type"]: kind["count"] for kind in profiled["operators"]}
    assert kinds["Convolution"] > 50

    arguments = [
        "compare",
        str(checkpoint),
        bundle,
        *target,
        *data,
        "--runs",
        "3",
        "--resamples",
        "0",
    ]
    code, compared = run(arguments, capsys)
    assert code == 0
    plain, same = compared["rows"]
    assert [t["runtime"] for t in plain["timings"]] == ["torch", "onnxruntime", "ncnn"]
    assert [t["runtime"] for t in same["timings"]] == ["ncnn"]
    assert same["accuracy"]["map50_95"] == evaluated["map50_95"] == plain["accuracy"]["map50_95"]
