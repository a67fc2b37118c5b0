"""Histograms: equal to a direct count, whatever the order, the split and the way the range grew."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from edgekit.calibration import histogram as module
from edgekit.calibration.channels import ChannelStatistics
from edgekit.calibration.histogram import BINS, HALF, MIN_EXPONENT, Histogram, exponent_for
from edgekit.errors import BadInput


def direct(values: np.ndarray) -> tuple[int, np.ndarray]:
    """Exponent and counts by exact rational arithmetic, value by value."""
    finite = [Fraction(float(v)) for v in values.ravel().tolist()]
    exponent = MIN_EXPONENT
    while min(finite) < -(Fraction(2) ** exponent) or max(finite) >= Fraction(2) ** exponent:
        exponent += 1
    width = Fraction(2) ** (exponent - 12)
    counts = np.zeros(BINS, np.int64)
    for value in finite:
        counts[value // width + HALF] += 1
    return exponent, counts


def made_of(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(array)
    return histogram


def cases(rng: np.random.Generator) -> list[np.ndarray]:
    """Arrays of very different size and range, zeros, denormals and powers of two among them."""
    silu = rng.normal(0, 4, 3000).astype(np.float32)
    silu = silu / (1 + np.exp(-silu))
    tiny = np.float32(1.4e-45)
    return [
        rng.normal(0, 1, 4000).astype(np.float32),
        silu.astype(np.float32),
        np.maximum(rng.normal(0, 9, (3, 40, 11)), 0).astype(np.float32),
        (rng.random(500) * 1e-6).astype(np.float32),
        (rng.normal(0, 3e5, 2000)).astype(np.float32),
        np.array([tiny, -tiny, 0.0, -0.0, 1e-39, -1e-39, -1e-30, 1e-30], np.float32),
        np.array([1.0, -1.0, 2.0, -2.0, 4096.0, -4096.0, 0.5, -0.5], np.float32),
        np.zeros(100, np.float32),
        np.full(70, -3.25, np.float32),
    ]


def test_counts_equal_exact_arithmetic() -> None:
    for values in cases(np.random.default_rng(1)):
        histogram = made_of(values)
        exponent, counts = direct(values)
        assert histogram.exponent == exponent
        assert np.array_equal(histogram.counts, counts)
        assert histogram.count == values.size
        assert histogram.minimum == values.min()
        assert histogram.maximum == values.max()


def test_large_pieces_count_as_small_ones_do() -> None:
    # calcHist's path, bincount's path and numpy's own histogram
    rng = np.random.default_rng(2)
    for values in (
        rng.normal(0, 1, 600_000).astype(np.float32),
        np.maximum(rng.normal(0, 1, 600_000), 0).astype(np.float32),
        np.zeros(600_000, np.float32),
    ):
        whole = made_of(values)
        small = made_of(*(values[at : at + 1000] for at in range(0, values.size, 1000)))
        assert np.array_equal(whole.counts, small.counts)
        assert (whole.exponent, whole.minimum, whole.maximum) == (
            small.exponent,
            small.minimum,
            small.maximum,
        )
        expected, _ = np.histogram(values.astype(np.float64), whole.edges())
        assert np.array_equal(whole.counts, expected)


def test_any_order_and_any_split_give_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    arrays = cases(rng)
    reference = made_of(*arrays)
    shuffler = random.Random(4)
    for _ in range(40):
        order = arrays[:]
        shuffler.shuffle(order)
        parts = [Histogram() for _ in range(shuffler.randint(1, 5))]
        for array in order:
            shuffler.choice(parts).add(array)
        shuffler.shuffle(parts)
        merged = parts[0]
        for part in parts[1:]:
            before = part.copy()
            merged.merge(part)
            assert part.same_as(before)
        assert merged.same_as(reference)
    assert reference.count == sum(array.size for array in arrays)


def test_doubling_equals_a_direct_count_at_the_larger_range() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0, 0.01, 5000).astype(np.float32)
    for large in (0.3, 1.0, 7.0, 1000.0, 2.0**31, -(2.0**100)):
        grown = made_of(values, np.array([large], np.float32))
        together = made_of(np.append(values, np.float32(large)))
        assert grown.exponent == together.exponent
        assert np.array_equal(grown.counts, together.counts)


def test_tiny_negatives_stay_negative_at_every_range() -> None:
    tiny = np.full(2000, -1.4e-45, np.float32)
    for large in (0.0, 1.0, 5000.0, 1e10, 1e38):
        histogram = made_of(tiny, np.array([large], np.float32))
        assert histogram.counts[HALF - 1] == 2000
        assert made_of(np.array([large], np.float32), tiny).same_as(histogram)


def test_the_upper_edge_doubles_the_range_and_the_lower_edge_does_not() -> None:
    white = made_of(np.ones((1, 3, 64, 64), np.float32))
    assert (white.exponent, white.count, int(white.counts.sum())) == (1, 12288, 12288)
    assert white.counts[HALF + HALF // 2] == 12288
    black = made_of(np.full((1, 3, 64, 64), -1.0, np.float32))
    assert (black.exponent, int(black.counts[0])) == (0, 12288)


@pytest.mark.parametrize(
    ("low", "high", "exponent"),
    [
        (0.0, 0.0, MIN_EXPONENT),
        (0.0, 1.0, 1),
        (0.0, 0.99, 0),
        (-1.0, 0.0, 0),
        (-1.01, 0.0, 1),
        (-4.0, 4.0, 3),
        (-4.0, 3.9, 2),
        (0.0, 3.4028235e38, 128),
        (-1e-44, 0.0, MIN_EXPONENT),
    ],
)
def test_exponent(low: float, high: float, exponent: int) -> None:
    assert exponent_for(low, high) == exponent


def test_the_longer_side_always_uses_2048_bins() -> None:
    rng = np.random.default_rng(6)
    for amax in (1e-30, 3e-5, 0.999, 1.0, 1.001, 77.0, 65504.0, 3e38):
        for sign in (1, -1):
            values = (sign * amax * rng.random(3000)).astype(np.float32)
            values[0] = sign * amax
            used = np.flatnonzero(made_of(values).counts)
            assert max(used[-1] - HALF + 1, HALF - used[0]) >= 2048


def test_nan_and_infinity_are_counted_apart() -> None:
    clean = np.random.default_rng(7).normal(0, 1, 5000).astype(np.float32)
    dirty = np.concatenate((clean, np.array([np.nan, np.inf, -np.inf, np.nan], np.float32)))
    histogram = made_of(np.random.default_rng(8).permutation(dirty))
    assert (histogram.nan_count, histogram.inf_count, histogram.nonfinite_count) == (2, 2, 4)
    expected = made_of(clean)
    assert np.array_equal(histogram.counts, expected.counts)
    assert (histogram.count, histogram.maximum) == (5000, expected.maximum)
    only = made_of(np.full(10, np.nan, np.float32))
    assert (only.count, only.nan_count, only.amax, only.low, only.high) == (0, 10, 0.0, 0.0, 0.0)


def test_empty_zero_and_other_types() -> None:
    assert made_of(np.empty((0, 3), np.float32)).same_as(Histogram())
    zero = made_of(np.zeros(5, np.float32), np.array([-0.0], np.float32))
    assert (zero.minimum, zero.maximum, zero.amax, zero.exponent) == (0, 0, 0, MIN_EXPONENT)
    assert not np.signbit(zero.minimum)
    half = np.random.default_rng(9).normal(0, 5, 4000).astype(np.float16)
    assert made_of(half).same_as(made_of(half.astype(np.float32)))
    double = np.random.default_rng(9).normal(0, 5, 4000)
    assert made_of(double).same_as(made_of(double.astype(np.float32)))
    strided = np.random.default_rng(9).normal(0, 5, (40, 100)).astype(np.float32)
    assert made_of(strided[:, ::3]).same_as(made_of(strided[:, ::3].copy()))


def test_mean_is_the_exact_mean_of_what_was_summed() -> None:
    whole = np.random.default_rng(10).integers(-1000, 1000, 100_000).astype(np.float32)
    assert made_of(whole).mean == pytest.approx(float(whole.mean(dtype=np.float64)), abs=1e-12)
    huge = np.full(4000, 3e38, np.float32)
    assert made_of(huge).mean == pytest.approx(3e38, rel=1e-6)
    tiny = np.full(4000, 1.4e-45, np.float32)
    assert made_of(tiny).mean == pytest.approx(1.4e-45)


def test_more_values_than_a_float32_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # calcHist returns float32: a bin must not stop at 2^24
    monkeypatch.setattr(module, "_PIECE", 1 << 22)
    values = np.zeros((1 << 24) + 5, np.float32)
    histogram = made_of(values, np.ones(3, np.float32))
    assert histogram.counts[HALF] == (1 << 24) + 5


def test_channels_are_order_free_and_right() -> None:
    rng = np.random.default_rng(11)
    arrays = [rng.normal(0, 10.0**k, (1, 6, 9, 7)).astype(np.float32) for k in range(-3, 4)]
    stacked = np.concatenate([a.transpose(1, 0, 2, 3).reshape(6, -1) for a in arrays], axis=1)
    shuffler = random.Random(12)
    results = []
    for _ in range(6):
        shuffler.shuffle(arrays)
        one, two = ChannelStatistics(), ChannelStatistics()
        for array in arrays:
            shuffler.choice((one, two)).add(array)
        one.merge(two)
        results.append(one)
    assert all(result.same_as(results[0]) for result in results)
    assert np.array_equal(results[0].minimum, stacked.min(axis=1))
    assert np.array_equal(results[0].maximum, stacked.max(axis=1))
    assert np.allclose(results[0].mean, stacked.mean(axis=1, dtype=np.float64), rtol=1e-12)
    assert results[0].count == stacked.shape[1]


def test_channels_refuse_what_has_none() -> None:
    channels = ChannelStatistics(axis=1)
    channels.add(np.ones((1, 4, 2), np.float32))
    with pytest.raises(BadInput, match="5 channels along axis 1, before it had 4"):
        channels.add(np.ones((1, 5, 2), np.float32))
    with pytest.raises(BadInput, match="no channel axis 1"):
        channels.add(np.ones(3, np.float32))


def test_the_place_in_memory_changes_no_bit() -> None:
    random = np.random.default_rng(4)
    values = random.standard_normal((16, 20_003)) * 8
    # SiLU's values: many small ones beside large ones, so that every order of adding shows
    values = (values / (1 + np.exp(-values))).astype(np.float32)
    found = set()
    for offset in range(0, 256, 4):
        memory = np.zeros(values.nbytes + 256, np.uint8)
        moved = memory[offset : offset + values.nbytes].view(np.float32).reshape(values.shape)
        moved[:] = values
        histogram, channels = Histogram(), ChannelStatistics(axis=0)
        histogram.add(moved)
        channels.add(moved)
        found.add((histogram.sum_units, *(int(units) for units in channels.sum_units)))
    assert len(found) == 1


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) - 37])
def test_where_an_array_lies_in_memory_does_not_matter(size: int) -> None:
    rng = np.random.default_rng(12)
    # magnitudes far apart: every order of adding gives other last bits
    values = (rng.normal(size=size) * 10 ** rng.uniform(-8, 3, size)).astype(np.float32)
    rows = values[: size // 32 * 32].reshape(1, 32, -1)
    buffer = np.zeros(size + 64, np.float32)
    first = Histogram()
    first.add(values)
    channels = ChannelStatistics()
    known = channels.add(rows)
    for offset in range(1, 34, 2):
        moved = buffer[offset : offset + size]
        moved[:] = values
        again = Histogram()
        again.add(moved)
        assert again.same_as(first)
        other = ChannelStatistics()
        assert other.add(moved[: rows.size].reshape(rows.shape)) == known
        assert other.same_as(channels)
        summed = Histogram()
        summed.add(rows, known)
        assert summed.sum_units == known.sum_units and summed.count == rows.size
