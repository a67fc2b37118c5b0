"""Entropy: the clipping that keeps the quantized distribution closest to the real one (KL).

Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017, slides 33-38. For every candidate
number i of bins kept: P is the histogram of the first i bins with everything beyond added to the
last of them; Q is the histogram of these bins (without what lies beyond) merged into as many
stretches as there are levels and spread back evenly over the bins of each stretch that P has not
empty. The range that minimizes KL(P || Q) wins.

Differences from the original and from ONNX Runtime's version, and why:

- the histogram is complete before anything is chosen, at 2,048 to 4,096 bins: no first batch sets
  the bins, and an early outlier does not forbid clipping below it;
- a stretch ends at floor(j * i / levels) instead of a fixed number of bins with a long last
  stretch: the divergence does not jump with i modulo levels;
- bin 0 gets the count of bin 1, as in NVIDIA's pytorch-quantization: zero is exact at every scale,
  and after ReLU its mass would drown the shape of everything else;
- prefix sums give the divergence of a candidate from its stretches alone.

Levels. KL works on magnitudes (negative and positive bins folded together), because clipping at
one magnitude on both sides is one decision; two-sided searches on the tails of activations follow
noise. The number of levels is what the scheme has on the longer side: symmetric int8 has 128
(256 / 2), also for data of one sign, as in the original. An asymmetric uint8 range that clips
[low, high] at the magnitude a has 256 * a / (min(a, |low|) + min(a, high)): 128 for balanced data,
256 after ReLU or Sigmoid, nearly 256 after SiLU. Since a is what is sought, levels and a are found
in turn, from a = amax on. The result is cut back to the values seen: the shorter side is never
widened.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.calibration.histogram import Histogram
from edgekit.calibration.minmax import enclose, minmax
from edgekit.calibration.percentile import fold
from edgekit.types import Range

_COARSE = 256
_TURNS = 4


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm with log(0) = 0, for terms that are multiplied by 0."""
    result: NDArray[np.float64] = np.log(np.where(values > 0, values, 1.0))
    return result


class _Divergence:
    """KL(P || Q) for candidates i, from prefix sums over the bins."""

    def __init__(self, counts: NDArray[np.int64], levels: int) -> None:
        self._levels = levels
        self._counts = counts.astype(np.float64)
        self._sum = np.concatenate(([0.0], np.cumsum(self._counts)))
        self._full = np.concatenate(([0.0], np.cumsum(counts > 0, dtype=np.float64)))
        self._entropy = np.concatenate(([0.0], np.cumsum(self._counts * _log(self._counts))))

    def __call__(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [K] for the candidates int64 [K]; infinite where Q lacks what P has."""
        total, inside = self._sum[-1], self._sum[kept]
        beyond = total - inside
        last = self._counts[kept - 1]
        # sum of p log p, with what lies beyond in the last bin
        own = self._entropy[kept] - last * _log(last) + (last + beyond) * _log(last + beyond)
        stretch = np.arange(self._levels + 1, dtype=np.int64)
        ends = stretch[None, :] * kept[:, None] // self._levels
        q = np.diff(self._sum[ends], axis=1)
        bins = np.diff(self._full[ends], axis=1)
        bins[:, -1] += (last == 0) & (beyond > 0)
        p = q.copy()
        p[:, -1] += beyond
        cross = (p * (_log(q) - _log(bins))).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            result = (own - cross) / total - np.log(total) + np.log(inside)
        return np.where((q[:, -1] == 0) & (beyond > 0), np.inf, result)


def kept_bins(counts: NDArray[np.int64], levels: int) -> int:
    """How many of the magnitude bins int64 [n] (the last not empty) the best range keeps."""
    if counts.size <= levels:
        return int(counts.size)
    divergence = _Divergence(counts, levels)
    step = max(1, (counts.size - levels) // _COARSE)
    candidates = np.arange(counts.size, levels - 1, -step, dtype=np.int64)
    while True:
        values = divergence(candidates)
        # of equal ones the widest: clipping must be worth something
        best = int(candidates[int(np.argmin(values))])
        if step == 1:
            return best
        first, last = max(levels, best - step), min(counts.size, best + step)
        step = 1
        candidates = np.arange(last, first - 1, -1, dtype=np.int64)


def entropy(histogram: Histogram, *, symmetric: bool, levels: int) -> Range:
    """The range of least KL divergence; see the module's text for the number of levels."""
    if not histogram.count or histogram.amax == 0.0 or histogram.minimum == histogram.maximum:
        return minmax(histogram, symmetric=symmetric, levels=levels)
    counts = fold(histogram)
    counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
    if counts.size > 1:
        counts[0] = counts[1]
    amax, tried = histogram.amax, 0
    for _ in range(_TURNS):
        span = min(amax, -histogram.low) + min(amax, histogram.high)
        on_longer_side = levels // 2 if symmetric else round(levels * amax / span)
        if on_longer_side == tried:
            break
        tried = on_longer_side
        kept = kept_bins(counts, on_longer_side)
        amax = histogram.amax if kept == counts.size else kept * histogram.width
    return enclose(-amax, amax, histogram, symmetric)
