"""Train the detector from scratch on generated scenes: `python train.py --out base.pt`.

Everything random comes from --seed; on one machine with one thread count a run repeats itself.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import weights
from loss import detection_loss
from model import STRIDES, Detector, anchor_points, detector
from numpy.typing import NDArray
from scenes import TRAIN_SEED
from score import Scenes, evaluate, render, to_input, validation
from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """One training run: a schedule of `steps`, of which the first `stop` are taken (0: all)."""

    steps: int
    stop: int = 0
    batch: int = 32
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.02
    ema: float = 0.998
    seed: int = 0
    report_every: int = 100
    evaluate_every: int = 500


class Average:
    """Exponential moving average of weights and BatchNorm statistics (the model that is kept)."""

    def __init__(self, model: Detector, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay
        self.updates = 0

    def update(self, model: Detector) -> None:
        self.updates += 1
        # Young averages forget faster, so that the random start is not dragged along.
        decay = self.decay * (1 - math.exp(-self.updates / 200))
        for kept, new in zip(
            self.model.state_dict().values(), model.state_dict().values(), strict=True
        ):
            if kept.dtype.is_floating_point:
                kept.lerp_(new.detach(), 1 - decay)
            else:
                kept.copy_(new)


def augmented(
    data: Scenes, picks: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch: images [N, 3, H, W], boxes [N, G, 4] in pixels, classes [N, G] (-1 is padding).

    Each scene is turned by a multiple of 90 degrees, mirrored, and given another gain per channel;
    none of it moves a box off its exact place.
    """
    size = float(data.images.shape[1])
    images, boxes = [], []
    for pick in picks:
        image, box = data.images[pick], data.boxes[pick]
        if rng.random() < 0.5:
            image = image[:, ::-1]
            box = np.stack([size - box[:, 2], box[:, 1], size - box[:, 0], box[:, 3]], 1)
        for _ in range(int(rng.integers(0, 4))):
            # Anticlockwise: (x, y) goes to (y, size - x).
            image = np.rot90(image)
            box = np.stack([box[:, 1], size - box[:, 2], box[:, 3], size - box[:, 0]], 1)
        images.append(image)
        boxes.append(box)
    most = max(1, max(len(b) for b in boxes))
    padded = np.zeros((len(picks), most, 4), np.float32)
    classes = np.full((len(picks), most), -1, np.int64)
    for i, (pick, box) in enumerate(zip(picks, boxes, strict=True)):
        padded[i, : len(box)] = box
        classes[i, : len(box)] = data.classes[pick]
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(picks), 3, 1, 1)).astype(np.float32))
    batch = to_input(np.stack(images)).mul_(gain).clamp_(0, 1)
    return batch, torch.from_numpy(padded), torch.from_numpy(classes)


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Convolution weights decay; biases and BatchNorm do not."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": decay},
        {"params": free, "weight_decay": 0.0},
    ]


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up times a cosine from the full rate to a hundredth of it."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return settings.rate * min(1.0, step / settings.warmup) * (0.01 + 0.99 * cosine)


def fit(
    model: Detector,
    data: Scenes,
    settings: Settings,
    checkpoint: Callable[[Detector, int], None] | None = None,
    strides: Sequence[int] = STRIDES,
) -> Detector:
    """Train in place and return the averaged model, in eval mode.

    `strides` are those of the maps that the model gives in train mode, finest first. Every
    `settings.evaluate_every` steps `checkpoint` is given the averaged model and the step.
    """
    rng = np.random.Generator(np.random.PCG64([settings.seed, len(data.images)]))
    model.train()
    for parameter in model.parameters():
        if parameter.ndim == 4:
            # oneDNN is about a third faster on channels-last.
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    average = Average(model, settings.ema)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.decay), lr=settings.rate)
    cells, strides = anchor_points(data.images.shape[1], strides)
    order = np.empty(0, np.int64)
    started = time.perf_counter()
    sums = {"box": 0.0, "score": 0.0}
    last = min(settings.stop or settings.steps, settings.steps)
    for step in range(1, last + 1):
        if len(order) < settings.batch:
            order = np.concatenate([order, rng.permutation(len(data.images))])
        picks, order = order[: settings.batch], order[settings.batch :]
        images, boxes, classes = augmented(data, picks, rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        distances, logits = model(images)
        total, parts = detection_loss(distances, logits, cells, strides, boxes, classes)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        average.update(model)
        for name, value in parts.items():
            sums[name] += value
        if step % settings.report_every == 0 or step == last:
            every = step % settings.report_every or settings.report_every
            took = time.perf_counter() - started
            print(
                f"step {step:5d}/{settings.steps}  box {sums['box'] / every:.4f}  "
                f"score {sums['score'] / every:.4f}  {took:6.0f} s  "
                f"{step * settings.batch / took:5.0f} images/s",
                flush=True,
            )
            sums = dict.fromkeys(sums, 0.0)
        if checkpoint is not None and step % settings.evaluate_every == 0:
            checkpoint(average.model, step)
    return average.model


def prepare(seed: int, threads: int) -> None:
    """Fix what a run depends on besides its data."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    torch.use_deterministic_algorithms(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("cells_base.pt"), help="checkpoint file")
    parser.add_argument("--steps", type=int, default=4500, help="optimizer steps")
    parser.add_argument("--stop", type=int, default=0, help="end early, at this step")
    parser.add_argument("--scenes", type=int, default=5000, help="training scenes")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args()
    prepare(options.seed, options.threads)
    print(f"drawing {options.scenes} training scenes", flush=True)
    data, checks = render(TRAIN_SEED, options.scenes), validation()
    settings = Settings(options.steps, options.stop, seed=options.seed)

    def checkpoint(model: Detector, step: int) -> None:
        print(f"           {evaluate(model, checks)}", flush=True)
        weights.save(options.out, model, f"unfinished: step {step} of {settings.steps}")

    model = fit(detector(), data, settings, checkpoint)
    score = evaluate(model, checks)
    taken = f"{options.stop or options.steps} of {options.steps} steps"
    note = f"trained from scratch on {options.scenes} scenes for {taken}; {score}"
    weights.save(options.out, model, note)
    print(score)


if __name__ == "__main__":
    main()
