"""`edgekit evaluate` on data as people have it: a detector that finds white rectangles must find them.

The model is three reductions: where a pixel of its input is white, there is a box of class 0, score 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgekit import onnx_file
from edgekit.cli import run
from edgekit.preprocess import Preprocess

SIDE = 160
Answer = Callable[..., tuple[int, dict[str, Any]]]
BOX = (0.2, 0.125, 0.6, 0.625)
"""The rectangle in fractions of the image: x1, y1, x2, y2."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """[1, 3, S, S] → [1, 1, 6]: x1, y1, x2, y2, score, class of the white area."""
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["least"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["least", "bright"], ["white"]),
        helper.make_node("Cast", ["white"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["mask"], ["score"], axes=[1, 2], keepdims=0),
    ]
    corners = []
    for name, axis in (("x", 1), ("y", 2)):
        nodes.append(helper.make_node("ReduceMax", ["mask"], [f"{name}s"], axes=[axis], keepdims=0))
        for last in (0, 1):
            made = f"{name}{last + 1}"
            nodes += [
                helper.make_node("ArgMax", [f"{name}s"], [made], axis=1, select_last_index=last),
                helper.make_node("Cast", [made], [f"{made}f"], to=TensorProto.FLOAT),
                helper.make_node("Add", [f"{made}f", f"{last}"], [f"{made}e"]),
            ]
            corners.append(f"{made}e")
    order = [corners[0], corners[2], corners[1], corners[3]]
    nodes += [
        helper.make_node("Reshape", ["score", "column"], ["scores"]),
        helper.make_node("Mul", ["scores", "0"], ["class"]),
        helper.make_node("Concat", [*order, "scores", "class"], ["row"], axis=1),
        helper.make_node("Reshape", ["row", "rows"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "white",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 6])],
        [
            helper.make_tensor("bright", TensorProto.FLOAT, [], [0.7]),
            helper.make_tensor("0", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("1", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("column", TensorProto.INT64, [2], [1, 1]),
            helper.make_tensor("rows", TensorProto.INT64, [3], [1, 1, 6]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contract = Preprocess(height=SIDE, width=SIDE)
    onnx_file.set_metadata(
        proto, onnx_file.contract_metadata(contract, "detect", "yolo26", ("white", "other"))
    )
    path = tmp_path_factory.mktemp("model") / "white.onnx"
    onnx.checker.check_model(proto)
    onnx_file.save(proto, path)
    return path


@pytest.fixture
def answer(model: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    """`edgekit evaluate` on the given data: its exit code and its JSON."""

    def call(data: Path, *options: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        words = ["evaluate", model, "--data", data, "--resamples", 0, "--json", *options]
        code = run([str(word) for word in words])
        return code, json.loads(capsys.readouterr().out)

    return call


def picture(height: int, width: int) -> np.ndarray:
    """uint8 RGB with the white rectangle on dark green."""
    image = np.full((height, width, 3), (10, 60, 10), np.uint8)
    x1, y1, x2, y2 = (BOX * np.array([width, height] * 2)).round().astype(int)
    image[y1:y2, x1:x2] = 255
    return image


def written(path: Path, image: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def yolo(folder: Path, names: str = "[white, other]") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "data.yaml").write_text(f"val: images\nnames: {names}\n", encoding="utf-8")
    return folder / "data.yaml"


def labelled(folder: Path, stem: str, row: str | None = None) -> None:
    x1, y1, x2, y2 = BOX
    own = f"0 {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}\n"
    (folder / "labels" / f"{stem}.txt").write_text(own if row is None else row, encoding="utf-8")


def stored_turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a camera stores, so that `orientation` shows `image`."""
    flat = image.transpose(1, 0, 2)
    return {
        1: image,
        3: np.rot90(image, 2),
        5: flat,
        6: np.rot90(image),
        7: np.rot90(flat, 2),
        8: np.rot90(image, -1),
    }[orientation]


def with_exif(path: Path, image: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(stored_turned(image, orientation))
    return written(path, stored, exif=exif, quality=95)


def test_every_kind_of_image_gives_the_right_boxes(tmp_path: Path, answer: Answer) -> None:
    data = yolo(tmp_path)
    photo = picture(120, 200)
    written(tmp_path / "images" / "rgb.jpg", photo, quality=95)
    written(tmp_path / "images" / "grey.png", photo[..., 1])
    Image.fromarray(photo).convert("CMYK").save(tmp_path / "images" / "cmyk.jpg", quality=95)
    deep = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257
    assert cv2.imwrite(str(tmp_path / "images" / "deep.png"), deep)
    assert cv2.imwrite(str(tmp_path / "images" / "deep.tif"), deep[..., 1])
    written(tmp_path / "images" / "alpha.png", np.dstack([photo, photo[..., 0]]))
    Image.fromarray(photo).quantize(4).save(tmp_path / "images" / "palette.png")
    written(tmp_path / "images" / "größe 尺寸 'ф'.jpg", photo, quality=95)
    written(tmp_path / "images" / "huge.jpg", picture(6000, 8000), quality=80)
    written(tmp_path / "images" / "thin.png", picture(40, 2000))
    for orientation in (3, 5, 6, 7, 8):
        with_exif(tmp_path / "images" / f"exif{orientation}.jpg", photo, orientation)
    count = 0
    for path in (tmp_path / "images").iterdir():
        labelled(tmp_path, path.stem)
        count += 1
    written(tmp_path / "images" / "one.png", np.zeros((1, 1, 3), np.uint8))
    labelled(tmp_path, "one", "")
    code, found = answer(data)
    assert code == 0, found
    assert found["images"] == count + 1 == 16
    assert found["map50"] == 1.0 and found["recall"] == 1.0 and found["precision"] == 1.0
    # a rectangle that is cut out of a reduced picture is a pixel off at most
    assert found["map75"] == 1.0
    assert any("no box" in note or "background" in note for note in found["notes"])


@pytest.mark.parametrize("made_on", ["upright", "stored"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_coco_labels_of_turned_images(
    tmp_path: Path, answer: Answer, orientation: int, made_on: str
) -> None:
    """The json says on which of the two the boxes were drawn, by its width and height."""
    photo = picture(120, 200)
    path = with_exif(tmp_path / "val" / "a.jpg", photo, orientation)
    pixels = photo if made_on == "upright" else stored_turned(photo, orientation)
    rows, columns = (np.flatnonzero((pixels.min(axis=2) > 200).any(axis=a)) for a in (1, 0))
    x, y, right, low = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    content = coco([(path.name, pixels.shape[:2])], [(1, 0, (x, y, right - x, low - y), 0)])
    (tmp_path / "val.json").write_text(json.dumps(content))
    code, found = answer(tmp_path / "val.json")
    assert code == 0, found
    assert found["map75"] == 1.0
    said = any("turned by EXIF" in note for note in found["notes"])
    assert said is (made_on == "stored")


def test_coco_labels_of_another_size_are_refused(tmp_path: Path, answer: Answer) -> None:
    written(tmp_path / "val" / "a.jpg", picture(120, 200))
    content = coco([("a.jpg", (200, 120))], [(1, 0, (10, 10, 20, 20), 0)])
    (tmp_path / "val.json").write_text(json.dumps(content))
    code, refused = answer(tmp_path / "val.json")
    assert code == 8
    assert "200x120 pixels" in refused["error"] and "120x200" in refused["error"]


def coco(images: list[tuple[str, Any]], boxes: list[tuple[int, int, Any, int]]) -> dict[str, Any]:
    """boxes: (image id from 1, class, (x, y, width, height), crowd)."""
    return {
        "images": [
            {"id": key, "file_name": name, "height": int(size[0]), "width": int(size[1])}
            for key, (name, size) in enumerate(images, start=1)
        ],
        "annotations": [
            {
                **{"id": key, "image_id": image, "category_id": number + 1, "iscrowd": crowd},
                **{"bbox": [float(side) for side in sides]},
            }
            for key, (image, number, sides, crowd) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "white"}, {"id": 2, "name": "other"}],
    }


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong(tmp_path: Path, answer: Answer) -> None:
    for name in ("a.png", "b.png"):
        written(tmp_path / "val" / name, picture(100, 100))
    sides = (20, 12, 40, 50)
    images = [("a.png", (100, 100)), ("b.png", (100, 100))]
    for crowd, expected in ((1, 1.0), (0, 0.0)):
        # the second picture's white area lies in a far larger region
        boxes = [(1, 0, sides, 0), (2, 0 if crowd else 1, (0, 0, 100, 100), crowd)]
        (tmp_path / "val.json").write_text(json.dumps(coco(images, boxes)))
        code, found = answer(tmp_path / "val.json")
        assert code == 0, found
        assert found["precision"] == 1.0 if crowd else found["precision"] < 1.0
        assert found["per_class"]["white"] > 0.85
        assert found["per_class"].get("other", 1.0) == expected


def test_missing_labels_and_missing_images_are_said(tmp_path: Path, answer: Answer) -> None:
    data = yolo(tmp_path)
    for name in ("labelled", "empty", "none"):
        image = picture(100, 100) if name == "labelled" else np.zeros((100, 100, 3), np.uint8)
        written(tmp_path / "images" / f"{name}.png", image)
    labelled(tmp_path, "labelled")
    labelled(tmp_path, "empty", "")
    labelled(tmp_path, "orphan")
    code, found = answer(data)
    assert code == 0, found
    assert (found["images"], found["map50"], found["precision"]) == (3, 1.0, 1.0)
    notes = " ".join(found["notes"])
    assert "orphan" in notes
    assert "2 of 3 images" in notes or ("1" in notes and "background" in notes)


def test_a_white_picture_without_a_label_is_a_mistake(tmp_path: Path, answer: Answer) -> None:
    """An image without labels counts: what is found on it is wrong."""
    data = yolo(tmp_path)
    for name in ("a", "b"):
        written(tmp_path / "images" / f"{name}.png", picture(100, 100))
    labelled(tmp_path, "a")
    code, found = answer(data)
    assert code == 0 and found["precision"] == 0.5 and found["recall"] == 1.0


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("2 0.5 0.5 0.5 0.5\n", "2"),
        ("-1 0.5 0.5 0.5 0.5\n", "-1"),
        ("0.5 0.5 0.5 0.5 0.5\n", "0.5"),
    ],
)
def test_class_numbers_out_of_range_name_file_and_line(
    tmp_path: Path, answer: Answer, row: str, told: str
) -> None:
    data = yolo(tmp_path)
    written(tmp_path / "images" / "a.png", picture(100, 100))
    labelled(tmp_path, "a", "0 0.5 0.5 0.5 0.5\n" + row)
    code, refused = answer(data)
    assert code == 8
    assert "a.txt" in refused["error"] and "2" in refused["error"] and told in refused["error"]


@pytest.mark.parametrize("name", ["half.jpg", "empty.png", "text.jpg"])
def test_files_that_are_no_images_are_named(tmp_path: Path, answer: Answer, name: str) -> None:
    data = yolo(tmp_path)
    for stem in ("a", "b", "c"):
        written(tmp_path / "images" / f"{stem}.png", picture(100, 100))
        labelled(tmp_path, stem)
    whole = written(tmp_path / "images" / "x.jpg", picture(100, 100)).read_bytes()
    (tmp_path / "images" / "x.jpg").unlink()
    content = {"half.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.jpg": b"no image"}
    (tmp_path / "images" / name).write_bytes(content[name])
    labelled(tmp_path, Path(name).stem)
    code, refused = answer(data)
    assert code == 8 and name in refused["error"]
    code, found = answer(data, "--max-bad-images", 0.3)
    assert code == 0 and (found["images"], found["map50"]) == (3, 1.0)
    assert any(name in note for note in found["notes"])
