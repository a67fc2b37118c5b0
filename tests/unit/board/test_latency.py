"""The board's statistics: the host's numbers on the same samples, and intervals that hold."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from edgekit.board import latency
from edgekit.metrics import latency as host


def _blocks(
    seed: int, blocks: int, runs: int, median: float, ratio: float
) -> tuple[list[list[float]], list[list[float]]]:
    generator = random.Random(seed)
    this, other = [], []
    for _ in range(blocks):
        drift = generator.gauss(1.0, 0.05)
        this.append([median * drift * generator.lognormvariate(0, 0.03) for _ in range(runs)])
        other.append(
            [median * ratio * drift * generator.lognormvariate(0, 0.03) for _ in range(runs)]
        )
    return this, other


@pytest.mark.parametrize("runs", [1, 2, 7, 40, 301])
def test_summaries_are_those_of_the_host(runs: int) -> None:
    samples = [random.Random(runs).lognormvariate(0, 1) for _ in range(runs)]
    assert latency.summary(samples) == host.summary(samples)
    for share in (0.0, 0.25, 0.5, 0.975, 1.0):
        assert latency.quantile(samples, share) == host.quantile(samples, share)
    assert latency.settled(samples, samples[::-1], 0.01) == host.settled(
        samples, samples[::-1], 0.01
    )


@pytest.mark.parametrize("blocks", [1, 2, 3, 12, 31])
@pytest.mark.parametrize("runs", [1, 2, 9, 80])
def test_ratios_and_their_intervals_are_those_of_the_host(blocks: int, runs: int) -> None:
    this, other = _blocks(blocks + runs, blocks, runs, 2.0, 1.3)
    for seed in (0, 5):
        found = latency.speed_up(this, other, seed=seed, resamples=500)
        wanted = host.speed_up(this, other, seed=seed, resamples=500)
        assert (found.ratio, found.low, found.high) == (wanted.ratio, wanted.low, wanted.high)


def test_blocks_of_different_sizes_agree_too() -> None:
    generator = random.Random(9)
    this = [[generator.random() for _ in range(n)] for n in (1, 5, 2, 17, 3)]
    other = [[generator.random() for _ in range(n)] for n in (4, 1, 9, 2, 2)]
    found = latency.speed_up(this, other, resamples=300)
    wanted = host.speed_up(this, other, resamples=300)
    assert (found.ratio, found.low, found.high) == (wanted.ratio, wanted.low, wanted.high)
    with pytest.raises(ValueError, match="same blocks"):
        latency.speed_up(this, other[:-1])
    with pytest.raises(ValueError, match="same blocks"):
        latency.speed_up([[]], [[1.0]])


@pytest.mark.parametrize("count", [6, 9, 25, 200])
def test_the_interval_of_the_median_holds_it_as_often_as_it_says(count: int) -> None:
    generator = random.Random(count)
    held = 0
    tries = 600
    for _ in range(tries):
        low, high = latency.median_interval([generator.expovariate(1.0) for _ in range(count)])
        held += low <= math.log(2) <= high
    assert 0.93 <= held / tries <= 1.0


def test_too_few_values_say_nothing_about_the_median() -> None:
    assert latency.median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (0.0, math.inf)
    assert latency.median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (1.0, 6.0)
    low, high = latency.median_interval([float(n) for n in range(1001)])
    assert 460 < low < 475
    assert high == 1000 - low


def test_a_drift_is_told_from_noise() -> None:
    generator = random.Random(3)
    noise = [generator.gauss(10, 0.3) for _ in range(60)]
    still, warm = latency.drift(noise), latency.drift([v + 0.02 * n for n, v in enumerate(noise)])
    assert still is not None and warm is not None
    assert not still.is_trend
    assert warm.is_trend
    assert warm.share == pytest.approx(0.09, abs=0.03)
    assert latency.drift(noise[:7]) is None
    constant = latency.drift([2.0] * 1000)
    assert constant is not None and (constant.share, constant.z) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("speed", "decision"),
    [
        ((1.0, 0.99, 1.01), "within"),
        ((1.2, 1.1, 1.3), "within"),
        ((0.9, 0.88, 0.92), "slower"),
        ((0.98, 0.95, 1.01), "undecided"),
        ((0.5, 0.0, math.inf), "undecided"),
    ],
)
def test_only_what_is_beyond_the_noise_is_a_regression(
    speed: tuple[float, float, float], decision: str
) -> None:
    found = latency.regression(latency.SpeedUp(*speed), 0.03)
    assert found["decision"] == decision
    assert found["regressed"] == (decision == "slower")
    assert found["slower"]["low"] <= found["slower"]["ratio"] <= found["slower"]["high"]


def test_one_in_forty_of_equal_models_is_called_slower_at_most() -> None:
    """Without a tolerance: the interval's own error on each side is 2.5 %."""
    wrong = 0
    for seed in range(120):
        this, other = _blocks(seed, 12, 9, 1.0, 1.0)
        speed = latency.speed_up(this, other, resamples=300)
        wrong += latency.regression(speed, 1e-9)["regressed"]
    assert wrong <= 8


def test_draws_are_the_same_everywhere() -> None:
    counts = latency.draws(7, 50, 3)
    assert all(sum(row) == 7 for row in counts)
    assert counts == latency.draws(7, 50, 3)
    assert counts[0] == [2, 1, 1, 1, 2, 0, 0]
    assert statistics.fmean(row[0] for row in latency.draws(7, 2000, 0)) == pytest.approx(
        1, abs=0.1
    )
