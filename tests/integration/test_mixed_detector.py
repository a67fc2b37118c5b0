"""INT8 of a trained detector with depthwise convolutions, uneven channels and heads of mixed range."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgekit import cli, onnx_file
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes import open_session
from edgekit.stages.blocks import find_blocks
from edgekit.stages.parity import INT8_LIMITS, ParityMeter
from tests.integration.conftest import ROOT, cache_in
from tests.train_mixed_detector import WEIGHTS

SIZE = 192
CONTRACT = Preprocess(height=SIZE, width=SIZE, color="rgb", scale=1 / 255)
FEED = [
    "--head", "yolox", "--color", "rgb", "--resize", "letterbox",
    "--scale", "1/255", "--mean", "0,0,0", "--std", "1,1,1",
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes as examples/cells draws them: calibration/ and, of another seed, the labelled validation/."""
    folder = tmp_path_factory.mktemp("scenes")
    script = str(ROOT / "examples" / "cells" / "make_data.py")
    for part, more in (("calibration", ["--no-labels"]), ("validation", ["--count", "100"])):
        command = [sys.executable, script, "--split", part, *more, "--out", str(folder / part)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def _cache(scenes: Path, target: str) -> Path:
    return scenes / f"cache-{target}"


def _export(scenes: Path, target: str) -> Path:
    out = scenes / target
    arguments = [
        "export", str(WEIGHTS), "--arch", "tests.mixed_detector:detector", "--code", str(ROOT),
        "--imgsz", str(SIZE), "--target", target, "--images", str(scenes / "calibration"),
        "--data", str(scenes / "validation" / "data.yaml"), *FEED, "--out", str(out), "--json",
    ]  # fmt: skip
    # one for each target, so that what is looked up in it is that target's
    with cache_in(_cache(scenes, target)):
        assert cli.run(arguments) == 0
    return out


@pytest.fixture(scope="module")
def bundle(scenes: Path) -> Path:
    return _export(scenes, "x86-int8")


def _points(bundle: Path) -> tuple[float, float]:
    """mAP50-95 of the float and of the INT8 model, in points."""
    accuracy = json.loads((bundle / "manifest.json").read_text())["accuracy"]
    return 100 * accuracy["float"], 100 * accuracy["int8"]


def _quantization(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())["details"]
    quantization: dict[str, Any] = found["quantization"]
    return quantization


def _prepared(scenes: Path) -> Path:
    return next(_cache(scenes, "x86-int8").rglob("prepare-*/model.onnx"))


def _inputs(scenes: Path, part: str, count: int) -> list[np.ndarray]:
    files = sorted((scenes / part).rglob("*.png"))[:count]
    return [apply(cv2.cvtColor(cv2.imread(str(f)), cv2.COLOR_BGR2RGB), CONTRACT)[0] for f in files]


def _all_operators(scenes: Path) -> float:
    """mAP50-95 of onnxruntime's quantize_static with its defaults, in points."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    plain = _prepared(scenes)
    feeds = iter(_inputs(scenes, "calibration", 64))

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(feeds, None)
            return None if feed is None else {onnx_file.main_input(model).name: feed}

    model = onnx_file.describe(plain)
    out = scenes / "all.onnx"
    quantize_static(plain, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    data = str(scenes / "validation" / "data.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "evaluate", str(out), "--data", data, *FEED, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return 100 * float(json.loads(done.stdout)["map50_95"])


def test_the_default_export_keeps_what_quantizing_everything_loses(
    scenes: Path, bundle: Path
) -> None:
    plain, int8 = _points(bundle)
    everything = _all_operators(scenes)
    print(f"mAP50-95 {plain:.2f} float, {int8:.2f} INT8, {everything:.2f} with all operators")
    assert plain > 60
    assert int8 > plain - 1.5
    assert everything < plain / 2
    # it is one that INT8 breaks, and what mended it was not leaving all of it float; how much of the
    # rest is float for speed is for the machine to say
    quantization = _quantization(bundle)
    trials = quantization["search"]
    assert 0 < max(t["agreement"] for t in trials if not t["choice"]["keep_float"]) < 0.5
    assert max(t["int8_mac_share"] for t in trials if t["agreement"] > 0.95) > 0.2
    assert quantization["int8_mac_share"] > 0


def test_no_block_of_the_heads_is_lost(scenes: Path, bundle: Path) -> None:
    plain = _prepared(scenes)
    int8 = next(_cache(scenes, "x86-int8").rglob("quantize-*/model.onnx"))
    name = onnx_file.main_input(onnx_file.describe(plain)).name
    feeds = [{name: tensor} for tensor in _inputs(scenes, "validation", 16)]
    meter = ParityMeter(find_blocks(plain, "yolox", feeds[0]))
    with open_session("onnxruntime", plain) as one, open_session("onnxruntime", int8) as other:
        for feed in feeds:
            meter.add(one.run(feed), other.run(feed))
    found = meter.report()
    # boxes, objectness and classes of each of the three scales are told apart
    assert len(found.blocks) == 12
    scores = [b for b in found.blocks if "objectness" in b.name or "classes" in b.name]
    assert len(scores) == 6
    # scores a hundred times smaller than boxes are kept, on images that nobody calibrated with; boxes
    # of the coarsest scale, which sees next to nothing here, are noise in float, too
    assert {b.name: INT8_LIMITS.problem(b) for b in scores} == dict.fromkeys(b.name for b in scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "lost"), [("arm-ort-int8", 1.5), ("jetson-int8", 1.5), ("x86-ncnn-int8", 2.5)]
)
def test_other_runtimes_keep_it_too(scenes: Path, target: str, lost: float) -> None:
    out = _export(scenes, target)
    plain, int8 = _points(out)
    share = _quantization(out)["int8_mac_share"]
    print(f"{target}: mAP50-95 {plain:.2f} float, {int8:.2f} INT8, {share:.0%} of the MACs")
    assert int8 > plain - lost
    assert share > 0.1
