"""The layouts of known detection heads: which columns are boxes, which rows belong to which scale.

The layouts are those of edgekit.metrics.heads.
"""

from __future__ import annotations

from dataclasses import dataclass

_BOXES = {"xy": (0, 2), "wh": (2, 4)}
HEADS: dict[str, dict[str, tuple[int, int | None]]] = {
    "yolov5": {**_BOXES, "objectness": (4, 5), "classes": (5, None)},
    "yolox": {**_BOXES, "objectness": (4, 5), "classes": (5, None)},
    "yolov8": {**_BOXES, "classes": (4, None)},
    "yolo26": {"boxes": (0, 4), "score": (4, 5), "class": (5, 6)},
}
"""Head → its columns, by name."""

_PER_CELL = {"yolov5": 3, "yolox": 1, "yolov8": 1}  # predictions per cell; others have no rows


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Named regions of one output: (name, index), the index being slices for every axis."""

    regions: list[tuple[str, tuple[slice, ...]]]

    @classmethod
    def of(
        cls, head: str | None, shape: tuple[int, ...], input_shape: tuple[int, ...]
    ) -> Layout | None:
        """The layout of an output of `shape` (batch axis first) under `head`, None when unknown.

        Where the number of predictions is that of the usual strides for `input_shape` (NCHW or
        NHWC), each scale is a region of its own.
        """
        columns = HEADS.get(head or "")
        if columns is None or len(shape) != 3:
            return None
        across = 1 if head == "yolov8" and shape[1] <= shape[2] else 2
        width = shape[across]
        if width < 5 or (head == "yolo26" and width != 6):
            return None
        along = 3 - across
        regions = []
        for scale, rows in _scales(shape[along], input_shape, _PER_CELL.get(head or "", 0)):
            for name, (start, stop) in columns.items():
                index = [slice(None)] * 3
                index[across] = slice(start, width if stop is None else stop)
                index[along] = rows
                regions.append((f"{name} {scale}".rstrip(), tuple(index)))
        return cls(regions=regions)


def _scales(
    predictions: int, input_shape: tuple[int, ...], per_cell: int
) -> list[tuple[str, slice]]:
    """("stride 8", rows) of each scale; one nameless slice where the count does not fit."""
    from edgekit.metrics.heads import STRIDES, cells

    if len(input_shape) == 4 and per_cell:
        channels_last = input_shape[3] in (1, 3) and input_shape[1] not in (1, 3)
        size = input_shape[1:3] if channels_last else input_shape[2:4]
        height, width = size
        for strides in STRIDES:
            if per_cell * cells((height, width), strides) == predictions:
                scales, start = [], 0
                for stride in strides:
                    count = per_cell * cells((height, width), (stride,))
                    scales.append((f"stride {stride}", slice(start, start + count)))
                    start += count
                return scales
    return [("", slice(None))]
