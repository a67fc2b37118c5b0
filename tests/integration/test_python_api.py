"""`edgekit.load(...).predict(...)`, `edgekit draw` and `evaluate` on models of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgekit
from edgekit import cli, images
from edgekit.checkpoint import LoadOptions
from edgekit.errors import BadInput, UsageError
from tests.integration.conftest import RESNET20, ROOT, Exported

NORMALIZED = {
    "color": "rgb", "resize": "none", "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip


def cells(assets: Path, count: int) -> list[Path]:
    return sorted((assets / "txl_pbc" / "images" / "val").iterdir())[:count]


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inter = max(0.0, width) * max(0.0, height)
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return inter / (area - inter)


def test_importing_edgekit_is_light() -> None:
    code = (
        "import sys, edgekit; edgekit.__version__; dir(edgekit)\n"
        "print([m for m in ('numpy', 'torch', 'onnx', 'cv2', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edgekit.nothing  # noqa: B018


def test_a_bundle_and_its_checkpoint_see_the_same_cells(
    assets: Path, cells_bundle: Exported
) -> None:
    checkpoint = assets / "models" / "yolo11n_cells_p50.pt"
    with edgekit.load(cells_bundle.bundle) as int8, edgekit.load(checkpoint) as plain:
        assert (int8.runtime, int8.precision, int8.task) == ("onnxruntime", "int8", "detect")
        assert (plain.runtime, plain.precision) == ("torch", "fp32")
        assert int8.names == plain.names == ("WBC", "RBC", "Platelets")
        matched = total = 0
        for path in cells(assets, 3):
            height, width = images.read(path).shape[:2]
            found = list(int8.predict(path, conf=0.5))
            assert all(0 <= d.x1 < d.x2 <= width and 0 <= d.y1 < d.y2 <= height for d in found)
            scores = [d.score for d in found]
            assert scores == sorted(scores, reverse=True) and min(scores) >= 0.5
            for wanted in plain.predict(path, conf=0.6):
                total += 1
                matched += any(
                    d.name == wanted.name and overlap(d.box, wanted.box) > 0.7 for d in found
                )
    assert total > 10
    assert matched / total > 0.85


def test_pixels_give_what_the_file_gives(assets: Path, cells_bundle: Exported) -> None:
    (path,) = cells(assets, 1)
    with edgekit.load(cells_bundle.bundle) as model:
        by_path, by_pixels = model.predict(path), model.predict(images.read(path))
        np.testing.assert_array_equal(by_path.boxes, by_pixels.boxes)
        np.testing.assert_array_equal(by_path.scores, by_pixels.scores)
        drawn = by_path.draw(images.read(path))
        assert drawn.shape[2] == 3 and drawn.dtype == np.uint8


def test_many_images_give_what_each_gives_alone(assets: Path, cells_bundle: Exported) -> None:
    paths = cells(assets, 4)
    with edgekit.load(cells_bundle.bundle) as model:
        together = dict(model.predict_all(paths))
        assert list(together) == paths
        for path in paths:
            np.testing.assert_array_equal(together[path].boxes, model.predict(path).boxes)


def test_a_classifier_ranks_its_classes(assets: Path) -> None:
    with np.load(assets / "cifar10" / "test.npz") as archive:
        pictures, labels = archive["images"][:40], archive["labels"][:40]
    model = edgekit.load(
        assets / "models" / "resnet20-12fca82f.th",
        imgsz=32,
        preprocess=NORMALIZED,
        options=LoadOptions(arch="tests.architectures:resnet20", code=(ROOT,)),
    )
    with model:
        answers = [model.predict(picture) for picture in pictures]
        assert model.task == "classify" and not model.warning
    right = sum(
        answer.best.class_id == label for answer, label in zip(answers, labels, strict=True)
    )
    assert right >= 34  # 91.7 % on all 10,000
    top = answers[0].top()
    assert len(top) == 5 and top[0] == answers[0].best
    assert answers[0].probabilities.sum() == pytest.approx(1.0, abs=1e-4)
    assert answers[0].draw(pictures[0]).shape[0] > 32


def test_what_cannot_be_predicted_says_why(
    assets: Path, cells_bundle: Exported, tmp_path: Path
) -> None:
    with edgekit.load(cells_bundle.bundle) as model:
        with pytest.raises(BadInput, match="does not exist"):
            model.predict(tmp_path / "none.jpg")
        with pytest.raises(BadInput, match="uint8 RGB"):
            model.predict(np.zeros((4, 4), np.uint8))
        with pytest.raises(BadInput, match="uint8 RGB"):
            model.predict(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        edgekit.load(cells_bundle.bundle, preprocess={"colour": "rgb"})
    with pytest.raises(BadInput, match="no model for ncnn"):
        edgekit.load(cells_bundle.bundle, runtime="ncnn")


# --- the commands on the same models


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_evaluate_takes_checkpoints_and_bundles(
    assets: Path,
    cells_bundle: Exported,
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = cells_bundle.bundle if kind == "bundle" else assets / "models" / "yolo11n_cells_p50.pt"
    code = cli.run([
        "evaluate", str(model), "--data", str(assets / "txl_pbc" / "data.yaml"), "--limit", "8",
        "--resamples", "0", "--threads", "1", "--save-images", str(tmp_path / "out"), "--json",
    ])  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["images"] == 8
    assert answer["runtime"] == ("torch" if kind == "checkpoint" else "onnxruntime")
    # 69.5 on all 288 images; eight of them are near that
    assert 0.5 < answer["map50_95"] < 0.95
    written = list((tmp_path / "out").rglob("*.jpg"))
    assert len(written) == 8
    source = images.read(next((assets / "txl_pbc" / "images" / "val").glob(f"{written[0].stem}.*")))
    drawn = images.read(written[0])
    assert drawn.shape == source.shape
    assert (np.abs(drawn.astype(int) - source).max(axis=2) > 60).mean() > 0.005, "boxes are there"


def test_evaluate_agrees_with_the_exported_accuracy(
    assets: Path, resnet_bundle: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(assets / "cifar10" / "test.npz"), "--limit", "200", "--resamples", "0"]
    assert cli.run(["evaluate", str(resnet_bundle.bundle), *data, "--json"]) == 0
    int8 = json.loads(capsys.readouterr().out)
    checkpoint = str(assets / "models" / "resnet20-12fca82f.th")
    assert cli.run(["evaluate", checkpoint, *RESNET20, *data, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    manifest = json.loads((resnet_bundle.bundle / "manifest.json").read_text())
    assert int8["top1"] == manifest["accuracy"]["int8"]
    assert plain["top1"] == manifest["accuracy"]["float"]


def test_draw_keeps_folders_and_leaves_out_what_is_broken(
    assets: Path, cells_bundle: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "photos"
    (source / "zelle ä").mkdir(parents=True)
    good = cells(assets, 2)
    (source / "one.jpg").write_bytes(good[0].read_bytes())
    (source / "zelle ä" / "two.jpg").write_bytes(good[1].read_bytes())
    (source / "broken.jpg").write_bytes(good[0].read_bytes()[:2000])
    cv2.imwrite(str(source / "tiny.png"), np.full((1, 1, 3), 200, np.uint8))
    out = tmp_path / "out"
    code = cli.run(
        ["draw", str(cells_bundle.bundle), "--images", str(source), "--out", str(out), "--json"]
    )
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["images"] == 3 and answer["boxes"] > 5
    assert len(answer["skipped"]) == 1 and "broken.jpg" in answer["skipped"][0]
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.jpg")}
    assert written == {"one.jpg", "zelle ä/two.jpg", "tiny.jpg"}


def test_draw_never_overwrites_its_source(
    assets: Path, cells_bundle: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = cells(assets, 1)
    (tmp_path / "one.jpg").write_bytes(path.read_bytes())
    code = cli.run(
        ["draw", str(cells_bundle.bundle), "--images", str(tmp_path), "--out", str(tmp_path)]
    )
    assert code == 2
    assert "overwrite" in capsys.readouterr().err
    assert (tmp_path / "one.jpg").read_bytes() == path.read_bytes()
