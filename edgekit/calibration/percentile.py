"""Percentile: the range holds a given share of the values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.calibration.histogram import HALF, Histogram
from edgekit.calibration.minmax import enclose, minmax
from edgekit.errors import UsageError
from edgekit.types import Range

DEFAULT = 99.999
"""Per cent. The usual 99.99 cuts one value in ten thousand: too much for detectors' box branches."""


def fold(histogram: Histogram) -> NDArray[np.int64]:
    """Counts of magnitudes: int64 [HALF], bin i from i * width on.

    A value on the lower edge of a negative bin has the magnitude of that bin's far end and is
    counted in it.
    """
    return histogram.counts[HALF:] + histogram.counts[HALF - 1 :: -1]


def _cut(counts: NDArray[np.int64], cut: float) -> float:
    """Where, in bins from the start of `counts`, all but `cut` values lie below.

    Within a bin values count as spread evenly.
    """
    cumulative = np.cumsum(counts)
    wanted = float(cumulative[-1]) - cut
    index = min(int(np.searchsorted(cumulative, wanted, side="left")), counts.size - 1)
    before = float(cumulative[index]) - float(counts[index])
    return index + (wanted - before) / max(1.0, float(counts[index]))


def percentile(
    histogram: Histogram, *, symmetric: bool, levels: int, percent: float = DEFAULT
) -> Range:
    """The range that holds `percent` per cent of the values.

    Symmetric: that share of the magnitudes. Asymmetric: half of the rest is cut from each end, as
    far as that end is on its side of zero.
    """
    if not 50.0 <= percent <= 100.0:
        raise UsageError(f"A percentile of {percent:g} is not between 50 and 100.")
    if not histogram.count or histogram.minimum == histogram.maximum:
        return minmax(histogram, symmetric=symmetric, levels=levels)
    rest = histogram.count * (100.0 - percent) / 100.0
    if symmetric:
        amax = _cut(fold(histogram), rest) * histogram.width
        return enclose(-amax, amax, histogram, symmetric=True)
    high = (_cut(histogram.counts, rest / 2) - HALF) * histogram.width
    low = -(_cut(histogram.counts[::-1], rest / 2) - HALF) * histogram.width
    return enclose(low, high, histogram, symmetric=False)
