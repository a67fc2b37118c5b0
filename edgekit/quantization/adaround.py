"""Rounding that looks at what a layer computes: each weight goes up or down so that outputs fit best.

For a layer with weights W [O, K], levels of step s and inputs x [K], with Q the rounded weights,

    E = E[((Q - W) x)^2] = sum_o (q_o - w_o) H (q_o - w_o)^T,      H = E[x x^T]

is minimized over q_ok in {floor(w_ok / s), ceil(w_ok / s)} s: the layer-wise objective of AdaRound,
Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv:2004.10568,
section 3 (equation 13). There it is relaxed and solved by gradient descent; here weights are flipped
one input at a time, all outputs together, whenever that lowers E: with g = (q - w) H, flipping q_ok by
d changes E by 2 d g_ok + d^2 H_kk. E never rises, and where no single flip helps the descent ends.

It starts from rounding to nearest and from GPTQ's levels (edgekit.quantization.gptq), cut to the two
neighbours, and each output keeps the better of the two ends. H is damped, which keeps weights near
their nearest level where the samples say nothing about an input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.quantization import gptq

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DAMPING = 0.01
_SWEEPS = 30


def round_weights(
    weight: NDArray[np.floating],
    scale: NDArray[np.floating],
    limit: int,
    moments: NDArray[np.floating],
) -> NDArray[np.int8]:
    """Levels int8 of the weight's shape, within ±limit: level * scale stands for the weight.

    weight [G, O, K], or [O, K] for one group; scale of its shape without the last axis, or one that
    broadcasts to it; moments [G, K, K] or [K, K]: H of each group up to a factor. Inputs that were
    always zero leave their weights at the nearest level.
    """
    single = weight.ndim == 2
    work = (weight[None] if single else weight).astype(np.float64)
    groups, outputs, inputs = work.shape
    step = np.broadcast_to(np.asarray(scale, np.float64), (groups, outputs))
    matrix = np.asarray(moments, np.float64).reshape(groups, inputs, inputs).copy()
    diagonal = np.einsum("gkk->gk", matrix)
    diagonal += _DAMPING * diagonal.mean(axis=1, keepdims=True)

    exact = work / step[:, :, None]
    low = np.clip(np.floor(exact), -limit, limit)
    high = np.clip(np.floor(exact) + 1, -limit, limit)
    level = np.clip(np.rint(exact), -limit, limit)
    if np.isfinite(matrix).all():
        _descend(level, low, high, exact, step, matrix)
        start = np.stack(
            [
                gptq.round_weights(work[g], 1.0 / step[g], limit, matrix[g], damping=0.0)
                for g in range(groups)
            ]
        )
        other: NDArray[np.float64] = np.clip(np.asarray(start, np.float64), low, high)
        _descend(other, low, high, exact, step, matrix)
        better = _errors(other, exact, step, matrix) < _errors(level, exact, step, matrix)
        level = np.where(better[:, :, None], other, level)
    result: NDArray[np.int8] = level.astype(np.int8)
    return result[0] if single else result


def _errors(
    level: NDArray[np.float64],
    exact: NDArray[np.float64],
    step: NDArray[np.float64],
    matrix: NDArray[np.float64],
) -> NDArray[np.float64]:
    """E of every output, float64 [G, O]."""
    wrong = (level - exact) * step[:, :, None]
    result: NDArray[np.float64] = (np.matmul(wrong, matrix) * wrong).sum(axis=2)
    return result


def _descend(
    level: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    exact: NDArray[np.float64],
    step: NDArray[np.float64],
    matrix: NDArray[np.float64],
) -> None:
    """Flip levels in place until no single flip lowers the error."""
    slope = np.matmul((level - exact) * step[:, :, None], matrix)
    curve = np.einsum("gkk->gk", matrix)
    for _ in range(_SWEEPS):
        flips = 0
        for column in range(level.shape[2]):
            current = level[:, :, column]
            other = low[:, :, column] + high[:, :, column] - current
            move = (other - current) * step
            change = 2 * move * slope[:, :, column] + move * move * curve[:, None, column]
            # a flip must be worth more than the rounding of these sums
            group, row = np.nonzero(change < -1e-12 * np.abs(slope[:, :, column] * step))
            if not group.size:
                continue
            level[group, row, column] = other[group, row]
            slope[group, row] += move[group, row, None] * matrix[group, column]
            flips += group.size
        if not flips:
            return
