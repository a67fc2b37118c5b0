"""Looking into statistics, overriding ranges, and studying how many images are enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from edgekit import onnx_file
from edgekit.calibration import store
from edgekit.cli import run
from edgekit.pipeline import study
from edgekit.stages import calibrate
from tests.graphs import GraphMaker

IMAGES = 24


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three convolutions over 16 x 16 images."""
    maker = GraphMaker(3)
    maker.conv("x", "a", (8, 3))
    maker.node("Relu", ["a"], "b")
    maker.conv("b", "c", (16, 8))
    maker.node("Relu", ["c"], "d")
    maker.conv("d", "y", (4, 16), kernel=1)
    path = tmp_path / "m.onnx"
    onnx.save(maker.model({"x": [1, 3, 16, 16]}, {"y": [1, 4, 16, 16]}), str(path))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    # pictures of different brightness, so that more of them widen the ranges
    level = rng.uniform(20, 255, (IMAGES, 1, 1, 1))
    pixels = (rng.uniform(0, 1, (IMAGES, 16, 16, 3)) * level).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return tmp_path / "images.npz"


@pytest.fixture
def statistics(model: Path, images: Path, tmp_path: Path) -> Path:
    out = tmp_path / "c.npz"
    assert run(["calibrate", str(model), "--images", str(images), "--out", str(out)]) == 0
    return out


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert run([*(str(item) for item in arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_show_ranks_tensors_by_what_int8_loses(
    statistics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(capsys, "calibration", "show", statistics)
    assert found["images"] == IMAGES
    assert {tensor["name"] for tensor in found["tensors"]} >= {"x", "b", "d"}
    best = [tensor["ranges"][tensor["best"]]["sqnr_db"] for tensor in found["tensors"]]
    assert best == sorted(best)
    stored, _ = store.read(statistics)
    for tensor in found["tensors"]:
        histogram = stored.histogram(tensor["name"])
        assert sum(count for _, _, count in tensor["bars"]) == tensor["count"] == histogram.count
        assert list(tensor["ranges"]) == ["minmax", "entropy", "percentile", "mse"]
        losses = {how: span["sqnr_db"] for how, span in tensor["ranges"].items()}
        # mse is the method that minimizes this very loss; it looks at bins more finely
        assert losses["mse"] >= max(losses.values()) - 0.1
        assert tensor["ranges"]["minmax"]["clipped_share"] < 1e-3
        assert tensor["ranges"]["minmax"]["low"] == min(0.0, histogram.minimum)
    assert found["stability"]["method"] == "percentile"
    symmetric = answer(capsys, "calibration", "show", statistics, "-t", "jetson-int8")
    for tensor in symmetric["tensors"]:
        assert all(span["low"] == -span["high"] for span in tensor["ranges"].values())


def test_plots_hold_every_method_and_tensor(
    statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, picture = tmp_path / "p.html", tmp_path / "p.png"
    assert run(["calibration", "show", str(statistics), "--plot", str(page), "--top", "2"]) == 0
    assert run(["calibration", "show", str(statistics), "--plot", str(picture), "--top", "2"]) == 0
    text = page.read_text()
    assert text.count("<figure>") == 2
    assert text.count('stroke="rgb(') == 2 * 4 * 2  # two ends of four methods
    for method in ("minmax", "entropy", "percentile", "mse"):
        assert method in text
    image = cv2.imread(str(picture))
    assert image.shape[1] == 1200
    # RGB 200, 85, 27 is entropy's line
    assert (image == np.array([27, 85, 200], np.uint8)).all(axis=2).any()
    rows = capsys.readouterr().out
    assert "entropy" in rows and "dB" in rows
    assert run(["calibration", "show", str(statistics), "--plot", str(tmp_path / "p.pdf")]) == 2
    assert not (tmp_path / "p.pdf").exists()
    assert run(["calibration", "show", str(tmp_path / "none.npz")]) == 8


def test_overrides_reach_every_command(
    model: Path, images: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["calibrate", model, "--images", images, "--out", tmp_path / "o.npz"]
    plain = answer(capsys, *common)
    changed = answer(capsys, *common, "--override", "b=-0.5,1.25", "--override", "d=entropy")
    assert changed["cached"] is True
    assert changed["ranges"]["b"]["minmax"] == [-0.5, 1.25]
    every = answer(capsys, *common, "--method", "all")
    assert changed["ranges"]["d"]["minmax"] == every["ranges"]["d"]["entropy"]
    assert changed["ranges"]["x"] == plain["ranges"]["x"]
    shown = answer(capsys, "calibration", "show", statistics, "--override", "b=-0.5,1.25")
    spans = {tensor["name"]: tensor["ranges"]["mse"] for tensor in shown["tensors"]}
    assert (spans["b"]["low"], spans["b"]["high"]) == (-0.5, 1.25)
    int8 = tmp_path / "q.onnx"
    answer(
        capsys, "quantize", model, "--calibration", statistics, "-o", int8, "--override", "b=0,1.25"
    )
    scales = {item.name: item for item in onnx.load(str(int8)).graph.initializer}
    scale = onnx.numpy_helper.to_array(scales["b.scale"])
    assert float(scale) == np.float32(1.25 / 255)
    wrong = answer(capsys, *common, "--override", "bb=mse", code=2)
    assert "No statistics of a tensor 'bb'" in wrong["error"]
    for text in ("b", "b=msee", "b=1,0", "b=nan,1"):
        assert answer(capsys, *common, "--override", text, code=2)["exit_code"] == 2


def test_a_study_runs_each_image_once_and_ends_at_the_whole(
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected: list[int] = []
    real = calibrate.run

    def counted(*arguments: Any, **more: Any) -> Any:
        made = real(*arguments, **more)
        collected.append(made.images)
        return made

    monkeypatch.setattr(calibrate, "run", counted)
    out = tmp_path / "s.npz"
    found = answer(
        capsys, "calibrate", model, "--images", images, "--study", "2,8,16", "--out", out
    )
    assert [row["images"] for row in found["rows"]] == [2, 8, 16]
    assert collected == [2, 6, 8]
    assert found["judged_images"] == IMAGES - 16 and found["judged_images_seen"] is False
    losses = [row["sqnr_db"] for row in found["rows"]]
    assert all(15 < loss < 60 for loss in losses)
    assert found["rows"][0]["uncertainty"] is None and found["rows"][2]["uncertainty"] > 0
    # the largest row is that very calibration, bit for bit
    stored, digest = store.read(out)
    assert digest == found["sha256"] and len(stored.images) == 16
    again = answer(capsys, "calibrate", model, "--images", images, "--study", "2,8,16,20")
    assert collected == [2, 6, 8, 4]
    # fewer images are left over to judge on, the statistics are the same
    assert again["judged_images"] == IMAGES - 20
    assert [row["uncertainty"] for row in again["rows"][:3]] == [
        row["uncertainty"] for row in found["rows"]
    ]
    whole = answer(capsys, "calibrate", model, "--images", images, "--study", "8,100")
    assert [row["images"] for row in whole["rows"]] == [8, IMAGES]
    assert whole["judged_images_seen"] is True
    assert any(f"There are {IMAGES} usable images" in text for text in whole["warnings"])


def test_a_study_measures_accuracy_where_there_is_data(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.load(str(model))
    proto.graph.node.append(onnx.helper.make_node("GlobalAveragePool", ["y"], ["p"], name="pool"))
    proto.graph.node.append(onnx.helper.make_node("Flatten", ["p"], ["z"], name="flat"))
    del proto.graph.output[:]
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 4])
    )
    classifier = tmp_path / "k.onnx"
    onnx.save(proto, str(classifier))
    with np.load(images) as archive:
        pixels = archive["images"]
    data = tmp_path / "data.npz"
    labels = np.arange(IMAGES, dtype=np.int64) % 4
    np.savez(data, images=pixels, labels=labels)
    common = ["calibrate", classifier, "--images", images, "--study", "4,12", "--data", data]
    found = answer(capsys, *common, "--limit", "16")
    assert found["metric"] == "top1"
    assert 0 <= found["float_accuracy"] <= 1
    assert all(0 <= row["accuracy"] <= 1 for row in found["rows"])
    assert run([str(item) for item in common]) == 0
    said = capsys.readouterr()
    assert "top1, %" in said.out and "The float model has" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--study", "8,x"], 2, "cannot be read"),
        (["--study", "0"], 2, "cannot be read"),
        (["--study", "8", "--method", "all"], 2, "one method"),
        (["--study", "30,40"], 8, "the smallest number asked for is 30"),
        (["--data", "d.yaml", "--out", "c.npz"], 2, "belong to --study"),
        (["--study", "8", "-t", "x86-fp32"], 4, "x86-fp32"),
    ],
)
def test_mistakes_of_a_study_are_told(
    model: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    found = answer(capsys, "calibrate", model, "--images", images, *arguments, code=code)
    assert words in found["error"]


def test_counts_are_sorted_and_distinct() -> None:
    assert study.parse_counts("128, 8,32,8") == (8, 32, 128)


def test_a_small_set_is_warned_about(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    few, uneven = tmp_path / "few.npz", tmp_path / "uneven.npz"
    np.savez(few, images=rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    level = np.geomspace(4, 255, 12).reshape(12, 1, 1, 1)
    np.savez(uneven, images=(rng.uniform(0, 1, (12, 16, 16, 3)) * level).astype(np.uint8))
    out = tmp_path / "w.npz"
    assert run(["calibrate", str(model), "--images", str(few), "--out", str(out)]) == 0
    assert "3 calibration images cannot tell" in capsys.readouterr().err
    assert run(["calibrate", str(model), "--images", str(uneven), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "The calibration set is small" in said and "more images would" in said
    assert run(["calibration", "show", str(out)]) == 0
    assert "The calibration set is small" in capsys.readouterr().err
    described = onnx_file.describe(model)
    made = calibrate.open_calibration(out, "minmax", symmetric=False)
    assert made.graph_sha256 == described.sha256
    steady = calibrate.with_stability(made, symmetric=False)
    assert steady.warning and steady.uncertainty is not None and steady.uncertainty > 0.05


def test_whatever_changes_the_content_is_named(
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(*more: str, graph: Path = model, pictures: Path = images) -> str:
        capsys.readouterr()
        out = str(tmp_path / "k.npz")
        assert run(["calibrate", str(graph), "--images", str(pictures), "--out", out, *more]) == 0
        return capsys.readouterr().err

    assert "nothing of calibration is in the cache" in said()
    assert "from the cache: nothing changed" in said()
    # ranges are chosen anew from what is there
    for more in (["--method", "mse"], ["--override", "b=0,2"], ["--workers", "2"]):
        assert "from the cache: nothing changed" in said(*more)
    assert 'Not in the cache: preprocess.color: "bgr", was "rgb".' in said("--color", "bgr")
    assert "Not in the cache: channels" in said("--all-tensors")

    with np.load(images) as archive:
        pixels = archive["images"].copy()
    pixels[3, 0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", images=pixels)
    assert "Not in the cache: images: " in said(pictures=tmp_path / "other.npz")

    proto = onnx.load(str(model))
    proto.graph.initializer[0].raw_data = bytes(
        np.frombuffer(proto.graph.initializer[0].raw_data, np.float32) * np.float32(2)
    )
    onnx.save(proto, str(tmp_path / "other.onnx"))
    assert "Not in the cache: graph: " in said(graph=tmp_path / "other.onnx")

    monkeypatch.setattr(calibrate, "VERSION", calibrate.VERSION + 1)
    text = said()
    was = calibrate.VERSION - 1
    assert f'Not in the cache: versions.calibrate: "{was + 1}", was "{was}".' in text
    monkeypatch.setattr(calibrate, "VERSION", was)
    real = calibrate.versions_of
    monkeypatch.setattr(
        calibrate, "versions_of", lambda *names: {**real(*names), "onnxruntime": "9.9"}
    )
    assert 'versions.onnxruntime: "9.9", was "' in said()
