"""Bias correction: the mean that rounding the weights adds to an output is taken off the bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit import onnx_file
from edgekit.calibration.statistics import Origin, Statistics
from edgekit.calibration.store import write
from edgekit.errors import BadInput
from edgekit.preprocess import Preprocess
from edgekit.quantization.bias_correction import input_channels, mean_shift
from edgekit.quantization.placement import observed, place
from edgekit.quantization.qdq import insert
from edgekit.quantization.rules import Rules
from edgekit.quantization.scheme import Scheme
from edgekit.stages import calibrate, quantize
from edgekit.target_files import load_target
from edgekit.types import Calibration
from tests.graphs import GraphMaker, ranges_of, run

RULES = Rules(operators=("Conv", "Gemm", "MatMul"), follow=("Relu", "MaxPool"), keep_float=())
# all positive: the means are far from zero, as they are behind a Relu
X = {"x": np.random.default_rng(5).uniform(0, 2, (1, 8, 12, 12)).astype(np.float32)}


def _means(model: onnx.ModelProto, axes: dict[str, int]) -> dict[str, np.ndarray]:
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    del wider.graph.output[:]
    names = list(axes)
    wider.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    found = dict(zip(names, run(wider, X, optimize=False), strict=True))
    return {
        name: array.astype(np.float64).mean(
            axis=tuple(a for a in range(array.ndim) if a != axes[name])
        )
        for name, array in found.items()
    }


def _error_of_the_mean(model: onnx.ModelProto, scheme: Scheme, corrected: bool) -> float:
    """Largest error of an output channel's mean, in units of the largest output."""
    graph = ir.from_proto(model)
    axes = input_channels(graph, RULES)
    ranges = ranges_of(model, observed(graph, RULES), X)
    means = _means(model, axes) if corrected else None
    insert(graph, place(graph, RULES, ranges), ranges, scheme, means)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    (expected,), (got,) = run(model, X), run(made, X)
    channel = 1 if expected.ndim == 4 else expected.ndim - 1
    rest = tuple(a for a in range(expected.ndim) if a != channel)
    shift = (got.astype(np.float64) - expected).mean(axis=rest)
    return float(np.abs(shift).max() / np.abs(expected).max())


def _conv(**options: object) -> onnx.ModelProto:
    maker = GraphMaker(2)
    maker.conv("x", "y", (16, 8), **options)  # type: ignore[arg-type]
    return maker.model({"x": [1, 8, 12, 12]}, {"y": [1, 16, "h", "w"]})


def _rows(op_type: str) -> onnx.ModelProto:
    maker = GraphMaker(4)
    maker.node("Transpose", ["x"], "t", perm=[0, 2, 3, 1])
    weight = maker.rng.normal(size=(8, 16)).astype(np.float32)
    bias = maker.weight("b", maker.rng.normal(size=16).astype(np.float32))
    if op_type == "MatMul":
        maker.node("MatMul", ["t", maker.weight("w", weight)], "m")
        maker.node("Add", [bias, "m"], "y")
        return maker.model({"x": [1, 8, 12, 12]}, {"y": [1, 12, 12, 16]})
    maker.node("Reshape", ["t", maker.weight("s", np.array([144, 8], np.int64))], "f")
    flipped = op_type == "Gemm transposed"
    array = np.ascontiguousarray(weight.T) if flipped else weight
    maker.node("Gemm", ["f", maker.weight("w", array), bias], "y", transB=int(flipped))
    return maker.model({"x": [1, 8, 12, 12]}, {"y": [144, 16]})


MODELS = {
    "plain": _conv(),
    "no bias": _conv(bias=False),
    "groups": _conv(groups=4),
    "depthwise": _conv(groups=8),
    "strided, dilated": _conv(strides=[2, 2], dilations=[2, 2], pads=[2, 1, 0, 2]),
    "Gemm": _rows("Gemm"),
    "Gemm transposed": _rows("Gemm transposed"),
    "MatMul": _rows("MatMul"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(weight_bits=4),
        Scheme(weight_bits=4, per_channel=False),
        Scheme(
            weight_bits=4,
            activation_type="int8",
            symmetric_activations=True,
            explicit_weights=True,
            integer_bias=False,
        ),
    ],
    ids=["per channel", "per tensor", "explicit"],
)
def test_the_mean_of_every_output_channel_comes_back(name: str, scheme: Scheme) -> None:
    plain = _error_of_the_mean(MODELS[name], scheme, corrected=False)
    corrected = _error_of_the_mean(MODELS[name], scheme, corrected=True)
    assert plain > 0.002
    # what is left is the rounding of the activations
    assert corrected < 0.6 * plain


@pytest.mark.parametrize("name", ["plain", "groups", "depthwise", "strided, dilated", "MatMul"])
def test_the_shift_is_the_mean_that_the_error_makes(name: str) -> None:
    """Against the layer itself, run with the error as its weight on an input of constant channels."""
    model = onnx.ModelProto()
    model.CopyFrom(MODELS[name])
    node = next(n for n in ir.from_proto(model).graph if n.op_type in ("Conv", "MatMul"))
    mean = np.random.default_rng(1).normal(size=8)
    constant = np.ones((1, 8, 12, 12), np.float32) * mean.reshape(1, 8, 1, 1).astype(np.float32)
    for item in model.graph.initializer:
        if item.name in ("y.b", "b"):
            item.CopyFrom(onnx.numpy_helper.from_array(np.zeros(16, np.float32), item.name))
    (out,) = run(model, {"x": constant})
    expected = out.mean(axis=(0, 2, 3) if out.shape[1] == 16 else (0, 1, 2))
    weight = node.inputs[1].const_value.numpy()
    shift = mean_shift(node, weight, mean)
    assert shift is not None
    np.testing.assert_allclose(shift, expected, rtol=1e-5, atol=2e-6)


def test_means_that_do_not_fit_are_not_used() -> None:
    node = next(n for n in ir.from_proto(MODELS["plain"]).graph if n.op_type == "Conv")
    weight = node.inputs[1].const_value.numpy()
    assert mean_shift(node, weight, np.zeros(7)) is None


def test_a_matmul_without_a_bias_is_not_asked_for() -> None:
    maker = GraphMaker(4)
    maker.node("Transpose", ["x"], "t", perm=[0, 2, 3, 1])
    maker.node("MatMul", ["t", maker.weight("w", np.ones((8, 16), np.float32))], "y")
    model = maker.model({"x": [1, 8, 12, 12]}, {"y": [1, 12, 12, 16]})
    assert input_channels(ir.from_proto(model), RULES) == {}


def test_the_stages_collect_the_means_and_use_them(tmp_path: Path) -> None:
    maker = GraphMaker(6)
    maker.conv("x", "c", (16, 3))
    maker.node("Relu", ["c"], "r")
    maker.conv("r", "d", (16, 16), groups=16)
    maker.node("Relu", ["d"], "q")
    maker.conv("q", "y", (8, 16), kernel=1)
    proto = maker.model({"x": [1, 3, 16, 16]}, {"y": [1, 8, 16, 16]})
    onnx.save(proto, tmp_path / "m.onnx")
    model = onnx_file.describe(tmp_path / "m.onnx")
    profile = load_target("x86-int8")
    channels = quantize.observed_channels(model, profile)
    assert channels["r"] == 1 and channels["q"] == 1
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    contract = Preprocess(height=16, width=16)
    options = calibrate.CalibrateOptions(
        tensors=quantize.observed_tensors(model, profile), channels=channels
    )
    calibration = calibrate.run(
        model, tmp_path / "images.npz", contract, tmp_path / "c.npz", options
    )
    feeds = [(images[:1].transpose(0, 3, 1, 2) / 255.0).astype(np.float32)]

    def shift(corrected: bool) -> float:
        out = tmp_path / f"{corrected}.onnx"
        chosen = quantize.QuantizeOptions(bias_correction=corrected, weight_bits=4)
        done = quantize.run(model, calibration, profile, feeds, out, chosen)
        assert ("biases corrected" in " ".join(done.notes)) == corrected
        error = run(onnx.load(out), {"x": feeds[0]})[0] - run(proto, {"x": feeds[0]})[0]
        return float(np.abs(error.mean(axis=(0, 2, 3))).mean())

    assert shift(True) < 0.5 * shift(False)


def test_a_calibration_without_means_is_refused(tmp_path: Path) -> None:
    maker = GraphMaker(6)
    maker.conv("x", "y", (16, 8))
    onnx.save(maker.model({"x": [1, 8, 12, 12]}, {"y": [1, 16, 12, 12]}), tmp_path / "m.onnx")
    model = onnx_file.describe(tmp_path / "m.onnx")
    origin = Origin(graph_sha256=model.sha256, preprocess="{}", versions={}, tensors=("x", "y"))
    statistics = Statistics(origin)
    statistics.add("ab" * 32, "image", {"x": X["x"], "y": X["x"]})
    digest = write(statistics, tmp_path / "c.npz")
    ranges = ranges_of(onnx.load(model.path), ("x", "y"), X)
    calibration = Calibration(
        path=tmp_path / "c.npz",
        sha256=digest,
        graph_sha256=model.sha256,
        method="minmax",
        ranges=ranges,
        images=1,
    )
    with pytest.raises(BadInput, match="channel means"):
        quantize.run(
            model,
            calibration,
            load_target("x86-int8"),
            [],
            tmp_path / "q.onnx",
            quantize.QuantizeOptions(bias_correction=True),
        )
