"""A detector that is hard to quantize: depthwise 5x5, uneven channels, heads of mixed range.

Built like the small YOLOX (https://arxiv.org/abs/2107.08430): Focus slices in front, depthwise
separable convolutions with SiLU, cross-stage blocks, pooling at several sizes, two enlargements, and
for each stride decoupled heads whose boxes (cell units), objectness and classes (0 to 1, mostly tiny)
are joined into one tensor. The weights, trained on the generated scenes of examples/cells, come from
`train_mixed_detector.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)


def conv(taken: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(taken, made, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(made, eps=1e-3),
        nn.SiLU(),
    )


def separable(taken: int, made: int, kernel: int = 5, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(taken, taken, kernel, stride, taken), conv(taken, made, 1))


class Focus(nn.Module):
    def __init__(self, made: int) -> None:
        super().__init__()
        self.conv = conv(12, made, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = (x[..., i::2, j::2] for j in (0, 1) for i in (0, 1))
        result: Tensor = self.conv(torch.cat(tuple(parts), 1))
        return result


class CrossStage(nn.Module):
    def __init__(self, taken: int, made: int, shortcut: bool = True) -> None:
        super().__init__()
        half = made // 2
        self.one, self.two = conv(taken, half, 1), conv(taken, half, 1)
        self.inner = nn.Sequential(conv(half, half, 1), separable(half, half))
        self.last = conv(made, made, 1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        inner = self.inner(one)
        joined = torch.cat((one + inner if self.shortcut else inner, self.two(x)), 1)
        result: Tensor = self.last(joined)
        return result


class Pools(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = conv(width, width // 2, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))
        self.two = conv(width * 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        result: Tensor = self.two(torch.cat((x, *(pool(x) for pool in self.pools)), 1))
        return result


class Detector(nn.Module):
    """[N, 3, H, W] → [N, cells, 5 + classes]: boxes not decoded, objectness and classes in 0 to 1.

    In train mode: what a loss of side distances wants, distances [N, 4, cells] to the left, top, right
    and bottom in strides, and the log-odds [N, classes, cells] of objectness times class.
    """

    def __init__(self, classes: int = 3, width: int = 16) -> None:
        super().__init__()
        w = (width, 2 * width, 4 * width, 8 * width)
        self.stem = Focus(w[0])
        self.dark2 = nn.Sequential(separable(w[0], w[1], stride=2), CrossStage(w[1], w[1]))
        self.dark3 = nn.Sequential(separable(w[1], w[1], stride=2), CrossStage(w[1], w[1]))
        self.dark4 = nn.Sequential(separable(w[1], w[2], stride=2), CrossStage(w[2], w[2]))
        self.dark5 = nn.Sequential(
            separable(w[2], w[3], stride=2), Pools(w[3]), CrossStage(w[3], w[3], shortcut=False)
        )
        self.lateral = conv(w[3], w[2], 1)
        self.up4 = CrossStage(2 * w[2], w[2], shortcut=False)
        self.reduce = conv(w[2], w[1], 1)
        self.up3 = CrossStage(2 * w[1], w[1], shortcut=False)
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")
        inputs = (w[1], w[2], w[3])
        self.stems = nn.ModuleList(conv(size, w[1], 1) for size in inputs)
        self.box_tower = nn.ModuleList(separable(w[1], w[1]) for _ in inputs)
        self.class_tower = nn.ModuleList(separable(w[1], w[1]) for _ in inputs)
        self.boxes = nn.ModuleList(nn.Conv2d(w[1], 4, 1) for _ in inputs)
        self.objects = nn.ModuleList(nn.Conv2d(w[1], 1, 1) for _ in inputs)
        self.classes = nn.ModuleList(nn.Conv2d(w[1], classes, 1) for _ in inputs)

    def maps(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes, objectness and classes of each stride, before any sigmoid."""
        three = self.dark3(self.dark2(self.stem(x)))
        four = self.dark4(three)
        five = self.dark5(four)
        lateral = self.lateral(five)
        middle = self.up4(torch.cat((self.grow(lateral), four), 1))
        fine = self.up3(torch.cat((self.grow(self.reduce(middle)), three), 1))
        found = []
        for index, level in enumerate((fine, middle, five)):
            stem = self.stems[index](level)
            box = self.box_tower[index](stem)
            kinds = self.classes[index](self.class_tower[index](stem))
            found.append((self.boxes[index](box), self.objects[index](box), kinds))
        return found

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.maps(x)
        if self.training:
            boxes, objects, classes = (
                torch.cat([m.flatten(2) for m in p], 2) for p in zip(*maps, strict=True)
            )
            return _distances(boxes), _log_odds(objects, classes)
        found = [torch.cat((b, o.sigmoid(), c.sigmoid()), 1).flatten(2) for b, o, c in maps]
        return torch.cat(found, 2).permute(0, 2, 1)


def _distances(boxes: Tensor) -> Tensor:
    """YOLOX boxes [N, 4, A] (offset of the centre from the cell's corner, log of the side, in strides)
    as distances from the cell's centre to the four sides."""
    offset, half = boxes[:, :2] - 0.5, boxes[:, 2:].clamp(max=5).exp() / 2
    return torch.cat((half - offset, half + offset), 1)


def _log_odds(objects: Tensor, classes: Tensor) -> Tensor:
    """Log-odds of the product of two probabilities that are given as log-odds."""
    log = functional.logsigmoid(objects) + functional.logsigmoid(classes)
    return log - torch.log(-torch.expm1(log.clamp(max=-1e-6)))


def detector() -> Detector:
    return Detector()


def untrained(seed: int = 0) -> Detector:
    """Random weights whose BatchNorm scales differ by a factor of some hundred between channels, as
    long training leaves them; they do not decay, so that training keeps much of that."""
    torch.manual_seed(seed)
    model = Detector()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data = torch.randn(norm.num_features).mul(1.2).exp()
    for layer in (*model.objects, *model.classes):
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        nn.init.normal_(layer.weight, std=0.01)
        # most cells see nothing: the product of the two starts at 1 %
        nn.init.constant_(layer.bias, -2.2)
    return model
