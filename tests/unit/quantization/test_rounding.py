"""Weights: ranges by squared error, rounding by what a layer computes, and the rows both look at."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.errors import UsageError
from edgekit.quantization import adaround, patches
from edgekit.quantization.scheme import (
    Scheme,
    choose_weight_scale,
    dequantize_weight,
    quantize_weight,
    weight_scale,
)
from edgekit.quantization.weight_range import mse_scale
from tests.graphs import GraphMaker, run


def samples(count: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs: what one weight gets wrong another can make up for."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, inputs)) @ rng.normal(size=(inputs, inputs))
    return np.maximum(mixed, 0)


def error_of(
    levels: np.ndarray, weight: np.ndarray, step: np.ndarray, moments: np.ndarray
) -> float:
    wrong = levels * step[:, None] - weight
    return float(np.einsum("ok,kl,ol->", wrong, moments, wrong))


def test_descent_is_near_the_best_of_all_roundings() -> None:
    rng = np.random.default_rng(1)
    x = samples(500, 8)
    moments = x.T @ x
    weight = rng.normal(size=(3, 8))
    step = np.abs(weight).max(axis=1) / 7
    found = adaround.round_weights(weight, step, 7, moments)
    nearest = np.clip(np.rint(weight / step[:, None]), -7, 7)
    ours, plain = (error_of(levels, weight, step, moments) for levels in (found, nearest))
    low = np.floor(weight / step[:, None])
    best = 0.0
    for row in range(3):
        flips = np.array(list(itertools.product((0, 1), repeat=8)))
        wrong = np.clip(low[row] + flips, -7, 7) * step[row] - weight[row]
        best += float(np.einsum("nk,kl,nl->n", wrong, moments, wrong).min())
    assert best * (1 - 1e-9) <= ours <= 1.1 * best
    assert ours < 0.9 * plain
    exact = weight / step[:, None]
    assert np.all(np.abs(found - exact) <= 1 + 1e-9)


def test_no_single_flip_helps_and_limits_hold() -> None:
    rng = np.random.default_rng(2)
    x = samples(300, 20, 3)
    moments = x.T @ x
    weight = rng.normal(size=(4, 20)) * 3
    step = np.full(4, 0.5)
    found = adaround.round_weights(weight, step, 7, moments).astype(float)
    assert np.abs(found).max() <= 7
    damped = moments + np.diag(np.full(20, 0.01 * np.diag(moments).mean()))
    least = error_of(found, weight, step, damped)
    low = np.clip(np.floor(weight / step[:, None]), -7, 7)
    high = np.clip(np.floor(weight / step[:, None]) + 1, -7, 7)
    for row, column in np.ndindex(4, 20):
        other = found.copy()
        other[row, column] = low[row, column] + high[row, column] - found[row, column]
        assert error_of(other, weight, step, damped) >= least * (1 - 1e-9)


def test_groups_are_rounded_each_by_its_own_inputs() -> None:
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(5, 1, 9))
    step = np.abs(weight).max(axis=2) / 15
    moments = np.stack([(x := samples(200, 9, g)).T @ x for g in range(5)])
    together = adaround.round_weights(weight, step, 15, moments)
    for group in range(5):
        alone = adaround.round_weights(weight[group], step[group], 15, moments[group])
        assert np.array_equal(together[group], alone)


def test_inputs_that_were_always_zero_leave_the_nearest_level() -> None:
    weight = np.array([[0.4, -1.6, 2.4]])
    step = np.ones(1)
    for moments in (np.zeros((3, 3)), np.full((3, 3), np.nan)):
        assert adaround.round_weights(weight, step, 7, moments).tolist() == [[0, -2, 2]]


@pytest.mark.parametrize(("axis", "bits"), [(0, 4), (None, 4), (0, 8), (None, 8)])
def test_mse_scales_lose_no_more_than_absmax(axis: int | None, bits: int) -> None:
    rng = np.random.default_rng(5)
    weight = rng.laplace(size=(6, 16, 3, 3)).astype(np.float32)
    scheme = Scheme(weight_bits=bits)
    plain = weight_scale(weight, axis, scheme)
    chosen = choose_weight_scale(weight, axis, Scheme(weight_bits=bits, weight_range="mse"))
    assert chosen.dtype == np.float32 and chosen.shape == plain.shape
    assert (chosen <= plain * (1 + 1e-6)).all()

    def loss(scale: np.ndarray) -> float:
        stored = dequantize_weight(quantize_weight(weight, scale, axis, scheme), scale, axis)
        return float(np.square(stored - weight).sum())

    assert loss(chosen) <= loss(plain)
    if bits == 4:
        assert loss(chosen) < (0.95 if axis == 0 else 0.8) * loss(plain)
        # a plain search over the same scales finds nothing better
        if axis is None:
            least = min(loss(plain * np.float32(f)) for f in np.linspace(0.2, 1, 401))
            assert loss(chosen) <= least * 1.02


def test_mse_scales_of_zeros_and_constants_stay() -> None:
    for value in (0.0, 0.7):
        weight = np.full((2, 5), value, np.float32)
        scale = weight_scale(weight, 0, Scheme())
        assert np.array_equal(mse_scale(weight, 0, 127, scale), scale)
    with pytest.raises(UsageError, match="absmax or mse"):
        Scheme(weight_range="mes")


@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "more"),
    [
        ((8, 6), 3, 1, {}),
        ((8, 6), 3, 2, {"strides": [2, 1]}),
        ((6, 6), 3, 6, {"dilations": [2, 2], "pads": [2, 1, 0, 2]}),
        ((5, 6), 1, 1, {"strides": [2, 2], "pads": [0, 0, 0, 0]}),
    ],
)
def test_rows_times_weights_are_what_a_convolution_computes(
    channels: tuple[int, int], kernel: int, groups: int, more: dict[str, Any]
) -> None:
    maker = GraphMaker(6)
    maker.conv("x", "y", channels, kernel, groups, bias=False, **more)
    model = maker.model({"x": [1, 6, 9, 7]}, {"y": [1, channels[0], "h", "w"]})
    x = np.random.default_rng(0).normal(size=(1, 6, 9, 7)).astype(np.float32)
    expected = run(model, {"x": x})[0][0]
    node = ir.from_proto(model).graph[0]
    weight = np.asarray(node.inputs[1].const_value.numpy())
    rows = patches.rows(node, x, 10_000, np.random.default_rng(0))
    matrix = patches.matrix(node, weight)
    assert rows is not None and matrix is not None
    product = np.einsum("gnk,gok->gon", rows, matrix).reshape(expected.shape)
    np.testing.assert_allclose(product, expected, atol=1e-4)
    levels = np.rint(matrix * 50).astype(np.int8)
    assert np.array_equal(patches.as_weight(node, levels, weight.shape), np.rint(weight * 50))
    some = patches.rows(node, x, 5, np.random.default_rng(0))
    assert some is not None and some.shape == (groups, 5, rows.shape[2])


@pytest.mark.parametrize("transposed", [0, 1])
def test_rows_of_a_gemm(transposed: int) -> None:
    maker = GraphMaker(7)
    shape = (4, 5) if transposed else (5, 4)
    weight = maker.rng.normal(size=shape).astype(np.float32)
    maker.node("Gemm", ["x", maker.weight("w", weight)], "y", transB=transposed)
    model = maker.model({"x": [2, 5]}, {"y": [2, 4]})
    x = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    node = ir.from_proto(model).graph[0]
    rows, matrix = (
        patches.rows(node, x, 100, np.random.default_rng(0)),
        patches.matrix(node, weight),
    )
    assert rows is not None and matrix is not None
    np.testing.assert_allclose(rows[0] @ matrix[0].T, run(model, {"x": x})[0], atol=1e-5)
    levels = np.rint(matrix * 9).astype(np.int8)
    assert np.array_equal(patches.as_weight(node, levels, shape), np.rint(weight * 9))


def test_rows_that_cannot_be_told_are_none() -> None:
    maker = GraphMaker(8)
    maker.conv("x", "y", (4, 3))
    model = maker.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})
    node = ir.from_proto(model).graph[0]
    node.attributes["auto_pad"] = ir.AttrString("auto_pad", "SAME_UPPER")
    x = np.zeros((1, 3, 8, 8), np.float32)
    assert patches.rows(node, x, 10, np.random.default_rng(0)) is None
