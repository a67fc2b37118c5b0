"""Ranges behind an activation: levels go where the activation's result varies."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.calibration.behind import ACTIVATIONS, range_behind
from edgekit.calibration.histogram import Histogram
from edgekit.types import Range


def _histogram(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def _error(values: np.ndarray, span: Range, name: str) -> float:
    scale = (span.high - span.low) / 255
    zero = np.clip(np.rint(-span.low / scale), 0, 255)
    coded = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return float(np.square(ACTIVATIONS[name](coded) - ACTIVATIONS[name](values)).mean())


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_dead_side_gets_no_levels(name: str) -> None:
    values = np.random.default_rng(0).normal(-4, 8, 200_000)
    histogram = _histogram(values)
    span = range_behind(histogram, ACTIVATIONS[name], symmetric=False, levels=256)
    assert values.min() < -30
    assert -8 < span.low < -1
    assert span.high > 15
    full = Range(low=float(values.min()), high=float(values.max()))
    assert _error(values, span, name) < 0.5 * _error(values, full, name)


def test_symmetric_ranges_stay_inside_the_data() -> None:
    values = np.random.default_rng(1).normal(0, 2, 50_000)
    span = range_behind(_histogram(values), ACTIVATIONS["silu"], symmetric=True, levels=256)
    assert values.min() <= span.low < 0 < span.high <= values.max()


def test_constants_and_zeros() -> None:
    silu = ACTIVATIONS["silu"]
    assert range_behind(_histogram(np.zeros(10)), silu, symmetric=False, levels=256).high == 0.0
    span = range_behind(_histogram(np.full(10, 3.0)), silu, symmetric=False, levels=256)
    assert span.low == 0.0 and span.high > 0
