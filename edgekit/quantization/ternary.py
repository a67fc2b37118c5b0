"""Ternary weights: found by their values, and the integer scale that represents them best.

A ternary layer's weights are all in {-Wn, 0, +Wp}, with one pair of levels for the layer (trained
ternary quantization, https://arxiv.org/abs/1612.01064) or one for each output channel, which is what
folding a BatchNorm into the layer makes of it.

The scale. With integers up to L, a scale s and integers (i, j) stand for the levels p and n with the
errors |p - i s| and |n - j s|. For fixed (i, j) the larger of both errors is least where they are
equal and of opposite sign, at s = (p + n) / (i + j), and is then |p j - n i| / (i + j).

Let p be the larger level, p = 1 and n = r <= 1. For fixed i the error |j - r i| / (i + j) grows with
j above r i and falls with j below it, so the best j is floor(r i) or ceil(r i), and 2 L candidates
decide what a search over all L^2 pairs would.

The bound. r lies between neighbours a/b <= r <= c/d of the Farey sequence of order L, with
b c - a d = 1 and b + d >= L + 1. The errors of (b, a) and (d, c) are equal at
r = (2 a c + b c + a d) / (2 b d + b c + a d), and there both are 1 / (2 b d + b c + a d); the better
of the two is nowhere worse. The least denominator is that of the neighbours 0/1 and 1/L: 2 L + 1.
So the error is at most 1 / (2 L + 1) of the larger level: 0.392 % for 8 bits (L = 127), 0.787 % for
7 (L = 63), 1.587 % for 6 (L = 31). That is reached only where one level is 1 / (2 L + 1) of the
other. Levels that differ by at most a factor of 2 keep 1 / (4 L - 1) (the neighbours (L - 1)/L and
1/1): 0.197 %, 0.398 %, 0.813 %. The mean over random pairs is about ten times smaller than the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 2.0**-20
"""Spread of a level, relative to the larger one: straight-through estimators store w + (q - w), whose
rounding leaves a few last bits."""

# a weight with fewer non-zero values per level says nothing: two random numbers of opposite sign
# are "ternary" too
_VALUES_PER_LEVEL = 2


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The levels of a ternary weight, both >= 0.

    positive (Wp) and negative (Wn): float64 [C] along the channel axis, or [] for the whole layer; 0
    where a channel has no such value.
    """

    positive: NDArray[np.float64]
    negative: NDArray[np.float64]

    @property
    def per_channel(self) -> bool:
        return self.positive.ndim > 0


def find_levels(weight: NDArray[np.floating], axis: int | None = 0) -> Levels | None:
    """The levels of `weight` [any shape], None when it is not ternary.

    One pair for the layer is looked for first, then one for each index of `axis` (None: not). Both
    signs must occur, and each level must stand for two values or more on average.
    """
    if weight.size == 0:
        return None
    whole = _levels(weight.reshape(1, -1))
    if whole is not None:
        return Levels(positive=whole[0].reshape(()), negative=whole[1].reshape(()))
    if axis is None or weight.ndim < 2:
        return None
    found = _levels(_rows(weight, axis))
    return None if found is None else Levels(positive=found[0], negative=found[1])


def _rows(weight: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _levels(rows: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(Wp, Wn) of each row, None when one of the rows has other values."""
    values = rows.astype(np.float64)
    size = np.abs(values)
    largest = size.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        return None
    slack = TOLERANCE * largest
    up, down = values > slack, values < -slack
    high = np.where(up, size, 0).max(axis=1)
    low = np.where(up, size, np.inf).min(axis=1)
    deep = np.where(down, size, 0).max(axis=1)
    shallow = np.where(down, size, np.inf).min(axis=1)
    spread = np.maximum(high - low, deep - shallow)  # -inf where a sign does not occur
    if (spread > slack[:, 0]).any():
        return None
    levels = np.count_nonzero(high) + np.count_nonzero(deep)
    if not up.any() or not down.any():
        return None
    if np.count_nonzero(up | down) < _VALUES_PER_LEVEL * levels:
        return None
    return high, deep


def best_integers(
    positive: NDArray[np.float64], negative: NDArray[np.float64], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Integers (i, j) <= `limit` and the scale s for which i s and j s are closest to both levels.

    positive, negative: float64 [C], >= 0. Minimizes max(|p - i s|, |n - j s|) (see the module's
    text); of equal errors the largest integers are taken, because a fine scale also serves the bias.
    A level of 0 gets 0. Both 0: s = 1. Returns i, j [C] and s [C].
    """
    larger = np.maximum(positive, negative)
    smaller = np.minimum(positive, negative)
    safe = np.where(larger > 0, larger, 1.0)
    ratio = (smaller / safe)[:, None]
    first = np.arange(1, limit + 1, dtype=np.float64)[None, :]
    below = np.floor(ratio * first)
    second = np.concatenate([below, np.minimum(below + 1, first)], axis=1)
    first = np.concatenate([first, first], axis=1)
    error = np.abs(second - ratio * first) / (first + second)
    # rounding makes errors of 0 to some 1e-19 of the same pair's multiples: they count as equal
    best = error.min(axis=1, keepdims=True)
    score = np.where(error <= best + 1e-15, first + second, -1)
    chosen = score.argmax(axis=1)
    rows = np.arange(len(chosen))
    i = np.broadcast_to(first, error.shape)[rows, chosen]
    j = second[rows, chosen]
    # a lone level is met exactly; where the small one rounds to 0, so is the large one
    scale = np.where(j > 0, (larger + smaller) / (i + j), larger / i)
    swap = negative > positive
    high, low = i.astype(np.int64), j.astype(np.int64)
    empty = larger <= 0
    high, low = np.where(empty, 0, high), np.where(empty, 0, low)
    return (
        np.where(swap, low, high),
        np.where(swap, high, low),
        np.where(empty, 1.0, scale),
    )


def weight_scale(
    weight: NDArray[np.floating], axis: int | None, limit: int
) -> NDArray[np.float32] | None:
    """The symmetric scale for a ternary weight: float32 [C] along `axis`, [] for per-tensor.

    None when the weight is not ternary, or when its channels have levels of their own and one scale
    is asked for.
    """
    levels = find_levels(weight, axis)
    if levels is None:
        return None
    if axis is None:
        _, _, scale = best_integers(levels.positive.reshape(1), levels.negative.reshape(1), limit)
        return _usable(scale).reshape(())
    rows = _rows(weight, axis)
    present = np.abs(rows).max(axis=1).astype(np.float64) * TOLERANCE
    # channel by channel: one that has only one of the signs is met exactly
    up = np.where((rows > present[:, None]).any(axis=1), levels.positive, 0.0)
    down = np.where((rows < -present[:, None]).any(axis=1), levels.negative, 0.0)
    _, _, scale = best_integers(up, down, limit)
    return _usable(scale)


def _usable(scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32; 1 below the smallest normal number, whose reciprocal overflows."""
    narrow = scale.astype(np.float32)
    return np.where(narrow < np.finfo(np.float32).tiny, np.float32(1.0), narrow)


def error_bound(limit: int) -> float:
    """Largest error of a level that `best_integers` leaves, as a share of the larger level."""
    return 1.0 / (2 * limit + 1)
