"""Trained ternary quantization of a ResNet-20: `python train.py --assets DIR --out ternary.pt`.

Every 3x3 convolution but the first gets weights in {-Wn, 0, +Wp} with learned Wp and Wn
(https://arxiv.org/abs/1612.01064); the first convolution and the classifier stay float. What lies
within 0.7 of the mean magnitude becomes 0 (https://arxiv.org/abs/1605.04711, section 2.3). Training
sees 1,000 labelled images and their augmentation, and the float network as a teacher; the test set
is only measured on.

The checkpoint is a plain state_dict of the float architecture, ternary weights stored as float
tensors; --codes stores int8 codes with `wp` and `wn` instead. Both load with
`--arch resnet:resnet20 --code examples/ternary`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import cifar
import torch
from resnet import ResNet20, resnet20
from torch import Tensor, nn
from torch.nn.utils import parametrize

THRESHOLD = 0.7


class _Ternary(torch.autograd.Function):
    """Latent weight, Wp, Wn → ternary weight; gradients as in section 3.1 of the paper."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, wp: Tensor, wn: Tensor) -> Tensor:
        limit = THRESHOLD * latent.abs().mean()
        up, down = latent > limit, latent < -limit
        ctx.save_for_backward(up, down, wp, wn)
        return torch.where(up, wp, torch.where(down, -wn, torch.zeros(())))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        up, down, wp, wn = ctx.saved_tensors
        scale = torch.where(up, wp, torch.where(down, wn, torch.ones(())))
        return gradient * scale, gradient[up].sum().reshape(()), -gradient[down].sum().reshape(())


class Ternary(nn.Module):
    """A parametrization: the weight that the layer computes with is ternary."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        limit = THRESHOLD * weight.abs().mean()
        self.wp = nn.Parameter(weight[weight > limit].mean())
        self.wn = nn.Parameter(-weight[weight < -limit].mean())

    def forward(self, latent: Tensor) -> Tensor:
        made: Tensor = _Ternary.apply(latent, self.wp.abs(), self.wn.abs())
        return made


def ternary_layers(model: nn.Module) -> list[str]:
    """Names of the layers that become ternary: every convolution but the first."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != "conv1"]


def train(
    teacher: ResNet20, images: Tensor, labels: Tensor, *, epochs: int, verbose: bool = True
) -> nn.Module:
    """A ternary copy of `teacher`, trained; its weights are still parametrized."""
    model = copy.deepcopy(teacher)
    for name in ternary_layers(model):
        layer = model.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", Ternary(layer.weight.detach()))

    def tell(epoch: int, loss: float) -> None:
        if verbose:
            print(f"epoch {epoch + 1}/{epochs}: loss {loss:.4f}", flush=True)

    cifar.fit(model, teacher, images, labels, epochs=epochs, rate=2e-3, on_epoch=tell)
    return model.eval()


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """A state_dict of the float architecture with the ternary weights as float tensors."""
    state = {k: v for k, v in model.state_dict().items() if ".parametrizations." not in k}
    for name in ternary_layers(model):
        state[f"{name}.weight"] = model.get_submodule(name).weight.detach().clone()
    return state


def coded_state(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The same with int8 codes, `wp` and `wn` in the place of each ternary weight."""
    coded: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if leaf == "weight" and layer in names:
            coded[f"{layer}.weight_codes"] = value.sign().to(torch.int8)
            coded[f"{layer}.wp"] = value.max()
            coded[f"{layer}.wn"] = -value.min()
        else:
            coded[key] = value
    return coded


def load_teacher(path: Path) -> ResNet20:
    """The float network from the published file: weights under `state_dict`, prefixed `module.`."""
    stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = resnet20()
    state = {key.removeprefix("module."): value for key, value in stored.items()}
    result = model.load_state_dict(state, strict=False)
    left = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    if left or result.unexpected_keys:
        raise SystemExit(f"{path} does not fit: {left + result.unexpected_keys}")
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--assets", type=Path, required=True, help="folder with models/ and cifar10/"
    )
    parser.add_argument("--out", type=Path, default=Path("ternary.pt"))
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--codes", action="store_true", help="store codes and scales")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    teacher = load_teacher(arguments.assets / "models" / "resnet20-12fca82f.th")
    images, labels = cifar.load(arguments.assets / "cifar10" / "calib.npz")
    model = train(teacher, images, labels, epochs=arguments.epochs)
    state = plain_state(model)
    names = ternary_layers(teacher)
    stored = coded_state(state, names) if arguments.codes else state
    torch.save({"state_dict": stored, "edgekit": {"preprocess": cifar.PREPROCESS}}, arguments.out)
    test = cifar.load(arguments.assets / "cifar10" / "test.npz")
    print(f"float top-1 {100 * cifar.top1(teacher, *test):.2f} %")
    print(f"ternary top-1 {100 * cifar.top1(model, *test):.2f} % -> {arguments.out}")


if __name__ == "__main__":
    main()
