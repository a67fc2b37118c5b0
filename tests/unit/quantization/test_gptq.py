"""GPTQ: less error at the layer's output than rounding to nearest, within the same levels."""

from __future__ import annotations

import numpy as np

from edgekit.quantization.gptq import round_weights


def _layer(
    outputs: int = 24, inputs: int = 160, samples: int = 900, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Weights, scales for 31 levels, and inputs that are correlated as neighbouring pixels are."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(outputs, inputs))
    smooth = rng.normal(size=(samples, inputs)).cumsum(axis=1)
    x = np.maximum(smooth - smooth.mean(axis=0), 0) * rng.uniform(0.1, 3, inputs)
    return weight, 31 / np.abs(weight).max(axis=1), x


def _error(weight: np.ndarray, levels: np.ndarray, scale: np.ndarray, x: np.ndarray) -> float:
    return float((((levels / scale[:, None]) - weight) @ x.T).__pow__(2).mean())


def test_less_error_at_the_output_than_nearest() -> None:
    for seed in range(3):
        weight, scale, x = _layer(seed=seed)
        train, test = x[:600], x[600:]
        found = round_weights(weight, scale, 31, train.T @ train)
        nearest = np.rint(weight * scale[:, None])
        assert found.dtype == np.int8
        assert np.abs(found).max() <= 31
        # on samples that it has not seen
        assert _error(weight, found, scale, test) < 0.5 * _error(weight, nearest, scale, test)


def test_independent_inputs_round_to_nearest() -> None:
    weight, scale, _ = _layer()
    found = round_weights(weight, scale, 31, np.eye(weight.shape[1]))
    assert np.array_equal(found, np.rint(weight * scale[:, None]))


def test_fewer_samples_than_inputs_and_inputs_of_zeros() -> None:
    weight, scale, x = _layer()
    few = x[:20].copy()
    few[:, ::3] = 0
    found = round_weights(weight, scale, 31, few.T @ few)
    assert np.array_equal(found[:, ::3], np.rint(weight * scale[:, None])[:, ::3])
    nearest = np.rint(weight * scale[:, None])
    assert _error(weight, found, scale, few) < _error(weight, nearest, scale, few)


def test_what_cannot_be_factored_is_rounded_to_nearest() -> None:
    weight, scale, _ = _layer()
    nearest = np.rint(weight * scale[:, None])
    size = weight.shape[1]
    for moments in (np.zeros((size, size)), np.full((size, size), np.nan), -np.eye(size)):
        assert np.array_equal(round_weights(weight, scale, 31, moments), nearest)


def test_the_order_of_inputs_does_not_matter() -> None:
    weight, scale, x = _layer(outputs=6, inputs=40)
    order = np.random.default_rng(1).permutation(40)
    straight = round_weights(weight, scale, 127, x.T @ x)
    turned = round_weights(weight[:, order], scale, 127, x[:, order].T @ x[:, order])
    assert np.array_equal(straight[:, order], turned)
