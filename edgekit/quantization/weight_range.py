"""Weight scales by least squared error: large weights are clipped where all others gain by it.

For a channel with weights w and a symmetric quantizer of L = 2 * limit + 1 levels at scale s,

    E(s) = sum (w - s clip(round(w / s), -limit, limit))^2

is looked at for s = f amax / limit on a grid of fractions f, refined once around the best. With 8 bits
and few weights a channel nothing is gained by clipping; with 4 to 6 bits, or one scale for the whole
tensor, much is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ABSMAX, MSE = "absmax", "mse"
RANGES = (ABSMAX, MSE)
"""How a weight's range is chosen: its largest magnitude, or the least squared error."""

_FRACTIONS = np.linspace(1.0, 0.3, 71)
_FINE = 9


def mse_scale(
    weight: NDArray[np.floating], axis: int | None, limit: int, absmax: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Scales of least squared error: float32 [C] along `axis`, or [] for the whole tensor.

    `absmax` are the scales that clip nothing (same shape); none of the result is larger. Of equal
    errors the larger scale is taken.
    """
    wide = weight.astype(np.float64)
    rows = wide.reshape(1, -1) if axis is None else np.moveaxis(wide, axis, 0)
    rows = rows.reshape(rows.shape[0], -1)
    whole = absmax.astype(np.float64).reshape(-1, 1)

    def errors(fraction: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = whole * fraction
        rounded = np.clip(np.rint(rows / scale), -limit, limit) * scale
        result: NDArray[np.float64] = np.square(rows - rounded).sum(axis=1)
        return result

    best = np.ones((rows.shape[0], 1))
    least = errors(best)
    step = float(_FRACTIONS[0] - _FRACTIONS[1])
    for fraction in _FRACTIONS[1:]:
        best, least = _better(np.full_like(best, fraction), best, least, errors)
    for offset in np.linspace(-step, step, _FINE):
        candidate = np.clip(best + offset, 1e-3, 1.0)
        best, least = _better(candidate, best, least, errors)
    found: NDArray[np.float32] = (whole * best).astype(np.float32).reshape(absmax.shape)
    return found


def _better(
    candidate: NDArray[np.float64],
    best: NDArray[np.float64],
    least: NDArray[np.float64],
    errors: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = errors(candidate)
    gains = found < least
    return np.where(gains[:, None], candidate, best), np.where(gains, found, least)
