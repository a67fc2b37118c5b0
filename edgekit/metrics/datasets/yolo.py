"""YOLO data: a `data.yaml`, images/ and labels/ folders, one text line per box.

Format: https://docs.ultralytics.com/datasets/detect/. A line is `class cx cy w h`, or a polygon
`class x1 y1 x2 y2 x3 y3 …`, which becomes its box; coordinates are fractions of the image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import images as reader
from edgekit.errors import BadInput
from edgekit.metrics.datasets import coco
from edgekit.metrics.datasets.base import Dataset, Sample, Truth, some, unique_names
from edgekit.require import require

# labelling tools round; beyond this a coordinate is in pixels, or wrong
_TOLERANCE = 0.01
_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml")


def find_description(folder: Path) -> Path | None:
    """The data.yaml of a folder, or None."""
    for name in _DESCRIPTIONS:
        if (folder / name).is_file():
            return folder / name
    return None


def load(path: Path, split: str, images: Path | None = None) -> Dataset:
    """Read the `split` of a data.yaml. Raises BadInput naming file and line of what is wrong."""
    content = _read(path)
    names = _names(content, path)
    root = path.parent / str(content.get("path") or ".")
    if not root.is_dir():
        # other tools resolve `path` against folders of their own; the yaml's folder is next best
        root = path.parent
    annotations = content.get("annotations")
    if isinstance(annotations, dict):
        annotations = annotations.get(split)
    if annotations is not None:
        return _load_annotations(path, root, str(annotations), content, split, names, images)

    files = images_of(path, root, content, split)
    keypoints = content.get("kpt_shape") is not None
    tally = _Tally()
    samples = [
        Sample(
            name=_relative(file, root),
            path=file,
            objects=_labels(file, names, keypoints, tally),
            normalized=True,
        )
        for file in files
    ]
    if not tally.files:
        raise BadInput(
            f"No image of the split '{split}' of {path} has a label file "
            f"(looked for {label_path(files[0])}).",
            hint="Labels lie in labels/ beside images/, one .txt per image.",
        )
    return Dataset(
        task="detect",
        names=unique_names(names),
        samples=tuple(samples),
        source=path,
        split=split,
        notes=tuple(tally.notes(files)),
    )


@dataclass
class _Tally:
    """What was met while reading the label files."""

    files: int = 0
    unlabelled: int = 0
    empty: int = 0
    duplicates: int = 0
    flat: int = 0
    polygons: int = 0
    folders: set[Path] = field(default_factory=set)

    def notes(self, files: Sequence[Path]) -> list[str]:
        notes = []
        if self.unlabelled:
            notes.append(
                f"{self.unlabelled} of {len(files)} images have no label file "
                "(taken as background)."
            )
        if self.empty:
            notes.append(
                f"{self.empty} of {len(files)} images have an empty label file "
                "(taken as background)."
            )
        own = {label_path(file) for file in files}
        orphans = sorted(
            file.name
            for folder in self.folders
            for file in folder.glob("*.txt")
            if file not in own and file.name.lower() != "classes.txt"
        )
        if orphans:
            notes.append(f"{len(orphans)} label files have no image ({some(orphans)}).")
        if self.duplicates:
            notes.append(f"{self.duplicates} duplicate label rows were dropped.")
        if self.flat:
            notes.append(f"{self.flat} boxes without width or height were dropped.")
        if self.polygons:
            notes.append(f"{self.polygons} polygons were taken as their boxes.")
        return notes


def _read(path: Path) -> dict[str, Any]:
    yaml = require("yaml", "Reading a data.yaml")
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path} is not YAML: {reason}.") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} is not a data.yaml: expected keys such as val: and names:.")
    return content


def _names(content: dict[str, Any], path: Path) -> list[str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        try:
            by_number = {int(key): str(value) for key, value in names.items()}
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path}: the keys of names must be class numbers.") from error
        if sorted(by_number) != list(range(len(by_number))):
            raise BadInput(f"{path}: names must number the classes 0 to {len(by_number) - 1}.")
        result = [by_number[number] for number in range(len(by_number))]
    elif isinstance(names, list):
        result = [str(name) for name in names]
    elif names is None and isinstance(count, int) and count > 0:
        result = [str(number) for number in range(count)]
    else:
        raise BadInput(
            f"{path} names no classes.", hint="Add `names: [first, second, …]` in class order."
        )
    if not result:
        raise BadInput(f"{path}: names is empty.")
    if isinstance(count, int) and count != len(result):
        raise BadInput(f"{path}: nc is {count}, but names holds {len(result)} classes.")
    return result


def _entry(content: dict[str, Any], path: Path, split: str) -> list[str]:
    """What the yaml says for `split`, as a list."""
    for key in _KEYS[split]:
        value = content.get(key)
        if value:
            return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    present = [name for name, keys in _KEYS.items() if any(content.get(key) for key in keys)]
    raise BadInput(
        f"{path} has no split '{split}'" + (f"; it has {some(present)}." if present else "."),
        hint="Choose another with --split, or add the split to the file.",
    )


def _resolve(entry: str, root: Path, path: Path, split: str) -> Path:
    """A folder or list of images named by the yaml.

    Exports of labelling services often say `../valid/images` for a folder beside the yaml; that is
    taken as meant when the path as written does not exist.
    """
    tried = [root / entry, path.parent / entry]
    if entry.startswith("../"):
        tried.append(path.parent / entry.removeprefix("../"))
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise BadInput(
        f"The split '{split}' of {path} is {entry!r}, which does not exist ({tried[0]}).",
        hint="Paths in a data.yaml are relative to it, or to its `path:`.",
    )


def images_of(path: Path, root: Path, content: dict[str, Any], split: str) -> list[Path]:
    """The image files of a split: from folders, or from text files that list them."""
    files: list[Path] = []
    for entry in _entry(content, path, split):
        source = _resolve(entry, root, path, split)
        if source.is_file() and source.suffix.lower() == ".txt":
            files.extend(_listed(source, root))
        else:
            files.extend(reader.list_images(source))
    return sorted(dict.fromkeys(files))


def _listed(source: Path, root: Path) -> list[Path]:
    files = []
    for number, line in enumerate(_text(source).splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        file = next(
            (base / name for base in (source.parent, root) if (base / name).is_file()), None
        )
        if file is None:
            raise BadInput(f"{source}, line {number}: the image {name} does not exist.")
        files.append(file)
    if not files:
        raise BadInput(f"{source} lists no image.")
    return files


def _load_annotations(
    path: Path,
    root: Path,
    annotations: str,
    content: dict[str, Any],
    split: str,
    names: list[str],
    images: Path | None,
) -> Dataset:
    """The yaml names a COCO json for its labels; the split's folder holds the images."""
    file = next(
        (base / annotations for base in (root, path.parent) if (base / annotations).is_file()), None
    )
    if file is None:
        raise BadInput(f"{path}: annotations is {annotations!r}, which does not exist.")
    if images is None:
        source = _resolve(_entry(content, path, split)[0], root, path, split)
        images = source if source.is_dir() else None
    dataset = coco.load(file, images=images, split=split, names=names)
    return dataclasses.replace(dataset, source=path, split=split)


def label_path(image: Path) -> Path:
    """Where the labels of an image lie: the last `images` folder of its path becomes `labels`.

    Labels beside their images are found too.
    """
    name = f"{image.stem}.txt"
    parts = list(image.parent.parts)
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    usual = Path(*parts) / name
    beside = image.parent / name
    return beside if not usual.is_file() and beside.is_file() else usual


def _relative(file: Path, root: Path) -> str:
    try:
        return str(file.relative_to(root))
    except ValueError:
        return str(file)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not text: {error}.") from error


def _labels(image: Path, names: list[str], keypoints: bool, tally: _Tally) -> Truth:
    file = label_path(image)
    tally.folders.add(file.parent)
    if not file.is_file():
        tally.unlabelled += 1
        return Truth.of([], [])
    tally.files += 1
    rows: dict[tuple[float, ...], None] = {}
    lines = 0
    for number, line in enumerate(_text(file).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        lines += 1
        row = _row(words, f"{file}, line {number}", names, keypoints, tally)
        if row in rows:
            tally.duplicates += 1
        elif row[3] <= row[1] or row[4] <= row[2]:
            tally.flat += 1
        else:
            rows[row] = None
    tally.empty += lines == 0
    return Truth.of([row[1:] for row in rows], [int(row[0]) for row in rows])


def _row(
    words: list[str], where: str, names: list[str], keypoints: bool, tally: _Tally
) -> tuple[float, ...]:
    """(class, x1, y1, x2, y2) of one line, corners in fractions of the image."""
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise BadInput(f"{where}: {' '.join(words)[:60]!r} is not a row of numbers.") from error
    polygon = len(values) >= 7 and len(values) % 2 == 1 and not keypoints
    if len(values) != 5 and not polygon and not (keypoints and len(values) > 5):
        raise BadInput(
            f"{where}: {len(values)} numbers.",
            hint="A row is `class cx cy w h`, or a class and three or more points.",
        )
    if not all(math.isfinite(value) for value in values):
        raise BadInput(f"{where}: a number is not finite.")
    if values[0] != int(values[0]):
        raise BadInput(f"{where}: the class {words[0]} is not a whole number.")
    if not 0 <= values[0] < len(names):
        raise BadInput(
            f"{where}: class {int(values[0])} is out of range; the data names {len(names)} classes "
            f"(0 to {len(names) - 1}).",
            hint="Correct the line, or the names in the data.yaml.",
        )
    places = values[1:] if polygon else values[1:5]
    if min(places) < -_TOLERANCE or max(places) > 1 + _TOLERANCE:
        raise BadInput(
            f"{where}: a coordinate is outside 0..1.",
            hint="YOLO coordinates are fractions of the image's width and height, not pixels.",
        )
    if polygon:
        tally.polygons += 1
        xs, ys = places[0::2], places[1::2]
        return (values[0], min(xs), min(ys), max(xs), max(ys))
    cx, cy, width, height = places
    if width < 0 or height < 0:
        raise BadInput(f"{where}: a box of negative size.")
    return (values[0], cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
