"""What TensorRT refuses is told on the host, with node and rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.errors import NotPossible
from edgekit.quantization import tensorrt_rules
from edgekit.quantization.tensorrt_rules import FLOAT_OPSETS, QDQ_OPSETS, find_problems
from tests import tensorrt_graphs


def test_what_edgekit_makes_keeps_every_rule() -> None:
    proto = tensorrt_graphs.residual_network()
    explicit, placement = tensorrt_graphs.quantized(proto)
    assert find_problems(proto, FLOAT_OPSETS) == []
    assert find_problems(explicit, QDQ_OPSETS) == []
    found = tensorrt_rules.counts(explicit)
    assert sum(found.values()) == len(placement.compute) == found["Conv"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"integer_bias": True}, "an INT32 bias is a parse error"),
        ({"activation_type": "uint8"}, "it is uint8"),
        ({"symmetric_activations": False}, "its zero point is"),
    ],
)
def test_each_broken_rule_is_named_with_its_node(changes: dict[str, object], rule: str) -> None:
    proto = tensorrt_graphs.residual_network()
    explicit, _ = tensorrt_graphs.quantized(proto, **changes)
    with pytest.raises(NotPossible, match=rule) as caught:
        tensorrt_rules.demand(explicit, QDQ_OPSETS, Path("m.onnx"))
    assert "Linear)" in caught.value.message and caught.value.hint


def _edited(change: Callable[[onnx.ModelProto], None]) -> list[str]:
    model = tensorrt_graphs.residual_network()
    change(model)
    return [str(problem) for problem in find_problems(model, FLOAT_OPSETS)]


def test_opset_operators_and_shapes() -> None:
    def newer(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 18

    def unknown(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Det", ["y"], ["z"], name="n_z"))

    def integers(model: onnx.ModelProto) -> None:
        node = helper.make_node("MatMulInteger", ["y", "y"], ["z"], name="n_z")
        model.graph.node.append(node)

    def custom(model: onnx.ModelProto) -> None:
        node = helper.make_node("FusedConv", ["y"], ["z"], name="n_z", domain="com.microsoft")
        model.graph.node.append(node)
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    def free(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    def batch(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    def indices(model: onnx.ModelProto) -> None:
        next(n for n in model.graph.node if n.op_type == "MaxPool").output.append("places")

    def crop(model: onnx.ModelProto) -> None:
        resize = next(n for n in model.graph.node if n.op_type == "Resize")
        resize.attribute.append(
            helper.make_attribute("coordinate_transformation_mode", "tf_crop_and_resize")
        )

    def bytes_in(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8

    assert _edited(newer) == [
        "the model: opset 18, and the versions this file is for parse 9 to 17"
    ]
    assert _edited(unknown) == ["'n_z' (Det): TensorRT 8.5 does not parse this operator"]
    assert "'n_z' (MatMulInteger): integer arithmetic" in _edited(integers)[0]
    assert _edited(custom) == ["n_z: operators of com.microsoft are not parsed"]
    assert "input 'x': free dimensions beside the batch (axis 2)" in _edited(free)[0]
    assert _edited(batch) == []
    assert "its second output" in _edited(indices)[0]
    assert "tf_crop_and_resize" in _edited(crop)[0]
    assert "it is UINT8" in _edited(bytes_in)[0]


def test_scales_that_are_computed_negative_or_along_the_wrong_axis() -> None:
    explicit, _ = tensorrt_graphs.quantized(tensorrt_graphs.residual_network())

    def broken(change: Callable[[onnx.ModelProto], None]) -> str:
        model = onnx.ModelProto()
        model.CopyFrom(explicit)
        change(model)
        return "\n".join(str(problem) for problem in find_problems(model, QDQ_OPSETS))

    def constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
        for item in model.graph.initializer:
            if item.name == name:
                item.CopyFrom(numpy_helper.from_array(array, name))

    def negative(model: onnx.ModelProto) -> None:
        constant(model, "r0.scale", np.array(-1.0, np.float32))

    def computed(model: onnx.ModelProto) -> None:
        kept = [item for item in model.graph.initializer if item.name != "r0.scale"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)

    def no_zero(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.input[0] == "r0" and "Quant" in n.op_type)
        del node.input[2]

    def axis(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for item in node.attribute:
                if item.name == "axis" and node.name.startswith("c1.w"):
                    item.i = 1

    def channels(model: onnx.ModelProto) -> None:
        constant(model, "r0.scale", np.full(16, 0.1, np.float32))

    assert "a scale is not a positive number" in broken(negative)
    assert "its scale is computed" in broken(computed)
    assert "it has no zero point" in broken(no_zero)
    assert "axis 1; for Conv it must be 0" in broken(axis)
    assert "activations have one scale per tensor" in broken(channels)
