"""Per-channel extremes and sums of a tensor, for bias correction and equalization.

Order-free like the histograms: extremes do not depend on order, counts are integers, and each
image's sum (float64, in the array's own order) is added as an exact integer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekit.calibration.histogram import SUM_UNIT_EXPONENT, Summary
from edgekit.errors import BadInput

# a float64 with 53 bits of mantissa, multiple of 2^-149: its mantissa as an integer stands at 2^-202
_UNIT_EXPONENT = SUM_UNIT_EXPONENT - 53


def _row_sums(planes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum of each row of [C, N], float64 [C], added up in float64.

    OpenCV's takes a fifth of numpy's time, which widens in a buffer first. Its result depends neither on
    where the rows begin in memory nor on the number of threads (cv2.sumElems' does).
    """
    if planes.shape[1] == 1:
        return planes[:, 0].astype(np.float64)
    sums: NDArray[np.float64] = cv2.reduce(planes, 1, cv2.REDUCE_SUM, dtype=cv2.CV_64F)
    return sums.reshape(-1)


@dataclass(eq=False)
class ChannelStatistics:
    """Minimum, maximum and mean of each channel along `axis` over all images and positions.

    minimum, maximum float32 [C]; count is values per channel; `sum_units` holds C Python integers
    (object array) in units of 2^-202. Empty arrays until the first `add`.
    """

    axis: int = 1
    minimum: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    maximum: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    count: int = 0
    sum_units: NDArray[Any] = field(default_factory=lambda: np.empty(0, object))

    @property
    def channels(self) -> int:
        return int(self.minimum.size)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean per channel, float64 [C], rounded once from the exact sums."""
        divisor = max(1, self.count) << -_UNIT_EXPONENT
        return np.array([int(units) / divisor for units in self.sum_units], dtype=np.float64)

    def add(self, values: NDArray[Any]) -> Summary | None:
        """Take in one image's tensor, and return its extremes and sum over all channels.

        None, and nothing taken in, when the tensor is empty or holds NaN or infinity. Raises BadInput
        when it has no channel axis or the number of channels changes.
        """
        if values.ndim <= self.axis:
            raise BadInput(
                f"A tensor of shape {list(values.shape)} has no channel axis {self.axis}."
            )
        if not values.size:
            return None
        single = values if values.dtype == np.float32 else values.astype(np.float32)
        planes = np.moveaxis(single, self.axis, 0).reshape(single.shape[self.axis], -1)
        low, high = planes.min(axis=1) + np.float32(0), planes.max(axis=1) + np.float32(0)
        least, most = float(low.min()), float(high.max())
        # NaN spreads through min and max
        if not (np.isfinite(least) and np.isfinite(most)):
            return None
        mantissa, power = np.frexp(_row_sums(np.ascontiguousarray(planes)))
        whole = np.ldexp(mantissa, 53).astype(np.int64).astype(object)
        shifts = (power.astype(np.int64) - 53 - _UNIT_EXPONENT).astype(object)
        units = whole << np.maximum(shifts, 0)
        if not self.channels:
            self.minimum, self.maximum, self.sum_units = low, high, units
        else:
            self._check(low.size)
            self.minimum = np.minimum(self.minimum, low)
            self.maximum = np.maximum(self.maximum, high)
            self.sum_units = self.sum_units + units
        self.count += planes.shape[1]
        # every float32 is a multiple of 2^-149, and so are sums of them, rounded or not
        total = sum(units.tolist()) >> (SUM_UNIT_EXPONENT - _UNIT_EXPONENT)
        return Summary(minimum=least, maximum=most, sum_units=total)

    def merge(self, other: ChannelStatistics) -> None:
        """Add `other`'s values; `other` is left as it is."""
        if not other.channels:
            return
        if not self.channels:
            self.minimum, self.maximum = other.minimum.copy(), other.maximum.copy()
            self.sum_units, self.count = other.sum_units.copy(), other.count
            return
        self._check(other.channels)
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)
        self.sum_units = self.sum_units + other.sum_units
        self.count += other.count

    def _check(self, channels: int) -> None:
        if channels != self.channels:
            raise BadInput(
                f"A tensor has {channels} channels along axis {self.axis}, before it had "
                f"{self.channels}.",
                hint="Per-channel statistics need a tensor whose channels do not change.",
            )

    def same_as(self, other: ChannelStatistics) -> bool:
        """Whether every field is equal, bit for bit."""
        return (
            (self.axis, self.count) == (other.axis, other.count)
            and np.array_equal(self.minimum, other.minimum)
            and np.array_equal(self.maximum, other.maximum)
            and list(self.sum_units) == list(other.sum_units)
        )
