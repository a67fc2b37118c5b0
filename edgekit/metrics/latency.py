"""Statistics of latency: quantiles of one model's runs, and the ratio of two with its uncertainty.

Runs that follow each other are not independent: a neighbour's job, a clock step or a warm cache lasts
for many of them. So the ratio's interval comes from resampling whole blocks, each of which holds runs
of both models made close together in time.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.types import SpeedUp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
# elements of the largest array that one step of the bootstrap makes (8 bytes each)
_CHUNK = 4_000_000


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the samples lie, linear between the two nearest.

    Definition 7 of Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996): position
    share * (n - 1) in the sorted samples; numpy's default.
    """
    if not samples:
        raise ValueError("quantile of no samples")
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summary(samples_ms: Sequence[float]) -> dict[str, float]:
    """p50_ms, p90_ms, p95_ms, p99_ms, mean_ms, std_ms (n - 1), min_ms, max_ms of at least one run."""
    ordered = sorted(samples_ms)
    return {
        "p50_ms": quantile(ordered, 0.50),
        "p90_ms": quantile(ordered, 0.90),
        "p95_ms": quantile(ordered, 0.95),
        "p99_ms": quantile(ordered, 0.99),
        "mean_ms": statistics.fmean(ordered),
        "std_ms": statistics.stdev(ordered) if len(ordered) > 1 else 0.0,
        "min_ms": ordered[0],
        "max_ms": ordered[-1],
    }


def settled(earlier_ms: Sequence[float], later_ms: Sequence[float], tolerance: float) -> bool:
    """Whether two successive stretches of runs are equally fast, within `tolerance` (0.05 = 5 %).

    Compares their lower quartiles: what warms up (caches, allocations, the clock) moves the fast
    runs, too, while a neighbour's job mostly moves the slow ones.
    """
    before, after = quantile(earlier_ms, 0.25), quantile(later_ms, 0.25)
    return abs(after - before) <= tolerance * before


def speed_up(
    this_ms: Sequence[Sequence[float]],
    other_ms: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> SpeedUp:
    """The other's median / this one's median, above 1 when this one is faster, with its interval.

    `this_ms[k]` and `other_ms[k]` are the runs of both models in block k. Blocks are drawn with
    replacement, both models' runs of a block together, so that what slows down both cancels out of
    the ratio. The interval is the bootstrap's percentile interval, with the percentiles moved out as
    for Student's t (the expanded percentile interval of Hesterberg, "What Teachers Should Know About
    the Bootstrap", 2015): the plain one is too narrow for a dozen blocks. With one block nothing is
    known about the spread, and the interval is (0, inf). Equal input gives equal output.
    """
    import numpy as np

    blocks = len(this_ms)
    if not blocks or blocks != len(other_ms) or not all(map(len, (*this_ms, *other_ms))):
        raise ValueError("both models need runs in each of the same blocks")
    ratio = statistics.median(_flat(other_ms)) / statistics.median(_flat(this_ms))
    if blocks == 1:
        return SpeedUp(ratio=ratio, low=0.0, high=math.inf)
    # the standard library's generator, so that a board without numpy draws the same blocks
    generator = random.Random(seed)
    draws = np.array(
        [int(generator.random() * blocks) for _ in range(resamples * blocks)], dtype=np.int64
    ).reshape(resamples, blocks)
    counts = np.zeros((resamples, blocks), dtype=np.int64)
    np.add.at(counts, (np.arange(resamples)[:, None], draws), 1)
    ratios = np.sort(_medians(other_ms, counts) / _medians(this_ms, counts))
    tail = _expanded_tail((1.0 - confidence) / 2.0, blocks)
    low, high = quantile(ratios.tolist(), tail), quantile(ratios.tolist(), 1.0 - tail)
    return SpeedUp(ratio=ratio, low=min(low, ratio), high=max(high, ratio))


def _flat(blocks: Sequence[Sequence[float]]) -> list[float]:
    return [sample for block in blocks for sample in block]


def _medians(blocks: Sequence[Sequence[float]], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Median of the pooled samples of each resample; counts [R, blocks] says how often each is in.

    A block drawn twice gives each of its samples the weight 2: the median is where the running sum
    of weights, in order of the samples, passes the half.
    """
    import numpy as np

    values = np.array(_flat(blocks), dtype=np.float64)
    owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    medians = np.empty(len(counts), dtype=np.float64)
    step = max(1, _CHUNK // len(values))
    for start in range(0, len(counts), step):
        running = np.cumsum(counts[start : start + step, owner], axis=1)
        total = running[:, -1:]
        lower = np.argmax(running >= (total + 1) // 2, axis=1)
        upper = np.argmax(running >= total // 2 + 1, axis=1)
        medians[start : start + step] = (values[lower] + values[upper]) / 2.0
    return medians


def _expanded_tail(tail: float, count: int) -> float:
    """Tail of the normal at sqrt(n / (n - 1)) * t(tail, n - 1): below `tail`, and equal for many."""
    normal = statistics.NormalDist()
    return normal.cdf(math.sqrt(count / (count - 1)) * _student_quantile(tail, count - 1))


def _student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t.

    Closed forms for 1 and 2 degrees of freedom; above, the expansion in 1/freedom of Abramowitz and
    Stegun, "Handbook of Mathematical Functions", 26.7.5 (within 1 % at 0.025 from 3 on).
    """
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    x = statistics.NormalDist().inv_cdf(share)
    return (
        x
        + (x**3 + x) / (4 * freedom)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * freedom**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * freedom**3)
        + (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / (92160 * freedom**4)
    )
