"""Statistics of latency in pure Python; on the same samples they give the numbers of edgekit's own
edgekit.metrics.latency, from which they are kept apart because this program stands alone.

Runs that follow each other are not independent: a neighbour's job, a clock step or a warm cache lasts
for many of them. So what is taken for one observation is a turn of about a tenth of a second, or a
block in which two models were timed close together.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass
from typing import Any, Sequence

RESAMPLES = 2000
_BUCKETS = 64


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the samples lie, linear between the two nearest.

    Definition 7 of Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996).
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


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median of what `values` are drawn from, by order statistics.

    The k-th smallest and the k-th largest, with the largest k for which the binomial distribution
    gives at least `confidence` (David and Nagaraja, "Order Statistics", 2003, section 7.1): no
    assumption on the distribution is made. Below six values no k does, and the interval is (0, inf).
    """
    ordered, count = sorted(values), len(values)
    tail, best = 0.0, -1
    for k in range(count // 2):
        # in logarithms: the coefficients of a few hundred turns are beyond a float
        log_term = (
            math.lgamma(count + 1)
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            - count * math.log(2)
        )
        tail += math.exp(log_term)
        if 2 * tail > 1 - confidence:
            break
        best = k
    if best < 0:
        return 0.0, math.inf
    return ordered[best], ordered[count - 1 - best]


@dataclass(frozen=True)
class Drift:
    """How the turns' medians move: `share` from the first quarter to the last (0.02 = 2 % slower),
    `z` of the Mann-Kendall test for a trend."""

    share: float
    z: float

    @property
    def is_trend(self) -> bool:
        """Whether it is more than chance (two-sided, 1 %) and more than one percent."""
        return abs(self.z) > 2.576 and abs(self.share) > 0.01


def drift(turn_medians_ms: Sequence[float]) -> Drift | None:
    """The drift over at least eight turns, else None.

    Mann, "Nonparametric Tests Against Trend" (1945); at most 400 turns, evenly chosen, are compared
    with each other.
    """
    count = len(turn_medians_ms)
    if count < 8:
        return None
    quarter = count // 4
    first = statistics.median(turn_medians_ms[:quarter])
    last = statistics.median(turn_medians_ms[-quarter:])
    step = -(-count // 400)
    values = turn_medians_ms[::step]
    score = 0
    for index, value in enumerate(values):
        for later in values[index + 1 :]:
            score += (later > value) - (later < value)
    n = len(values)
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    z = (score - (score > 0) + (score < 0)) / deviation
    return Drift(share=last / first - 1.0 if first else 0.0, z=z)


@dataclass(frozen=True)
class SpeedUp:
    """The other's median / this one's, above 1 when this one is faster, and its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def precision(self) -> float:
        """Half the interval as a share of the ratio."""
        return (self.high - self.low) / 2.0 / self.ratio


def speed_up(
    this_ms: Sequence[Sequence[float]],
    other_ms: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> SpeedUp:
    """The ratio of two models that took turns in blocks, by bootstrap over the blocks.

    `this_ms[k]` and `other_ms[k]` are the runs of both in block k; blocks are drawn with replacement,
    both models' runs together. The percentile interval is moved out as for Student's t (the expanded
    percentile interval of Hesterberg, "What Teachers Should Know About the Bootstrap", 2015). With one
    block the interval is (0, inf). Equal input gives equal output.
    """
    blocks = len(this_ms)
    if not blocks or blocks != len(other_ms) or not all(map(len, (*this_ms, *other_ms))):
        raise ValueError("both models need runs in each of the same blocks")
    ratio = statistics.median(_flat(other_ms)) / statistics.median(_flat(this_ms))
    if blocks == 1:
        return SpeedUp(ratio, 0.0, math.inf)
    this, other = _Pool(this_ms), _Pool(other_ms)
    ratios = sorted(
        other.median(counts) / this.median(counts) for counts in draws(blocks, resamples, seed)
    )
    tail = _expanded_tail((1.0 - confidence) / 2.0, blocks)
    low, high = quantile(ratios, tail), quantile(ratios, 1.0 - tail)
    return SpeedUp(ratio, min(low, ratio), max(high, ratio))


def draws(blocks: int, resamples: int, seed: int) -> list[list[int]]:
    """How often each block is in each resample; the same on every machine and Python."""
    generator = random.Random(seed)
    counts = []
    for _ in range(resamples):
        row = [0] * blocks
        for _ in range(blocks):
            row[int(generator.random() * blocks)] += 1
        counts.append(row)
    return counts


class _Pool:
    """The runs of all blocks in order, so that a resample's median is found by searching."""

    def __init__(self, blocks: Sequence[Sequence[float]]) -> None:
        pairs = sorted((value, owner) for owner, block in enumerate(blocks) for value in block)
        self._values = [value for value, _ in pairs]
        self._owners = [owner for _, owner in pairs]
        self._sizes = [len(block) for block in blocks]
        # for every stretch of the order: how many runs of each block come before it
        self._step = max(1, len(pairs) // _BUCKETS)
        self._before: list[list[int]] = []
        running = [0] * len(blocks)
        for place, owner in enumerate(self._owners):
            if place % self._step == 0:
                self._before.append(list(running))
            running[owner] += 1

    def median(self, counts: Sequence[int]) -> float:
        """The median of the runs, those of a block drawn twice counting twice."""
        total = sum(map(_product, counts, self._sizes))
        return (self._at(counts, (total + 1) // 2) + self._at(counts, total // 2 + 1)) / 2.0

    def _at(self, counts: Sequence[int], rank: int) -> float:
        """The value at which the running sum of weights reaches `rank`."""
        low, high = 0, len(self._before)
        while high - low > 1:
            middle = (low + high) // 2
            if sum(map(_product, counts, self._before[middle])) < rank:
                low = middle
            else:
                high = middle
        running = sum(map(_product, counts, self._before[low]))
        for place in range(low * self._step, len(self._values)):
            running += counts[self._owners[place]]
            if running >= rank:
                return self._values[place]
        raise ValueError("rank beyond the runs")


def _product(one: int, other: int) -> int:
    return one * other


def _flat(blocks: Sequence[Sequence[float]]) -> list[float]:
    return [sample for block in blocks for sample in block]


def _expanded_tail(tail: float, count: int) -> float:
    """Tail of the normal at sqrt(n / (n - 1)) * t(tail, n - 1): below `tail`, and equal for many."""
    normal = statistics.NormalDist()
    return normal.cdf(math.sqrt(count / (count - 1)) * _student_quantile(tail, count - 1))


def _student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t: closed forms for 1 and 2 degrees of freedom; above, the expansion of
    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5."""
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


def regression(speed: SpeedUp, tolerance: float) -> dict[str, Any]:
    """Whether this model is slower than the other, its baseline, beyond the noise.

    `slower` is this one's median / the other's with its interval; `tolerance` (0.03 = 3 %) is what
    may be lost. `decision` is "slower" when the whole interval lies above 1 + tolerance, "within"
    when it lies below, and "undecided" when it holds 1 + tolerance: then more runs are needed. Only
    "slower" is a regression.
    """
    slower = {
        "ratio": 1.0 / speed.ratio,
        "low": 1.0 / speed.high if speed.high else math.inf,
        "high": 1.0 / speed.low if speed.low else math.inf,
    }
    limit = 1.0 + tolerance
    decision = (
        "slower" if slower["low"] > limit else "within" if slower["high"] <= limit else "undecided"
    )
    return {
        "tolerance": tolerance,
        "slower": slower,
        "decision": decision,
        "regressed": decision == "slower",
    }
