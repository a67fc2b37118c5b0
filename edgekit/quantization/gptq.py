"""GPTQ: weights rounded one input at a time, each error made up for by the inputs not yet rounded.

For one layer with weights W [O, K] and inputs x [K], rounding each weight to the nearest level
minimizes (Q - W)^2; what counts is E[((Q - W) x)^2] = (Q - W) H (Q - W)^T with H = E[x x^T]. Columns
are rounded in turn; with U the upper Cholesky factor of H^-1 (H^-1 = U^T U), the error of column i

    e_i = (w_i - q_i) / U_ii

is taken off the columns behind it: w_j -= e_i U_ij. Columns whose input is largest go first. Source:
Frantar et al. 2022, GPTQ, arXiv:2210.17323, algorithm 1, after Hassibi et al. 1993 (optimal brain
surgeon); ordering by activation as in its reference implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# of the mean of H's diagonal, added to it: keeps H invertible when there are fewer samples than inputs
_DAMPING = 0.01
_BLOCK = 128


def round_weights(
    weight: NDArray[np.floating],
    scale: NDArray[np.floating],
    limit: int,
    moments: NDArray[np.floating],
    *,
    damping: float = _DAMPING,
) -> NDArray[np.int8]:
    """Levels int8 [O, K] within ±limit for `weight` [O, K]: level / scale stands for the weight.

    scale [O] is what weights are multiplied by; moments [K, K] is H up to a factor, and `damping`, a
    share of the mean of its diagonal, is added to that. Inputs that were
    always zero are rounded to nearest, and so is everything when H cannot be factored.
    """
    work = weight.astype(np.float64)
    outputs, inputs = work.shape
    factor = _inverse_factor(moments.astype(np.float64), damping)
    if factor is None:
        return _nearest(work, scale.astype(np.float64)[:, None], limit)
    upper, order = factor
    work = work[:, order]
    steps = scale.astype(np.float64)
    levels = np.zeros((outputs, inputs))
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.zeros((outputs, stop - start))
        for column in range(start, stop):
            values = work[:, column]
            chosen = np.clip(np.rint(values * steps), -limit, limit)
            levels[:, column] = chosen
            error = (values - chosen / steps) / upper[column, column]
            work[:, column:stop] -= error[:, None] * upper[column, column:stop]
            errors[:, column - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    result = np.empty((outputs, inputs), np.int8)
    result[:, order] = levels.astype(np.int8)
    return result


def _nearest(
    weight: NDArray[np.float64], scale: NDArray[np.float64], limit: int
) -> NDArray[np.int8]:
    levels: NDArray[np.int8] = np.clip(np.rint(weight * scale), -limit, limit).astype(np.int8)
    return levels


def _inverse_factor(
    moments: NDArray[np.float64], damping: float
) -> tuple[NDArray[np.float64], NDArray[np.intp]] | None:
    """(upper Cholesky factor of the damped H^-1, the order of its columns); None if there is none."""
    diagonal = np.diag(moments).copy()
    if not np.isfinite(moments).all() or not diagonal.any():
        return None
    order = np.argsort(-diagonal, kind="stable")
    damped = moments[np.ix_(order, order)]
    damped[np.diag_indices_from(damped)] += damping * diagonal.mean()
    try:
        upper: NDArray[np.float64] = np.linalg.cholesky(np.linalg.inv(damped)).T
    except np.linalg.LinAlgError:
        return None
    return upper, order
