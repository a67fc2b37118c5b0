"""Model heads, told apart by structure.

A head is decoded (edgekit.metrics.decoders) to candidates: boxes in pixels of the model's input, a
score and a class each, before suppression. A new head is a decoder, a function that recognizes its
shapes, and an entry in HEADS.

Layouts (N predictions, K classes):

- `yolov5`: [N, 5 + K], rows cx, cy, w, h in pixels, objectness, class scores; N counts three
  anchors per cell. https://github.com/ultralytics/yolov5, models/yolo.py, Detect
- `yolov8`: [4 + K, N] (or transposed), cx, cy, w, h in pixels, class scores; one per cell. YOLOv8,
  YOLO11 and every head exported in their layout.
- `yolo26`: [N, 6], rows x1, y1, x2, y2 in pixels, score, class: already suppressed (also YOLOv10).
- `yolox`: [N, 5 + K], one per cell, not decoded: centre = (xy + cell) * stride,
  side = exp(wh) * stride; scores after the sigmoid. https://arxiv.org/abs/2107.08430 and
  https://github.com/Megvii-BaseDetection/YOLOX, models/yolo_head.py
- `logits`: [K] class scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import BadInput, UsageError, nearest
from edgekit.metrics.decoders import (
    STRIDES,
    Candidates,
    Limits,
    Size,
    by_rows,
    cells,
    decode_yolo26,
    decode_yolov5,
    decode_yolov8,
    decode_yolox,
)
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "HEADS",
    "STRIDES",
    "UNKNOWN_CLASSES",
    "Candidates",
    "Head",
    "HeadMatch",
    "Limits",
    "Size",
    "cells",
    "choose_head",
    "detect_head",
    "head_named",
    "matches",
]

UNKNOWN_CLASSES = 0
"""What a head that does not show its number of classes in its shape answers for it."""

_END_TO_END_LIMIT = 2000
_ANCHORS = 3


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head's name, task, decoder, and how it is recognized.

    `classes(shape, size, exact)` answers the number of classes that an output of `shape` (batch
    axis included) has under this head, UNKNOWN_CLASSES where the shape does not say, None where the
    shape does not fit; with `exact` the number of predictions must fit the input size as well.
    `scores(output, num_classes)` is the view on the values that must lie in 0..1.
    """

    name: str
    task: str
    classes: Callable[[tuple[int, ...], Size, bool], int | None]
    decode: Callable[[NDArray[np.float32], Size, int, Limits], Candidates] | None = None
    scores: Callable[[NDArray[np.float32], int], NDArray[np.float32]] | None = None
    suppressed: bool = False


# --- recognizing --------------------------------------------------------------------------------


def _cell_counts(size: Size, per_cell: int) -> set[int]:
    return {per_cell * cells(size, strides) for strides in STRIDES}


def _objectness_scores(output: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
    return output[:, 4:]


def _yolov5_classes(shape: tuple[int, ...], size: Size, exact: bool) -> int | None:
    if len(shape) != 3 or shape[2] < 6:
        return None
    if exact and shape[1] not in _cell_counts(size, _ANCHORS):
        return None
    return shape[2] - 5


def _yolox_classes(shape: tuple[int, ...], size: Size, exact: bool) -> int | None:
    if len(shape) != 3 or shape[2] < 6 or shape[1] not in _cell_counts(size, 1):
        return None
    return shape[2] - 5


def _yolov8_scores(output: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
    return by_rows(output, num_classes)[4:]


def _yolov8_classes(shape: tuple[int, ...], size: Size, exact: bool) -> int | None:
    if len(shape) != 3:
        return None
    counts = _cell_counts(size, 1)
    if exact:
        if shape[2] in counts and shape[1] >= 5:
            return shape[1] - 4
        return shape[2] - 4 if shape[1] in counts and shape[2] >= 5 else None
    classes = min(shape[1], shape[2]) - 4
    return classes if classes >= 1 else None


def _yolo26_scores(output: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
    return output[:, 4]


def _yolo26_classes(shape: tuple[int, ...], size: Size, exact: bool) -> int | None:
    if len(shape) != 3 or shape[2] != 6:
        return None
    taken = _cell_counts(size, 1) | _cell_counts(size, _ANCHORS)
    if exact and (shape[1] in taken or shape[1] > _END_TO_END_LIMIT):
        return None
    return UNKNOWN_CLASSES


def _logits_classes(shape: tuple[int, ...], size: Size, exact: bool) -> int | None:
    if len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)):
        return shape[1] if shape[1] >= 2 else None
    return None


HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head(
            name="yolov5",
            task="detect",
            classes=_yolov5_classes,
            decode=decode_yolov5,
            scores=_objectness_scores,
        ),
        Head(
            name="yolov8",
            task="detect",
            classes=_yolov8_classes,
            decode=decode_yolov8,
            scores=_yolov8_scores,
        ),
        Head(
            name="yolo26",
            task="detect",
            classes=_yolo26_classes,
            decode=decode_yolo26,
            scores=_yolo26_scores,
            suppressed=True,
        ),
        Head(
            name="yolox",
            task="detect",
            classes=_yolox_classes,
            decode=decode_yolox,
            scores=_objectness_scores,
        ),
        Head(name="logits", task="classify", classes=_logits_classes),
    )
}


# --- choosing -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HeadMatch:
    """A head, the output it decodes, and the number of classes (UNKNOWN_CLASSES if not shown)."""

    head: Head
    output: str
    num_classes: int


def head_named(name: str) -> Head:
    """The head called `name`; UsageError with the nearest name otherwise."""
    if name not in HEADS:
        raise UsageError(f"Unknown head '{name}'.", hint=nearest(name, list(HEADS)))
    return HEADS[name]


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape with free dimensions as 0, and a batch axis where only the classes are left."""
    shape = tuple(size if isinstance(size, int) else 0 for size in spec.shape)
    return (1, *shape) if len(shape) == 1 else shape


def matches(
    outputs: Sequence[TensorSpec], size: Size, task: str | None = None, exact: bool = True
) -> list[HeadMatch]:
    """Every (head, output) whose shapes fit each other; `exact` as in `Head.classes`."""
    found = []
    for head in HEADS.values():
        if task is not None and head.task != task:
            continue
        for spec in outputs:
            classes = head.classes(_shape(spec), size, exact)
            if classes is not None:
                found.append(HeadMatch(head=head, output=spec.name, num_classes=classes))
    return found


def _agreeing(found: list[HeadMatch], num_classes: int | None) -> list[HeadMatch]:
    """Those with the right number of classes; a shape that proves it beats one that is silent.

    A classifier may have more outputs than the data has classes (data without names counts up to
    its largest label), so logits agree with any number.
    """
    if num_classes is None:
        return found
    proved = [match for match in found if match.num_classes == num_classes]
    silent = [
        match
        for match in found
        if match.num_classes == UNKNOWN_CLASSES or match.head.task == "classify"
    ]
    return proved or silent


def detect_head(
    outputs: Sequence[TensorSpec],
    num_classes: int | None,
    size: Size,
    task: str | None = None,
) -> str | None:
    """The name of the head that the outputs' shapes show, None when none or more than one fits.

    size: (height, width) of the input; outputs with free dimensions fit nothing, so give the shapes
    of a real run. num_classes: of the data or the model's names, None when not known.
    """
    names = {match.head.name for match in _agreeing(matches(outputs, size, task), num_classes)}
    return names.pop() if len(names) == 1 else None


def choose_head(
    outputs: Sequence[TensorSpec],
    size: Size,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    task: str | None = None,
) -> HeadMatch:
    """The head called `name`, or the one that the shapes show, with the output that it decodes.

    Raises UsageError for an unknown name, BadInput when nothing fits, more than one head fits, or
    the number of classes differs from `num_classes`.
    """
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)
    if name is not None:
        head = head_named(name)
        if task is not None and head.task != task:
            raise BadInput(
                f"The head '{name}' is for the task {head.task}, but the data is for {task}."
            )
        found = [m for m in matches(outputs, size) if m.head is head]
        found = found or [m for m in matches(outputs, size, exact=False) if m.head is head]
        if not found:
            raise BadInput(f"The outputs ({shapes}) do not have the layout of the head '{name}'.")
    else:
        found = matches(outputs, size, task)
    agreeing = _agreeing(found, num_classes)
    if len({match.head.name for match in agreeing}) == 1:
        return agreeing[0]
    known = ", ".join(HEADS)
    if agreeing:
        fitting = " and ".join(sorted({match.head.name for match in agreeing}))
        raise BadInput(
            f"The outputs ({shapes}) fit the heads {fitting}.", hint="Choose one with --head."
        )
    if found:
        first = found[0]
        raise BadInput(
            f"The outputs ({shapes}) look like the head '{first.head.name}' with "
            f"{first.num_classes} classes, but there are {num_classes} names.",
            hint="Give the data that the model was trained for, or another --head.",
        )
    raise BadInput(
        f"The outputs ({shapes}) of a {size[0]}x{size[1]} input fit no head"
        + (f" for the task {task}." if task else "."),
        hint=f"Choose one with --head ({known}).",
    )
