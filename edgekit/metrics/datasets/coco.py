"""COCO json: images, annotations (bbox x, y, width, height in pixels), categories.

Format: https://cocodataset.org/#format-data, "Object Detection".
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput
from edgekit.metrics.datasets.base import Dataset, Sample, Truth, some, unique_names

_PROBED = 64


def load(
    path: Path,
    *,
    images: Path | None = None,
    split: str = "val",
    names: Sequence[str] | None = None,
) -> Dataset:
    """Read a COCO json.

    `images` is the folder that `file_name` is relative to; without it the folder is looked for
    beside the json. Classes are numbered by rising category id, or as in `names` when those are
    given (they must then hold every category's name). Images that the json lists but the folder
    lacks are left out and noted. Raises BadInput naming the annotation that is wrong.
    """
    content = _read(path)
    numbers, class_names = _categories(content["categories"], names, path)
    entries = _image_entries(content["images"], path)
    folder = _folder(path, images, split, [entry["file_name"] for entry in entries.values()])

    boxes: dict[Any, list[tuple[list[float], int, bool, float]]] = {key: [] for key in entries}
    strangers = flat = 0
    for position, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict):
            raise BadInput(f"{path}: annotation number {position + 1} is not an object.")
        where = f"{path}: annotation {annotation.get('id', f'number {position + 1}')}"
        key = annotation.get("image_id")
        if not isinstance(key, (int, str)):
            raise BadInput(f"{where} has no image_id.")
        box, area = _box(annotation, where)
        number = _class(annotation, numbers, where)
        if key not in boxes:
            strangers += 1
        elif box[2] <= box[0] or box[3] <= box[1]:
            flat += 1
        else:
            boxes[key].append((box, number, bool(annotation.get("iscrowd", 0)), area))

    samples: list[Sample] = []
    absent: list[str] = []
    background = 0
    for key, entry in entries.items():
        file = folder / entry["file_name"]
        if not file.is_file():
            absent.append(entry["file_name"])
            continue
        rows = boxes[key]
        background += not rows
        samples.append(
            Sample(
                name=entry["file_name"],
                path=file,
                objects=Truth.of(
                    [row[0] for row in rows],
                    [row[1] for row in rows],
                    [row[2] for row in rows],
                    [row[3] for row in rows],
                ),
                size=entry["size"],
            )
        )
    notes = []
    if background:
        notes.append(f"{background} of {len(samples)} images have no box (taken as background).")
    if absent:
        notes.append(f"{len(absent)} images of {path.name} are not in {folder} ({some(absent)}).")
    if strangers:
        notes.append(f"{strangers} annotations belong to no image of {path.name}.")
    if flat:
        notes.append(f"{flat} boxes without width or height were dropped.")
    return Dataset(
        task="detect",
        names=class_names,
        samples=tuple(samples),
        source=path,
        notes=tuple(notes),
    )


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not JSON: {error}.") from error
    if isinstance(content, list):
        raise BadInput(
            f"{path} is a list, as COCO result files are, and not labelled data.",
            hint="Give the annotations file, with images, annotations and categories.",
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise BadInput(f"{path} is not a COCO json: it has no list '{key}'.")
    result: dict[str, list[Any]] = content
    return result


def _categories(
    categories: list[Any], names: Sequence[str] | None, path: Path
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Category id → class number, and the names by class number."""
    found: dict[int, str] = {}
    for category in categories:
        key = category.get("id") if isinstance(category, dict) else None
        if not isinstance(key, int):
            raise BadInput(f"{path}: a category without a whole number as id: {category!r}.")
        if key in found:
            raise BadInput(f"{path}: two categories have the id {key}.")
        found[key] = str(category.get("name", key))
    if not found:
        raise BadInput(f"{path} has no categories.")
    if names is None:
        numbers = {key: number for number, key in enumerate(sorted(found))}
        return numbers, unique_names([found[key] for key in sorted(found)])
    known = {name: number for number, name in enumerate(names)}
    foreign = sorted(name for name in found.values() if name not in known)
    if foreign:
        raise BadInput(
            f"{path} has categories that the data's names do not list: {some(foreign)}.",
            hint="Make `names` hold every category's name, in the order of the model's outputs.",
        )
    return {key: known[name] for key, name in found.items()}, unique_names(list(names))


def _image_entries(images: list[Any], path: Path) -> dict[Any, dict[str, Any]]:
    entries: dict[Any, dict[str, Any]] = {}
    for image in images:
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            raise BadInput(f"{path}: an image without an id: {str(image)[:80]}.")
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise BadInput(f"{path}: the image {image['id']} has no file_name.")
        if image["id"] in entries:
            raise BadInput(f"{path}: two images have the id {image['id']}.")
        height, width = image.get("height"), image.get("width")
        known = isinstance(height, int) and isinstance(width, int)
        entries[image["id"]] = {
            "file_name": image["file_name"],
            "size": (height, width) if known else None,
        }
    if not entries:
        raise BadInput(f"{path} lists no image.")
    return entries


def _folder(path: Path, images: Path | None, split: str, files: list[str]) -> Path:
    """The folder in which most of `files` (a spread of them) are found."""
    if images is not None:
        candidates = [Path(images)]
    else:
        stem = path.stem.removeprefix("instances_").removesuffix("_annotations").strip("._")
        parts = [stem, split, f"{stem}2017", "."]
        bases = [path.parent, path.parent.parent]
        candidates = [base / part for base in bases for part in parts]
        candidates += [base / "images" / part for base in bases for part in parts]
    step = max(1, len(files) // _PROBED)
    probe = files[::step]
    found = {folder: sum((folder / name).is_file() for name in probe) for folder in candidates}
    best = max(candidates, key=lambda folder: found[folder])
    if not found[best] and not any((best / name).is_file() for name in files):
        looked = some(list(dict.fromkeys(str(folder) for folder in candidates)), 4)
        raise BadInput(
            f"The images of {path} were not found ({files[0]} in {looked}).",
            hint="Name their folder with --data-images.",
        )
    return best


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _box(annotation: dict[str, Any], where: str) -> tuple[list[float], float]:
    """Corners (x1, y1, x2, y2) and the area."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
        raise BadInput(f"{where}: bbox must be four finite numbers (x, y, width, height): {box!r}.")
    x, y, width, height = (float(value) for value in box)
    if width < 0 or height < 0:
        raise BadInput(
            f"{where}: bbox has a negative size: {box}.",
            hint="COCO boxes are x, y, width, height, not two corners.",
        )
    area = annotation.get("area")
    if area is not None and not _number(area):
        raise BadInput(f"{where}: area must be a finite number, got {area!r}.")
    return [x, y, x + width, y + height], width * height if area is None else float(area)


def _class(annotation: dict[str, Any], numbers: dict[int, int], where: str) -> int:
    category = annotation.get("category_id")
    if not isinstance(category, int) or category not in numbers:
        raise BadInput(f"{where} has the category {category!r}, which categories does not list.")
    return numbers[category]
