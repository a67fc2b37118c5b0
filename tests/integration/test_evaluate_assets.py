"""Accuracy of real models on real labelled images against the figures they are known for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BadInput
from edgekit.metrics.datasets import open_dataset
from edgekit.preprocess import Preprocess
from edgekit.runtimes import open_session
from edgekit.stages import evaluate
from edgekit.stages.evaluate import EvaluateOptions

YOLO = Preprocess(height=640, width=640)
CIFAR = Preprocess(
    height=32,
    width=32,
    resize="none",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@pytest.fixture(scope="module")
def coco(assets):
    return open_dataset(assets / "coco" / "instances_val2017.json")


@pytest.fixture(scope="module")
def yolov5n(assets):
    with open_session("onnxruntime", assets / "models" / "yolov5n.onnx") as session:
        yield session


def export(model, path: Path, shape) -> Path:
    import torch

    torch.onnx.export(
        model,
        (torch.zeros(shape),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )
    return path


def resnet(assets, tmp_path, depth: int, weights: str) -> Path:
    pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    try:
        from tests import architectures
    finally:
        sys.path.pop(0)
    built = getattr(architectures, f"resnet{depth}")()
    model = architectures.load_published(built, assets / "models" / weights)
    return export(model, tmp_path / f"resnet{depth}.onnx", (1, 3, 32, 32))


# --- detection ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_yolov5n_on_all_images(yolov5n, coco):
    report = evaluate.run(yolov5n, coco, YOLO, EvaluateOptions(resamples=300))
    assert report.images == 328
    assert 100 * report.map50_95 == pytest.approx(30.48, abs=0.05)
    assert 100 * report.map50 == pytest.approx(48.1, abs=0.1)
    low, high = report.intervals["map50_95"]
    assert 0.2 < low < report.map50_95 < high < 0.4
    assert len(report.per_class) == 80
    assert report.settings["head"] == "yolov5"
    assert report.notes == ("2 of 328 images have no box (taken as background).",)


def test_yolov5n_on_a_few_images(yolov5n, coco):
    some = coco.limited(16)
    first = evaluate.run(yolov5n, some, YOLO, EvaluateOptions(workers=3))
    again = evaluate.run(yolov5n, some, YOLO, EvaluateOptions(workers=1))
    assert first == again
    assert 0.25 < first.map50_95 < first.map50 < 1


def test_red_and_blue_swapped_cost_accuracy(yolov5n, coco):
    some = coco.limited(48)
    right = evaluate.run(yolov5n, some, YOLO).map50_95
    swapped = evaluate.run(yolov5n, some, YOLO.replace(color="bgr")).map50_95
    assert swapped < right - 0.01


def test_the_wrong_head_is_noticed(yolov5n, coco):
    # 85 columns read as four coordinates and 81 classes
    with pytest.raises(BadInput, match="81 classes"):
        evaluate.run(yolov5n, coco.limited(4), YOLO, EvaluateOptions(head="yolov8"))
    with pytest.raises(BadInput, match="layout of the head 'yolox'"):
        evaluate.run(yolov5n, coco.limited(4), YOLO, EvaluateOptions(head="yolox"))


def test_a_model_of_other_classes_is_noticed(yolov5n, assets):
    cells = open_dataset(assets / "txl_pbc", limit=2)
    with pytest.raises(BadInput, match=r"'yolov5' with 80 classes, but there are 3 names"):
        evaluate.run(yolov5n, cells, YOLO)


def test_the_labels_of_the_blood_cells_are_read(assets):
    for split, images in (("train", 1008), ("val", 288), ("test", 144)):
        dataset = open_dataset(assets / "txl_pbc" / "data.yaml", split=split)
        assert (len(dataset), dataset.names) == (images, ("WBC", "RBC", "Platelets"))
        assert not any("classes.txt" in note for note in dataset.notes)


@pytest.mark.slow
def test_the_pruned_blood_cell_model(assets, tmp_path):
    ultralytics = pytest.importorskip("ultralytics")
    import shutil

    copy = shutil.copy(assets / "models" / "yolo11n_cells_p50.pt", tmp_path)
    exported = ultralytics.YOLO(copy).export(format="onnx", imgsz=320, simplify=False)
    dataset = open_dataset(assets / "txl_pbc" / "data.yaml")
    with open_session("onnxruntime", Path(exported)) as session:
        report = evaluate.run(session, dataset, Preprocess(height=320, width=320))
    assert report.settings["head"] == "yolov8"
    # 69.5 is the figure with boxes mapped back by the one letterbox ratio before rounding; the
    # exact inverse of the resize gives up to 0.4 more
    assert 69.2 <= 100 * report.map50_95 <= 69.9


# --- classification -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "weights", "right"),
    [
        pytest.param(20, "resnet20-12fca82f.th", 9173, id="resnet20"),
        pytest.param(56, "resnet56-4bfd9763.th", 9339, id="resnet56", marks=pytest.mark.slow),
    ],
)
def test_cifar_resnets_are_right_to_the_image(assets, tmp_path, depth, weights, right):
    model = resnet(assets, tmp_path, depth, weights)
    dataset = open_dataset(assets / "cifar10" / "test.npz")
    with open_session("onnxruntime", model) as session:
        report = evaluate.run(session, dataset, CIFAR, EvaluateOptions(batch=50))
    assert report.images == 10_000
    assert round(10_000 * report.top1) == right
    assert report.top5 > 0.99
    assert sum(row[i] for i, row in enumerate(report.confusion)) == right


def test_the_paired_difference_of_two_classifiers(assets, tmp_path):
    dataset = open_dataset(assets / "cifar10" / "test.npz", limit=500)
    model = resnet(assets, tmp_path, 20, "resnet20-12fca82f.th")
    with open_session("onnxruntime", model) as session:
        right = evaluate.measure(session, dataset, CIFAR, EvaluateOptions(batch=50))
        shifted = CIFAR.replace(mean=(0.0, 0.0, 0.0))
        wrong = evaluate.measure(session, dataset, shifted, EvaluateOptions(batch=50))
    found = evaluate.difference(right, wrong)
    assert found.high < 0
    assert evaluate.difference(right, right).estimate == 0


# --- images that trip readers ---------------------------------------------------------------------


def test_images_of_every_kind_are_read_or_refused_clearly(yolov5n, tmp_path, coco):
    import cv2

    photo = cv2.cvtColor(coco.samples[0].image(), cv2.COLOR_RGB2BGR)
    folder = tmp_path / "images"
    folder.mkdir()

    def write(name: str, pixels, *flags) -> None:
        ok, data = cv2.imencode(Path(name).suffix, pixels, list(flags))
        assert ok
        (folder / name).write_bytes(data.tobytes())

    write("grey.jpg", cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY))
    write("deep.png", photo.astype(np.uint16) * 257)
    write("alpha.png", np.dstack([photo, photo[..., 0]]))
    write("tiny.png", photo[:1, :1])
    write("huge.jpg", cv2.resize(photo, (8000, 6000)))
    write("größe 1.jpg", photo)
    labels = tmp_path / "labels"
    labels.mkdir()
    for image in folder.iterdir():
        (labels / f"{image.stem}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    names = json.dumps(list(coco.names))
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f"val: images\nnames: {names}\n", encoding="utf-8")
    report = evaluate.run(yolov5n, open_dataset(yaml), YOLO)
    assert report.images == 6

    whole = (folder / "größe 1.jpg").read_bytes()
    (folder / "größe 1.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"größe 1\.jpg is truncated"):
        evaluate.run(yolov5n, open_dataset(yaml), YOLO)
    allowed = EvaluateOptions(max_bad_share=0.2)
    assert evaluate.run(yolov5n, open_dataset(yaml), YOLO, allowed).images == 5


# --- the command ----------------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edgekit", "evaluate", *map(str, arguments)]


def test_the_command_on_real_images(assets):
    done = subprocess.run(
        command(
            assets / "models" / "yolov5n.onnx",
            *("--data", assets / "coco" / "instances_val2017.json"),
            *("--limit", 6, "--threads", 1, "--json"),
        ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["task"], answer["images"]) == ("detect", 6)
    assert 0 < answer["map50_95"] < answer["map50"] <= 1
    assert "assumed" in done.stderr  # this file carries no contract


def test_ctrl_c_ends_with_one_message_and_its_code(assets):
    process = subprocess.Popen(
        command(
            assets / "models" / "yolov5n.onnx",
            *("--data", assets / "coco" / "instances_val2017.json", "--threads", 1),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        # the progress line says that images are running
        for line in process.stderr:
            if "evaluate (328)" in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "Interrupted." in err and "Traceback" not in err
