"""The native runner computes what the Python package computes: tensors, boxes, classes, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import edgekit
from edgekit.golden import npy_bytes, read_npy
from edgekit.metrics.heads import choose_head
from edgekit.metrics.postprocess import Classification, Suppression, decode, suppress
from edgekit.preprocess import Placement, Preprocess, apply
from edgekit.types import TensorSpec
from tests.ncnn_bundles import front, identity, run_program, write_bundle

pytest.importorskip("ncnn")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

CONTRACTS = {
    "letterbox": Preprocess(height=64, width=96),
    "letterbox-corner": Preprocess(height=96, width=64, pad_place="bottom_right", pad_value=0),
    "letterbox-no-upscale": Preprocess(height=320, width=320, upscale=False),
    "bgr-0-255": Preprocess(height=80, width=80, color="bgr", scale=1.0),
    "imagenet-crop": Preprocess(
        height=112, width=112, resize="center_crop", crop_fraction=0.875, **IMAGENET
    ),
    "stretch": Preprocess(height=75, width=131, resize="stretch", **IMAGENET),
    "gray": Preprocess(height=48, width=48, color="gray", mean=(0.5,), std=(0.25,)),
    "nearest": Preprocess(height=64, width=64, interpolation="nearest"),
    "nhwc": Preprocess(height=40, width=56, layout="nhwc", color="bgr"),
    "none": Preprocess(height=37, width=53, resize="none", **IMAGENET),
}


def _images(contract: Preprocess) -> list[NDArray[np.uint8]]:
    """Noise and smooth scenes of many sizes, ends of the range included."""
    random = np.random.default_rng(11)
    if contract.resize == "none":
        sizes = [(contract.height, contract.width)] * 3
    else:
        sizes = [
            (contract.height, contract.width),
            (2 * contract.height, 2 * contract.width),
            (1, 1), (3, 200), (211, 7), (333, 500), (480, 640), (101, 99), (31, 47), (768, 1024),
        ]  # fmt: skip
    images = []
    for number, (height, width) in enumerate(sizes):
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 2:
            image = cv2.GaussianBlur(image, (0, 0), 3)
        images.append(np.ascontiguousarray(image))
    return images


@pytest.mark.parametrize("name", CONTRACTS)
def test_preprocessing_is_equal_bit_for_bit(name: str, tmp_path: Path, runner: Path) -> None:
    contract = CONTRACTS[name]
    bundle = write_bundle(tmp_path / "bundle", contract, identity(contract))
    folder = tmp_path / "images"
    folder.mkdir()
    images = _images(contract)
    for number, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), image[:, :, ::-1])
    out = tmp_path / "out"
    code, answer, _ = run_program(runner, bundle, folder, "--raw", "--save-outputs", out)
    assert code == 0, answer
    assert len(answer["images"]) == len(images)
    for number, image in enumerate(images):
        expected, _ = apply(image, contract)
        found = read_npy(out / f"{number:03d}_output_0.npy")
        assert found.shape == expected.shape
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), image.shape
        assert answer["images"][number]["height"] == image.shape[0]


def test_image_files(tmp_path: Path, runner: Path) -> None:
    """Formats, colour kinds and EXIF orientation as cv2 reads them; JPEG within a few grey levels."""
    contract = Preprocess(height=60, width=90, resize="stretch", scale=1.0)
    bundle = write_bundle(tmp_path / "bundle", contract, identity(contract))
    random = np.random.default_rng(2)
    scene = cv2.GaussianBlur(random.integers(0, 256, (60, 90, 3), dtype=np.uint8), (0, 0), 4)
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.bmp"), scene)
    cv2.imwrite(str(folder / "b.ppm"), scene)
    cv2.imwrite(str(folder / "c.png"), cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY))
    cv2.imwrite(str(folder / "d.png"), np.dstack([scene, scene[:, :, :1]]))
    cv2.imwrite(str(folder / "e.png"), scene.astype(np.uint16) * 257)
    exact = 5
    cv2.imwrite(str(folder / "f.jpg"), scene, [cv2.IMWRITE_JPEG_QUALITY, 95])
    plain = (folder / "f.jpg").read_bytes()
    for orientation in range(1, 9):
        tiff = (
            b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0"
        )
        segment = b"Exif\0\0" + tiff + b"\0\0\0\0"
        size = (len(segment) + 2).to_bytes(2, "big")
        data = plain[:2] + b"\xff\xe1" + size + segment + plain[2:]
        (folder / f"g{orientation}.jpg").write_bytes(data)
    out = tmp_path / "out"
    code, answer, _ = run_program(runner, bundle, folder, "--raw", "--save-outputs", out)
    assert code == 0, answer
    names = [Path(item["image"]).name for item in answer["images"]]
    assert names == sorted(path.name for path in folder.iterdir())
    for number, name in enumerate(names):
        image = cv2.imread(str(folder / name), cv2.IMREAD_COLOR)
        assert image is not None
        expected, _ = apply(np.ascontiguousarray(image[:, :, ::-1]), contract)
        difference = np.abs(read_npy(out / f"{number:03d}_output_0.npy") - expected)
        assert difference.max() <= (0 if number < exact else 6), name
        assert difference.mean() < 1


def _head_output(name: str, random: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Plausible random output [1, …] of the head for a 64x64 input and `count` classes."""
    cells = 84
    centre = random.uniform(0, 64, (cells * 3, 2))
    side = random.uniform(2, 40, (cells * 3, 2))
    scores = random.uniform(0, 1, (cells * 3, count)) ** 3
    objectness = random.uniform(0, 1, (cells * 3, 1))
    if name == "yolov5":
        rows = np.concatenate([centre, side, objectness, scores], axis=1)
    elif name == "yolox":
        raw = np.concatenate([random.uniform(-1, 2, centre.shape), np.log(side / 8)], axis=1)
        rows = np.concatenate([raw, objectness, scores], axis=1)[:cells]
    elif name == "yolo26":
        corners = np.concatenate([centre - side / 2, centre + side / 2], axis=1)
        numbers = random.integers(0, count, (cells * 3, 1))
        rows = np.concatenate([corners, objectness, numbers], axis=1)[:200]
    else:
        rows = np.concatenate([centre, side, scores], axis=1)[:cells]
    # equal scores and equal boxes, whose order must not depend on the program
    rows[5] = rows[6]
    rows[20, 4:] = rows[21, 4:]
    output = rows.astype(np.float32)[None]
    return np.ascontiguousarray(output.transpose(0, 2, 1)) if name == "yolov8" else output


@pytest.mark.parametrize("head", ["yolov5", "yolov8", "yolov8-turned", "yolox", "yolo26"])
def test_heads_are_decoded_equally(head: str, tmp_path: Path, runner: Path) -> None:
    contract = Preprocess(height=64, width=64)
    random = np.random.default_rng(len(head))
    outputs = [_head_output(head.removesuffix("-turned"), random, 5) for _ in range(4)]
    if head == "yolov8-turned":
        outputs = [np.ascontiguousarray(_head_output("yolov8", random, 5).transpose(0, 2, 1))]
    names = tuple("abcde")
    shape = outputs[0].shape
    bundle = write_bundle(
        tmp_path / "bundle", contract, front(contract, shape),
        task="detect", head=head.removesuffix("-turned"), names=names,
    )  # fmt: skip
    placement = Placement(
        scale_x=1, scale_y=1, offset_x=0, offset_y=0, source_height=64, source_width=64
    )
    spec = TensorSpec(name="output0", shape=shape, dtype="float32")
    match = choose_head([spec], (64, 64), name=head.removesuffix("-turned"), num_classes=5)
    for number, output in enumerate(outputs):
        tensor = np.zeros(contract.input_shape, dtype=np.float32)
        tensor.reshape(-1)[: output.size] = output.reshape(-1)
        file = tmp_path / f"{number}.npy"
        file.write_bytes(npy_bytes(tensor))
        for rule, options in (
            (Suppression(conf=0.25, iou=0.65, multi_label=False), []),
            (
                Suppression(conf=0.001, iou=0.5, max_det=40),
                ["--multi-label", "--score-threshold", "0.001", "--nms-iou", "0.5",
                 "--max-detections", "40"],
            ),
        ):  # fmt: skip
            code, answer, _ = run_program(runner, bundle, "--tensor", file, *options)
            assert code == 0, answer
            expected = suppress(decode(output[0], match, (64, 64), 5, rule), match, placement, rule)
            found = answer["images"][0]["detections"]
            assert len(found) == len(expected) > 10
            assert [item["class_id"] for item in found] == expected.classes.tolist()
            assert [item["name"] for item in found] == [names[n] for n in expected.classes]
            scores = np.array([item["score"] for item in found], dtype=np.float32)
            boxes = np.array([item["box"] for item in found], dtype=np.float32)
            assert np.array_equal(scores, expected.scores)
            if head == "yolox":  # exp of two libraries: a last bit
                assert np.allclose(boxes, expected.boxes, rtol=1e-6, atol=1e-5)
            else:
                assert np.array_equal(boxes, expected.boxes)
    # the raw tensor, without a header, is the same
    (tmp_path / "raw.bin").write_bytes(tensor.tobytes())
    raw = run_program(runner, bundle, "--tensor", tmp_path / "raw.bin", *options)[1]
    assert raw["images"][0]["detections"] == found


def test_classes_are_ranked_equally(tmp_path: Path, runner: Path) -> None:
    contract = Preprocess(height=32, width=32, resize="none")
    random = np.random.default_rng(8)
    bundle = write_bundle(
        tmp_path / "bundle", contract, front(contract, (1, 10)), task="classify", head="logits"
    )
    for number in range(4):
        tensor = np.zeros(contract.input_shape, dtype=np.float32)
        logits = random.normal(0, 4, 10).astype(np.float32)
        if number == 3:  # a softmax inside the model
            logits = Classification(logits=logits).probabilities()
        tensor.reshape(-1)[:10] = logits
        file = tmp_path / f"{number}.npy"
        file.write_bytes(npy_bytes(tensor))
        code, answer, _ = run_program(runner, bundle, "--tensor", file)
        assert code == 0
        expected = Classification(logits=logits)
        top = answer["images"][0]["top"]
        assert [item["class_id"] for item in top] == expected.ranked(5).tolist()
        found = np.array([item["probability"] for item in top], dtype=np.float32)
        assert np.allclose(found, expected.probabilities()[expected.ranked(5)], rtol=3e-7)


def _same_detections(bundle: Path, images: list[Path], runner: Path, exact: bool) -> int:
    """Compare `edgekit.load(bundle).predict` with the runner on lossless copies; boxes seen."""
    code, answer, _ = run_program(runner, bundle, *images, "--score-threshold", "0.2")
    assert code == 0, answer
    seen = 0
    with edgekit.load(bundle) as model:
        for path, item in zip(images, answer["images"], strict=True):
            expected: Any = model.predict(path, conf=0.2)
            found = item["detections"]
            assert [d["class_id"] for d in found] == expected.class_ids.tolist()
            boxes = np.array([d["box"] for d in found], dtype=np.float32).reshape(-1, 4)
            scores = np.array([d["score"] for d in found], dtype=np.float32)
            if exact:
                assert np.array_equal(boxes, expected.boxes)
                assert np.array_equal(scores, expected.scores)
            else:
                assert np.allclose(boxes, expected.boxes, atol=0.02)
                assert np.allclose(scores, expected.scores, atol=1e-4)
            seen += len(found)
    return seen


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_detections_of_a_real_bundle(
    precision: str, cells_ncnn: dict[str, Path], tmp_path: Path, runner: Path
) -> None:
    bundle = cells_ncnn[precision]
    photos = sorted((Path(__file__).parent.parent.parent / "calib").glob("*.jpg"))[:6]
    images = []
    for photo in photos:
        image = cv2.imread(str(photo))
        assert image is not None
        images.append(tmp_path / f"{photo.stem}.png")
        cv2.imwrite(str(images[-1]), image)
    assert _same_detections(bundle, images, runner, exact=False) > 20
    # the raw outputs are those of ncnn's own Python wheel
    out = tmp_path / "out"
    run_program(runner, bundle, "--golden", "--save-outputs", out)
    for number, sample in enumerate(sorted((bundle / "golden").iterdir())):
        expected = read_npy(sample / "output_0.npy")
        found = read_npy(out / f"{number:03d}_output_0.npy")
        for start, stop in ((0, 4), (4, 7)):
            a, b = expected[:, start:stop], found[:, start:stop]
            assert np.abs(a - b).max() <= 2e-5 * np.abs(a).max()


def test_the_answer_about_golden_inputs_is_that_about_their_images(
    cells_ncnn: dict[str, Path], runner: Path
) -> None:
    bundle = cells_ncnn["fp32"]
    golden = run_program(runner, bundle, "--golden")[1]["images"]
    images = [bundle / item["image"] for item in golden]
    again = run_program(runner, bundle, *images)[1]["images"]
    assert [item["detections"] for item in golden] == [item["detections"] for item in again]
    assert any(item["detections"] for item in golden)
