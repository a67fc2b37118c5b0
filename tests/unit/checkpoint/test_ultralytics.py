"""Ultralytics' models as one tensor in, one tensor out, computing what Ultralytics computes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics", exc_type=ImportError)

from edgekit.checkpoint import LoadOptions, load  # noqa: E402
from edgekit.checkpoint.ultralytics import import_ultralytics  # noqa: E402
from edgekit.errors import BadInput, MissingDependency, NotPossible  # noqa: E402


def build(name: str, classes: int = 3, seed: int = 0) -> Any:
    """An untrained model of `name` whose statistics and scores are not the defaults."""
    import_ultralytics()
    from ultralytics.nn import tasks

    torch.manual_seed(seed)
    kind = tasks.ClassificationModel if name.endswith("-cls") else tasks.DetectionModel
    model = kind(f"{name}.yaml", ch=3, nc=classes, verbose=False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.6, 1.4)
            layer.weight.data.uniform_(0.7, 1.3)
    model.names = {index: f"class {index}" for index in range(classes)}
    model.args = {"imgsz": 96}
    return model.eval()


def save(model: Any, path: Path, **more: Any) -> Path:
    torch.save({"model": model, "train_args": {"imgsz": 96}, **more}, path)
    return path


@pytest.mark.parametrize(
    ("name", "end_to_end"),
    [
        ("yolo11n", False),
        ("yolov8n", False),
        ("yolo26n", False),
        ("yolo26n", True),
        ("yolov10n", False),
        ("yolov10n", True),
    ],
)
def test_detectors_compute_what_ultralytics_computes(
    tmp_path: Path, name: str, end_to_end: bool
) -> None:
    model = build(name)
    if end_to_end:
        model.end2end = True
    image = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        expected = copy.deepcopy(model)(image)[0]
        loaded = load(save(model, tmp_path / "model.pt"))
        got = loaded.module(image)
    assert (loaded.kind, loaded.task, loaded.head) == (
        "ultralytics",
        "detect",
        "yolo26" if end_to_end else "yolov8",
    )
    assert loaded.input_shape == (1, 3, 96, 96)
    assert loaded.preprocess is not None
    assert (loaded.preprocess.resize, loaded.preprocess.pad_value) == ("letterbox", 114)
    assert loaded.names == ("class 0", "class 1", "class 2")
    assert got.shape == expected.shape == ((2, 252, 6) if end_to_end else (2, 7, 252))
    assert any("of its two heads" in note for note in loaded.notes) == (
        name in ("yolo26n", "yolov10n")
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_classifier_gives_logits(tmp_path: Path) -> None:
    model = build("yolo11n-cls")
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        probabilities, logits = copy.deepcopy(model)(image)
        loaded = load(save(model, tmp_path / "model.pt"))
        got = loaded.module(image)
    assert (loaded.task, loaded.head) == ("classify", "logits")
    assert loaded.preprocess is not None
    assert loaded.preprocess.resize == "center_crop"
    torch.testing.assert_close(got, logits)
    torch.testing.assert_close(got.softmax(1), probabilities)


def test_a_fused_model_with_its_forward_replaced(tmp_path: Path) -> None:
    model = build("yolo11n")
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected = copy.deepcopy(model)(image)[0]
        fused = model.fuse(verbose=False)
        loaded = load(save(fused, tmp_path / "fused.pt"))
        torch.testing.assert_close(loaded.module(image), expected, rtol=1e-4, atol=1e-3)


def test_ema_half_precision_and_a_bare_model(tmp_path: Path) -> None:
    model, ema = build("yolo11n", seed=0), build("yolo11n", seed=1)
    image = torch.rand(1, 3, 96, 96)
    path = save(copy.deepcopy(model).half(), tmp_path / "m.pt", ema=copy.deepcopy(ema).half())
    chosen = load(path)
    assert "EMA weights used" in chosen.notes
    assert any("half precision" in note for note in chosen.notes)
    with torch.no_grad():
        expected = copy.deepcopy(ema).half().float()(image)[0]
        torch.testing.assert_close(chosen.module(image), expected, rtol=1e-5, atol=1e-4)
        other = load(path, LoadOptions(weights="model")).module(image)
    assert not torch.allclose(other, expected)
    torch.save(model, tmp_path / "bare.pt")
    assert load(tmp_path / "bare.pt").kind == "ultralytics"


def test_other_tasks_are_pointed_to_onnx(tmp_path: Path) -> None:
    import_ultralytics()
    from ultralytics.nn.tasks import SegmentationModel

    path = save(SegmentationModel("yolo11n-seg.yaml", verbose=False), tmp_path / "seg.pt")
    with pytest.raises(NotPossible) as error:
        load(path)
    assert "ONNX" in error.value.hint


@pytest.mark.parametrize(
    "spoil",
    [
        lambda model: setattr(model.model[3], "f", 7),
        lambda model: setattr(model.model[12], "f", [-1, "x"]),
        lambda model: setattr(model.model[-1], "nc", "three"),
        lambda model: setattr(model.model[-1], "reg_max", 7),
        lambda model: setattr(model, "save", None),
        lambda model: setattr(model.model[2].cv1.conv, "stride", (0, 0)),
        lambda model: model.model[-1].__dict__["_modules"].pop("cv3"),
        lambda model: model.__dict__["_modules"].pop("model"),
    ],
    ids=[
        "future layer",
        "layer named x",
        "nc",
        "reg_max",
        "save",
        "stride 0",
        "no cv3",
        "no layers",
    ],
)
def test_a_spoiled_model_is_bad_input(tmp_path: Path, spoil: Any) -> None:
    model = build("yolo11n")
    spoil(model)
    with pytest.raises(BadInput):
        load(save(model, tmp_path / "spoiled.pt"))


def test_nothing_is_printed_nor_written_into_the_home_directory(tmp_path: Path) -> None:
    path = save(build("yolo11n"), tmp_path / "model.pt")
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO", "XDG", "OMP"))}
    code = (
        "import os, cv2, torch\nfrom pathlib import Path\nfrom edgekit.checkpoint import load\n"
        "before, threads, save = dict(os.environ), cv2.getNumThreads(), torch.save\n"
        f"load(Path({str(path)!r}))\n"
        "assert dict(os.environ) == before, set(os.environ) ^ set(before)\n"
        "assert (cv2.getNumThreads(), torch.save) == (threads, save)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(build("yolo11n"), tmp_path / "model.pt")
    for name in [n for n in sys.modules if n.split(".")[0] == "ultralytics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(MissingDependency) as error:
        load(path)
    assert "edgekit[ultralytics]" in error.value.hint
