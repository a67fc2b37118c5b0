"""Min-max: the range holds every value that was seen."""

from __future__ import annotations

from edgekit.calibration.histogram import Histogram
from edgekit.types import Range


def enclose(low: float, high: float, histogram: Histogram, symmetric: bool) -> Range:
    """[low, high] cut back to what was seen, with zero inside; mirrored when `symmetric`.

    Zero must be representable: convolutions pad with it and ReLU returns it (Jacob et al. 2018,
    arXiv:1712.05877, section 2.1). A tensor without values, or of zeros only, gives (0, 0).
    """
    low = min(0.0, max(low, histogram.low))
    high = max(0.0, min(high, histogram.high))
    if symmetric:
        amax = max(-low, high)
        return Range(low=0.0 - amax, high=amax)
    return Range(low=low + 0.0, high=high + 0.0)


def minmax(histogram: Histogram, *, symmetric: bool, levels: int) -> Range:
    """[min(0, minimum), max(0, maximum)], or ± the largest magnitude when `symmetric`."""
    return enclose(histogram.low, histogram.high, histogram, symmetric)
