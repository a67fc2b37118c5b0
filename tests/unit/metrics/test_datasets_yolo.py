"""YOLO data, good and bad."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BadInput, UsageError
from edgekit.metrics.datasets import open_dataset


def write_image(path: Path, height: int = 40, width: int = 80, seed: int = 0) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    ok, data = cv2.imencode(path.suffix, pixels)
    assert ok
    path.write_bytes(data.tobytes())


@pytest.fixture
def yolo(tmp_path: Path):
    """Make a data set: labels by image name, None for an image without a label file."""

    def make(labels: dict[str, str | None], yaml: str = "") -> Path:
        for seed, (name, text) in enumerate(labels.items()):
            write_image(tmp_path / "images" / "val" / f"{name}.png", seed=seed)
            if text is not None:
                file = tmp_path / "labels" / "val" / f"{name}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
        path = tmp_path / "data.yaml"
        path.write_text(yaml or "val: ./images/val/\nnames: [cell, plate]\n", encoding="utf-8")
        return path

    return make


def test_boxes_become_pixels(yolo):
    dataset = open_dataset(yolo({"a": "1 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.5\n"}))
    assert (dataset.task, dataset.names, len(dataset)) == ("detect", ("cell", "plate"), 1)
    (sample,) = dataset.samples
    image = sample.image()
    assert image.shape == (40, 80, 3) and image.dtype == np.uint8
    truth = sample.truth(40, 80)
    assert truth.boxes.tolist() == [[30, 10, 50, 30], [0, 0, 40, 20]]
    assert truth.classes.tolist() == [1, 0]
    assert truth.area.tolist() == [400, 800]
    assert not truth.crowd.any()
    assert dataset.notes == ()
    assert sample.sha256() == hashlib.sha256(sample.path.read_bytes()).hexdigest()


def test_the_folder_of_the_yaml_will_do(yolo):
    path = yolo({"a": "0 0.5 0.5 0.5 0.5"})
    assert len(open_dataset(path.parent)) == 1


def test_boxes_are_clipped_to_the_image(yolo):
    (sample,) = open_dataset(yolo({"a": "0 0.99 0.5 0.2 1.0"})).samples
    assert sample.truth(100, 100).boxes[0].tolist() == pytest.approx([89, 0, 100, 100])
    assert sample.truth(100, 100).area[0] == pytest.approx(1100)


def test_backgrounds_are_counted_and_said(yolo):
    path = yolo({"a": "0 0.5 0.5 0.5 0.5", "b": "", "c": "\n \n", "d": None})
    dataset = open_dataset(path)
    assert [len(sample.objects) for sample in dataset.samples] == [1, 0, 0, 0]
    notes = " ".join(dataset.notes)
    assert "1 of 4 images have no label file" in notes
    assert "2 of 4 images have an empty label file" in notes


def test_no_label_at_all_is_an_error_that_says_where_it_looked(yolo):
    with pytest.raises(BadInput, match=r"No image .* has a label file .*labels.val.a\.txt"):
        open_dataset(yolo({"a": None, "b": None}))


def test_labels_without_images_are_noted_and_classes_txt_is_not_one(yolo):
    path = yolo({"a": "0 0.5 0.5 0.5 0.5"})
    (path.parent / "labels/val/classes.txt").write_text("cell\nplate\n")
    assert open_dataset(path).notes == ()
    (path.parent / "labels/val/gone.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (note,) = open_dataset(path).notes
    assert "1 label files have no image (gone.txt)" in note


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2 0.5 0.5 0.5 0.5", "class 2 is out of range; the data names 2 classes"),
        ("-1 0.5 0.5 0.5 0.5", "class -1 is out of range"),
        ("0.5 0.5 0.5 0.5 0.5", "the class 0.5 is not a whole number"),
        ("0 0.5 0.5 0.5", "4 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 numbers"),
        ("cell 0.5 0.5 0.5 0.5", "'cell 0.5 0.5 0.5 0.5' is not a row of numbers"),
        ("0 nan 0.5 0.5 0.5", "not finite"),
        ("0 0.5 0.5 inf 0.5", "not finite"),
        ("0 320 200 64 64", "outside 0..1"),
        ("0 0.5 0.5 -0.5 0.5", "outside 0..1"),
    ],
)
def test_bad_rows_name_file_and_line(yolo, row, reason):
    path = yolo({"a": "0 0.5 0.5 0.5 0.5\n", "b": f"0 0.1 0.1 0.1 0.1\n\n{row}\n"})
    with pytest.raises(BadInput) as error:
        open_dataset(path)
    assert reason in error.value.message
    assert "b.txt, line 3" in error.value.message


def test_label_files_that_are_not_text(yolo):
    path = yolo({"a": ""})
    (path.parent / "labels/val/a.txt").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"a\.txt is not text"):
        open_dataset(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(yolo):
    path = yolo({"a": ""})
    (path.parent / "labels/val/a.txt").write_bytes(
        b"\xef\xbb\xbf0 0.5 0.5 0.5 0.5\r\n1 0.2 0.2 0.1 0.1\r\n"
    )
    assert open_dataset(path).samples[0].objects.classes.tolist() == [0, 1]


def test_duplicates_and_flat_boxes_are_dropped_and_said(yolo):
    row = "0 0.5 0.5 0.5 0.5\n"
    dataset = open_dataset(yolo({"a": row + row + "1 0.5 0.5 0.5 0.5\n0 0.3 0.3 0 0.2\n"}))
    assert dataset.samples[0].objects.classes.tolist() == [0, 1]
    assert dataset.notes == (
        "1 duplicate label rows were dropped.",
        "1 boxes without width or height were dropped.",
    )


def test_polygons_become_boxes(yolo):
    dataset = open_dataset(yolo({"a": "1 0.2 0.1 0.6 0.3 0.4 0.9\n0 0.5 0.5 0.5 0.5\n"}))
    np.testing.assert_allclose(dataset.samples[0].objects.boxes[0], [0.2, 0.1, 0.6, 0.9])
    assert dataset.notes == ("1 polygons were taken as their boxes.",)


def test_keypoint_rows_give_their_box(yolo):
    yaml = "val: images/val\nnames: [person]\nkpt_shape: [2, 3]\n"
    dataset = open_dataset(yolo({"a": "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 1"}, yaml))
    np.testing.assert_allclose(dataset.samples[0].objects.boxes[0], [0.4, 0.3, 0.6, 0.7])


def test_huge_and_tiny_images(yolo):
    path = yolo({"a": "0 0.5 0.5 1 1"})
    write_image(path.parent / "images/val/tiny.png", 1, 1)
    write_image(path.parent / "images/val/wide.jpg", 3, 9000)
    for name in ("tiny", "wide"):
        (path.parent / f"labels/val/{name}.txt").write_text("0 0.5 0.5 1 1")
    for sample in open_dataset(path).samples:
        height, width = sample.image().shape[:2]
        assert sample.truth(height, width).boxes.tolist() == [[0, 0, width, height]]


def test_names_beyond_ascii(tmp_path):
    folder = tmp_path / "Blutbilder 血"
    write_image(folder / "images" / "val" / "célula — 1.png")
    label = folder / "labels" / "val" / "célula — 1.txt"
    label.parent.mkdir(parents=True)
    label.write_text("1 0.5 0.5 0.5 0.5")
    (folder / "data.yaml").write_text("val: images/val\nnames: {0: Zelle, 1: 血小板}\n", "utf-8")
    dataset = open_dataset(folder / "data.yaml")
    assert dataset.names == ("Zelle", "血小板")
    assert dataset.samples[0].image().shape == (40, 80, 3)
    assert dataset.samples[0].objects.classes.tolist() == [1]


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ("val: [unclosed", "is not YAML"),
        ("- a\n- b\n", "is not a data.yaml"),
        ("names: [a, b]\n", "has no split 'val'"),
        ("val: images/val\n", "names no classes"),
        ("val: images/val\nnames: []\n", "names is empty"),
        ("val: images/val\nnames: {0: a, 2: b}\n", "must number the classes 0 to 1"),
        ("val: images/val\nnames: {a: b}\n", "keys of names must be class numbers"),
        ("val: images/val\nnames: [a, b]\nnc: 3\n", "nc is 3, but names holds 2"),
        ("val: images/other\nnames: [a, b]\n", "'images/other', which does not exist"),
        ("val: images/val\nnames: [a, b]\nannotations: x.json\n", "annotations is 'x.json'"),
    ],
)
def test_bad_descriptions(yolo, yaml, reason):
    path = yolo({"a": "0 0.5 0.5 0.5 0.5"}, yaml)
    with pytest.raises(BadInput) as error:
        open_dataset(path)
    assert reason in error.value.message and "data.yaml" in error.value.message


def test_splits_and_where_paths_start(yolo):
    path = yolo({"a": "0 0.5 0.5 0.5 0.5"})
    base = path.parent
    for text in (
        f"path: {base}\nval: images/val\nnames: [a]\n",
        "path: nowhere/coco\nval: images/val\nnames: [a]\n",
        "validation: images/val\nnames: [a]\n",
        "val: ../images/val\nnames: [a]\n",
        "val: [images/val]\nnc: 1\n",
    ):
        path.write_text(text)
        assert len(open_dataset(path)) == 1, text
    with pytest.raises(BadInput, match="has no split 'test'; it has val") as error:
        open_dataset(path, split="test")
    assert "--split" in error.value.hint
    with pytest.raises(UsageError, match="Unknown split 'vall'"):
        open_dataset(path, split="vall")


def test_a_text_file_may_list_the_images(yolo):
    path = yolo({"a": "0 0.5 0.5 0.5 0.5", "b": "0 0.5 0.5 0.5 0.5"})
    (path.parent / "val.txt").write_text("./images/val/b.png\n\n")
    path.write_text("val: val.txt\nnames: [a]\n")
    assert [Path(sample.name).name for sample in open_dataset(path).samples] == ["b.png"]
    (path.parent / "val.txt").write_text("./images/val/b.png\n./images/val/c.png\n")
    with pytest.raises(BadInput, match=r"val\.txt, line 2: the image \./images/val/c\.png"):
        open_dataset(path)


def test_labels_may_lie_beside_their_images(tmp_path):
    write_image(tmp_path / "val" / "a.png")
    (tmp_path / "val" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("val: val\nnames: [a]\n")
    assert len(open_dataset(tmp_path / "data.yaml").samples[0].objects) == 1


def test_a_limit_spreads_over_the_set(yolo):
    path = yolo({f"{i:02}": "0 0.5 0.5 0.5 0.5" for i in range(10)})
    dataset = open_dataset(path, limit=4)
    assert [Path(s.name).stem for s in dataset.samples] == ["00", "02", "05", "07"]
    assert "4 of 10 images are used" in dataset.notes[-1]
    assert len(open_dataset(path, limit=50)) == 10
    with pytest.raises(UsageError):
        open_dataset(path, limit=0)


def test_equal_data_has_equal_hashes_wherever_it_lies(yolo, tmp_path):
    import shutil

    path = yolo({"a": "0 0.5 0.5 0.5 0.5", "b": "1 0.5 0.5 0.5 0.5"})
    copy = tmp_path.parent / f"{tmp_path.name}-copy"
    shutil.copytree(tmp_path, copy)
    first = open_dataset(path).sha256()
    assert open_dataset(copy / "data.yaml").sha256() == first
    (copy / "labels/val/b.txt").write_text("1 0.5 0.5 0.5 0.6")
    assert open_dataset(copy / "data.yaml").sha256() != first
    seen = []

    def remembered(file):
        seen.append(file.name)
        return "0" * 64

    open_dataset(path).sha256(remembered)
    assert seen == ["a.png", "b.png"]


def test_missing_data_and_other_files(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        open_dataset(tmp_path / "gone.yaml")
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(BadInput, match="not labelled data"):
        open_dataset(tmp_path / "notes.md")
