"""Losses by tensor, and ranges against distributions, on graphs whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.calibration import store
from edgekit.calibration.statistics import Origin, Statistics
from edgekit.stages import layer_loss, tensor_ranges
from tests.graphs import GraphMaker


def scaled(factor: float, path: Path) -> Path:
    """x → a = x * factor → b = relu(a); and c, which both graphs share exactly."""
    make = GraphMaker()
    make.node("Mul", ["x", make.weight("f", np.array([factor], np.float32))], "a")
    make.node("Relu", ["a"], "b")
    make.node("Neg", ["x"], "c")
    model = make.model({"x": [1, 4]}, {"b": [1, 4], "c": [1, 4]})
    onnx.save(model, str(path))
    return path


def test_the_ratio_of_signal_to_noise_is_that_of_the_definition(tmp_path: Path) -> None:
    one, two = scaled(1.0, tmp_path / "one.onnx"), scaled(1.1, tmp_path / "two.onnx")
    feeds = [{"x": np.array([[1.0, 2.0, -3.0, 4.0]], np.float32)}]
    found = layer_loss.run(one, two, feeds)
    assert list(found) == ["a", "b", "c"]
    # noise is a tenth of the signal: 20 dB
    assert found["a"] == pytest.approx(20.0, abs=1e-3)
    assert found["b"] == pytest.approx(20.0, abs=1e-3)
    assert found["c"] == math.inf


def test_samples_are_summed_before_the_ratio(tmp_path: Path) -> None:
    one, two = scaled(1.0, tmp_path / "one.onnx"), scaled(1.1, tmp_path / "two.onnx")
    feeds = [{"x": np.full((1, 4), value, np.float32)} for value in (1.0, 100.0)]
    assert layer_loss.run(one, two, feeds)["a"] == pytest.approx(20.0, abs=1e-3)


def test_tensors_of_only_one_model_are_left_out(tmp_path: Path) -> None:
    make = GraphMaker()
    make.node("Neg", ["x"], "c")
    make.node("Abs", ["c"], "d")
    onnx.save(make.model({"x": [1, 4]}, {"d": [1, 4]}), str(tmp_path / "two.onnx"))
    one = scaled(1.0, tmp_path / "one.onnx")
    found = layer_loss.run(one, tmp_path / "two.onnx", [{"x": np.ones((1, 4), np.float32)}])
    assert found == {"c": math.inf}


# --- ranges


def quantized(path: Path, scale: float, zero_point: int) -> Path:
    make = GraphMaker()
    scale_name = make.weight("s", np.float32(scale))
    zero = make.weight("z", np.uint8(zero_point))
    make.node("QuantizeLinear", ["x", scale_name, zero], "q")
    make.node("DequantizeLinear", ["q", scale_name, zero], "y")
    onnx.save(make.model({"x": [1, 1000]}, {"y": [1, 1000]}), str(path))
    return path


def statistics(values: np.ndarray, path: Path) -> Path:
    origin = Origin(graph_sha256="0" * 64, preprocess="{}", versions={}, tensors=("x",))
    found = Statistics(origin)
    found.add("ab" * 32, "image", {"x": values.astype(np.float32)})
    store.write(found, path)
    return path


def test_ranges_are_those_of_the_model(tmp_path: Path) -> None:
    model = quantized(tmp_path / "m.onnx", 0.1, 128)
    values = np.linspace(-5, 5, 1000)
    (found,) = tensor_ranges.read(model, statistics(values, tmp_path / "c.npz"))
    assert (found.low, found.high) == (pytest.approx(-12.8), pytest.approx(12.7))
    assert (found.minimum, found.maximum) == (-5.0, 5.0)
    assert found.clipped_share == 0.0
    assert sum(count for _, _, count in found.bars) == 1000
    assert found.bars[0][0] <= -5.0 and found.bars[-1][1] > 5.0
    # noise of rounding: scale^2 / 12 against the mean square of a uniform distribution
    expected = 10 * math.log10((25 / 3) / (0.01 / 12))
    assert found.sqnr_db == pytest.approx(expected, abs=0.3)


def test_what_does_not_fit_the_range_is_counted_and_costs(tmp_path: Path) -> None:
    values = np.concatenate([np.linspace(-1, 1, 900), np.full(100, 50.0)])
    (found,) = tensor_ranges.read(
        quantized(tmp_path / "m.onnx", 0.01, 128), statistics(values, tmp_path / "c.npz")
    )
    assert found.clipped_share == pytest.approx(0.1, abs=0.002)
    assert found.sqnr_db < 1.0


def test_tensors_without_statistics_are_left_out(tmp_path: Path) -> None:
    origin = Origin(graph_sha256="0" * 64, preprocess="{}", versions={}, tensors=("other",))
    other = Statistics(origin)
    other.add("ab" * 32, "image", {"other": np.ones(3, np.float32)})
    store.write(other, tmp_path / "c.npz")
    assert tensor_ranges.read(quantized(tmp_path / "m.onnx", 0.1, 0), tmp_path / "c.npz") == []
