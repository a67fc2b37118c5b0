"""Training targets and the loss: task-aligned assignment, binary cross-entropy, CIoU.

The assignment follows TOOD (Feng et al., 2021, section 3.2): a cell's alignment with an object is
score**alpha * IoU**beta, the best `top_k` cells inside the object learn it, and their class target
is the alignment rescaled so that the best cell of an object gets its IoU. The box loss is CIoU
(Zheng et al., 2020). Everything is one batch of tensor operations over [N, G, A]: images, objects
(padded to the largest number in the batch), cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_EPS = 1e-7


@dataclass(frozen=True)
class LossWeights:
    """How the parts are added, and the assigner's exponents."""

    box: float = 6.0
    score: float = 1.0
    top_k: int = 9
    alpha: float = 0.5
    beta: float = 5.0


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU of boxes a and b, [..., 4] as x1, y1, x2, y2, broadcast: [...], at most 1."""
    aw, ah = (a[..., 2] - a[..., 0]).clamp(min=_EPS), (a[..., 3] - a[..., 1]).clamp(min=_EPS)
    bw, bh = (b[..., 2] - b[..., 0]).clamp(min=_EPS), (b[..., 3] - b[..., 1]).clamp(min=_EPS)
    left_top = torch.maximum(a[..., :2], b[..., :2])
    right_bottom = torch.minimum(a[..., 2:], b[..., 2:])
    inter = (right_bottom - left_top).clamp(min=0).prod(-1)
    iou = inter / (aw * ah + bw * bh - inter + _EPS)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    diagonal = hull.square().sum(-1) + _EPS
    offset = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(-1) / 4
    aspect = (4 / math.pi**2) * (torch.atan(bw / bh) - torch.atan(aw / ah)).square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + 1 + _EPS)
    return iou - offset / diagonal - weight * aspect


@dataclass(frozen=True)
class Assignment:
    """What each cell is to learn: boxes [N, A, 4] in pixels, scores [N, A, C], positive [N, A]."""

    boxes: Tensor
    scores: Tensor
    positive: Tensor


def assign(
    predicted: Tensor,
    probabilities: Tensor,
    cells: Tensor,
    strides: Tensor,
    boxes: Tensor,
    classes: Tensor,
    weights: LossWeights,
) -> Assignment:
    """Give objects to cells.

    predicted [N, A, 4] and boxes [N, G, 4] are corners in pixels, probabilities [N, A, C], cells
    [A, 2] centres in pixels, strides [A] in pixels, classes [N, G] with -1 for padding. To be
    called without gradients.
    """
    real = classes >= 0
    # Small objects may hold no cell centre: widen what counts as inside to one cell of stride 8.
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=float(strides.min()) * 0.75)
    inside = ((cells[None, None] - centre[:, :, None]).abs() < half[:, :, None]).all(-1)
    inside &= real[:, :, None]
    index = classes.clamp(min=0)[:, None].expand(-1, probabilities.shape[1], -1)
    score = probabilities.gather(2, index).transpose(1, 2)
    overlap = ciou(boxes[:, :, None], predicted[:, None]).clamp(min=0) * inside
    # The floor keeps cells eligible while nothing overlaps yet.
    alignment = (score.pow(weights.alpha) * overlap.pow(weights.beta) + 1e-9) * inside
    top = alignment.topk(weights.top_k, dim=2)
    chosen = torch.zeros_like(alignment).scatter_(2, top.indices, 1.0).bool() & inside
    # A cell wanted by several objects learns the one it overlaps most.
    rival = torch.where(chosen, overlap, torch.full_like(overlap, -1.0))
    winner = functional.one_hot(rival.argmax(1), boxes.shape[1]).transpose(1, 2).bool()
    chosen &= winner
    positive = chosen.any(1)
    owner = chosen.float().argmax(1)
    target_boxes = boxes.gather(1, owner[..., None].expand(-1, -1, 4))
    target_class = classes.clamp(min=0).gather(1, owner)
    alignment = alignment * chosen
    best = alignment.amax(2, keepdim=True)
    best_overlap = (overlap * chosen).amax(2, keepdim=True)
    strength = (alignment / (best + 1e-12) * best_overlap).amax(1)
    one_hot = functional.one_hot(target_class, probabilities.shape[2]).to(strength.dtype)
    scores = one_hot * (strength * positive)[..., None]
    return Assignment(target_boxes, scores, positive)


def detection_loss(
    distances: Tensor,
    logits: Tensor,
    cells: Tensor,
    strides: Tensor,
    boxes: Tensor,
    classes: Tensor,
    weights: LossWeights | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of raw maps: distances [N, 4, A] in strides, logits [N, C, A], for cells [A, 2] and
    strides [A] in pixels, boxes [N, G, 4] (corners, pixels), classes [N, G] (-1 is padding).

    Returns the scalar to minimize and its parts for printing.
    """
    weights = weights or LossWeights()
    distances, logits = distances.transpose(1, 2), logits.transpose(1, 2)
    low, high = distances.chunk(2, 2)
    predicted = torch.cat([cells - low * strides[:, None], cells + high * strides[:, None]], 2)
    with torch.no_grad():
        scores = logits.sigmoid()
        target = assign(predicted, scores, cells, strides, boxes, classes, weights)
    mass = target.scores.sum().clamp(min=1.0)
    score_loss = (
        functional.binary_cross_entropy_with_logits(logits, target.scores, reduction="sum") / mass
    )
    chosen = target.positive
    strength = target.scores.sum(-1)[chosen]
    box_loss = ((1 - ciou(predicted[chosen], target.boxes[chosen])) * strength).sum() / mass
    total = weights.box * box_loss + weights.score * score_loss
    return total, {"box": box_loss.item(), "score": score_loss.item()}
