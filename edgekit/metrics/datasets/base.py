"""What every kind of labelled data becomes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import images
from edgekit.atomic import sha256_file, sha256_json
from edgekit.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The labelled boxes of one image.

    boxes float64 [N, 4] (x1, y1, x2, y2) in source pixels; classes int64 [N]; crowd bool [N]: a
    region that stands for many objects and counts neither as found nor as missed; area float64 [N]
    in square pixels (COCO takes it from the mask, so it can be less than the box).
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def of(
        cls,
        boxes: Sequence[Sequence[float]],
        classes: Sequence[int],
        crowd: Sequence[bool] | None = None,
        area: Sequence[float] | None = None,
    ) -> Truth:
        """Build from plain lists; `crowd` defaults to none, `area` to the boxes' own."""
        array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        own = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
        return cls(
            boxes=array,
            classes=np.asarray(classes, dtype=np.int64),
            crowd=np.zeros(len(array), bool) if crowd is None else np.asarray(crowd, bool),
            area=own if area is None else np.asarray(area, dtype=np.float64),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One labelled image.

    Exactly one of `path` (a file) and `pixels` (uint8 RGB [H, W, 3], or grey [H, W, 1]) is set.

    `label` is the class of a classification sample. `objects` holds a detection sample's boxes, in
    fractions of the image where `normalized`, else in pixels of the image of `size` (height, width)
    that the labels were made on, where the data says so.
    """

    name: str
    path: Path | None = None
    pixels: NDArray[np.uint8] | None = None
    label: int | None = None
    objects: Truth | None = None
    normalized: bool = False
    size: tuple[int, int] | None = None

    def image(self) -> NDArray[np.uint8]:
        """The image, uint8 RGB [H, W, 3]. Raises BadInput when it cannot be read."""
        if self.pixels is not None:
            grey = self.pixels.shape[2] == 1
            return np.repeat(self.pixels, 3, axis=2) if grey else self.pixels
        assert self.path is not None
        return images.read(self.path)

    def is_turned(self, height: int) -> bool:
        """Whether the labels were made on an image whose sides are those of the decoded one, swapped."""
        return self.size is not None and self.size[0] != height == self.size[1]

    @staticmethod
    def _turned(truth: Truth, turn: int, size: tuple[int, int]) -> Truth:
        """Boxes on stored pixels of `size` (height, width) → on the upright image; see quarter_turn."""
        (x1, y1, x2, y2), (height, width) = truth.boxes.T, size
        corners = {
            5: (y1, x1, y2, x2),
            6: (height - y2, x1, height - y1, x2),
            7: (height - y2, width - x2, height - y1, width - x1),
            8: (y1, width - x2, y2, width - x1),
        }
        return dataclasses.replace(truth, boxes=np.stack(corners[turn], axis=1))

    def sha256(self, hash_file: Callable[[Path], str] = sha256_file) -> str:
        """Hex sha256 of the image file's bytes (no decoding), or of the pixels and their shape.

        `hash_file` may be one that remembers files it has seen.
        """
        if self.pixels is not None:
            digest = hashlib.sha256(str(self.pixels.shape).encode())
            digest.update(self.pixels.tobytes())
            return digest.hexdigest()
        assert self.path is not None
        return hash_file(self.path)

    def truth(self, height: int, width: int) -> Truth:
        """The boxes in pixels of the decoded image of `height` x `width`.

        Normalized boxes are scaled and clipped to the image. Boxes that were made on the pixels as
        they are stored, of an image that EXIF turns by a quarter, are turned with it. Raises BadInput
        when the labels were made on an image of another size: they would lie in the wrong places.
        """
        if self.objects is None:
            raise ValueError(f"{self.name} is not a detection sample")
        if self.size is not None and self.size != (height, width):
            turn = images.quarter_turn(self.path) if self.path and self.is_turned(height) else None
            if turn is not None and not self.normalized:
                return self._turned(self.objects, turn, self.size)
            raise BadInput(
                f"The image {self.path or self.name} is {width}x{height} pixels, but its "
                f"annotations were made on {self.size[1]}x{self.size[0]}.",
                hint="Correct width and height in the json, or store the image as it was labelled.",
            )
        if not self.normalized:
            return self.objects
        boxes = self.objects.boxes * np.array([width, height, width, height], dtype=np.float64)
        np.clip(boxes[:, 0::2], 0.0, width, out=boxes[:, 0::2])
        np.clip(boxes[:, 1::2], 0.0, height, out=boxes[:, 1::2])
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return dataclasses.replace(self.objects, boxes=boxes, area=area)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Labelled images of one task, "detect" or "classify".

    `names[c]` is the name of class c; `notes` say in plain words what was odd about the data
    (images without labels, labels without images, duplicate rows) and how it was taken.
    `named` is False where the data carries no names and `names` are just the numbers.
    """

    task: str
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    source: Path
    split: str | None = None
    named: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def limited(self, count: int) -> Dataset:
        """At most `count` samples, spread evenly over the set; the same ones every time."""
        total = len(self.samples)
        if count >= total:
            return self
        chosen = tuple(self.samples[i * total // count] for i in range(count))
        note = f"{count} of {total} images are used (--limit), spread evenly over the set."
        return dataclasses.replace(self, samples=chosen, notes=(*self.notes, note))

    def sha256(self, hash_file: Callable[[Path], str] = sha256_file) -> str:
        """Hex sha256 of every image and label: equal for equal data, wherever it lies."""
        rows = []
        for sample in self.samples:
            objects = sample.objects
            boxes = (
                []
                if objects is None
                else [
                    objects.boxes.tolist(),
                    objects.classes.tolist(),
                    objects.crowd.tolist(),
                    objects.area.tolist(),
                ]
            )
            rows.append(
                [sample.sha256(hash_file), sample.label, sample.normalized, sample.size, boxes]
            )
        return sha256_json([self.task, list(self.names), rows])


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, equal ones with their numbers behind: reports are keyed by name."""
    counts = Counter(names)
    return tuple(
        name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)
    )


def some(values: Sequence[str], count: int = 3) -> str:
    """The first few of `values` for a message."""
    return ", ".join(values[:count]) + (", …" if len(values) > count else "")
