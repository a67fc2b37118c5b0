"""How numbers become integers: types, bits, granularity, and where the integers are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import UsageError
from edgekit.quantization import ternary
from edgekit.quantization.weight_range import ABSMAX, MSE, RANGES, mse_scale
from edgekit.types import QuantParams, Range

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One runtime's integers.

    `weight_bits` 7 keeps pairs of u8 x s8 products inside 16 bits on CPUs without VNNI
    (VPMADDUBSW saturates). `explicit_weights` keeps float weights behind a QuantizeLinear, as
    TensorRT wants them; otherwise int8 weights are stored and the file shrinks to a quarter.
    `integer_bias` stores the bias as int32 with scale s_input * s_weight, as ONNX Runtime wants it.
    `weight_range` "mse" clips large weights where that lowers the squared error (`weight_range`).
    """

    activation_type: str = "uint8"
    symmetric_activations: bool = False
    per_channel: bool = True
    weight_bits: int = 8
    explicit_weights: bool = False
    integer_bias: bool = True
    weight_range: str = ABSMAX

    def __post_init__(self) -> None:
        if self.activation_type not in ("uint8", "int8"):
            raise UsageError(f"Activations cannot be {self.activation_type!r}: uint8 or int8.")
        if self.weight_range not in RANGES:
            raise UsageError(
                f"Weights cannot have the range {self.weight_range!r}: {' or '.join(RANGES)}."
            )
        if self.weight_bits not in (4, 6, 7, 8):
            raise UsageError(f"Weights cannot have {self.weight_bits} bits: 4, 6, 7 or 8.")

    @property
    def weight_limit(self) -> int:
        """Largest magnitude of a weight's integer: 127, 63, 31 or 7.

        With 7 bits, 2 * 255 * 63 = 32130 stays below 2^15, the accumulator of VPMADDUBSW.
        """
        return int(2 ** (self.weight_bits - 1)) - 1


def activation_params(span: Range, scheme: Scheme) -> QuantParams:
    """Scale and zero point (per tensor) that cover `span` and represent 0 exactly.

    uint8 asymmetric: scale = (high - low) / 255, zero_point = round(-low / scale); int8 symmetric:
    scale = amax / 127, zero_point 0. A range without extent gets scale 1.
    Source: ONNX QuantizeLinear; Jacob et al. 2018, arXiv:1712.05877, section 2.1.
    """
    low, high = min(span.low, 0.0), max(span.high, 0.0)
    signed = scheme.activation_type == "int8"
    dtype = np.int8 if signed else np.uint8
    if scheme.symmetric_activations:
        amax = max(-low, high)
        scale = np.float32(amax / 127.0)
        zero = 0 if signed else 128
    else:
        scale = np.float32((high - low) / 255.0)
        zero = 0
    # below the smallest normal number, 1 / scale overflows
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        scale, zero = np.float32(1.0), zero
    elif not scheme.symmetric_activations:
        zero = int(np.clip(np.rint(-low / float(scale)), 0, 255)) - (128 if signed else 0)
    return QuantParams(scale=np.array(scale, np.float32), zero_point=np.array(zero, dtype))


def weight_scale(
    weight: NDArray[np.floating], axis: int | None, scheme: Scheme
) -> NDArray[np.float32]:
    """Symmetric scale: float32 [C] along `axis`, or [] for per-tensor; amax / weight_limit.

    A channel of zeros gets scale 1, which represents it exactly.
    """
    magnitude = np.abs(weight.astype(np.float64))
    if axis is None:
        amax = np.asarray(magnitude.max(initial=0.0))
    else:
        other = tuple(index for index in range(weight.ndim) if index != axis)
        amax = magnitude.max(axis=other, initial=0.0)
    scale = (amax / scheme.weight_limit).astype(np.float32)
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1.0), scale)


def choose_weight_scale(
    weight: NDArray[np.floating], axis: int | None, scheme: Scheme
) -> NDArray[np.float32]:
    """The scale for `weight`: for ternary weights the one that meets both levels best, else by the
    scheme's `weight_range`."""
    scale = ternary.weight_scale(weight, axis, scheme.weight_limit)
    if scale is not None:
        return scale
    scale = weight_scale(weight, axis, scheme)
    if scheme.weight_range == MSE:
        return mse_scale(weight, axis, scheme.weight_limit, scale)
    return scale


def quantize_weight(
    weight: NDArray[np.floating], scale: NDArray[np.float32], axis: int | None, scheme: Scheme
) -> NDArray[np.int8]:
    """round-half-even(weight / scale), clipped to the scheme's limit: int8 of the weight's shape."""
    spread = scale if axis is None else _along(scale, axis, weight.ndim)
    levels = np.rint(weight.astype(np.float64) / spread.astype(np.float64))
    limit = scheme.weight_limit
    result: NDArray[np.int8] = np.clip(levels, -limit, limit).astype(np.int8)
    return result


def dequantize_weight(
    integers: NDArray[np.int8], scale: NDArray[np.float32], axis: int | None
) -> NDArray[np.float64]:
    """What the integers stand for: integers * scale, float64 of the weight's shape."""
    spread = scale if axis is None else _along(scale, axis, integers.ndim)
    result: NDArray[np.float64] = integers.astype(np.float64) * spread.astype(np.float64)
    return result


def quantize_bias(
    bias: NDArray[np.floating], input_scale: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """int32 bias in units of input_scale * weight scale, clipped to 31 bits."""
    units = float(input_scale) * scale.astype(np.float64)
    limit = 2**31 - 1
    result: NDArray[np.int32] = np.clip(
        np.rint(bias.astype(np.float64) / units), -limit, limit
    ).astype(np.int32)
    return result


def widen_for_bias(
    scale: NDArray[np.float32], bias: NDArray[np.floating], input_scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Raise the scales of channels whose int32 bias would overflow (dead channels with a large bias).

    Such a channel's weights are tiny beside its bias, so coarser weights cost nothing visible.
    """
    # a factor of two stays free for the accumulated products
    least = np.abs(bias.astype(np.float64)) / (float(input_scale) * 2.0**30)
    return np.maximum(scale, least.astype(np.float32))


def _along(scale: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)
