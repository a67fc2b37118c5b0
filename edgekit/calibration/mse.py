"""MSE: the range whose quantization has the least expected squared error.

For levels c_q = (q - z) * s, q = 0 .. L - 1, every value goes to the nearest one. Between two
levels the border is b_q = (q - z - 1/2) * s. With n(x) values below x, and F its integral from the
lower end, partial summation turns the error into one term for the clipping to the top level and one
for each border:

    E = sum (x - c_(L-1))^2 - 2 s * sum_(q = 1)^(L - 1) F(b_q)

(the sum of (x - c)^2 over a cell needs counts and first moments at its borders; c_q and c_q^2 grow
by s and 2 s b_q from cell to cell, and m1(x) - x n(x) = -F(x)). Within a bin values count as spread
evenly, so F is a parabola in each bin and everything is read from two prefix sums: rounding and
clipping errors are both exact for that density, however few bins a level has.

The range is found on a grid of shrinking fractions, refined twice; for an asymmetric range both
ends are searched in turn. Zero points are rounded as the quantizer rounds them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.calibration.histogram import HALF, Histogram
from edgekit.calibration.minmax import enclose, minmax
from edgekit.types import Range

Floats = NDArray[np.float64]

# fractions of the full range: dense near 1, where most ranges end, down to 1/200
_FRACTIONS: Floats = np.concatenate((np.linspace(1.0, 0.5, 26), np.geomspace(0.48, 0.005, 36)))
_FINE = 8


class _Error:
    """Expected squared error of quantizers on one histogram, in units of the bin width."""

    def __init__(self, histogram: Histogram, levels: int) -> None:
        used = np.flatnonzero(histogram.counts)
        self._first = int(used[0])
        self._counts = histogram.counts[self._first : int(used[-1]) + 1].astype(np.float64)
        self._counts /= histogram.count
        self._start = float(self._first - HALF)
        below = np.concatenate(([0.0], np.cumsum(self._counts)))
        self._below = below[:-1]
        self._area = np.concatenate(([0.0], np.cumsum(below[:-1] + self._counts / 2)))
        middle = self._start + np.arange(self._counts.size) + 0.5
        self._mean = float(self._counts @ middle)
        self._square = float(self._counts @ (middle * middle + 1.0 / 12.0))
        self._border = np.arange(1, levels, dtype=np.float64) - 0.5
        self._levels = levels

    def _integral(self, x: Floats) -> Floats:
        """F(x): the integral of the share of values below x."""
        place = x - self._start
        end = float(self._counts.size)
        inside = np.clip(place, 0.0, end)
        index = np.minimum(inside.astype(np.int64), self._counts.size - 1)
        part = inside - index
        area = self._area[index] + part * (self._below[index] + 0.5 * part * self._counts[index])
        result: Floats = area + np.maximum(place - end, 0.0)
        return result

    def __call__(self, scale: Floats, zero: Floats) -> Floats:
        """float64 [K] for the quantizers with scale [K] and zero point [K]."""
        top = (self._levels - 1 - zero) * scale
        clipped = self._square - 2.0 * top * self._mean + top * top
        borders = (self._border[None, :] - zero[:, None]) * scale[:, None]
        result: Floats = clipped - 2.0 * scale * self._integral(borders).sum(axis=1)
        return result


def _finer(fractions: Floats, best: int) -> Floats:
    """A finer grid, largest first, from one neighbour of the best fraction to the other."""
    upper, lower = fractions[max(0, best - 1)], fractions[min(fractions.size - 1, best + 1)]
    return np.unique(
        np.concatenate(
            (np.linspace(upper, fractions[best], _FINE), np.linspace(fractions[best], lower, _FINE))
        )
    )[::-1]


def mse(histogram: Histogram, *, symmetric: bool, levels: int) -> Range:
    """The range of least squared error for `levels` levels.

    Symmetric: codes -levels/2 .. levels/2 - 1, scale = amax / (levels/2 - 1). Asymmetric: scale =
    (high - low) / (levels - 1), zero point round(-low / scale).
    """
    if not histogram.count or histogram.amax == 0.0 or histogram.minimum == histogram.maximum:
        return minmax(histogram, symmetric=symmetric, levels=levels)
    error = _Error(histogram, levels)
    width = histogram.width
    low, high = histogram.low / width, histogram.high / width

    def best_of(low: tuple[float, float], high: tuple[float, float]) -> float:
        """The f in (0, 1] with the least error; each end is (what stands, what f multiplies)."""
        fractions = _FRACTIONS
        for finer in (True, True, False):
            lows, highs = low[0] + low[1] * fractions, high[0] + high[1] * fractions
            if symmetric:
                scale = highs / (levels // 2 - 1)
                zero = np.full_like(scale, levels // 2)
            else:
                scale = (highs - lows) / (levels - 1)
                zero = np.clip(np.rint(-lows / scale), 0, levels - 1)
            best = int(np.argmin(error(scale, zero)))
            if finer:
                fractions = _finer(fractions, best)
        return float(fractions[best])

    if symmetric:
        amax = max(-low, high)
        amax *= best_of((0.0, -amax), (0.0, amax))
        return enclose(-amax * width, amax * width, histogram, symmetric=True)
    at_low, at_high = low, high
    longer_is_high = high >= -low
    for turn in range(3):
        if longer_is_high == (turn != 1):
            if high > 0:
                at_high = high * best_of((at_low, 0.0), (0.0, high))
        elif low < 0:
            at_low = low * best_of((0.0, low), (at_high, 0.0))
    return enclose(at_low * width, at_high * width, histogram, symmetric=False)
