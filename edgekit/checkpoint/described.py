"""What a checkpoint's dictionary says about its model beside the weights.

Understood, at the top of the dictionary or under the key "edgekit": `input_shape` (NCHW) or `imgsz`
(a side, or height and width), `preprocess` (the fields of edgekit.preprocess.Preprocess), `task`,
`head`, and `names` (list, or dictionary by index). Fields of another form are left aside: the same
names mean other things in other programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.preprocess import Preprocess

TASKS = ("detect", "classify")
HEADS = ("yolov5", "yolov8", "yolo26", "yolox", "logits")


@dataclass(frozen=True, kw_only=True)
class Description:
    """The checkpoint's own words; None and () where it is silent."""

    input_shape: tuple[int, ...] | None = None
    preprocess: Preprocess | None = None
    task: str | None = None
    head: str | None = None
    names: tuple[str, ...] = ()


def describe(found: Any, path: Path) -> Description:
    """Read the description out of the dictionary `found`."""
    if not isinstance(found, Mapping):
        return Description()
    fields: dict[Any, Any] = dict(found)
    inner = found.get("edgekit")
    if isinstance(inner, Mapping):
        fields.update(inner)
    contract = _contract(fields.get("preprocess"), path, strict=isinstance(inner, Mapping))
    shape = _shape(fields)
    if shape is None and contract is not None:
        shape = contract.input_shape
    task, head = fields.get("task"), fields.get("head")
    return Description(
        input_shape=shape,
        preprocess=contract,
        task=task if isinstance(task, str) and task in TASKS else None,
        head=head if isinstance(head, str) and head in HEADS else None,
        names=names_of(fields.get("names")),
    )


def _contract(value: Any, path: Path, strict: bool) -> Preprocess | None:
    """The contract in `value`; with `strict` (our own key) a wrong one is an error."""
    if not isinstance(value, Mapping):
        return None
    try:
        return Preprocess.from_dict(dict(value), f"{path}, preprocess")
    except EdgekitError:
        if strict:
            raise
        return None


def _sides(value: Any) -> tuple[int, ...]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    if all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= 1 << 16 for n in items):
        return tuple(items)
    return ()


def _shape(fields: Mapping[Any, Any]) -> tuple[int, ...] | None:
    shape = _sides(fields.get("input_shape"))
    if len(shape) == 4:
        return shape
    if len(shape) == 3:
        return (1, *shape)
    sides = _sides(fields.get("imgsz"))
    if len(sides) in (1, 2):
        return (1, 3, sides[0], sides[-1])
    return None


def names_of(value: Any) -> tuple[str, ...]:
    """Class names from a list, or from a dictionary {index: name}; () for anything else."""
    if isinstance(value, Mapping):
        keys = sorted(key for key in value if isinstance(key, int))
        value = [value[key] for key in keys] if keys == list(range(len(value))) else []
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return ()
