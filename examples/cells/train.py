"""Train the detector from scratch on generated scenes: `python train.py --out base.pt`.

Everything random comes from --seed; on one machine with one thread count a run repeats itself.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loss import detection_loss
from model import Detector, anchor_points, detector
from numpy.typing import NDArray
from score import Scenes, evaluate, render, to_input, validation
from scenes import CLASS_NAMES, TRAIN_SEED
from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """One training run."""

    steps: int
    batch: int = 32
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.02
    ema: float = 0.998
    seed: int = 0
    report_every: int = 100
    # Seconds after which the run stops where it is; the schedule is not shortened for it.
    evaluate_every: int = 0


class Average:
    """Exponential moving average of weights and BatchNorm statistics (the model that is kept)."""

    def __init__(self, model: Detector, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Detector) -> None:
        self.updates += 1
        # Young averages forget faster, so that the random start is not dragged along.
        decay = self.decay * (1 - math.exp(-self.updates / 200))
        for kept, new in zip(
            self.model.state_dict().values(), model.state_dict().values(), strict=True
        ):
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - decay)
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
    for i, (pick, box) in enumerate(zip(picks, boxes)):
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


def fit(model: Detector, data: Scenes, settings: Settings, checks: Scenes | None) -> Detector:
    """Train in place and return the averaged model, in eval mode."""
    rng = np.random.Generator(np.random.PCG64([settings.seed, len(data.images)]))
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(model, settings.ema)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.decay), lr=settings.rate)
    size = data.images.shape[1]
    points, strides = anchor_points([(size // 8, size // 8), (size // 16, size // 16)], torch.ones(1))
    order = np.empty(0, np.int64)
    started = time.perf_counter()
    sums = {"box": 0.0, "score": 0.0}
    for step in range(1, settings.steps + 1):
        if len(order) < settings.batch:
            order = np.concatenate([order, rng.permutation(len(data.images))])
        picks, order = order[: settings.batch], order[settings.batch :]
        images, boxes, classes = augmented(data, picks, rng)
        progress = step / settings.steps
        factor = min(1.0, step / settings.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * factor
        distances, logits = model(images)
        total, parts = detection_loss(distances, logits, points, strides, boxes, classes)
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        average.update(model)
        for name, value in parts.items():
            sums[name] += value
        if step % settings.report_every == 0 or step == settings.steps:
            every = settings.report_every if step % settings.report_every == 0 else 1
            took = time.perf_counter() - started
            print(
                f"step {step:5d}/{settings.steps}  box {sums['box'] / every:.4f}  "
                f"score {sums['score'] / every:.4f}  {took:6.0f} s  "
                f"{step * settings.batch / took:5.0f} images/s",
                flush=True,
            )
            sums = dict.fromkeys(sums, 0.0)
        if checks is not None and settings.evaluate_every and step % settings.evaluate_every == 0:
            print(f"           {evaluate(average.model, checks)}", flush=True)
    return average.model
