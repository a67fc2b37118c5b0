from __future__ import annotations

import numpy as np
import pytest

from edgekit.metrics.bootstrap import interval, paired_difference, resampled


def share(values):
    return lambda weights: float(np.dot(weights, values) / weights.sum())


def test_the_interval_of_a_share_is_the_binomial_one():
    right = np.arange(400) < 320  # 0.8
    found = interval(share(right), 400, resamples=2000)
    error = (0.8 * 0.2 / 400) ** 0.5
    assert found.estimate == 0.8
    assert found.low == pytest.approx(0.8 - 1.96 * error, abs=0.004)
    assert found.high == pytest.approx(0.8 + 1.96 * error, abs=0.004)


def test_equal_seeds_give_equal_intervals():
    right = np.arange(50) % 3 == 0
    assert interval(share(right), 50, seed=3) == interval(share(right), 50, seed=3)
    assert interval(share(right), 50, seed=3) != interval(share(right), 50, seed=4)


def test_the_ends_stay_within_zero_and_one():
    right = np.ones(20)
    right[0] = 0
    assert interval(share(right), 20).high <= 1.0
    assert interval(share(1 - right), 20).low >= 0.0


def test_a_statistic_that_comes_out_too_high_is_moved_down():
    values = np.linspace(0, 1, 30)

    def largest(weights):
        return float(values[weights > 0].mean() + 0.1 * (weights > 1).mean())

    plain = largest(np.ones(30))
    found = interval(largest, 30)
    assert (found.low + found.high) / 2 < plain


def test_what_is_hard_for_both_cancels_in_the_difference():
    generator = np.random.default_rng(0)
    first = generator.random(1000) < 0.7
    second = first.copy()
    second[:30] = False
    apart = interval(share(first), 1000), interval(share(second), 1000)
    paired = paired_difference(share(first), share(second), 1000)
    assert paired.estimate == pytest.approx(second.mean() - first.mean())
    assert paired.high < 0
    assert paired.high - paired.low < 0.5 * (apart[0].high - apart[0].low)


def test_a_model_does_not_differ_from_itself():
    values = np.random.default_rng(1).random(100) < 0.5
    found = paired_difference(share(values), share(values), 100)
    assert (found.low, found.estimate, found.high) == (0.0, 0.0, 0.0)


def test_every_resample_draws_as_many_images():
    for weights in resampled(17, 5, seed=0):
        assert weights.shape == (17,) and weights.sum() == 17
    with pytest.raises(ValueError):
        interval(share(np.ones(3)), 3, resamples=1)
