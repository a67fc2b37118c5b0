"""A float16 typed graph: the same integers, casts at the border, float32 where float16 would not do."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, version_converter

from edgekit.quantization.float16 import WIDEST, Float16Report, half_scale, to_float16
from edgekit.types import Range
from tests import tensorrt_graphs
from tests.graphs import GraphMaker, run, sqnr_db

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def _typed(proto: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, Float16Report]:
    lifted = onnx.shape_inference.infer_shapes(version_converter.convert_version(proto, 19))
    graph = ir.from_proto(lifted)
    report = to_float16(graph, **options)  # type: ignore[arg-type]
    typed = ir.to_proto(graph)
    onnx.checker.check_model(typed, full_check=True)
    return typed, report


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_layers_are_float16_and_the_outside_is_float32() -> None:
    explicit, _ = tensorrt_graphs.quantized(tensorrt_graphs.residual_network())
    typed, report = _typed(explicit)
    types = _types(typed)
    assert types["x"] == FLOAT and types["y"] == FLOAT
    assert types["r0"] == HALF and types["c7"] == HALF and types["r0.dequantized"] == HALF
    assert not report.floats
    # not optimized: ONNX Runtime 1.31 fuses float16 QDQ into something else
    one, other = (run(m, tensorrt_graphs.feeds(), False)[0] for m in (explicit, typed))
    assert other.dtype == np.float32
    assert sqnr_db(one, other) > 40


def test_weights_become_the_very_integers_of_the_float32_graph_but_for_the_scales_last_bit() -> (
    None
):
    explicit, _ = tensorrt_graphs.quantized(tensorrt_graphs.residual_network())
    typed, _ = _typed(explicit)
    ours, theirs = _integers(explicit), _integers(typed)
    assert set(ours) == set(theirs) and len(ours) == 8
    for name, integers in ours.items():
        assert np.abs(theirs[name] - integers).max() <= 1, name
        assert np.abs(theirs[name]).max() <= 127


def _integers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What QuantizeLinear makes of each weight, by the layer that reads it; exact in its own type."""
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    readers = {
        node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    layers = {name: node.name for node in model.graph.node for name in node.input}
    found = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in arrays:
            continue
        weight, scale = arrays[node.input[0]], arrays[node.input[1]]
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        shape = [1] * weight.ndim
        shape[axis] = -1
        # in the operator's own type: a float16 division
        levels = np.rint((weight / scale.reshape(shape)).astype(weight.dtype)).astype(np.int64)
        found[layers[readers[node.output[0]].output[0]]] = levels
    return found


def test_a_scale_is_rounded_up_and_never_to_zero() -> None:
    rng = np.random.default_rng(0)
    scales = np.concatenate([10.0 ** rng.uniform(-9, 2, 2000), [1e-12, 2.0**-24, 1.0]])
    half = half_scale(scales.astype(np.float32))
    assert half.dtype == np.float16
    assert (half.astype(np.float64) >= scales.astype(np.float32)).all() and (half > 0).all()
    normal = scales > 6.2e-5
    assert (half[normal].astype(np.float64) <= scales[normal] * (1 + 2**-9)).all()


def test_decoding_and_wide_values_stay_float32() -> None:
    maker = GraphMaker()
    maker.conv("x", "c0", (16, 16))
    maker.conv("c0", "wide", (16, 16))
    maker.node("Relu", ["wide"], "r")
    maker.conv("r", "c2", (4, 16))
    maker.weight("stride", np.array(640.0, np.float32))
    maker.node("Sigmoid", ["c2"], "s")
    maker.node("Mul", ["s", "stride"], "y")
    proto = maker.model({"x": [1, 16, 8, 8]}, {"y": [1, 4, 8, 8]})
    typed, report = _typed(proto, ranges={"wide": Range(low=-1.0, high=2 * WIDEST)})
    types = _types(typed)
    assert types["c0"] == HALF and types["c2"] == HALF
    assert types["wide"] == FLOAT and types["s"] == FLOAT and types["y"] == FLOAT
    assert report.floats == {"n_wide": f"'wide' reaches {2 * WIDEST:g}"}


def test_inputs_and_outputs_are_float16_when_asked() -> None:
    typed, _ = _typed(tensorrt_graphs.residual_network(), half_io=True)
    types = _types(typed)
    assert types["x"] == HALF and types["y"] == HALF
    feeds = {"x": tensorrt_graphs.feeds()["x"].astype(np.float16)}
    assert run(typed, feeds)[0].dtype == np.float16


def test_an_older_opset_is_refused() -> None:
    graph = ir.from_proto(tensorrt_graphs.residual_network())
    with pytest.raises(ValueError, match="opset 17"):
        to_float16(graph)
