"""QDQ insertion: a valid graph, near the float one, computed in integers by ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgekit.quantization.placement import observed, place
from edgekit.quantization.qdq import insert
from edgekit.quantization.rules import Rules
from edgekit.quantization.scheme import Scheme
from tests.graphs import GraphMaker, ranges_of, run, sqnr_db

RULES = Rules(
    operators=("Conv", "Gemm", "MatMul"),
    follow=(
        "Relu",
        "Clip",
        "MaxPool",
        "Concat",
        "Add",
        "Sigmoid",
        "Mul",
        "GlobalAveragePool",
        "Flatten",
    ),
    keep_float=(),
)
X = {"x": np.random.default_rng(7).normal(size=(1, 8, 16, 16)).astype(np.float32)}


def _network() -> onnx.ModelProto:
    """Residual, SiLU, pooling, join, depthwise, classifier: one of each."""
    maker = GraphMaker(3)
    maker.conv("x", "c1", (16, 8), spread=4.0)
    maker.node("Relu", ["c1"], "r1")
    maker.conv("r1", "c2", (16, 16), groups=16)
    maker.node("Sigmoid", ["c2"], "s2")
    maker.node("Mul", ["c2", "s2"], "m2")
    maker.node("Add", ["r1", "m2"], "a")
    maker.node("MaxPool", ["a"], "p", kernel_shape=[2, 2], strides=[2, 2])
    maker.conv("p", "c3", (16, 16), kernel=1, bias=False)
    maker.node(
        "Clip",
        [
            "c3",
            maker.weight("lo", np.array(0, np.float32)),
            maker.weight("hi", np.array(6, np.float32)),
        ],
        "k",
    )
    maker.node("Concat", ["p", "k"], "j", axis=1)
    maker.conv("j", "c4", (8, 32))
    maker.node("GlobalAveragePool", ["c4"], "g")
    maker.node("Flatten", ["g"], "f")
    weight = maker.rng.normal(size=(5, 8)).astype(np.float32)
    maker.node(
        "Gemm",
        ["f", maker.weight("fw", weight), maker.weight("fb", np.ones(5, np.float32))],
        "y",
        transB=1,
    )
    return maker.model({"x": [1, 8, 16, 16]}, {"y": [1, 5]})


def _quantized(model: onnx.ModelProto, scheme: Scheme, rules: Rules = RULES) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    ranges = ranges_of(model, observed(graph, rules), X)
    insert(graph, place(graph, rules, ranges), ranges, scheme)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize(
    ("scheme", "least_db"),
    [
        (Scheme(), 25.0),
        (Scheme(per_channel=False), 18.0),
        (Scheme(weight_bits=7), 23.0),
        (Scheme(activation_type="int8", symmetric_activations=True), 23.0),
        (
            Scheme(
                activation_type="int8",
                symmetric_activations=True,
                explicit_weights=True,
                integer_bias=False,
            ),
            23.0,
        ),
    ],
)
def test_every_scheme_is_near_the_float_graph(scheme: Scheme, least_db: float) -> None:
    model = _network()
    made = _quantized(model, scheme)
    got, want = run(made, X)[0], run(model, X)[0]
    assert sqnr_db(want, got) > least_db
    assert [o.name for o in made.graph.output] == ["y"]


def test_onnxruntime_fuses_everything_that_was_placed() -> None:
    made = _quantized(_network(), Scheme())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(made.SerializeToString(), options)
        counts = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert counts["QLinearConv"] == 4
    assert counts["Conv"] == counts["FusedConv"] == 0
    assert counts["QLinearAdd"] == counts["QLinearConcat"] == counts["QLinearMul"] == 1
    assert counts["QGemm"] == 1
    assert counts["Relu"] == counts["Clip"] == 0


def test_seven_bit_weights_stay_in_seven_bits() -> None:
    made = _quantized(_network(), Scheme(weight_bits=7))
    weights = [
        onnx.numpy_helper.to_array(i) for i in made.graph.initializer if i.name.endswith(".int8")
    ]
    assert weights and all(np.abs(w.astype(int)).max() <= 63 for w in weights)


def test_float_weights_do_not_stay_behind() -> None:
    model = _network()
    made = _quantized(model, Scheme())
    floats = sum(
        onnx.numpy_helper.to_array(i).nbytes
        for i in made.graph.initializer
        if i.data_type == onnx.TensorProto.FLOAT and not i.name.endswith(".scale")
    )
    assert floats <= 16  # the clip's bounds


def test_a_weight_shared_by_two_convolutions_is_stored_once() -> None:
    maker = GraphMaker()
    maker.conv("x", "c1", (8, 8), bias=False)
    maker.node("Conv", ["c1", "c1.w"], "y", pads=[1] * 4)
    made = _quantized(maker.model({"x": [1, 8, 16, 16]}, {"y": [1, 8, 16, 16]}), Scheme())
    assert sum(i.name.endswith(".int8") for i in made.graph.initializer) == 1


def test_an_output_made_by_an_integer_node_keeps_its_name() -> None:
    maker = GraphMaker()
    maker.conv("x", "mid", (8, 8))
    maker.conv("mid", "y", (8, 8))
    model = maker.model({"x": [1, 8, 16, 16]}, {"mid": [1, 8, 16, 16], "y": [1, 8, 16, 16]})
    made = _quantized(model, Scheme())
    assert [o.name for o in made.graph.output] == ["mid", "y"]
    for want, got in zip(run(model, X), run(made, X), strict=True):
        assert sqnr_db(want, got) > 25


def test_float_readers_of_a_float_tensor_read_it_unrounded() -> None:
    maker = GraphMaker()
    maker.node("Tanh", ["x"], "t")
    maker.conv("t", "c", (8, 8))
    maker.node("Exp", ["t"], "e")
    maker.node("Add", ["c", "e"], "y")
    model = maker.model({"x": [1, 8, 16, 16]}, {"y": [1, 8, 16, 16]})
    rules = Rules(operators=("Conv",), follow=(), keep_float=())
    made = _quantized(model, Scheme(), rules)
    readers = {node.input[0]: node.op_type for node in made.graph.node if node.op_type == "Exp"}
    assert readers == {"t": "Exp"}
