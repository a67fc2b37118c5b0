"""Small networks for TensorRT's rules, quantized as the tensorrt-int8 targets do it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.quantization.placement import Placement, every_activation, place
from edgekit.quantization.qdq import insert
from edgekit.stages.quantize import QuantizeOptions, rules_of, scheme_of
from edgekit.target_files import load_target
from edgekit.types import Range
from tests.graphs import GraphMaker, ranges_of

TARGET = "cuda-int8"


def residual_network() -> onnx.ModelProto:
    """A stem, a residual block with identity, one with a shortcut convolution, SiLU, MaxPool, Concat, Resize,
    ConvTranspose, a classifier over positions (Gemm of many rows) and a matrix-vector one."""
    maker = GraphMaker(seed=5)
    maker.conv("x", "c0", (16, 3))
    maker.node("Relu", ["c0"], "r0")
    maker.conv("r0", "c1", (16, 16))
    maker.node("Relu", ["c1"], "r1")
    maker.conv("r1", "c2", (16, 16))
    maker.node("Add", ["c2", "r0"], "a2")
    maker.node("Relu", ["a2"], "r2")
    maker.conv("r2", "c3", (32, 16), strides=[2, 2])
    maker.node("Relu", ["c3"], "r3")
    maker.conv("r3", "c4", (32, 32))
    maker.conv("r2", "s4", (32, 16), kernel=1, strides=[2, 2])
    maker.node("Add", ["c4", "s4"], "a4")
    maker.node("Relu", ["a4"], "r4")
    maker.conv("r4", "c5", (32, 32))
    maker.node("Sigmoid", ["c5"], "g5")
    maker.node("Mul", ["c5", "g5"], "m5")
    maker.node("MaxPool", ["m5"], "p5", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    maker.conv("p5", "c6", (32, 32))
    maker.node("Concat", ["m5", "c6"], "j6", axis=1)
    maker.weight("up.scales", np.array([1, 1, 2, 2], np.float32))
    maker.node("Resize", ["j6", "", "up.scales"], "u6", mode="nearest")
    maker.conv("u6", "c7", (32, 64))
    weight = maker.rng.normal(0, 0.1, (32, 16, 2, 2)).astype(np.float32)
    maker.weight("t8.w", weight)
    maker.node("ConvTranspose", ["c7", "t8.w"], "t8", strides=[2, 2])
    maker.node("GlobalAveragePool", ["t8"], "p9")
    maker.node("Flatten", ["p9"], "f9")
    maker.weight("y.w", maker.rng.normal(0, 0.3, (10, 16)).astype(np.float32))
    maker.weight("y.b", maker.rng.normal(0, 0.3, 10).astype(np.float32))
    maker.node("Gemm", ["f9", "y.w", "y.b"], "y", transB=1)
    return maker.model({"x": [1, 3, 32, 32]}, {"y": [1, 10]})


def token_network() -> onnx.ModelProto:
    """Products with many rows, as a transformer has them: MatMul with a bias behind it, and a Gemm."""
    maker = GraphMaker(seed=7)
    maker.weight("a.w", maker.rng.normal(0, 0.1, (64, 128)).astype(np.float32))
    maker.weight("a.b", maker.rng.normal(0, 0.1, 128).astype(np.float32))
    maker.weight("b.w", maker.rng.normal(0, 0.1, (128, 64)).astype(np.float32))
    maker.weight("c.w", maker.rng.normal(0, 0.1, (32, 64)).astype(np.float32))
    maker.weight("c.b", maker.rng.normal(0, 0.1, 32).astype(np.float32))
    maker.weight("rows", np.array([196, 64], np.int64))
    maker.node("MatMul", ["x", "a.w"], "a")
    maker.node("Add", ["a", "a.b"], "ab")
    maker.node("Relu", ["ab"], "ar")
    maker.node("MatMul", ["ar", "b.w"], "b")
    maker.node("Reshape", ["b", "rows"], "br")
    maker.node("Gemm", ["br", "c.w", "c.b"], "c", transB=1)
    maker.node("Relu", ["c"], "y")
    return maker.model({"x": [1, 196, 64]}, {"y": [196, 32]})


def feeds(proto: onnx.ModelProto | None = None) -> dict[str, np.ndarray]:
    """Random numbers for the input "x" (default: that of `residual_network`)."""
    shape = [1, 3, 32, 32]
    if proto is not None:
        shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(1).random(shape, np.float32)}


def ranges(proto: onnx.ModelProto, mirrored: bool = True) -> dict[str, Range]:
    """Min-max ranges of every activation on one input."""
    names = sorted(set(every_activation(ir.from_proto(proto)).values()))
    found = ranges_of(proto, names, feeds(proto))
    if not mirrored:
        return found
    return {name: Range(low=-span.amax, high=span.amax) for name, span in found.items()}


def quantized(
    proto: onnx.ModelProto, operators: tuple[str, ...] | None = None, **scheme_changes: Any
) -> tuple[onnx.ModelProto, Placement]:
    """`proto` with QDQ by the target's rules; `operators` and `scheme_changes` break them on purpose."""
    profile = load_target(TARGET)
    rules = rules_of(profile)
    if operators is not None:
        rules = dataclasses.replace(rules, operators=operators)
    graph = ir.from_proto(proto)
    spans = ranges(proto, mirrored="symmetric_activations" not in scheme_changes)
    placement = place(graph, rules, spans)
    scheme = dataclasses.replace(scheme_of(profile, QuantizeOptions()), **scheme_changes)
    insert(graph, placement, spans, scheme)
    return ir.to_proto(graph), placement
