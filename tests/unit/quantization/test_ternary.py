"""Ternary weights: found by value, and given the integer scale that a full search would give."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.quantization.scheme import Scheme, choose_weight_scale, quantize_weight, weight_scale
from edgekit.quantization.ternary import best_integers, error_bound, find_levels

LIMITS = {8: 127, 7: 63, 6: 31, 4: 7}


def error_of(p: float, n: float, scale: float, limit: int) -> float:
    """Larger error of both levels after rounding, as a share of the larger level."""
    levels = np.array([p, -n])
    rounded = np.clip(np.rint(levels / scale), -limit, limit) * scale
    return float(np.abs(rounded - levels).max() / max(p, n))


def brute_force(p: float, n: float, limit: int) -> float:
    """Least error over all integer pairs, each with the best scale of its own."""
    i, j = np.meshgrid(np.arange(limit + 1), np.arange(limit + 1), indexing="ij")
    used = (i + j) > 0
    errors = np.abs(p * j - n * i)[used] / (i + j)[used]
    return float(errors.min() / max(p, n))


def random_pairs(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (count, 2))


@pytest.mark.parametrize("bits", [8, 7, 6, 4])
def test_the_scale_is_the_best_of_all_integer_pairs(bits: int) -> None:
    limit = LIMITS[bits]
    pairs = random_pairs(300, seed=bits)
    i, j, scale = best_integers(pairs[:, 0], pairs[:, 1], limit)
    assert i.max() <= limit and j.max() <= limit
    for (p, n), a, b, s in zip(pairs, i, j, scale, strict=True):
        best = brute_force(p, n, limit)
        assert error_of(p, n, s, limit) == pytest.approx(best, abs=1e-9)
        assert max(abs(p - a * s), abs(n - b * s)) / max(p, n) == pytest.approx(best, abs=1e-9)


def test_no_other_scale_is_better() -> None:
    # not only among the closed form's scales: any scale on a fine grid
    for p, n in random_pairs(40, seed=1):
        _, _, scale = best_integers(np.array([p]), np.array([n]), 127)
        ours = error_of(p, n, float(scale[0]), 127)
        grid = max(p, n) / np.linspace(0.6, 127.499, 4_000)
        levels = np.array([[p], [-n]])
        rounded = np.clip(np.rint(levels / grid), -127, 127) * grid
        least = np.abs(rounded - levels).max(axis=0).min() / max(p, n)
        assert ours <= least + 1e-12


@pytest.mark.parametrize(("bits", "mean"), [(8, 0.0005), (7, 0.001), (6, 0.002)])
def test_the_error_of_random_pairs_and_the_bound(bits: int, mean: float) -> None:
    limit = LIMITS[bits]
    pairs = random_pairs(1000, seed=7)
    _, _, scale = best_integers(pairs[:, 0], pairs[:, 1], limit)
    errors = [error_of(p, n, s, limit) for (p, n), s in zip(pairs, scale, strict=True)]
    absmax = [error_of(p, n, max(p, n) / limit, limit) for p, n in pairs]
    assert np.mean(errors) <= mean
    assert np.mean(errors) < np.mean(absmax) / 4
    assert max(errors) <= error_bound(limit)


@pytest.mark.parametrize("limit", [127, 63, 31, 7])
def test_the_bound_is_reached_and_never_passed(limit: int) -> None:
    ratios = np.linspace(1e-4, 1, 5_000)
    worst = 1 / (2 * limit + 1)
    ratios = np.append(ratios, worst)
    i, j, scale = best_integers(np.ones_like(ratios), ratios, limit)
    errors = np.maximum(np.abs(1 - i * scale), np.abs(ratios - j * scale))
    assert errors.max() <= error_bound(limit) + 1e-12
    assert errors[-1] == pytest.approx(error_bound(limit))
    near = ratios >= 0.5
    assert errors[near].max() <= 1 / (4 * limit - 1) + 1e-12


def test_lone_and_equal_levels_are_exact() -> None:
    i, j, scale = best_integers(np.array([0.3, 0.0, 0.7, 0.0]), np.array([0.0, 0.2, 0.7, 0.0]), 127)
    assert i.tolist() == [127, 0, 127, 0]
    assert j.tolist() == [0, 127, 127, 0]
    assert (i * scale)[0] == pytest.approx(0.3, abs=1e-15)
    assert (j * scale)[1] == pytest.approx(0.2, abs=1e-15)
    assert scale[3] == 1.0


def ternary_weight(shape: tuple[int, ...], p: float, n: float, seed: int = 0) -> np.ndarray:
    codes = np.random.default_rng(seed).integers(-1, 2, shape)
    return np.where(codes > 0, p, np.where(codes < 0, -n, 0.0)).astype(np.float32)


def test_levels_of_a_layer_and_of_its_channels() -> None:
    weight = ternary_weight((16, 8, 3, 3), 0.31, 0.22)
    levels = find_levels(weight)
    assert levels is not None and not levels.per_channel
    assert float(levels.positive) == pytest.approx(0.31, rel=1e-6)
    assert float(levels.negative) == pytest.approx(0.22, rel=1e-6)
    factor = np.random.default_rng(1).uniform(
        -2, 2, (16, 1, 1, 1)
    )  # BatchNorm, negative gammas too
    folded = (weight.astype(np.float64) * factor).astype(np.float32)
    levels = find_levels(folded)
    assert levels is not None and levels.per_channel
    negative = factor[:, 0, 0, 0] < 0
    expected = np.abs(factor[:, 0, 0, 0]) * np.where(negative, 0.22, 0.31)
    np.testing.assert_allclose(levels.positive, expected, rtol=1e-6)
    assert find_levels(folded, axis=None) is None


def test_noise_of_a_straight_through_estimator_is_no_level() -> None:
    weight = ternary_weight((16, 8, 3, 3), 0.31, 0.22)
    latent = np.random.default_rng(2).normal(0, 0.3, weight.shape).astype(np.float32)
    noisy = latent + (weight - latent)
    assert len(np.unique(noisy)) > 3
    levels = find_levels(noisy)
    assert levels is not None
    assert float(levels.positive) == pytest.approx(0.31, rel=1e-5)


@pytest.mark.parametrize(
    "weight",
    [
        np.random.default_rng(0).normal(size=(16, 8, 3, 3)),
        np.zeros((8, 8, 3, 3)),
        np.full((8, 1, 3, 3), 1 / 9),
        np.eye(8).reshape(8, 8, 1, 1),
        np.random.default_rng(0).normal(size=(16, 2)),  # two values per channel
        np.random.default_rng(0).integers(-2, 3, (8, 8, 3, 3)) * 0.1,
        np.full((4, 4), np.nan),
    ],
    ids=["dense", "zeros", "box", "identity", "two values", "five levels", "nan"],
)
def test_what_is_not_ternary(weight: np.ndarray) -> None:
    assert find_levels(weight.astype(np.float32)) is None


def test_a_sparse_layer_with_one_weight_per_channel_is_not_ternary() -> None:
    weight = np.zeros((32, 1, 3, 3), np.float32)
    weight[:, 0, 1, 1] = np.random.default_rng(0).normal(size=32)
    assert find_levels(weight) is None


@pytest.mark.parametrize("bits", [8, 7, 6])
@pytest.mark.parametrize("axis", [0, None])
def test_integers_of_a_ternary_layer_are_three(bits: int, axis: int | None) -> None:
    scheme = Scheme(weight_bits=bits)
    weight = ternary_weight((16, 8, 3, 3), 0.31, 0.137)
    scale = choose_weight_scale(weight, axis, scheme)
    assert scale.dtype == np.float32 and scale.shape == (() if axis is None else (16,))
    integers = quantize_weight(weight, scale, axis, scheme)
    assert len(np.unique(integers)) == 3
    back = integers * (scale if axis is None else scale.reshape(-1, 1, 1, 1))
    plain = weight_scale(weight, axis, scheme)
    rounded = quantize_weight(weight, plain, axis, scheme)
    absmax = rounded * (plain if axis is None else plain.reshape(-1, 1, 1, 1))
    assert np.abs(back - weight).max() <= error_bound(scheme.weight_limit) * 0.31
    assert np.abs(back - weight).max() <= np.abs(absmax - weight).max()


def test_channels_after_folding_each_get_their_best_scale() -> None:
    weight = ternary_weight((64, 8, 3, 3), 0.31, 0.22)
    factor = np.random.default_rng(3).uniform(-2, 2, (64, 1, 1, 1))
    folded = (weight.astype(np.float64) * factor).astype(np.float32)
    scheme = Scheme()
    scale = choose_weight_scale(folded, 0, scheme)
    integers = quantize_weight(folded, scale, 0, scheme)
    best = brute_force(0.31, 0.22, 127)
    for channel in range(64):
        error = np.abs(integers[channel] * np.float64(scale[channel]) - folded[channel]).max()
        assert error / np.abs(folded[channel]).max() == pytest.approx(best, abs=2e-7)


def test_other_weights_keep_absmax() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        choose_weight_scale(weight, 0, Scheme()), weight_scale(weight, 0, Scheme())
    )
