"""Folders of class folders and .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BadInput
from edgekit.metrics.datasets import open_dataset


def write_images(folder: Path, *names: str) -> None:
    import cv2

    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        ok, data = cv2.imencode(".png", np.full((4, 6, 3), (10, 20, 30), np.uint8))
        assert ok
        file.write_bytes(data.tobytes())


def test_class_folders_in_the_order_of_their_names(tmp_path):
    write_images(tmp_path, "dog/b.png", "dog/a.png", "cat/x/deep.png", "ähre/1.png")
    (tmp_path / "dog/readme.txt").write_text("not an image")
    dataset = open_dataset(tmp_path)
    assert (dataset.task, dataset.names) == ("classify", ("cat", "dog", "ähre"))
    assert [(s.name, s.label) for s in dataset.samples] == [
        (str(Path("cat/x/deep.png")), 0),
        (str(Path("dog/a.png")), 1),
        (str(Path("dog/b.png")), 1),
        (str(Path("ähre/1.png")), 2),
    ]
    assert dataset.samples[0].image()[0, 0].tolist() == [30, 20, 10]  # RGB


def test_splits(tmp_path):
    write_images(tmp_path, "train/a/1.png", "valid/a/2.png", "valid/b/3.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.names, len(dataset), dataset.split) == (("a", "b"), 2, "val")
    with pytest.raises(BadInput, match="no split 'test'"):
        open_dataset(tmp_path, split="test")


def test_an_empty_class_keeps_its_number(tmp_path):
    write_images(tmp_path, "a/1.png", "c/1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    dataset = open_dataset(tmp_path)
    assert dataset.names == ("a", "b", "c")
    assert [sample.label for sample in dataset.samples] == [0, 2]
    assert dataset.notes == ("1 class folders hold no image (b).",)


def test_numbers_are_ordered_as_text_and_that_is_said(tmp_path):
    write_images(tmp_path, *(f"{number}/1.png" for number in range(11)))
    dataset = open_dataset(tmp_path)
    assert dataset.names[:3] == ("0", "1", "10")
    assert "in the order of text" in dataset.notes[0]


def test_folders_that_are_no_image_folder(tmp_path):
    with pytest.raises(BadInput, match="holds no class folders"):
        open_dataset(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(BadInput, match="No image in the class folders"):
        open_dataset(tmp_path)
    write_images(tmp_path / "yolo", "images/val/1.png", "labels/1.png")
    with pytest.raises(BadInput, match=r"no data\.yaml"):
        open_dataset(tmp_path / "yolo")


def npz(path: Path, **arrays) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


PIXELS = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)


def test_npz(tmp_path):
    dataset = open_dataset(npz(tmp_path, images=PIXELS, labels=np.array([2, 0, 2])))
    assert (dataset.task, dataset.names, dataset.named) == ("classify", ("0", "1", "2"), False)
    assert [sample.label for sample in dataset.samples] == [2, 0, 2]
    np.testing.assert_array_equal(dataset.samples[1].image(), PIXELS[1])
    hashes = {sample.sha256() for sample in dataset.samples}
    assert len(hashes) == 3 and all(len(value) == 64 for value in hashes)


def test_grey_images_and_names(tmp_path):
    path = npz(tmp_path, images=PIXELS[..., :1], labels=np.array([0, 1, 0]), names=["no", "yes"])
    dataset = open_dataset(path)
    assert (dataset.names, dataset.named) == (("no", "yes"), True)
    image = dataset.samples[0].image()
    assert image.shape == (4, 5, 3) and (image == image[..., :1]).all()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"labels": np.zeros(3, int)}, "no array 'images'"),
        ({"images": PIXELS}, "no array 'labels'"),
        ({"images": PIXELS.astype(np.float32), "labels": np.zeros(3, int)}, "must be uint8"),
        ({"images": PIXELS[0], "labels": np.zeros(4, int)}, "must be uint8 [N, H, W, 3]"),
        ({"images": PIXELS.transpose(0, 3, 1, 2), "labels": np.zeros(3, int)}, "must be uint8"),
        ({"images": PIXELS, "labels": np.zeros(2, int)}, "must be whole numbers [3]"),
        ({"images": PIXELS, "labels": np.zeros(3)}, "must be whole numbers [3]"),
        ({"images": PIXELS, "labels": np.array([0, -1, 0])}, "labels[1] is -1"),
        ({"images": PIXELS, "labels": np.array([0, 1, 2]), "names": ["a", "b"]}, "labels[2] is 2"),
        ({"images": PIXELS, "labels": np.zeros(3, int), "names": [1, 2]}, "names must be text"),
        ({"images": PIXELS[:0], "labels": np.zeros(0, int)}, "holds no image"),
        ({"images": PIXELS, "labels": np.array([0, 1, None])}, "holds pickled objects"),
    ],
)
def test_bad_npz(tmp_path, arrays, reason):
    with pytest.raises(BadInput) as error:
        open_dataset(npz(tmp_path, **arrays))
    assert reason in error.value.message and "data.npz" in error.value.message


def test_damaged_npz(tmp_path):
    path = npz(tmp_path, images=PIXELS, labels=np.zeros(3, int))
    whole = path.read_bytes()
    for data in (b"", b"no zip at all", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=r"cannot be read as \.npz"):
            open_dataset(path)
    flipped = bytearray(whole)
    flipped[150] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(BadInput):
        open_dataset(path)
    with open(path, "wb") as file:
        np.save(file, PIXELS)
    with pytest.raises(BadInput, match=r"cannot be read as \.npz"):
        open_dataset(path)
