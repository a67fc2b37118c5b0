"""One tensor's distribution: a signed histogram on a power-of-two range, exact and order-free.

The range is [-2^k, 2^k), cut into `BINS` = 8,192 half-open bins of width w = 2^(k - 12): bin i holds
the values v with floor(v / w) = i - 4096. k is the smallest exponent >= `MIN_EXPONENT` with
min >= -2^k and max < 2^k.

Why the result depends on the multiset of values alone:

- v / w is a product with a power of two, exact in float32 (nothing overflows: |v / w| <= 4096; what
  would underflow is caught by rounding down to whole numbers first, which changes nothing because
  floor(v / w) = floor(floor(v) / w) for integer w). So every value has one bin at a given k.
- floor(floor(v / w) / 2) = floor(v / 2w): adding up neighbouring bins two by two gives, value by
  value, the histogram that a direct count at k + 1 gives. A range that grew step by step equals one
  that was right from the start.
- k follows from min and max, which do not depend on order; counts are int64; the sum is an integer
  in units of 2^-149, the smallest float32, of which every float32 is a multiple. Each piece of an
  array is summed in floating point in its own fixed order, and the pieces are added as integers.

So adding arrays in any order, on any number of histograms that are merged later, gives the same
bits. Resolution: amax >= 2^(k - 1), hence the side of zero that holds amax uses at least 2,048 bins
whether or not the other side is empty (as it is after ReLU or Sigmoid).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BINS = 8192
"""Bins over [-2^k, 2^k)."""

HALF = BINS // 2
"""Index of the bin that starts at zero."""

MIN_EXPONENT = -115
"""Smallest k: 2^(12 - k) is still a float32. Tensors below 2^-115 everywhere share its first bins."""

SUM_UNIT_EXPONENT = -149
"""`sum_units` counts multiples of 2^-149."""

# float32 values per pass: the passes over a piece stay in the caches, calcHist's set-up is spread
# over many values, and it lies far below 2^24, up to which calcHist's float32
# counts are exact
_PIECE = 1 << 19

# below this a bincount is cheaper than calcHist's call
_SMALL = 1 << 10


def _zero_counts() -> NDArray[np.int64]:
    return np.zeros(BINS, dtype=np.int64)


def exact_units(value: float) -> int:
    """A float that is a multiple of 2^-149, as that multiple."""
    numerator, denominator = value.as_integer_ratio()
    return numerator * ((1 << -SUM_UNIT_EXPONENT) // denominator)


def exponent_for(minimum: float, maximum: float) -> int:
    """The smallest k >= MIN_EXPONENT with minimum >= -2^k and maximum < 2^k."""
    exponent = MIN_EXPONENT
    if maximum > 0:
        exponent = max(exponent, int(np.frexp(maximum)[1]))
    if minimum < 0:
        mantissa, power = np.frexp(-minimum)
        exponent = max(exponent, int(power) - (1 if mantissa == 0.5 else 0))
    return exponent


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Extremes and exact sum (in units of 2^-149) of an array of finite values."""

    minimum: float
    maximum: float
    sum_units: int


@dataclass(eq=False)
class Histogram:
    """Counts, extremes and sum of a tensor's finite values; NaN and infinities counted apart.

    counts int64 [BINS] on [-2^exponent, 2^exponent); `minimum` > `maximum` while empty.
    """

    exponent: int = MIN_EXPONENT
    counts: NDArray[np.int64] = field(default_factory=_zero_counts)
    minimum: float = float("inf")
    maximum: float = float("-inf")
    count: int = 0
    sum_units: int = 0
    nan_count: int = 0
    inf_count: int = 0

    @property
    def width(self) -> float:
        """Width of a bin, 2^(exponent - 12)."""
        return float(2.0 ** (self.exponent - 12))

    @property
    def amax(self) -> float:
        """Largest magnitude seen; 0 while empty."""
        return max(abs(self.minimum), abs(self.maximum)) if self.count else 0.0

    @property
    def low(self) -> float:
        """min(0, minimum): the lower end of what a range that includes zero must cover."""
        return min(0.0, self.minimum)

    @property
    def high(self) -> float:
        """max(0, maximum)."""
        return max(0.0, self.maximum)

    @property
    def nonfinite_count(self) -> int:
        return self.nan_count + self.inf_count

    @property
    def mean(self) -> float:
        """Mean of the finite values, rounded once from the exact sum; 0 while empty."""
        if not self.count:
            return 0.0
        # int / int rounds correctly, whatever the size of the two
        return self.sum_units / (self.count << -SUM_UNIT_EXPONENT)

    def edges(self) -> NDArray[np.float64]:
        """Lower edges of the bins and the upper edge of the last, float64 [BINS + 1], exact."""
        return np.arange(-HALF, HALF + 1, dtype=np.float64) * self.width

    def grow(self, exponent: int) -> None:
        """Double the range until it reaches `exponent`; a smaller one leaves it as it is."""
        if not self.count:
            self.exponent = max(self.exponent, exponent)
        while self.exponent < exponent:
            pairs = self.counts.reshape(HALF, 2).sum(axis=1)
            self.counts = _zero_counts()
            self.counts[HALF // 2 : HALF + HALF // 2] = pairs
            self.exponent += 1

    def add(self, values: NDArray[Any], known: Summary | None = None) -> None:
        """Count every element of a floating-point array of any shape.

        float16 is widened exactly; float64 is rounded to float32, the type that ranges and scales
        have. Negative zero counts as zero. `known` saves looking for the extremes and the sum again.
        """
        flat = np.ascontiguousarray(values).reshape(-1)
        if known is not None:
            self._note(known.minimum, known.maximum)
            self.count += flat.size
            self.sum_units += known.sum_units
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            if piece.dtype != np.float32:
                with np.errstate(over="ignore"):
                    piece = piece.astype(np.float32)
            if known is None:
                self._add_piece(piece)
            else:
                self._count(piece, negative=known.minimum < 0)

    def _note(self, minimum: float, maximum: float) -> None:
        """Widen extremes and range by those of a finite array."""
        # adding +0 turns -0 into +0: which of the two min() meets first is a matter of order
        self.minimum = min(self.minimum, minimum + 0.0)
        self.maximum = max(self.maximum, maximum + 0.0)
        self.grow(exponent_for(minimum, maximum))

    def _add_piece(self, piece: NDArray[np.float32]) -> None:
        minimum, maximum = float(piece.min()), float(piece.max())
        if not (np.isfinite(minimum) and np.isfinite(maximum)):
            # NaN spreads through min and max, so clean pieces never come here
            self.nan_count += int(np.count_nonzero(np.isnan(piece)))
            self.inf_count += int(np.count_nonzero(np.isinf(piece)))
            piece = piece[np.isfinite(piece)]
            if not piece.size:
                return
            minimum, maximum = float(piece.min()), float(piece.max())
        self._note(minimum, maximum)
        self.count += piece.size
        # in float64: no sum of float32 overflows there. Not sumElems: the order in which it adds, and
        # so the last bit, depends on where in memory the piece happens to lie
        total = cv2.reduce(piece.reshape(1, -1), 1, cv2.REDUCE_SUM, dtype=cv2.CV_64F)
        self.sum_units += exact_units(float(total[0, 0]))
        self._count(piece, negative=minimum < 0)

    def _count(self, piece: NDArray[np.float32], negative: bool) -> None:
        factor = np.float32(2.0 ** (12 - self.exponent))
        if self.exponent > 12 and negative:
            # a tiny negative times a factor below 1 could become -0 and cross into bin 0
            scaled = np.floor(piece)
            np.multiply(scaled, factor, out=scaled)
        else:
            scaled = np.multiply(piece, factor)
        if negative:
            np.floor(scaled, out=scaled)
        # the cast truncates, which is the floor of what is not negative
        index = scaled.astype(np.int16)
        first, bins = (0, BINS) if negative else (HALF, HALF)
        if negative:
            np.add(index, np.int16(HALF), out=index)
        if index.size < _SMALL:
            self.counts[first:] += np.bincount(index, minlength=bins)
            return
        # IPP has a fast path for uint16 (5-10 times the float32 one); all others compute
        # floor(index * 1.0 + 0.0) in double, which is exact too
        found = cv2.calcHist(
            [index.view(np.uint16).reshape(1, -1)], [0], None, [bins], [0.0, float(bins)]
        )
        self.counts[first:] += found.reshape(-1).astype(np.int64)

    def merge(self, other: Histogram) -> None:
        """Add `other`'s values; `other` is left as it is."""
        exponent = max(self.exponent, other.exponent)
        self.grow(exponent)
        if other.exponent < exponent:
            other = other.copy()
            other.grow(exponent)
        self.counts += other.counts
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.count += other.count
        self.sum_units += other.sum_units
        self.nan_count += other.nan_count
        self.inf_count += other.inf_count

    def copy(self) -> Histogram:
        """An independent copy."""
        return Histogram(
            exponent=self.exponent,
            counts=self.counts.copy(),
            minimum=self.minimum,
            maximum=self.maximum,
            count=self.count,
            sum_units=self.sum_units,
            nan_count=self.nan_count,
            inf_count=self.inf_count,
        )

    def same_as(self, other: Histogram) -> bool:
        """Whether every field is equal, bit for bit."""
        return (
            (self.exponent, self.minimum, self.maximum, self.count)
            == (other.exponent, other.minimum, other.maximum, other.count)
            and (self.sum_units, self.nan_count, self.inf_count)
            == (other.sum_units, other.nan_count, other.inf_count)
            and bool(np.array_equal(self.counts, other.counts))
        )
