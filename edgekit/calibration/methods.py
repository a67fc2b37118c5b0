"""Statistics → ranges: every calibration method by its name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

from edgekit.calibration.entropy import entropy
from edgekit.calibration.histogram import Histogram
from edgekit.calibration.minmax import minmax
from edgekit.calibration.mse import mse
from edgekit.calibration.percentile import percentile
from edgekit.calibration.statistics import Statistics
from edgekit.errors import BadInput, UsageError, nearest
from edgekit.types import Range


class Method(Protocol):
    """Chooses the range of one tensor for `levels` quantized levels.

    The range contains zero and never exceeds what was seen; `symmetric` ones are mirrored. A tensor
    without values, or of zeros only, gets (0, 0).
    """

    def __call__(self, histogram: Histogram, *, symmetric: bool, levels: int) -> Range: ...


METHODS: dict[str, Method] = {
    "minmax": minmax,
    "entropy": entropy,
    "percentile": percentile,
    "mse": mse,
}
"""Name → method. "percentile=99.99" sets the percentile's share in per cent."""


def method_named(text: str) -> Method:
    """The method called `text`. Raises UsageError, with the nearest name, for an unknown one."""
    name, equals, value = text.partition("=")
    if name not in METHODS:
        raise UsageError(f"Unknown calibration method '{name}'.", hint=nearest(name, list(METHODS)))
    if not equals:
        return METHODS[name]
    if name != "percentile":
        raise UsageError(f"The method '{name}' takes no value (got '{text}').")
    try:
        percent = float(value)
    except ValueError as error:
        raise UsageError(f"'{text}': {value!r} is not a number of per cent.") from error
    method = functools.partial(percentile, percent=percent)
    method(Histogram(), symmetric=False, levels=2)  # a share out of bounds is refused here
    return method


def choose(
    statistics: Statistics,
    method: str,
    *,
    symmetric: bool,
    levels: int = 256,
    overrides: Mapping[str, str | Range] | None = None,
) -> dict[str, Range]:
    """The range of every observed tensor, in graph order.

    `symmetric` ranges are ±amax (zero point 0), others [low, high] with low <= 0 <= high. `levels`
    is 256 for 8 bits. `overrides` gives single tensors another method or a range, which is taken as
    it is but for zero being included. Raises UsageError for an unknown method or tensor.
    """
    if levels < 4:
        raise UsageError(f"A quantizer with {levels} levels; there must be at least 4.")
    chosen = dict.fromkeys(statistics.tensors, method_named(method))
    fixed: dict[str, Range] = {}
    for name, value in (overrides or {}).items():
        if name not in chosen:
            raise UsageError(
                f"No statistics of a tensor '{name}'.", hint=nearest(name, list(chosen))
            )
        if isinstance(value, Range):
            fixed[name] = _with_zero(name, value, symmetric)
        else:
            chosen[name] = method_named(value)
    return {
        name: fixed[name]
        if name in fixed
        else how(statistics.histogram(name), symmetric=symmetric, levels=levels)
        for name, how in chosen.items()
    }


def _with_zero(name: str, given: Range, symmetric: bool) -> Range:
    low, high = min(0.0, given.low), max(0.0, given.high)
    if not (given.low <= given.high and high - low < float("inf")):
        raise BadInput(f"The range given for '{name}' is [{given.low}, {given.high}].")
    if symmetric:
        amax = max(-low, high)
        return Range(low=-amax, high=amax)
    return Range(low=low, high=high)
