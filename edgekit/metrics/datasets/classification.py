"""Images with one class each: a folder of class folders, or an `.npz`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from edgekit import images
from edgekit.errors import BadInput
from edgekit.metrics.datasets.base import Dataset, Sample, some, unique_names

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of `split` under `root` by its usual names, or None."""
    for name in _SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    return None


def load_folder(root: Path, split: str) -> Dataset:
    """Read an ImageFolder: `root/CLASS/*.jpg` or `root/SPLIT/CLASS/*.jpg`.

    Class c is the c-th folder in the order of the names as text, which is the order that
    torchvision and Ultralytics train with. A class folder without images keeps its number.
    """
    folders = _subfolders(root)
    all_splits = {name for names in _SPLIT_FOLDERS.values() for name in names}
    used: str | None = None
    if folders and {folder.name for folder in folders} <= all_splits:
        chosen = split_folder(root, split)
        if chosen is None:
            raise BadInput(
                f"{root} has no split '{split}': it holds {some([f.name for f in folders])}.",
                hint="Choose another with --split.",
            )
        root, used = chosen, split
        folders = _subfolders(root)
    if {"images", "labels"} <= {folder.name for folder in folders}:
        raise BadInput(
            f"{root} holds images/ and labels/, but no data.yaml that names the classes.",
            hint="Write a data.yaml (train:, val:, names:) beside them and give that.",
        )
    if not folders:
        raise BadInput(
            f"{root} holds no class folders.",
            hint="An ImageFolder has one folder per class; detection data needs a data.yaml.",
        )
    samples: list[Sample] = []
    empty: list[str] = []
    for label, folder in enumerate(folders):
        try:
            found = images.list_images(folder)
        except BadInput:
            empty.append(folder.name)
            continue
        samples.extend(
            Sample(name=str(path.relative_to(root)), path=path, label=label) for path in found
        )
    if not samples:
        raise BadInput(
            f"No image in the class folders of {root}.",
            hint="Known suffixes: " + " ".join(sorted(images.SUFFIXES)),
        )
    names = [folder.name for folder in folders]
    notes = []
    if empty:
        notes.append(f"{len(empty)} class folders hold no image ({some(empty)}).")
    if all(name.isdigit() for name in names) and names != sorted(names, key=int):
        notes.append(
            "The class folders are numbers, taken in the order of text as training tools do "
            f"({some(names)})."
        )
    return Dataset(
        task="classify",
        names=unique_names(names),
        samples=tuple(samples),
        source=root,
        split=used,
        notes=tuple(notes),
    )


def load_npz(path: Path) -> Dataset:
    """Read `images` uint8 RGB [N, H, W, C] (C 3, or 1 for grey), `labels` [N], perhaps `names` [K].

    The arrays are held in memory. Nothing in the file is unpickled.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a single array (.npy)")
        with loaded as archive:
            missing = [key for key in ("images", "labels") if key not in archive.files]
            if missing:
                raise BadInput(
                    f"{path} has no array '{missing[0]}'; it holds {some(archive.files, 8)}.",
                    hint="It needs images, uint8 RGB [N, H, W, C], and labels, [N].",
                )
            pixels, labels = archive["images"], archive["labels"]
            given = archive["names"] if "names" in archive.files else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds pickled objects" if "pickle" in str(error) else str(error)
        raise BadInput(
            f"{path} cannot be read as .npz: {reason}.",
            hint="Write it with numpy.savez(path, images=..., labels=...).",
        ) from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise BadInput(
            f"{path}: images must be uint8 [N, H, W, 3] (or 1), got {pixels.dtype} "
            f"{list(pixels.shape)}."
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(pixels),):
        raise BadInput(
            f"{path}: labels must be whole numbers [{len(pixels)}], got {labels.dtype} "
            f"{list(labels.shape)}."
        )
    if not len(pixels) or 0 in pixels.shape:
        raise BadInput(f"{path} holds no image: images is {list(pixels.shape)}.")
    if given is not None and (given.ndim != 1 or given.dtype.kind not in "US"):
        raise BadInput(f"{path}: names must be text [K], got {given.dtype} {list(given.shape)}.")
    classes = int(labels.max()) + 1 if given is None else len(given)
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        raise BadInput(
            f"{path}: labels[{bad[0]}] is {labels[bad[0]]}, outside the classes 0 to {classes - 1}."
        )
    names = [str(i) for i in range(classes)] if given is None else [_text(name) for name in given]
    samples = tuple(
        Sample(name=f"{path.name}[{index}]", pixels=pixels[index], label=int(labels[index]))
        for index in range(len(pixels))
    )
    return Dataset(
        task="classify",
        names=unique_names(names),
        samples=samples,
        source=path,
        named=given is not None,
    )


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
