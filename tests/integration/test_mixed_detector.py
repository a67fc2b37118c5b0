"""INT8 of a detector with depthwise convolutions, uneven channels and heads of mixed range."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edgekit import cli, onnx_file
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes import open_session
from edgekit.stages import calibrate, quantize
from edgekit.stages.blocks import find_blocks
from edgekit.stages.parity import ParityMeter
from edgekit.target import load_target
from edgekit.types import ParityReport
from tests import mixed_detector
from tests.integration.conftest import ROOT, cache_in

SIZE = 192
CONTRACT = Preprocess(height=SIZE, width=SIZE, color="bgr", scale=1.0)


def _pictures(assets: Path, part: str, count: int) -> list[Path]:
    return sorted((assets / "coco" / part).glob("*.jpg"))[:count]


def _tensor(path: Path) -> np.ndarray:
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return apply(picture, CONTRACT)[0]


@pytest.fixture(scope="module")
def exported(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    images = _pictures(assets, "calib", 24)
    batch = torch.from_numpy(np.concatenate([_tensor(path) for path in images[:12]]))
    model = mixed_detector.settled(batch)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "calib").mkdir()
    for path in images:
        (folder / "calib" / path.name).symlink_to(path)
    arguments = [
        "export", str(folder / "model.pt"), "--arch", "tests.mixed_detector:detector",
        "--code", str(ROOT), "--imgsz", str(SIZE), "--head", "yolox", "--target", "x86-int8",
        "--images", str(folder / "calib"), "--color", "bgr", "--resize", "letterbox",
        "--scale", "1", "--mean", "0,0,0", "--std", "1,1,1",
        "--out", str(folder / "bundle"), "--json",
    ]  # fmt: skip
    with cache_in(folder / "cache"):
        assert cli.run(arguments) == 0
    return folder


def _far(plain: Path, int8: Path, images: list[Path]) -> ParityReport:
    feeds = [{"images": _tensor(path)} for path in images]
    meter = ParityMeter(find_blocks(plain, "yolox", feeds[0]))
    with open_session("onnxruntime", plain) as one, open_session("onnxruntime", int8) as other:
        for feed in feeds:
            meter.add(one.run(feed), other.run(feed))
    return meter.report()


@pytest.mark.slow
def test_the_search_mends_what_int8_breaks(assets: Path, exported: Path) -> None:
    bundle = exported / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text())
    quantization = manifest["details"]["quantization"]
    tried = quantization["search"]
    # some ranges break this network when every layer is INT8
    assert min(t["agreement"] for t in tried if not t["choice"]["keep_float"]) < 0.5
    assert max(t["agreement"] for t in tried) > 0.85
    assert 0.3 < quantization["int8_mac_share"] < 1
    plain = next((exported / "cache").rglob("prepare-*/model.onnx"))
    int8 = next((exported / "cache").rglob("quantize-*/model.onnx"))
    whole = quantize.run(
        onnx_file.describe(plain),
        calibrate.open_calibration(bundle / "calibration.npz", "mse", symmetric=False),
        load_target("x86-int8"),
        [],
        exported / "whole.onnx",
        quantize.QuantizeOptions(),
    )
    for part, gain_db in (("calib", 2.0), ("val2017", 0.0)):
        images = _pictures(assets, part, 12)
        found = _far(plain, int8, images)
        before = _far(plain, whole.model.path, images)
        # boxes, objectness and classes of each of the three scales are told apart
        assert len(found.blocks) == 12
        print(part, f"worst block {before.sqnr_db:.1f} -> {found.sqnr_db:.1f} dB")
        assert found.sqnr_db > before.sqnr_db + gain_db
        scores = [b for b in found.blocks if "objectness" in b.name or "classes" in b.name]
        assert len(scores) == 6
        # nothing is zeroed: scores a hundred times smaller than boxes keep a scale of their own
        assert min(block.cosine for block in scores) > 0.85
