"""Architectures of the real state_dicts that tests load: `--arch tests.architectures:resnet20`.

CIFAR ResNets as in https://arxiv.org/abs/1512.03385, section 4.2: three stages of n blocks, 16, 32
and 64 channels, shortcut A (no parameters: every second pixel, and zeros for the new channels).
The module names are those of the published weights (conv1, bn1, layer1.0.conv1, …, linear).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ShortcutA(nn.Module):
    """[N, C, H, W] → [N, out, H / 2, W / 2]: every second pixel, zeros around the old channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ShortcutA(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Images [N, 3, 32, 32] → logits [N, num_classes]; 6 * blocks + 2 layers."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.avg_pool2d(x, x.shape[3]).flatten(1))


def resnet20(num_classes: int = 10) -> CifarResNet:
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    return CifarResNet(9, num_classes)


def load_published(model: nn.Module, path: object) -> nn.Module:
    """Load weights kept under `state_dict` with `module.` prefixes, without running any pickle."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]  # type: ignore[arg-type]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()
