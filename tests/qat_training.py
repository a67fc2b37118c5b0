"""Short quantization-aware trainings of a CIFAR ResNet-20, for tests; also `--arch` factories of theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "ternary"))

import cifar
import resnet


class Block(nn.Module):
    """The published block with the pieces that eager mode must see: ReLUs and the addition as modules."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else resnet.Shortcut()
        self.add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.add.add_relu(self.bn2(self.conv2(y)), self.shortcut(x))


class QuantizableResNet20(resnet.ResNet20):
    def __init__(self) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.relu = nn.ReLU()

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, Block(outputs, outputs, 1), Block(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.quant(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.avg_pool2d(x, x.shape[3]).flatten(1))


def config(activation_bits: int = 8, weight_bits: int = 8) -> tq.QConfig:
    """Activations uint8 per tensor, weights int8 per output channel, on a grid of `weight_bits`."""
    half = 2 ** (weight_bits - 1)
    return tq.QConfig(
        activation=tq.FakeQuantize.with_args(
            observer=tq.MovingAverageMinMaxObserver,
            quant_min=0,
            quant_max=2**activation_bits - 1,
            dtype=torch.quint8,
        ),
        weight=tq.FakeQuantize.with_args(
            observer=tq.MovingAveragePerChannelMinMaxObserver,
            quant_min=-half,
            quant_max=half - 1,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
        ),
    )


def fused(model: nn.Module) -> nn.Module:
    """Conv, BatchNorm and ReLU joined for training, as prepare_qat wants them."""
    groups = [["conv1", "bn1", "relu"]]
    for name, part in model.named_modules():
        if isinstance(part, Block):
            groups += [[f"{name}.conv1", f"{name}.bn1", f"{name}.relu1"]]
            groups += [[f"{name}.conv2", f"{name}.bn2"]]
    made: nn.Module = tq.fuse_modules_qat(model.train(), groups)
    return made


def eager(weight_bits: int = 8, state: dict[str, Any] | None = None) -> nn.Module:
    """A ResNet-20 prepared for eager-mode QAT; `state` are float weights to begin with."""
    model = QuantizableResNet20()
    if state is not None:
        model.load_state_dict(state, strict=False)
    model.train()
    model.qconfig = config(weight_bits=weight_bits)  # type: ignore[assignment]
    made: nn.Module = tq.prepare_qat(fused(model))
    return made


def eager8() -> nn.Module:
    return eager(8)


def eager4() -> nn.Module:
    return eager(4)


def fx(state: dict[str, Any] | None = None) -> nn.Module:
    """The same in FX mode, of the plain network."""
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    model = resnet.resnet20()
    if state is not None:
        model.load_state_dict(state, strict=False)
    mapping = tq.QConfigMapping().set_global(config())
    made: nn.Module = prepare_qat_fx(model.train(), mapping, (torch.zeros(1, 3, 32, 32),))
    return made


def train(
    model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, *, epochs: int
) -> nn.Module:
    """Train with fake quantization for `epochs`; the scales stand still in the last third.

    BatchNorm keeps its statistics: those of 1,000 images are worse than the ones that it has.
    """
    model.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)

    def settle(epoch: int, loss: float) -> None:
        if epoch + 1 >= (2 * epochs) // 3:
            model.apply(tq.disable_observer)

    cifar.fit(model, teacher, images, labels, epochs=epochs, rate=3e-5, on_epoch=settle)
    return model.eval()
