"""TensorRT's real parser and compiler, without a GPU: what edgekit writes parses, builds, and is INT8.

TensorRT-RTX has the ONNX parser and the compiler of TensorRT 11 and builds ahead of time for a
compute capability that need not be there. It says nothing of TensorRT 8 and 10.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, version_converter

from edgekit.builders import tensorrt_rtx
from edgekit.builders.tensorrt_rtx import RtxReport
from edgekit.quantization.float16 import to_float16
from tests import tensorrt_graphs

if not tensorrt_rtx.available():
    pytest.skip("TensorRT-RTX is not installed", allow_module_level=True)

SMS = ("8.6", "8.9")


def _built(model: onnx.ModelProto, folder: Path, sm: str = "8.6") -> RtxReport:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return tensorrt_rtx.inspect(path, sm)


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    lifted = onnx.shape_inference.infer_shapes(version_converter.convert_version(model, 19))
    graph = ir.from_proto(lifted)
    to_float16(graph)
    return ir.to_proto(graph)


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("typed", ["float32", "float16"])
def test_every_layer_meant_to_be_int8_is_built_as_int8(tmp_path: Path, sm: str, typed: str) -> None:
    explicit, placement = tensorrt_graphs.quantized(tensorrt_graphs.residual_network())
    report = _built(explicit if typed == "float32" else _half(explicit), tmp_path, sm)
    assert report.parsed and report.built and report.engine_bytes > 10_000, report.errors
    datatypes = report.datatypes()
    assert {name: datatypes.get(name) for name in placement.compute} == dict.fromkeys(
        placement.compute, "Int8"
    )
    # and what was not meant to be is in the type of the graph
    assert datatypes["n_c0"] == ("Float" if typed == "float32" else "Half")


@pytest.mark.parametrize("sm", SMS)
def test_matrix_products_of_many_rows_are_int8(tmp_path: Path, sm: str) -> None:
    explicit, placement = tensorrt_graphs.quantized(tensorrt_graphs.token_network())
    assert set(placement.compute) == {"n_a", "n_b", "n_c"}
    for model in (explicit, _half(explicit)):
        datatypes = _built(model, tmp_path, sm).datatypes()
        assert {datatypes[name] for name in placement.compute} == {"Int8"}


def test_a_transposed_convolution_would_be_computed_in_float(tmp_path: Path) -> None:
    """Why the profile leaves ConvTranspose float: with QDQ its integers are only turned back."""
    model = tensorrt_graphs.residual_network()
    explicit, _ = tensorrt_graphs.quantized(model, operators=("Conv", "ConvTranspose"))
    assert _built(explicit, tmp_path).datatypes()["n_t8"] == "Float"


def test_the_pool_and_the_resize_run_on_integers_and_additions_are_fused(tmp_path: Path) -> None:
    explicit, _ = tensorrt_graphs.quantized(tensorrt_graphs.residual_network())
    report = _built(_half(explicit), tmp_path)
    kinds = {node: layer for layer in report.layers for node in layer.nodes}
    assert kinds["n_p5"].datatype == "Int8"
    # one kernel adds the residual and quantizes the result for the next convolution
    assert "r2.quantized.QuantizeLinear" in kinds["n_a2"].nodes
    assert "r0.dequantized.DequantizeLinear" in kinds["n_a2"].nodes


def _int32_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    """The bias of n_c1 as INT32 behind a DequantizeLinear, as ONNX Runtime wants it."""
    bias = next(item for item in model.graph.initializer if item.name == "c1.b")
    values = numpy_helper.to_array(bias)
    scale = np.full(values.shape, 1e-4, np.float32)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.rint(values / scale).astype(np.int32), "b.int32"),
            numpy_helper.from_array(scale, "b.scale"),
            numpy_helper.from_array(np.zeros(values.shape, np.int32), "b.zero"),
        ]
    )
    node = helper.make_node(
        "DequantizeLinear", ["b.int32", "b.scale", "b.zero"], ["b.dq"], name="n_bias", axis=0
    )
    model.graph.node.insert(0, node)
    conv = next(node for node in model.graph.node if node.name == "n_c1")
    conv.input[2] = "b.dq"
    return model


def _zero_point(value: int, dtype: type) -> onnx.ModelProto:
    """The network with another zero point for the tensor r0."""
    model, _ = tensorrt_graphs.quantized(tensorrt_graphs.residual_network())
    for item in model.graph.initializer:
        if item.name == "r0.zero_point":
            item.CopyFrom(numpy_helper.from_array(np.array(value, dtype), item.name))
    return model


def test_an_int32_bias_is_refused_by_the_parser(tmp_path: Path) -> None:
    explicit, _ = tensorrt_graphs.quantized(tensorrt_graphs.residual_network())
    report = _built(_int32_bias(explicit), tmp_path)
    assert not report.built and report.errors, report


@pytest.mark.parametrize(("value", "dtype"), [(5, np.int8), (128, np.uint8)])
def test_a_zero_point_other_than_0_is_refused_by_the_parser(
    tmp_path: Path, value: int, dtype: type
) -> None:
    report = _built(_zero_point(value, dtype), tmp_path)
    assert not report.built and report.errors, report


def test_the_log_is_read_line_by_line() -> None:
    log = (
        "Layers:\n"
        "Name: n_c1_myl0_3, LayerType: correlation, Inputs: [ { Name: a, Datatype: Int8, Format: x }], "
        "Outputs: [ { Datatype: Half } ], Metadata: [ONNX Layer: n_c1][ONNX Layer: d.q]\n"
        "Name: move, LayerType: kgen, Inputs: [ { Name: a, Datatype: Float }], Metadata: \n"
    )
    layers = tensorrt_rtx.read_layers(log)
    assert [(layer.kind, layer.datatype) for layer in layers] == [
        ("correlation", "Int8"),
        ("kgen", "Float"),
    ]
    assert layers[0].nodes == ("n_c1", "d.q") and layers[1].nodes == ()
