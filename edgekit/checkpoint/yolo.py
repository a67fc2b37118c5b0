"""Ultralytics' networks as deployable modules: one tensor in, one tensor out.

The layers are the checkpoint's own; walking through them and decoding the head is done here, so that
every version of Ultralytics gives the same graph, anchors are constants of the input's size (nothing
is cached between calls, which exporters cannot follow), and there is no tuple, dictionary or
non-maximum suppression in the output.

Decoding (anchor-free head with distribution focal loss, https://arxiv.org/abs/2006.04388): the box
branch gives 4 x reg_max logits per cell, softmax over reg_max and the expectation of 0..reg_max-1
are the distances left, top, right, bottom in strides; centre of cell = index + 0.5.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Layers(nn.Module):  # type: ignore[misc]
    """The graph of layers up to the head: each takes the outputs that its `f` names."""

    def __init__(self, layers: Sequence[Any], saved: Sequence[int], sources: Sequence[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._saved = frozenset(saved)
        self._sources = tuple(sources)

    def forward(self, x: Tensor) -> Any:
        outputs: list[Any] = []
        value: Any = x
        for index, source in enumerate(self._sources):
            if isinstance(source, int):
                value = value if source == -1 else outputs[source]
            else:
                value = [value if one == -1 else outputs[one] for one in source]
            if index == len(self.layers):
                return value  # what the head takes
            value = self.layers[index](value)
            outputs.append(value if index in self._saved else None)
        return value


class Detector(nn.Module):  # type: ignore[misc]
    """images float32 [N, 3, H, W] in 0..1 → [N, 4 + nc, A]: cx, cy, w, h in pixels, class scores.

    A is the number of cells of all maps. With `end_to_end` (YOLO26, YOLOv10: one box per object, no
    suppression needed) → [N, max_det, 6]: x1, y1, x2, y2 in pixels, score, class, best first.
    """

    def __init__(self, layers: Layers, head: Any, end_to_end: bool) -> None:
        super().__init__()
        self.layers = layers
        prefix = "one2one_" if end_to_end else ""
        self.box = getattr(head, prefix + "cv2")
        self.score = getattr(head, prefix + "cv3")
        self.dfl = head.dfl
        self.classes = int(head.nc)
        self.sides = 4 * int(head.reg_max)
        self.max_det = int(head.max_det)
        self.end_to_end = end_to_end
        self.strides = tuple(float(stride) for stride in head.stride)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layers(images)
        count = images.shape[0]
        boxes, scores = [], []
        for index, features in enumerate(maps):
            boxes.append(self.box[index](features).reshape(count, self.sides, -1))
            scores.append(self.score[index](features).reshape(count, self.classes, -1))
        cells, strides = self._cells(maps)
        low, high = self.dfl(torch.cat(boxes, 2)).chunk(2, 1)
        low, high = cells - low, cells + high
        score = torch.cat(scores, 2).sigmoid()
        if self.end_to_end:
            return self._best(torch.cat([low, high], 1) * strides, score)
        return torch.cat([torch.cat([(low + high) / 2, high - low], 1) * strides, score], 1)

    def _cells(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Cell centres [1, 2, A] (x, y, in strides) and the stride of each cell [1, 1, A]."""
        centres, strides = [], []
        for features, stride in zip(maps, self.strides, strict=True):
            with warnings.catch_warnings():
                # under tracing the size becomes a constant, and that is meant
                warnings.simplefilter("ignore")
                height, width = int(features.shape[2]), int(features.shape[3])
            y = torch.arange(height, dtype=torch.float32, device=features.device) + 0.5
            x = torch.arange(width, dtype=torch.float32, device=features.device) + 0.5
            grid = torch.stack(
                [x.view(1, width).expand(height, width), y.view(height, 1).expand(height, width)]
            )
            centres.append(grid.reshape(1, 2, height * width))
            strides.append(torch.full((1, 1, height * width), stride, device=features.device))
        return torch.cat(centres, 2), torch.cat(strides, 2)

    def _best(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """The `max_det` best pairs of cell and class, as Ultralytics' end-to-end heads choose them:
        first the cells with the best class, then the pairs among these."""
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
        keep = min(self.max_det, int(scores.shape[1]))
        rows = scores.amax(2).topk(keep, 1)[1].unsqueeze(2)
        scores = scores.gather(1, rows.expand(-1, -1, self.classes))
        best, index = scores.flatten(1).topk(keep, 1)
        index = index.unsqueeze(2)
        place = torch.div(index, self.classes, rounding_mode="floor")
        rows = rows.gather(1, place)
        label = (index - place * self.classes).to(boxes.dtype)
        return torch.cat([boxes.gather(1, rows.expand(-1, -1, 4)), best.unsqueeze(2), label], 2)


class Classifier(nn.Module):  # type: ignore[misc]
    """images float32 [N, 3, H, W] in 0..1 → logits [N, nc] (before Ultralytics' softmax)."""

    def __init__(self, layers: Layers, head: Any) -> None:
        super().__init__()
        self.layers = layers
        self.conv, self.pool, self.linear = head.conv, head.pool, head.linear

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(images)
        if isinstance(features, list):
            features = torch.cat(features, 1)
        return self.linear(self.pool(self.conv(features)).flatten(1))
