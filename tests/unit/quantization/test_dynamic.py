"""Dynamically quantized layers become the float ones that they stand for, exactly."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgekit.errors import NotPossible
from edgekit.quantization import dynamic
from tests.graphs import GraphMaker, run


class DynamicMaker(GraphMaker):
    def dynamic(self, source: str, stem: str) -> tuple[str, str, str]:
        names = [f"{stem}.{part}" for part in ("q", "s", "z")]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [source], names, name=stem))
        return names[0], names[1], names[2]

    def layer(
        self,
        kind: str,
        source: str,
        output: str,
        weight: np.ndarray,
        zero: np.ndarray | None,
        scale: np.ndarray,
        order: str = "product first",
        **attributes: object,
    ) -> str:
        """Integer layer, Cast and the two scales, in one of the orders that tools write."""
        q, s, z = self.dynamic(source, f"{output}.in")
        inputs = [q, self.weight(f"{output}.w", weight), z]
        if zero is not None:
            inputs.append(self.weight(f"{output}.wz", zero))
        integers = self.node(kind, inputs, f"{output}.i32", **attributes)
        floats = self.node("Cast", [integers], f"{output}.f32", to=TensorProto.FLOAT)
        w = self.weight(f"{output}.ws", scale.astype(np.float32))
        if order == "product first":
            return self.node("Mul", [floats, self.node("Mul", [s, w], f"{output}.sw")], output)
        if order == "swapped":
            return self.node("Mul", [self.node("Mul", [w, s], f"{output}.sw"), floats], output)
        return self.node("Mul", [self.node("Mul", [floats, s], f"{output}.half"), w], output)


def turned(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    dynamic.to_float(graph)
    done = ir.to_proto(graph)
    onnx.checker.check_model(done, full_check=True)
    assert not {n.op_type for n in done.graph.node} & {"ConvInteger", "MatMulInteger", "Cast"}
    return done


def weights(shape: tuple[int, ...], dtype: type, seed: int = 0) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("order", ["product first", "swapped", "one after the other"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_convolution(dtype: type, per_channel: bool, order: str) -> None:
    maker = DynamicMaker()
    weight = weights((6, 2, 3, 3), dtype)
    scale = np.linspace(0.01, 0.03, 6).reshape(1, 6, 1, 1) if per_channel else np.array(0.02)
    zero = np.array(128 if dtype is np.uint8 else 3, dtype)
    maker.layer(
        "ConvInteger", "x", "y", weight, zero, scale, order, pads=[1] * 4, strides=[2, 2], group=2
    )
    model = maker.model({"x": (1, 4, 8, 8)}, {"y": (1, 6, 4, 4)})
    done = turned(model)
    node = next(node for node in done.graph.node if node.op_type == "Conv")
    assert {a.name: list(a.ints) or a.i for a in node.attribute} == {
        "pads": [1] * 4,
        "strides": [2, 2],
        "group": 2,
    }
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in done.graph.initializer}[node.input[1]]
    along = scale.reshape(-1, 1, 1, 1)
    if order != "one after the other":
        np.testing.assert_allclose(stored, (weight.astype(float) - zero) * along, rtol=1e-6)
    # integers that 8 bits hold exactly: nothing is rounded on either side
    image = np.random.default_rng(1).integers(-100, 101, (1, 4, 8, 8)).astype(np.float32)
    image[0, 0, 0, :2] = (-127, 128)
    expected, got = run(model, {"x": image})[0], run(done, {"x": image})[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("zeros", [None, "one", "per column"])
def test_a_matrix_product(zeros: str | None) -> None:
    maker = DynamicMaker()
    weight = weights((8, 5), np.int8)
    zero = {None: None, "one": np.array(4, np.int8), "per column": np.arange(-2, 3).astype(np.int8)}
    scale = np.linspace(0.01, 0.02, 5)
    maker.layer("MatMulInteger", "x", "y", weight, zero[zeros], scale)
    model = maker.model({"x": (2, 8)}, {"y": (2, 5)})
    image = np.random.default_rng(1).integers(-100, 101, (2, 8)).astype(np.float32)
    image[0, :2] = (-127, 128)
    expected, got = run(model, {"x": image})[0], run(turned(model), {"x": image})[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_a_product_of_two_activations() -> None:
    maker = DynamicMaker()
    first, second = maker.dynamic("a", "qa"), maker.dynamic("b", "qb")
    integers = maker.node("MatMulInteger", [first[0], second[0], first[2], second[2]], "i")
    floats = maker.node("Cast", [integers], "f", to=TensorProto.FLOAT)
    maker.node("Mul", [floats, maker.node("Mul", [first[1], second[1]], "s")], "y")
    model = maker.model({"a": (4, 8), "b": (8, 4)}, {"y": (4, 4)})
    done = turned(model)
    assert [node.op_type for node in done.graph.node] == ["MatMul"]
    rng = np.random.default_rng(0)
    feeds = {
        "a": rng.normal(size=(4, 8)).astype(np.float32),
        "b": rng.normal(size=(8, 4)).astype(np.float32),
    }
    np.testing.assert_allclose(run(done, feeds)[0], feeds["a"] @ feeds["b"], rtol=1e-5)


def test_forms_that_are_not_known_are_named() -> None:
    maker = DynamicMaker()
    q, s, z = maker.dynamic("x", "in")
    weight = maker.weight("w", weights((4, 3, 3, 3), np.int8))
    integers = maker.node("ConvInteger", [q, weight, z], "i")
    floats = maker.node("Cast", [integers], "f", to=TensorProto.FLOAT)
    maker.node("Mul", [maker.node("Relu", [floats], "r"), s], "y")
    model = ir.from_proto(maker.model({"x": (1, 3, 8, 8)}, {"y": (1, 4, 6, 6)}))
    with pytest.raises(NotPossible, match=r"'n_i'.*Relu"):
        dynamic.to_float(model)
    assert any(node.op_type == "ConvInteger" for node in model.graph)
