"""A small anchor-free detector that can be pruned: plain Conv + BatchNorm + ReLU, two strides.

The network is written so that it survives deployment: no activation but ReLU, downsampling by
strided convolution, nearest-neighbour upsampling, no operator outside opset 17's plain ones, and
one output in the layout of YOLOv8 heads, so that anything which decodes those decodes this.

Pruning removes whole channels. Channels which an addition ties together form one group, and a
network is described by one width per group (GROUPS): `detector(widths)` builds exactly the module
that a pruned state_dict fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES: tuple[int, int] = (8, 16)
DEFAULT_SIZE = 192


@dataclass(frozen=True)
class Group:
    """Channels that live and die together.

    `producers` are Block modules whose outputs are these channels (their Conv's axis 0 and their
    BatchNorm); `consumers` are modules that read them (their Conv's axis 1). A depthwise block is
    listed among the producers and reads nothing else.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


GROUPS: tuple[Group, ...] = (
    Group("stem", 16, ("stem",), ("down1",)),
    Group("stage1", 32, ("down1", "stage1.expand"), ("stage1.reduce", "down2")),
    Group("stage1_inner", 24, ("stage1.reduce",), ("stage1.expand",)),
    Group("stage2", 64, ("down2", "stage2.expand"), ("stage2.reduce", "down3", "lateral8")),
    Group("stage2_inner", 64, ("stage2.reduce",), ("stage2.expand",)),
    Group(
        "stage3",
        80,
        ("down3", "stage3.expand", "context.depthwise", "context.pointwise"),
        ("stage3.reduce", "context.pointwise", "lateral16", "tower16"),
    ),
    Group("stage3_inner", 80, ("stage3.reduce",), ("stage3.expand",)),
    Group("neck", 64, ("lateral8", "lateral16"), ("fuse",)),
    Group("fused", 64, ("fuse",), ("tower8",)),
    Group("tower8", 64, ("tower8",), ("box8", "class8")),
    Group("tower16", 64, ("tower16",), ("box16", "class16")),
)
BASE_WIDTHS: tuple[int, ...] = tuple(group.width for group in GROUPS)


class Block(nn.Module):
    """Conv without bias, BatchNorm, and ReLU unless `active` is False."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return functional.relu(x) if self.active else x


class Residual(nn.Module):
    """x + expand(reduce(x)), then ReLU; only the width in between is free."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce = Block(channels, inner)
        self.expand = Block(inner, channels, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.expand(self.reduce(x)))


class Context(nn.Module):
    """x + pointwise(depthwise 5x5(x)), then ReLU: a wide view for few multiplications."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = Block(channels, channels, kernel=5, groups=channels)
        self.pointwise = Block(channels, channels, kernel=1, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.pointwise(self.depthwise(x)))


class Detector(nn.Module):
    """Boxes and class scores for images [N, 3, size, size], float32 RGB in [0, 1].

    In eval mode: [N, 4 + num_classes, A], rows 0-3 cx, cy, w, h in input pixels, then one sigmoid
    score per class; A counts the cells of the stride-8 map (row by row), then of the stride-16
    map: 576 + 144 = 720 at 192x192. In train mode: (distances [N, 4, A] to the left, top, right
    and bottom side in units of the cell's stride, class logits [N, num_classes, A]).
    """

    grid8: Tensor
    grid16: Tensor

    def __init__(self, widths: Sequence[int], num_classes: int, size: int) -> None:
        super().__init__()
        width = dict(zip((group.name for group in GROUPS), widths, strict=True))
        self.widths = tuple(widths)
        self.num_classes = num_classes
        self.stem = Block(3, width["stem"], stride=2)
        self.down1 = Block(width["stem"], width["stage1"], stride=2)
        self.stage1 = Residual(width["stage1"], width["stage1_inner"])
        self.down2 = Block(width["stage1"], width["stage2"], stride=2)
        self.stage2 = Residual(width["stage2"], width["stage2_inner"])
        self.down3 = Block(width["stage2"], width["stage3"], stride=2)
        self.stage3 = Residual(width["stage3"], width["stage3_inner"])
        self.context = Context(width["stage3"])
        self.lateral8 = Block(width["stage2"], width["neck"], kernel=1, active=False)
        self.lateral16 = Block(width["stage3"], width["neck"], kernel=1, active=False)
        self.fuse = Block(width["neck"], width["fused"])
        self.tower8 = Block(width["fused"], width["tower8"])
        self.tower16 = Block(width["stage3"], width["tower16"])
        self.box8 = nn.Conv2d(width["tower8"], 4, 1)
        self.class8 = nn.Conv2d(width["tower8"], num_classes, 1)
        self.box16 = nn.Conv2d(width["tower16"], 4, 1)
        self.class16 = nn.Conv2d(width["tower16"], num_classes, 1)
        # Constants of the decoding; not persistent, so a state_dict holds what was learnt alone.
        self.register_buffer("grid8", cell_centres(size, 8), persistent=False)
        self.register_buffer("grid16", cell_centres(size, 16), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for box, score in ((self.box8, self.class8), (self.box16, self.class16)):
            nn.init.normal_(box.weight, std=0.01)
            nn.init.normal_(score.weight, std=0.01)
            assert box.bias is not None and score.bias is not None
            nn.init.constant_(box.bias, 1.5)
            # Most cells see nothing: start every class at a probability of 1 %.
            nn.init.constant_(score.bias, -4.6)

    def maps(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per stride: side distances [N, 4, h, w] in strides and class logits [N, C, h, w]."""
        c2 = self.stage2(self.down2(self.stage1(self.down1(self.stem(x)))))
        c3 = self.context(self.stage3(self.down3(c2)))
        # A fixed factor, not a size read from a tensor: exports as one plain Resize.
        up = functional.interpolate(self.lateral16(c3), scale_factor=2.0, mode="nearest")
        p8 = self.tower8(self.fuse(functional.relu(self.lateral8(c2) + up)))
        p16 = self.tower16(c3)
        return [
            (self.box8(p8), self.class8(p8)),
            (self.box16(p16), self.class16(p16)),
        ]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.maps(x)
        if self.training:
            return (
                torch.cat([box.flatten(2) for box, _ in maps], 2),
                torch.cat([score.flatten(2) for _, score in maps], 2),
            )
        boxes, scores = [], []
        grids = (self.grid8, self.grid16)
        for (box, score), stride, grid in zip(maps, STRIDES, grids, strict=True):
            low, high = box[:, :2], box[:, 2:]
            centre = (grid + (high - low) * 0.5) * stride
            # Sides may not come out negative; centres need no such care.
            sides = functional.relu(low + high) * stride
            # Constant shapes with a free batch: nothing is computed from shapes at run time. An
            # image of another size cannot slip through, because the grid would not fit.
            cells = grid.shape[2] * grid.shape[3]
            boxes.append(torch.cat([centre, sides], 1).reshape(-1, 4, cells))
            scores.append(score.reshape(-1, self.num_classes, cells))
        return torch.cat([torch.cat(boxes, 2), torch.cat(scores, 2).sigmoid()], 1)


def cell_centres(size: int, stride: int) -> Tensor:
    """Centres (x, y) of the cells of one map, [1, 2, size / stride, size / stride], in strides."""
    along = torch.arange(size // stride, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y])[None]


def anchor_points(size: int, strides: Sequence[int] = STRIDES) -> tuple[Tensor, Tensor]:
    """Cell centres [A, 2] as (x, y) and the stride of each cell [A], both in pixels."""
    points = [cell_centres(size, stride).flatten(2)[0].T * stride for stride in strides]
    sizes = [torch.full((len(p),), float(s)) for p, s in zip(points, strides, strict=True)]
    return torch.cat(points), torch.cat(sizes)


def parse_widths(widths: str | Sequence[int] | None) -> tuple[int, ...]:
    """Widths in the order of GROUPS from a list, from "16,32,...", or the unpruned ones (None)."""
    if widths is None:
        return BASE_WIDTHS
    parts = widths.replace(",", " ").split() if isinstance(widths, str) else list(widths)
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError:
        raise ValueError(f"widths must be whole numbers, got {widths!r}") from None
    if len(numbers) != len(GROUPS) or min(numbers) < 1:
        names = ", ".join(group.name for group in GROUPS)
        raise ValueError(f"widths must be {len(GROUPS)} positive numbers ({names}), got {widths!r}")
    return numbers


def detector(
    widths: str | Sequence[int] | None = None,
    num_classes: int | str = 3,
    size: int | str = DEFAULT_SIZE,
) -> Detector:
    """Build the detector, in train mode, with fresh weights.

    widths: channels of each group in the order of GROUPS, as a list or as text with commas (as it
    comes from a command line); None is the unpruned network. A pruned checkpoint carries its own
    under the key "widths". num_classes: the number of score rows. size: side of the square input
    in pixels, a multiple of 16; the weights do not depend on it, the decoding's constants do.

    Raises ValueError when the widths are not one positive number per group, or when the size is
    not a positive multiple of 16.
    """
    pixels = int(size)
    if pixels < 16 or pixels % 16:
        raise ValueError(f"size must be a positive multiple of 16, got {size}")
    return Detector(parse_widths(widths), int(num_classes), pixels)
