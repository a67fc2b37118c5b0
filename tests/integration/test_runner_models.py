"""The native runner on trained detectors, INT8: it sees what the Python package sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest

import edgekit
from edgekit import cli, cpu
from tests.integration.conftest import cache_in
from tests.ncnn_bundles import run_program

pytest.importorskip("ncnn")
pytestmark = pytest.mark.slow

# a target that is not timed here keeps its INT8 whether it pays or not; 8-bit weights, no Winograd
TARGET = "x86-ncnn-int8" if cpu.detect().arch == "aarch64" else "rpi5-int8"


def overlap(a: Any, b: Any) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(common / (areas - common))


def agreement(
    bundle: Path, images: list[Path], program: Path, least_overlap: float = 0.9
) -> tuple[int, int]:
    """(objects that both see at the same place, objects) above a score of 0.4.

    SiLU between INT8 layers may round a value to the other of two levels in another build of ncnn, so
    boxes are the same objects and not the same bits.
    """
    code, answer, _ = run_program(program, bundle, *images, "--score-threshold", "0.2")
    assert code == 0, answer
    both = total = 0
    with edgekit.load(bundle) as model:
        for path, item in zip(images, answer["images"], strict=True):
            result: Any = model.predict(path, conf=0.2)
            for wanted in result:
                if wanted.score < 0.4:
                    continue
                total += 1
                both += any(
                    found["class_id"] == wanted.class_id
                    and abs(found["score"] - wanted.score) < 0.1
                    and overlap(found["box"], wanted.box) > least_overlap
                    for found in item["detections"]
                )
    return both, total


@pytest.mark.parametrize(
    ("model", "more", "folder"),
    [
        ("yolo11n_cells_p50.pt", [], "txl_pbc/images"),
        ("yolo11n_w8.pt", ["--imgsz", "320"], "coco"),
    ],
)
def test_trained_detectors(
    model: str, more: list[str], folder: str, assets: Path, tmp_path: Path, runner: Path
) -> None:
    pytest.importorskip("ultralytics")
    calibration, validation = (
        sorted((assets / folder / name).iterdir())
        for name in (("train", "val") if "cells" in model else ("calib", "val2017"))
    )
    (tmp_path / "calib").mkdir()
    for image in calibration[:8]:
        (tmp_path / "calib" / image.name).symlink_to(image)
    bundle = tmp_path / "bundle"
    arguments = ["export", str(assets / "models" / model), *more, "--target", TARGET, "--json"]
    arguments += ["--images", str(tmp_path / "calib"), "--method", "minmax", "--out", str(bundle)]
    with cache_in(tmp_path / "cache"):
        assert cli.run(arguments) == 0
    code, answer, _ = run_program(runner, bundle, "--self-test")
    assert code == 0 and answer["ok"], answer
    lossless = []
    for photo in validation[:10]:
        image = cv2.imread(str(photo))
        assert image is not None
        lossless.append(tmp_path / f"{photo.stem}.png")
        cv2.imwrite(str(lossless[-1]), image)
    both, total = agreement(bundle, lossless, runner)
    assert total > 15 and both >= 0.97 * total
    # photos as they are: another JPEG decoder moves pixels by a few grey levels
    both, total = agreement(bundle, validation[:10], runner, least_overlap=0.75)
    assert both >= 0.9 * total
