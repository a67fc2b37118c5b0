"""Published architectures whose inner widths are free, to compare shrinking with building small.

Each function builds the network from widths; without widths it is the published one. A pruned
state_dict is made by building with uneven widths, and must load into the published architecture.
Module names do not depend on the widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: type | None = None,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int, gate: type) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.relu(self.fc1(functional.adaptive_avg_pool2d(x, 1)))
        return x * self.gate(self.fc2(pooled))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze, project (https://arxiv.org/abs/1801.04381)."""

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        act: type,
        squeezed: int,
        gate: type,
        expand: bool = True,
    ) -> None:
        super().__init__()
        self.expand = conv_norm(inputs, expanded, act=act) if expand else nn.Identity()
        self.depthwise = conv_norm(expanded, expanded, kernel, stride, expanded, act)
        self.squeeze = SqueezeExcite(expanded, squeezed, gate) if squeezed else nn.Identity()
        self.project = conv_norm(expanded, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


def divisible(value: float) -> int:
    return max(8, int(value + 4) // 8 * 8)


# https://arxiv.org/abs/1905.02244, table 2: kernel, expanded, out, squeeze, hard-swish, stride
MOBILENET_SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


class Sequence3(nn.Module):
    """Features, global average, classifier."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def mobilenet_v3_small(expanded: Sequence[int] | None = None, classes: int = 2) -> nn.Module:
    """`expanded`: channels inside of each of the 11 blocks."""
    widths = expanded or [row[1] for row in MOBILENET_SMALL]
    blocks: list[nn.Module] = [conv_norm(3, 16, 3, 2, act=nn.Hardswish)]
    inputs = 16
    for width, (kernel, full, outputs, squeeze, swish, stride) in zip(
        widths, MOBILENET_SMALL, strict=True
    ):
        blocks.append(
            InvertedResidual(
                inputs,
                width,
                outputs,
                kernel,
                stride,
                nn.Hardswish if swish else nn.ReLU,
                divisible(full / 4) if squeeze else 0,
                nn.Hardsigmoid,
                expand=full != inputs,
            )
        )
        inputs = outputs
    blocks.append(conv_norm(96, 576, act=nn.Hardswish))
    head = nn.Sequential(
        nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, classes)
    )
    return Sequence3(nn.Sequential(*blocks), head)


# https://arxiv.org/abs/1801.04381, table 2: expansion, out, repeats, stride
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(classes: int = 10) -> nn.Module:
    blocks: list[nn.Module] = [conv_norm(3, 32, 3, 2, act=nn.ReLU6)]
    inputs = 32
    for expansion, outputs, repeats, stride in MOBILENET_V2:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            blocks.append(
                InvertedResidual(
                    inputs,
                    inputs * expansion,
                    outputs,
                    3,
                    step,
                    nn.ReLU6,
                    0,
                    nn.Sigmoid,
                    expand=expansion != 1,
                )
            )
            inputs = outputs
    blocks.append(conv_norm(320, 1280, act=nn.ReLU6))
    return Sequence3(nn.Sequential(*blocks), nn.Sequential(nn.Linear(1280, classes)))


# https://arxiv.org/abs/1905.11946, table 1: expansion, kernel, stride, out, repeats
EFFICIENTNET_B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def efficientnet_b0(keep: Sequence[float] | None = None, classes: int = 10) -> nn.Module:
    """`keep`: share of the expanded channels that each of the 16 blocks keeps."""
    shares = list(keep) if keep else [1.0] * 16
    blocks: list[nn.Module] = [conv_norm(3, 32, 3, 2, act=nn.SiLU)]
    inputs, index = 32, 0
    for expansion, kernel, stride, outputs, repeats in EFFICIENTNET_B0:
        for repeat in range(repeats):
            expanded = max(1, int(inputs * expansion * (shares[index] if expansion > 1 else 1.0)))
            blocks.append(
                InvertedResidual(
                    inputs,
                    expanded,
                    outputs,
                    kernel,
                    stride if repeat == 0 else 1,
                    nn.SiLU,
                    max(1, inputs // 4),
                    nn.Sigmoid,
                    expand=expansion != 1,
                )
            )
            inputs, index = outputs, index + 1
    blocks.append(conv_norm(320, 1280, act=nn.SiLU))
    return Sequence3(
        nn.Sequential(*blocks), nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
    )


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 (https://arxiv.org/abs/1512.03385, figure 5)."""

    def __init__(self, inputs: int, first: int, second: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, first, 1, bias=False), nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3, self.bn3 = nn.Conv2d(second, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = (
            conv_norm(inputs, outputs, 1, stride)
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50(keep: Sequence[float] | None = None, classes: int = 10) -> nn.Module:
    """`keep`: share of the inner channels of each block, taken twice with different rounding."""
    shares = list(keep) if keep else [1.0] * 16
    blocks: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs, index = 64, 0
    for width, repeats, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for repeat in range(repeats):
            first = max(1, int(width * shares[index]))
            second = max(1, int(width * shares[index] ** 1.5))
            blocks.append(
                Bottleneck(inputs, first, second, 4 * width, stride if repeat == 0 else 1)
            )
            inputs, index = 4 * width, index + 1
    return Sequence3(nn.Sequential(*blocks), nn.Linear(2048, classes))


class LeNet(nn.Module):
    """[N, 1, 32, 32]; the flattened maps tie the input's size to the first Linear."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        one, two, three, four = widths
        self.conv1 = nn.Conv2d(1, one, 5)
        self.conv2 = nn.Conv2d(one, two, 5)
        self.fc1 = nn.Linear(two * 25, three)
        self.fc2 = nn.Linear(three, four)
        self.fc3 = nn.Linear(four, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


def lenet(widths: Sequence[int] = (6, 16, 120, 84)) -> nn.Module:
    return LeNet(widths)


def cnn6x2(widths: Sequence[int] | None = None, classes: int = 10) -> nn.Module:
    """Six stages of two convolutions each, pooled by two between them; [N, 3, 64, 64]."""
    sizes = list(widths) if widths else [16, 16, 32, 32, 48, 48, 64, 64, 96, 96, 128, 128]
    layers: list[nn.Module] = []
    inputs = 3
    for index, size in enumerate(sizes):
        layers.append(conv_norm(inputs, size, 3, act=nn.ReLU))
        if index % 2 and index < len(sizes) - 1:
            layers.append(nn.MaxPool2d(2))
        inputs = size
    return Sequence3(nn.Sequential(*layers), nn.Linear(inputs, classes))


class Mixed(nn.Module):
    """What the others lack: GroupNorm, grouped and transposed convolution, LayerNorm, a bare scale."""

    def __init__(self, width: int, groups: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.GroupNorm(4, width)
        self.grouped = nn.Conv2d(width, 2 * width, 3, 1, 1, groups=groups)
        self.act = nn.PReLU(2 * width)
        self.up = nn.ConvTranspose2d(2 * width, inner, 2, 2)
        self.layer_norm = nn.LayerNorm(inner)
        self.gamma = nn.Parameter(torch.ones(inner, 1, 1))
        self.register_buffer("offset", torch.zeros(1, inner, 1, 1))
        self.out = nn.Conv2d(inner, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.act(self.grouped(functional.silu(self.norm(self.stem(x))))))
        x = self.layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * self.gamma + self.offset
        return self.out(x).mean((2, 3))


def mixed(width: int = 16, groups: int = 4, inner: int = 12) -> nn.Module:
    return Mixed(width, groups, inner)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` in eval mode with normalization statistics and scales that are not the defaults."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 1.5),
            ):
                tensor = getattr(layer, name, None)
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return module.eval()
