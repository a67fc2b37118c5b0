"""COCO json, alone and named by a data.yaml."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BadInput
from edgekit.metrics.datasets import open_dataset

CONTENT = {
    "images": [
        {"id": 7, "file_name": "b.png", "height": 40, "width": 80},
        {"id": 3, "file_name": "a.png", "height": 40, "width": 80},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [10, 5, 20, 30], "area": 321.5},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 80, 40], "iscrowd": 1},
    ],
    "categories": [{"id": 9, "name": "plate"}, {"id": 2, "name": "cell"}],
}


def write(folder: Path, content=CONTENT, images: str = "images", name: str = "val.json") -> Path:
    import cv2

    for entry in ("a.png", "b.png"):
        file = folder / images / entry
        file.parent.mkdir(parents=True, exist_ok=True)
        ok, data = cv2.imencode(".png", np.full((40, 80, 3), 90, np.uint8))
        assert ok
        file.write_bytes(data.tobytes())
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(**changes):
    return {**copy.deepcopy(CONTENT), **changes}


def test_classes_by_rising_category_and_boxes_in_pixels(tmp_path):
    dataset = open_dataset(write(tmp_path))
    assert dataset.names == ("cell", "plate")
    assert [sample.name for sample in dataset.samples] == ["b.png", "a.png"]
    truth = dataset.samples[1].truth(40, 80)
    assert truth.boxes.tolist() == [[10, 5, 30, 35], [0, 0, 80, 40]]
    assert truth.classes.tolist() == [1, 0]
    assert truth.crowd.tolist() == [False, True]
    assert truth.area.tolist() == [321.5, 3200]
    assert dataset.notes == ("1 of 2 images have no box (taken as background).",)


@pytest.mark.parametrize("images", ["images", ".", "val", "images/val", "val2017"])
def test_the_images_are_found_beside_the_json(tmp_path, images):
    assert len(open_dataset(write(tmp_path, images=images))) == 2


def test_the_images_are_found_beside_an_annotations_folder(tmp_path):
    path = write(tmp_path, images="val2017", name="annotations/instances_val2017.json")
    assert len(open_dataset(path)) == 2


def test_the_images_folder_may_be_given(tmp_path):
    path = write(tmp_path, images="somewhere/else")
    with pytest.raises(BadInput, match=r"images of .* were not found \(b\.png") as error:
        open_dataset(path)
    assert "--data-images" in error.value.hint
    assert len(open_dataset(path, images=tmp_path / "somewhere/else")) == 2


def test_listed_images_that_are_missing_are_noted(tmp_path):
    path = write(tmp_path)
    (tmp_path / "images/b.png").unlink()
    dataset = open_dataset(path)
    assert [sample.name for sample in dataset.samples] == ["a.png"]
    assert "1 images of val.json are not in" in dataset.notes[0] and "b.png" in dataset.notes[0]


def test_another_image_size_would_misplace_every_box(tmp_path):
    (sample, _) = open_dataset(write(tmp_path)).samples
    with pytest.raises(BadInput, match="is 40x80 pixels, but"):
        sample.truth(80, 40)
    with pytest.raises(BadInput, match="annotations were made on 80x40"):
        sample.truth(400, 800)
    without = changed(images=[{"id": 3, "file_name": "a.png"}])
    (sample,) = open_dataset(write(tmp_path, without)).samples
    assert len(sample.truth(400, 800)) == 2


def annotation(**changes):
    return [{"id": 5, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], **changes}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 0.3}], "is a list, as COCO result files"),
        ({"images": []}, "no list 'annotations'"),
        (changed(images=[]), "lists no image"),
        (changed(images=[{"file_name": "a.png"}]), "an image without an id"),
        (changed(images=[{"id": 3}]), "the image 3 has no file_name"),
        (changed(images=CONTENT["images"][:1] * 2), "two images have the id 7"),
        (changed(categories=[]), "has no categories"),
        (changed(categories=[{"id": 1}, {"id": 1}]), "two categories have the id 1"),
        (changed(categories=[{"name": "x"}]), "a category without a whole number"),
        (changed(annotations=[3]), "annotation number 1 is not an object"),
        (changed(annotations=annotation(category_id=4)), "annotation 5 has the category 4"),
        (changed(annotations=annotation(category_id=None)), "annotation 5 has the category None"),
        (changed(annotations=annotation(image_id=None)), "annotation 5 has no image_id"),
        (changed(annotations=annotation(bbox=[1, 2, 3])), "annotation 5: bbox must be four"),
        (changed(annotations=annotation(bbox=[1, 2, float("nan"), 4])), "four finite numbers"),
        (changed(annotations=annotation(bbox=[1, 2, "3", 4])), "four finite numbers"),
        (changed(annotations=annotation(bbox=[30, 2, -3, 4])), "has a negative size"),
        (changed(annotations=annotation(area="big")), "area must be a finite number"),
    ],
)
def test_bad_json_names_what_is_wrong(tmp_path, content, reason):
    with pytest.raises(BadInput) as error:
        open_dataset(write(tmp_path, content))
    assert reason in error.value.message and "val.json" in error.value.message


def test_stray_annotations_and_flat_boxes_are_noted(tmp_path):
    rows = [*annotation(), *annotation(image_id=99), *annotation(bbox=[1, 2, 0, 4])]
    dataset = open_dataset(write(tmp_path, changed(annotations=rows)))
    assert sum(len(sample.objects) for sample in dataset.samples) == 1
    assert "1 annotations belong to no image" in dataset.notes[1]
    assert "1 boxes without width or height" in dataset.notes[2]


def test_a_yaml_may_name_the_json_and_then_numbers_the_classes(tmp_path):
    write(tmp_path, images="images/val", name="truth.json")
    yaml = tmp_path / "data.yaml"
    yaml.write_text("val: images/val\nnames: [plate, other, cell]\nannotations: truth.json\n")
    dataset = open_dataset(yaml)
    assert dataset.names == ("plate", "other", "cell")
    assert dataset.samples[1].truth(40, 80).classes.tolist() == [0, 2]
    assert dataset.split == "val"
    yaml.write_text("val: images/val\nnames: [plate]\nannotations: {val: truth.json}\n")
    with pytest.raises(BadInput, match="names do not list: cell"):
        open_dataset(yaml)
