"""Remove whole channels from a trained detector and fine-tune what is left:
`python prune.py base.pt --out cells_pruned.pt`.

Which channels: first-order Taylor importance (Molchanov et al., 2019, "Importance Estimation for
Neural Network Pruning", eq. 8) on the BatchNorm parameters, that is the square of the change in
loss expected when a channel's scale and shift go to zero, averaged over batches of training
scenes. Channels that an addition ties together are scored, and leave, together. How many of each
group: greedily the eight whose loss of importance per saved cost is least, cost being the mean of
the shares of parameters and of multiplications; so layers end up unevenly narrow, in multiples
of 8.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import weights
from loss import detection_loss
from model import BASE_WIDTHS, DEFAULT_SIZE, GROUPS, Block, Detector, anchor_points, detector
from numpy.typing import NDArray
from scenes import TRAIN_SEED
from score import Scenes, evaluate, render, validation
from torch import Tensor, nn
from train import Settings, augmented, fit, prepare

STEP = 8
# Under 16 channels an INT8 convolution rarely beats a float one.
NARROWEST = 16


def convolution(model: Detector, name: str) -> nn.Conv2d:
    """The convolution of the Block, or the bare convolution, called `name`."""
    module = model.get_submodule(name)
    inner = module.conv if isinstance(module, Block) else module
    assert isinstance(inner, nn.Conv2d)
    return inner


def size_of(widths: Sequence[int], num_classes: int) -> tuple[int, int]:
    """Parameters, and multiplications of one image of the default size, of a network so wide."""
    model = detector(list(widths), num_classes)
    counted = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d)
        counted += output[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, DEFAULT_SIZE, DEFAULT_SIZE))
    return sum(p.numel() for p in model.parameters()), counted


def importance(model: Detector, data: Scenes, batches: int, seed: int) -> dict[str, Tensor]:
    """Taylor importance of every channel: group name -> [width], float64, not negative."""
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    cells, strides = anchor_points(data.images.shape[1])
    totals = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in GROUPS}
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for _ in range(batches):
        picks = rng.choice(len(data.images), 16, replace=False)
        images, boxes, classes = augmented(data, picks, rng)
        distances, logits = model(images)
        total, _ = detection_loss(distances, logits, cells, strides, boxes, classes)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        for group in GROUPS:
            change = torch.zeros(group.width, dtype=torch.float64)
            for name in group.producers:
                block = model.get_submodule(name)
                assert isinstance(block, Block)
                for parameter in (block.norm.weight, block.norm.bias):
                    assert parameter.grad is not None
                    change += (parameter.detach() * parameter.grad).double()
            totals[group.name] += change.square() / batches
    model.eval()
    return totals


def choose(scores: dict[str, Tensor], num_classes: int, share: float) -> list[NDArray[np.int64]]:
    """Channels to keep per group, in order, so that about `share` of the parameters remain."""
    widths = list(BASE_WIDTHS)
    # Ascending, so that position k is the loss of importance of the (k + 1)-th channel to leave.
    ranked = [scores[group.name].sort(stable=True).values for group in GROUPS]
    parameters, multiplications = size_of(widths, num_classes)
    whole = parameters
    wanted = share * whole
    while parameters > wanted:
        best: tuple[float, int, int, int] | None = None
        for i, group in enumerate(GROUPS):
            if widths[i] - STEP < NARROWEST:
                continue
            gone = group.width - widths[i]
            narrower = [*widths[:i], widths[i] - STEP, *widths[i + 1 :]]
            p, m = size_of(narrower, num_classes)
            saved = (parameters - p) / parameters + (multiplications - m) / multiplications
            price = float(ranked[i][gone : gone + STEP].sum()) / saved
            if best is None or price < best[0]:
                best = (price, i, p, m)
        if best is None:
            raise ValueError(f"cannot narrow the network to {share:.0%} of its parameters")
        _, i, parameters, multiplications = best
        widths[i] -= STEP
    kept = []
    for group, width in zip(GROUPS, widths, strict=True):
        order = scores[group.name].argsort(descending=True, stable=True)[:width]
        kept.append(np.sort(order.numpy()))
    return kept


def narrowed(model: Detector, kept: Sequence[NDArray[np.int64]]) -> Detector:
    """A detector of the kept channels only, with the weights and statistics they had."""
    small = detector([len(k) for k in kept], model.num_classes).eval()
    outputs: dict[str, NDArray[np.int64]] = {}
    inputs: dict[str, NDArray[np.int64]] = {}
    for group, channels in zip(GROUPS, kept, strict=True):
        outputs.update(dict.fromkeys(group.producers, channels))
        inputs.update(dict.fromkeys(group.consumers, channels))
    with torch.no_grad():
        for name in {**outputs, **inputs}:
            old, new = convolution(model, name), convolution(small, name)
            weight = old.weight
            if name in outputs:
                weight = weight[torch.from_numpy(outputs[name])]
            if name in inputs:
                weight = weight[:, torch.from_numpy(inputs[name])]
            # copy_ raises on any shape that does not fit: a wrong group cannot pass silently.
            new.weight.copy_(weight)
            if old.bias is not None and new.bias is not None:
                new.bias.copy_(old.bias)
            block, thin = model.get_submodule(name), small.get_submodule(name)
            if isinstance(block, Block) and isinstance(thin, Block):
                for key, value in block.norm.state_dict().items():
                    picked = value[torch.from_numpy(outputs[name])] if value.ndim else value
                    thin.norm.state_dict()[key].copy_(picked)
    return small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="what train.py wrote")
    parser.add_argument("--out", type=Path, default=Path("cells_pruned.pt"))
    parser.add_argument("--keep", type=float, default=0.52, help="share of parameters to keep")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of fine-tuning")
    parser.add_argument("--scenes", type=int, default=2000, help="training scenes")
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args()
    prepare(options.seed, options.threads)
    model, checks = weights.load(options.checkpoint), validation()
    if model.widths != BASE_WIDTHS:
        parser.error(f"{options.checkpoint} is pruned already: widths {list(model.widths)}")
    before = evaluate(model, checks)
    parameters, multiplications = size_of(model.widths, model.num_classes)
    print(f"before    {parameters} parameters, {multiplications} multiplications  {before}")
    data = render(TRAIN_SEED, options.scenes)
    scores = importance(model, data, 40, options.seed)
    small = narrowed(model, choose(scores, model.num_classes, options.keep))
    left, left_multiplications = size_of(small.widths, small.num_classes)
    print(f"widths    {','.join(map(str, small.widths))} of {','.join(map(str, BASE_WIDTHS))}")
    print(f"pruned    {left} parameters, {left_multiplications} multiplications  ", end="")
    print(evaluate(small, checks), flush=True)
    # A short run: the average must not reach back to where the channels had just gone.
    settings = Settings(
        options.steps, rate=1.5e-3, ema=0.99, seed=options.seed + 1, evaluate_every=200
    )

    def checkpoint(tuned: Detector, step: int) -> None:
        print(f"           {evaluate(tuned, checks)}", flush=True)
        weights.save(options.out, tuned, f"unfinished: step {step} of {settings.steps}")

    tuned = fit(small, data, settings, checkpoint)
    after = evaluate(tuned, checks)
    note = (
        f"pruned from {parameters} to {left} parameters and fine-tuned for {options.steps} steps "
        f"on generated scenes; before pruning {before}; now {after}"
    )
    weights.save(options.out, tuned, note)
    print(f"tuned     {after}")


if __name__ == "__main__":
    main()
