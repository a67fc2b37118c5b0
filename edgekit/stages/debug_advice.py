"""Which knob mends a layer: its weights' error and its tensors' errors, and what others would give.

The noise of a layer has three parts of comparable kind, each relative to its own signal: weights,
the tensor it reads, the tensor it makes. The largest one decides, and a knob is suggested only where
it lowers that part by at least `_GAIN_DB`; else the layer is better left float.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgekit.calibration.methods import METHODS
from edgekit.quantization.scheme import Scheme, activation_params

if TYPE_CHECKING:
    from edgekit.calibration.histogram import Histogram
    from edgekit.types import QuantParams

AS_IT_IS, PER_CHANNEL, EIGHT_BITS = "as it is", "--per-channel", "--weight-bits 8"

# a knob that brings less is not worth turning
_GAIN_DB = 2.0
# alone, a layer that leaves the outputs this clean does no harm
_HARMLESS_DB = 30.0


@dataclass(frozen=True, kw_only=True)
class TensorError:
    """What quantizing one tensor costs, from its histogram: SQNR in dB by cause, inf for none.

    `clipping_db` counts values outside the range only, `rounding_db` those inside; `clipped_share`
    of all values lie outside.
    """

    clipping_db: float
    rounding_db: float
    clipped_share: float

    @property
    def sqnr_db(self) -> float:
        """Both together."""
        noise = 10 ** (-self.clipping_db / 10) + 10 ** (-self.rounding_db / 10)
        return decibels(1.0, noise)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """A layer and what its parts lose; `weight_db` maps each knob, and AS_IT_IS, to the SQNR."""

    node: str
    alone_db: float
    weight_db: Mapping[str, float]
    input: TensorError
    output: TensorError
    input_name: str
    output_name: str


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); inf without noise, -inf without signal."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def tensor_error(histogram: Histogram, params: QuantParams) -> TensorError:
    """Clipping and rounding error of a tensor with this distribution; a bin counts as its middle."""
    import numpy as np

    levels = np.iinfo(params.zero_point.dtype)
    scale, zero = float(params.scale), int(params.zero_point)
    low, high = (levels.min - zero) * scale, (levels.max - zero) * scale
    edges = histogram.edges()
    counts = histogram.counts.astype(np.float64)
    centers = (edges[:-1] + edges[1:]) / 2
    error = (centers - np.rint(np.clip(centers, low, high) / scale) * scale) ** 2
    # up to half a step beyond its ends a range still rounds, and does not clip
    outside = (centers < low - scale / 2) | (centers > high + scale / 2)
    signal = float(np.dot(counts, centers**2))
    return TensorError(
        clipping_db=decibels(signal, float(np.dot(counts[outside], error[outside]))),
        rounding_db=decibels(signal, float(np.dot(counts[~outside], error[~outside]))),
        clipped_share=float(counts[outside].sum()) / max(1, histogram.count),
    )


def weight_schemes(scheme: Scheme) -> dict[str, Scheme]:
    """The scheme as it is, and with each knob for weights turned that is not turned already.

    A scale per channel comes first: it costs nothing, bits cost memory or, without VNNI, saturate.
    """
    found = {AS_IT_IS: scheme}
    if not scheme.per_channel:
        found[PER_CHANNEL] = dataclasses.replace(scheme, per_channel=True)
    if scheme.weight_bits < 8:
        found[EIGHT_BITS] = dataclasses.replace(scheme, weight_bits=8)
    return found


class Distributions(Protocol):
    """Whatever has a histogram of each tensor."""

    def histogram(self, name: str) -> Histogram: ...


class Methods:
    """The SQNR of a tensor under every calibration method; each tensor is looked at once."""

    def __init__(self, statistics: Distributions, scheme: Scheme) -> None:
        self._statistics, self._scheme = statistics, scheme
        self._best: dict[str, tuple[str, float]] = {}

    def best(self, tensor: str) -> tuple[str, float]:
        """(method, SQNR in dB) of the method that loses least."""
        if tensor not in self._best:
            histogram = self._statistics.histogram(tensor)
            symmetric = self._scheme.symmetric_activations
            found = {
                name: tensor_error(
                    histogram,
                    activation_params(
                        method(histogram, symmetric=symmetric, levels=256), self._scheme
                    ),
                ).sqnr_db
                for name, method in METHODS.items()
            }
            name = max(found, key=lambda method: found[method])
            self._best[tensor] = name, found[name]
        return self._best[tensor]


def suggest(knobs: Knobs, methods: Methods, method: str) -> str:
    """What to do about the layer, in words that begin with the option; "" where it does no harm.

    `method` is the calibration method in use.
    """
    if knobs.alone_db >= _HARMLESS_DB:
        return ""
    weight_db = knobs.weight_db[AS_IT_IS]
    parts = {
        "weights": weight_db,
        "input": knobs.input.sqnr_db,
        "output": knobs.output.sqnr_db,
    }
    part = min(parts, key=lambda name: parts[name])
    if part == "weights":
        for knob, value in knobs.weight_db.items():  # the one that costs least comes first
            if value - weight_db >= _GAIN_DB:
                return f"{knob}: its weights come to {value:.1f} instead of {weight_db:.1f} dB"
        why = f"its weights lose most ({weight_db:.1f} dB)"
    else:
        tensor = knobs.input_name if part == "input" else knobs.output_name
        error = knobs.input if part == "input" else knobs.output
        best, best_db = methods.best(tensor)
        if best != method and best_db - error.sqnr_db >= _GAIN_DB:
            return (
                f"--method {best}: '{tensor}' comes to {best_db:.1f} instead of "
                f"{error.sqnr_db:.1f} dB"
            )
        cause = "clipping" if error.clipping_db < error.rounding_db else "rounding"
        verb = "reads" if part == "input" else "makes"
        why = f"{cause} of what it {verb} loses most ({error.sqnr_db:.1f} dB)"
    return f"--keep-float {knobs.node}: {why}"
