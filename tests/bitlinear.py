"""BitLinear convolutions (https://arxiv.org/abs/2310.11453, https://arxiv.org/abs/2402.17764), for tests.

A LayerNorm, activations rounded to 8 bits by their largest magnitude, and ternary weights: latent
weights over their mean magnitude, rounded to -1, 0, 1. The scale of the ternary weights is that mean
("fixed") or a parameter of its own ("learned").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _through(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` going forward, the gradient of `exact` going back."""
    return exact + (rounded - exact).detach()


class BitConv(nn.Module):
    """[N, C, H, W] → [N, out, H', W']."""

    def __init__(self, inputs: int, outputs: int, stride: int, learned: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, inputs)  # over channels and places: a LayerNorm of images
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        nn.init.kaiming_normal_(self.weight)
        self.stride = stride
        self.alpha = nn.Parameter(self.weight.detach().abs().mean()) if learned else None

    def ternary(self) -> Tensor:
        size = self.weight.abs().mean().clamp(min=1e-5)
        codes = (self.weight / size).round().clamp(-1, 1)
        if self.alpha is None:
            return _through(self.weight, codes * size)
        return _through(self.weight / size, codes) * self.alpha

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        scale = 127 / x.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
        x = _through(x, (x * scale).round().clamp(-128, 127) / scale)
        return functional.conv2d(x, self.ternary(), None, self.stride, 1)


class BitNet(nn.Module):
    """Images [N, 3, 32, 32] → logits [N, 10]; the first convolution and the classifier are float."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.body = nn.ModuleList(
            [BitConv(16, 32, 2, learned), BitConv(32, 32, 1, learned), BitConv(32, 64, 2, learned)]
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for layer in self.body:
            x = functional.relu(layer(x))
        return self.linear(x.mean((2, 3)))


def fixed() -> BitNet:
    return BitNet(learned=False)


def learned() -> BitNet:
    return BitNet(learned=True)


def train(model: BitNet, images: Tensor, labels: Tensor, epochs: int) -> float:
    """A short training; returns the last epoch's mean loss."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    loss = 0.0
    for _ in range(epochs):
        loss = 0.0
        for part, truth in zip(images.split(50), labels.split(50), strict=True):
            optimizer.zero_grad()
            cost = functional.cross_entropy(model(part), truth)
            cost.backward()
            optimizer.step()
            loss += float(cost.detach()) * len(part) / len(images)
    model.eval()
    return loss
