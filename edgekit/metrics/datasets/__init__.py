"""Labelled data of every kind in one form: `open_dataset(path)` gives a `Dataset`.

Kinds: YOLO `data.yaml`, COCO json, ImageFolder, `.npz`. All labels are read and checked when the
data set is opened, so that a wrong line is reported before the first image is run; images are read
one at a time.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import BadInput, UsageError, nearest
from edgekit.metrics.datasets.base import Dataset, Sample, Truth

__all__ = ["SPLITS", "Dataset", "Sample", "Truth", "open_dataset"]

SPLITS = ("train", "val", "test")


def open_dataset(
    path: Path, *, split: str = "val", images: Path | None = None, limit: int | None = None
) -> Dataset:
    """Open labelled data.

    path: a YOLO `data.yaml` (or the folder that holds it), a COCO json, an ImageFolder, or a
    `.npz` with `images` uint8 RGB [N, H, W, C] and `labels` [N].
    split: "train", "val" or "test", where the data has splits.
    images: the folder of a COCO json's images, where it is not found beside the json.
    limit: keep so many samples, spread evenly over the set (a sorted ImageFolder begins with one
    class only).

    Raises BadInput naming the file and line of the first bad label, UsageError for a bad option.
    """
    from edgekit.metrics.datasets import classification, coco, yolo

    path = Path(path)
    if split not in SPLITS:
        raise UsageError(f"Unknown split '{split}'.", hint=nearest(split, SPLITS))
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be 1 or more, got {limit}.")
    if not path.exists():
        raise BadInput(
            f"The data {path} does not exist.",
            hint="Give a YOLO data.yaml, a COCO json, a folder of class folders, or an .npz.",
        )
    suffix = path.suffix.lower()
    if path.is_dir():
        description = yolo.find_description(path)
        if description is not None:
            dataset = yolo.load(description, split, images)
        else:
            dataset = classification.load_folder(path, split)
    elif suffix in (".yaml", ".yml"):
        dataset = yolo.load(path, split, images)
    elif suffix == ".json":
        dataset = coco.load(path, images=images, split=split)
    elif suffix == ".npz":
        dataset = classification.load_npz(path)
    else:
        raise BadInput(
            f"{path} is not labelled data that edgekit reads.",
            hint="Give a YOLO data.yaml, a COCO json, a folder of class folders, or an .npz.",
        )
    return dataset if limit is None else dataset.limited(limit)
