"""Numbers to integers: exact zero, full use of the levels, safe corner cases."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.quantization.scheme import (
    Scheme,
    activation_params,
    quantize_bias,
    quantize_weight,
    weight_scale,
    widen_for_bias,
)
from edgekit.types import Range

ASYMMETRIC = Scheme()
SYMMETRIC = Scheme(activation_type="int8", symmetric_activations=True)


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (0.5, 2.0), (-3.0, -1.0)]
)
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float) -> None:
    params = activation_params(Range(low=low, high=high), ASYMMETRIC)
    scale, zero = float(params.scale), int(params.zero_point)
    assert params.zero_point.dtype == np.uint8
    assert (0 - zero) * scale <= min(low, 0.0) + scale / 2
    assert (255 - zero) * scale >= max(high, 0.0) - scale / 2


def test_symmetric_int8_has_zero_point_zero() -> None:
    params = activation_params(Range(low=-2.54, high=1.0), SYMMETRIC)
    assert int(params.zero_point) == 0
    assert params.zero_point.dtype == np.int8
    assert float(params.scale) == pytest.approx(0.02)


@pytest.mark.parametrize("span", [Range(low=0.0, high=0.0), Range(low=-1e-45, high=1e-45)])
@pytest.mark.parametrize("scheme", [ASYMMETRIC, SYMMETRIC])
def test_a_range_without_extent_still_gives_a_usable_scale(span: Range, scheme: Scheme) -> None:
    params = activation_params(span, scheme)
    assert float(params.scale) == 1.0
    assert np.isfinite(1 / params.scale)


@pytest.mark.parametrize("bits", [8, 7, 6, 4])
def test_weights_use_their_bits_per_channel(bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = (
        rng.normal(size=(5, 4, 3, 3)) * np.array([1, 10, 0.1, 0, 1e-3])[:, None, None, None]
    ).astype(np.float32)
    scheme = Scheme(weight_bits=bits)
    scale = weight_scale(weight, 0, scheme)
    levels = quantize_weight(weight, scale, 0, scheme)
    limit = 2 ** (bits - 1) - 1
    largest = np.abs(levels.astype(int)).reshape(5, -1).max(axis=1)
    assert list(largest) == [limit, limit, limit, 0, limit]
    error = np.abs(levels * scale[:, None, None, None] - weight)
    assert (error <= scale[:, None, None, None] * 0.5 * (1 + 1e-5)).all()


def test_seven_bits_never_saturate_vpmaddubsw() -> None:
    scheme = Scheme(weight_bits=7)
    assert 2 * 255 * scheme.weight_limit < 2**15


def test_per_tensor_scale_has_no_axis() -> None:
    weight = np.array([[1.0, -2.0], [0.5, 0.25]], np.float32)
    scale = weight_scale(weight, None, ASYMMETRIC)
    assert scale.shape == ()
    assert quantize_weight(weight, scale, None, ASYMMETRIC)[0, 1] == -127


def test_a_large_bias_on_a_dead_channel_is_kept() -> None:
    weight = np.full((2, 1, 1, 1), 1e-9, np.float32)
    weight[0] = 1.0
    bias = np.array([0.5, 40.0], np.float32)
    input_scale = np.array(0.01, np.float32)
    scale = widen_for_bias(weight_scale(weight, 0, ASYMMETRIC), bias, input_scale)
    stored = quantize_bias(bias, input_scale, scale).astype(np.float64) * 0.01 * scale
    np.testing.assert_allclose(stored, bias, rtol=1e-2)
    assert scale[0] == pytest.approx(1 / 127)
