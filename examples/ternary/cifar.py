"""CIFAR-10 images from .npz files (`images` [N, 32, 32, 3] uint8 RGB, `labels` [N]), and training on few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PREPROCESS = {
    "height": 32,
    "width": 32,
    "color": "rgb",
    "resize": "stretch",
    "mean": MEAN,
    "std": STD,
}


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Normalized images [N, 3, 32, 32] and labels [N]."""
    with np.load(path) as file:
        images, labels = file["images"], file["labels"]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, torch.from_numpy(labels.astype(np.int64))


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored or not, and shifted by up to 4 pixels over zeros."""
    count = len(images)
    mirrored = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(3), images)
    padded = functional.pad(images, (4, 4, 4, 4))
    rows = torch.randint(0, 9, (count, 1), generator=generator) + torch.arange(32)
    columns = torch.randint(0, 9, (count, 1), generator=generator) + torch.arange(32)
    place = torch.arange(count).reshape(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[place, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is at their label."""
    was = model.training
    model.eval()
    right = sum(
        int((model(part).argmax(1) == truth).sum())
        for part, truth in zip(images.split(250), labels.split(250), strict=True)
    )
    model.train(was)
    return right / len(images)


def fit(
    model: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    rate: float,
    groups: list[dict[str, object]] | None = None,
    batch: int = 50,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> None:
    """Train `model` to answer as `teacher` does (softened by a temperature of 2) and as labelled.

    Adam with a cosine schedule. Distillation, https://arxiv.org/abs/1503.02531.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(groups or list(model.parameters()), lr=rate)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    teacher.eval()
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(images), generator=generator).split(batch):
            inputs = augmented(images[index], generator)
            with torch.no_grad():
                soft = functional.log_softmax(teacher(inputs) / 2, 1)
            logits = model(inputs)
            loss = 4 * functional.kl_div(
                functional.log_softmax(logits / 2, 1), soft, log_target=True, reduction="batchmean"
            ) + 0.1 * functional.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        on_epoch(epoch, total / len(images))
