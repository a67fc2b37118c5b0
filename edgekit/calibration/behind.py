"""Ranges of tensors that are only read through an activation, chosen by the error behind it.

SiLU maps everything below about -6 to nearly nothing, so levels spent there are wasted: the range of
its input is chosen to minimize sum n(x) (f(Q(x)) - f(x))^2 over the histogram, Q being the quantizer
and f the activation, instead of the error of x itself. Bins are taken at their middles; the ends are
searched in turn on a grid of shrinking fractions, as in edgekit.calibration.mse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.calibration.histogram import HALF, Histogram
from edgekit.calibration.statistics import Statistics
from edgekit.types import Range

Floats = NDArray[np.float64]

_FRACTIONS: Floats = np.concatenate((np.linspace(1.0, 0.5, 26), np.geomspace(0.48, 0.01, 30)))
_TURNS = 3


def _silu(x: Floats) -> Floats:
    result: Floats = x / (1.0 + np.exp(-np.clip(x, -80.0, 80.0)))
    return result


def _hard_swish(x: Floats) -> Floats:
    result: Floats = x * np.clip(x / 6.0 + 0.5, 0.0, 1.0)
    return result


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {"silu": _silu, "hard_swish": _hard_swish}
"""x * sigmoid(x), and x * clip(x / 6 + 1/2, 0, 1) (ONNX HardSwish)."""


def range_behind(
    histogram: Histogram, activation: Callable[[Floats], Floats], *, symmetric: bool, levels: int
) -> Range:
    """The range of `histogram` whose quantization changes activation(x) least; always holds 0."""
    used = np.flatnonzero(histogram.counts)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if used.size == 0 or low == high:
        return Range(low=low, high=high)
    x = ((used - HALF + 0.5) * histogram.width).astype(np.float64)
    weight = histogram.counts[used] / histogram.count
    exact = activation(x)

    def error(low: float, high: float) -> float:
        if symmetric:
            scale, zero = max(-low, high) / (levels // 2 - 1), float(levels // 2)
        else:
            scale = (high - low) / (levels - 1)
            zero = float(np.clip(np.rint(-low / scale), 0, levels - 1)) if scale > 0 else 0.0
        if not scale > 0:
            return float("inf")
        code = np.clip(np.rint(x / scale) + zero, 0, levels - 1)
        return float(weight @ np.square(activation((code - zero) * scale) - exact))

    if symmetric:
        errors = [error(low * part, high * part) for part in _FRACTIONS]
        part = float(_FRACTIONS[int(np.argmin(errors))])
        return Range(low=low * part, high=high * part)
    at_low, at_high = low, high
    for _ in range(_TURNS):
        errors = [error(low * part, at_high) for part in _FRACTIONS]
        at_low = low * float(_FRACTIONS[int(np.argmin(errors))])
        errors = [error(at_low, high * part) for part in _FRACTIONS]
        at_high = high * float(_FRACTIONS[int(np.argmin(errors))])
    return Range(low=float(at_low), high=float(at_high))


def ranges_behind(
    statistics: Statistics, activations: Mapping[str, str], *, symmetric: bool, levels: int = 256
) -> dict[str, Range]:
    """Ranges for the tensors in `activations` (tensor → name in ACTIVATIONS)."""
    return {
        tensor: range_behind(
            statistics.histogram(tensor), ACTIVATIONS[name], symmetric=symmetric, levels=levels
        )
        for tensor, name in activations.items()
    }
