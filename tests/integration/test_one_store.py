"""Calibrate once, emit everywhere: one file of statistics gives ONNX Runtime, TensorRT and ncnn their scales.

A tensor of range [low, high], amax = max(-low, high), becomes

    ONNX Runtime   scale = (high - low) / 255, zero point = round(-low / scale)
    TensorRT       scale = amax / 127, in the QDQ graph and in the calibration caches
    ncnn           scale = 127 / amax, what its tables multiply by

so the three can be computed from each other, and are compared bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.formats import tensorrt_cache
from edgekit.stages import calibrate, convert_tensorrt, quantize
from edgekit.stages.quantize import QuantizeOptions, observed_channels, observed_tensors
from edgekit.stages.quantize_ncnn import NcnnQuantizer
from edgekit.target_files import load_target
from edgekit.types import Calibration
from tests.integration.test_ncnn_int8 import CONTRACT, Net


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return Net(tmp_path_factory.mktemp("one-store"))


@pytest.fixture(scope="module")
def store(net: Net) -> Calibration:
    """Statistics of every tensor that any of the three wants, collected once."""
    profiles = [load_target(name) for name in ("x86-int8-vnni", "cuda-int8", "arm-int8")]
    tensors = [name for p in profiles for name in observed_tensors(net.model, p)]
    options = calibrate.CalibrateOptions(
        method="minmax",
        tensors=tuple(dict.fromkeys(tensors)),
        channels=observed_channels(net.model, profiles[0]),
        time_inference=False,
    )
    return calibrate.run(net.model, net.images, CONTRACT, net.folder / "one.npz", options)


def _activations(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tensor → (scale, zero point) of every QuantizeLinear of an activation."""
    graph = onnx.load(str(path)).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    return {
        node.input[0]: (arrays[node.input[1]], arrays[node.input[2]])
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in arrays
    }


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_scales_of_shared_tensors_are_equal_after_conversion(
    net: Net, store: Calibration, tmp_path: Path, method: str
) -> None:
    digest = store.sha256
    ranges = calibrate.choose_ranges(store, method, symmetric=False)
    mirrored = calibrate.choose_ranges(store, method, symmetric=True)
    assert ranges.sha256 == mirrored.sha256 == digest
    options = QuantizeOptions()
    unsigned = quantize.run(
        net.model, ranges, load_target("x86-int8-vnni"), [], tmp_path / "ort.onnx", options
    )
    signed = quantize.run(
        net.model, mirrored, load_target("cuda-int8"), [], tmp_path / "trt.onnx", options
    )
    files = convert_tensorrt.run(net.model, signed.model, mirrored, net.feeds, tmp_path / "trt")
    ort, trt = _activations(unsigned.model.path), _activations(signed.model.path)
    cache = tensorrt_cache.read(tmp_path / "trt" / convert_tensorrt.ENTROPY).scales
    widest = tensorrt_cache.read(tmp_path / "trt" / convert_tensorrt.MINMAX).scales
    assert files.cached_tensors == len(cache) and set(trt) <= set(cache)

    # TensorRT: the QDQ graph and the cache are one number, amax / 127
    for name, (scale, zero) in trt.items():
        amax = mirrored.ranges[name].amax
        assert zero == 0 and zero.dtype == np.int8
        assert scale.tobytes() == np.float32(amax / 127.0).tobytes()
        assert np.float32(cache[name]).tobytes() == scale.tobytes(), name
    # ONNX Runtime: the same statistics, both ends
    shared = [name for name in ort if name in ranges.ranges and ort[name][1].dtype == np.uint8]
    assert {"a1", "a3"} <= set(shared) & set(trt)
    for name in shared:
        span, (scale, zero) = ranges.ranges[name], ort[name]
        low, high = min(span.low, 0.0), max(span.high, 0.0)
        assert scale.tobytes() == np.float32((high - low) / 255.0).tobytes(), name
        assert int(zero) == int(np.clip(np.rint(-low / float(scale)), 0, 255)), name
    # ncnn: what its table multiplies by is 127 over the same amax, so the reciprocal of TensorRT's scale
    quantizer = NcnnQuantizer(
        net.converted.engine, net.model, store, net.profile.quantize, net.feeds[0]
    )
    plan = quantizer.plan(method, ())
    compared = []
    for layer in quantizer.known.layers:
        if layer.tensor not in mirrored.ranges:
            continue
        factor = plan[layer.place].input_scale
        amax = np.float32(mirrored.ranges[layer.tensor].amax)
        assert np.float32(factor).tobytes() == (np.float32(127.0) / amax).tobytes(), layer.name
        # the cache of a tensor that an operator moves holds what it was moved out of
        assert factor * cache[layer.tensor] == pytest.approx(1.0, rel=3e-7), layer.name
        compared.append(layer.tensor)
    assert {"x", "a1", "a2", "a3", "a4"} <= set(compared)
    # the min-max cache holds what was seen, whatever method the other one took
    seen = calibrate.choose_ranges(store, "minmax", symmetric=True)
    for name, value in widest.items():
        if name in seen.ranges:
            assert np.float32(value).tobytes() == np.float32(seen.ranges[name].amax / 127).tobytes()


def test_where_nothing_is_clipped_one_side_gives_the_others(
    net: Net, store: Calibration, tmp_path: Path
) -> None:
    """For a tensor behind a Relu, low is 0: 255 steps of ONNX Runtime span 127 of TensorRT."""
    ranges = calibrate.choose_ranges(store, "minmax", symmetric=False)
    mirrored = calibrate.choose_ranges(store, "minmax", symmetric=True)
    profiles = load_target("x86-int8-vnni"), load_target("cuda-int8")
    options = QuantizeOptions()
    one = quantize.run(net.model, ranges, profiles[0], [], tmp_path / "a.onnx", options)
    two = quantize.run(net.model, mirrored, profiles[1], [], tmp_path / "b.onnx", options)
    ort, trt = _activations(one.model.path), _activations(two.model.path)
    for name in ("a1", "a2", "a3", "a4"):
        if name in ort and name in trt:
            assert float(ort[name][0]) * 255 == pytest.approx(float(trt[name][0]) * 127, rel=3e-7)
