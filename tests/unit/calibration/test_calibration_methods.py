"""Methods: right on distributions whose answer is known, and never outside of what was seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.calibration.entropy import kept_bins
from edgekit.calibration.histogram import Histogram
from edgekit.calibration.methods import METHODS, choose, method_named
from edgekit.calibration.mse import mse
from edgekit.calibration.percentile import percentile
from edgekit.calibration.statistics import Origin, Statistics
from edgekit.errors import BadInput, UsageError
from edgekit.types import Range

SCHEMES = (True, False)


def histogram_of(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(np.asarray(array, np.float32))
    return histogram


def statistics_of(**tensors: np.ndarray) -> Statistics:
    origin = Origin(graph_sha256="g", preprocess="{}", versions={}, tensors=tuple(tensors))
    statistics = Statistics(origin)
    statistics.add("0" * 64, "image", {k: np.asarray(v, np.float32) for k, v in tensors.items()})
    return statistics


def squared_error(values: np.ndarray, span: Range, symmetric: bool) -> float:
    """Mean squared error of real 8-bit quantization, as ONNX QuantizeLinear computes it."""
    values = values.astype(np.float64)
    if symmetric:
        scale, zero, first, last = span.high / 127, 0, -128, 127
    else:
        scale = (span.high - span.low) / 255
        zero, first, last = round(-span.low / scale), 0, 255
    levels = np.clip(np.rint(values / scale) + zero, first, last) - zero
    return float(((levels * scale - values) ** 2).mean())


def silu(values: np.ndarray) -> np.ndarray:
    return values / (1 + np.exp(-values))


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda rng: rng.normal(0, 1, 200_000),
    "laplace": lambda rng: rng.laplace(0, 1, 200_000),
    "relu": lambda rng: np.maximum(rng.normal(0, 1, 200_000), 0),
    "silu": lambda rng: silu(rng.normal(0, 3, 200_000)),
    "heavy": lambda rng: rng.standard_t(3, 200_000),
    "sigmoid": lambda rng: 1 / (1 + np.exp(-rng.normal(-6, 3, 200_000))),
    "negative": lambda rng: -rng.exponential(2, 200_000),
    "shifted": lambda rng: rng.normal(5, 1, 200_000),
}


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.parametrize("symmetric", SCHEMES)
def test_entropy_forgets_an_outlier_whichever_batch_brings_it(batch: int, symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.laplace(0, 1, 200_000).astype(np.float32) for _ in range(4)]
    batches[batch][17] = 60.0
    span = METHODS["entropy"](histogram_of(*batches), symmetric=symmetric, levels=256)
    assert 10.0 <= span.high <= 11.5
    assert -11.5 <= span.low <= -10.0


def test_order_does_not_matter_to_any_method() -> None:
    rng = np.random.default_rng(1)
    batches = [rng.laplace(0, 2.0**k, 20_000).astype(np.float32) for k in range(5)]
    one, two = histogram_of(*batches), histogram_of(*batches[::-1])
    for method in METHODS.values():
        for symmetric in SCHEMES:
            assert method(one, symmetric=symmetric, levels=256) == method(
                two, symmetric=symmetric, levels=256
            )


@pytest.mark.parametrize("symmetric", SCHEMES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_ranges_hold_zero_and_stay_inside_what_was_seen(name: str, symmetric: bool) -> None:
    values = DISTRIBUTIONS[name](np.random.default_rng(2)).astype(np.float32)
    histogram = histogram_of(values)
    for method in METHODS.values():
        span = method(histogram, symmetric=symmetric, levels=256)
        assert span.low <= 0.0 <= span.high
        assert span.low < span.high
        if symmetric:
            assert span.low == -span.high <= np.abs(values).max()
        else:
            assert span.low >= min(0.0, float(values.min()))
            assert span.high <= max(0.0, float(values.max()))


@pytest.mark.parametrize("symmetric", SCHEMES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_the_least_of_a_search_on_the_values_themselves(name: str, symmetric: bool) -> None:
    values = DISTRIBUTIONS[name](np.random.default_rng(3)).astype(np.float32)
    histogram = histogram_of(values)
    found = squared_error(values, mse(histogram, symmetric=symmetric, levels=256), symmetric)
    best = np.inf
    for high in np.linspace(0.1, 1, 25):
        for low in [high] if symmetric else np.linspace(0.1, 1, 13) if histogram.low < 0 else [1]:
            if symmetric:
                span = Range(low=-histogram.amax * high, high=histogram.amax * high)
            else:
                span = Range(low=histogram.low * low, high=histogram.high * high)
            if span.high > span.low:
                best = min(best, squared_error(values, span, symmetric))
    assert found <= best * 1.01


def test_mse_gives_fewer_levels_a_tighter_range() -> None:
    histogram = histogram_of(np.random.default_rng(4).laplace(0, 1, 200_000))
    highs = [mse(histogram, symmetric=True, levels=levels).high for levels in (16, 64, 256)]
    assert highs == sorted(highs)
    assert highs[0] < 0.6 * highs[2]


def test_entropy_keeps_what_has_no_tail() -> None:
    # a uniform distribution loses shape by any clipping
    values = np.random.default_rng(5).random(400_000)
    span = METHODS["entropy"](histogram_of(values), symmetric=False, levels=256)
    assert span.high > 0.99


def test_entropy_by_prefix_sums_equals_the_textbook() -> None:
    rng = np.random.default_rng(6)
    counts = np.bincount((rng.exponential(40, 30_000)).astype(int), minlength=10)
    counts = counts[: np.flatnonzero(counts)[-1] + 1].astype(np.int64)
    levels = 64

    def divergence(kept: int) -> float:
        p = counts[:kept].astype(float)
        q = np.zeros(kept)
        p[-1] += counts[kept:].sum()
        for level in range(levels):
            first, last = level * kept // levels, (level + 1) * kept // levels
            full = p[first:last] > 0
            if full.any():
                q[first:last][full] = counts[first:last].sum() / full.sum()
        full = p > 0
        if (q[full] == 0).any():
            return np.inf
        p, q = p[full] / p.sum(), q[full] / q.sum()
        return float((p * np.log(p / q)).sum())

    values = {kept: divergence(kept) for kept in range(levels, counts.size + 1)}
    found = kept_bins(counts, levels)
    assert values[found] == pytest.approx(min(values.values()), rel=1e-9)


def test_relu_zeros_do_not_pull_the_entropy_range_in() -> None:
    values = np.maximum(np.random.default_rng(7).normal(0, 1, 400_000), 0)
    span = METHODS["entropy"](histogram_of(values), symmetric=False, levels=256)
    assert span.low == 0.0
    assert span.high > 3.5


def test_percentile_cuts_the_share_it_was_told() -> None:
    values = np.random.default_rng(8).normal(0, 1, 1_000_000).astype(np.float32)
    histogram = histogram_of(values)
    for percent in (90.0, 99.0, 99.9):
        span = percentile(histogram, symmetric=True, levels=256, percent=percent)
        assert span.high == pytest.approx(np.percentile(np.abs(values), percent), abs=0.002)
        span = percentile(histogram, symmetric=False, levels=256, percent=percent)
        tail = (100 - percent) / 2
        assert span.low == pytest.approx(np.percentile(values, tail), abs=0.002)
        assert span.high == pytest.approx(np.percentile(values, 100 - tail), abs=0.002)
    everything = percentile(histogram, symmetric=False, levels=256, percent=100.0)
    assert everything == METHODS["minmax"](histogram, symmetric=False, levels=256)


@pytest.mark.parametrize("symmetric", SCHEMES)
@pytest.mark.parametrize("constant", [0.0, 3.7, -0.02, 1e-30, 2.0])
def test_constant_tensors(constant: float, symmetric: bool) -> None:
    value = float(np.float32(constant))
    histogram = histogram_of(np.full(1000, value))
    for name, method in METHODS.items():
        span = method(histogram, symmetric=symmetric, levels=256)
        if symmetric:
            assert (span.low, span.high) == (-abs(value), abs(value)), name
        else:
            assert (span.low, span.high) == (min(value, 0.0), max(value, 0.0)), name


def test_tensors_without_values() -> None:
    for method in METHODS.values():
        assert method(Histogram(), symmetric=True, levels=256) == Range(low=0.0, high=0.0)
        assert method(Histogram(), symmetric=False, levels=256) == Range(low=0.0, high=0.0)


def test_choose_takes_overrides_by_tensor() -> None:
    rng = np.random.default_rng(9)
    statistics = statistics_of(a=rng.normal(0, 1, 9000), b=rng.laplace(0, 1, 9000), c=np.ones(5))
    plain = choose(statistics, "minmax", symmetric=False)
    mixed = choose(
        statistics,
        "minmax",
        symmetric=False,
        overrides={"b": "percentile=99", "c": Range(low=0.5, high=2.0)},
    )
    assert list(plain) == list(mixed) == ["a", "b", "c"]
    assert mixed["a"] == plain["a"]
    assert mixed["b"].high < plain["b"].high
    assert mixed["c"] == Range(low=0.0, high=2.0)
    symmetric = choose(statistics, "mse", symmetric=True, overrides={"c": Range(low=-3, high=1)})
    assert symmetric["c"] == Range(low=-3, high=3)


def test_choose_refuses_what_it_does_not_know() -> None:
    statistics = statistics_of(images=np.ones(5))
    with pytest.raises(UsageError) as unknown:
        choose(statistics, "entropie", symmetric=False)
    assert "Did you mean 'entropy'?" in unknown.value.hint
    with pytest.raises(UsageError) as tensor:
        choose(statistics, "minmax", symmetric=False, overrides={"image": "mse"})
    assert "Did you mean 'images'?" in tensor.value.hint
    with pytest.raises(UsageError, match="between 50 and 100"):
        method_named("percentile=20")
    with pytest.raises(UsageError, match="not a number"):
        method_named("percentile=most")
    with pytest.raises(UsageError, match="takes no value"):
        method_named("mse=3")
    with pytest.raises(BadInput, match="range given for 'images'"):
        choose(statistics, "minmax", symmetric=False, overrides={"images": Range(low=2, high=-2)})
    with pytest.raises(BadInput):
        choose(
            statistics,
            "minmax",
            symmetric=False,
            overrides={"images": Range(low=float("nan"), high=1)},
        )
