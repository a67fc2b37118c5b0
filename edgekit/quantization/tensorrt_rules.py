"""What TensorRT's ONNX parser refuses, told on the host with node and rule instead of on the board.

The rules are those of TensorRT 8.5 to 11; where versions differ, the strictest that the file is made
for. They look at the graph alone: that a builder finds a kernel for everything is only known where it
is built.

Sources: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md (operators and
restrictions), https://docs.nvidia.com/deeplearning/tensorrt/10.13.3/inference-library/
work-quantized-types.html (explicit quantization).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import NotPossible

if TYPE_CHECKING:
    import onnx

FLOAT_OPSETS = (9, 17)
"""TensorRT 8.5 to 10: a float model, or one with float32 QDQ."""
QDQ_OPSETS = (13, 17)
HALF_OPSETS = (19, 20)
"""Float16 QDQ needs 19, and TensorRT 10 parses up to 20."""

_NAMES = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil
    Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample GRU HardSigmoid HardSwish Identity If InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool LRN LSTM
    MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not
    OneHot Or Pad Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RNN
    RoiAlign Round Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
    Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu
    Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """
SUPPORTED = frozenset(_NAMES.split())
"""Operators that TensorRT 8.5 parses, LayerNormalization from 8.6 on."""

_INTEGER_ARITHMETIC = {
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "QLinearAdd",
    "QGemm",
}
_RESIZE_COORDINATES = {
    "half_pixel",
    "pytorch_half_pixel",
    "tf_half_pixel_for_nn",
    "asymmetric",
    "align_corners",
}
_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A node (or input) that breaks a rule, the rule, and what to do about it."""

    node: str
    rule: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}"


def find_problems(model: onnx.ModelProto, opsets: tuple[int, int]) -> list[Problem]:
    """Everything in `model` that TensorRT's parser refuses, in graph order; opset within `opsets`."""
    graph = _Graph(model)
    return [
        *_opset(model, opsets),
        *_inputs(model),
        *(problem for node in model.graph.node for problem in _node(node, graph)),
    ]


def demand(model: onnx.ModelProto, opsets: tuple[int, int], path: Path) -> None:
    """Raise NotPossible, naming nodes and rules, when TensorRT would refuse `model`."""
    problems = find_problems(model, opsets)
    if not problems:
        return
    lines = "".join(f"\n  {problem}" for problem in problems[:6])
    more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
    raise NotPossible(
        f"TensorRT would refuse {path.name}:{lines}{more}",
        hint=next((problem.remedy for problem in problems if problem.remedy), ""),
    )


class _Graph:
    """Constants and producers of one model by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants: dict[str, onnx.TensorProto] = {
            item.name: item for item in model.graph.initializer
        }
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, index))

    def array(self, name: str) -> Any:
        import onnx

        item = self.constants.get(name)
        return None if item is None else onnx.numpy_helper.to_array(item)


def _opset(model: onnx.ModelProto, opsets: tuple[int, int]) -> Iterator[Problem]:
    from edgekit.onnx_file import opset_of

    low, high = opsets
    opset = opset_of(model)
    if not low <= opset <= high:
        yield Problem(
            node="the model",
            rule=f"opset {opset}, and the versions this file is for parse {low} to {high}",
            remedy=f"Export with an opset of {low} to {high}.",
        )
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            used = [node.name for node in model.graph.node if node.domain == entry.domain]
            if used:
                yield Problem(
                    node=used[0],
                    rule=f"operators of {entry.domain} are not parsed",
                    remedy="Export with standard ONNX operators only.",
                )


def _inputs(model: onnx.ModelProto) -> Iterator[Problem]:
    import onnx

    constants = {item.name for item in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        free = [
            (axis, dim.dim_param)
            for axis, dim in enumerate(tensor.shape.dim)
            if not dim.HasField("dim_value")
        ]
        if any(axis > 0 for axis, _ in free):
            names = ", ".join(f"axis {axis}" for axis, _ in free if axis > 0)
            yield Problem(
                node=f"input '{value.name}'",
                rule=f"free dimensions beside the batch ({names}) have no optimization profile",
                remedy="Export for a fixed size: --imgsz.",
            )
        if tensor.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
            yield Problem(
                node=f"input '{value.name}'",
                rule=f"it is {kind}; edgekit builds engines with float inputs",
                remedy='Set "dtype": "float32" in the preprocessing contract.',
            )


def _node(node: onnx.NodeProto, graph: _Graph) -> Iterator[Problem]:
    name = f"'{node.name or node.output[0]}' ({node.op_type})"
    if node.op_type in _INTEGER_ARITHMETIC:
        yield Problem(
            node=name,
            rule="integer arithmetic of ONNX is not parsed, QuantizeLinear and DequantizeLinear are",
            remedy="Start from the float model; a dynamically quantized one with --dequantize.",
        )
    elif node.domain in ("", "ai.onnx") and node.op_type not in SUPPORTED:
        yield Problem(node=name, rule="TensorRT 8.5 does not parse this operator")
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _qdq(name, node, graph)
    elif node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        yield Problem(node=name, rule="its second output, the indices, is not supported")
    elif node.op_type == "Resize":
        attributes = {item.name: item.s.decode() for item in node.attribute if item.s}
        how = attributes.get("coordinate_transformation_mode", "half_pixel")
        if how not in _RESIZE_COORDINATES:
            yield Problem(node=name, rule=f"coordinates '{how}' are not supported")
    elif node.op_type in ("Conv", "ConvTranspose"):
        weight = graph.constants.get(node.input[1])
        if weight is not None and len(weight.dims) not in (3, 4, 5):
            yield Problem(node=name, rule=f"a weight of rank {len(weight.dims)}")


def _qdq(name: str, node: onnx.NodeProto, graph: _Graph) -> Iterator[Problem]:
    """The rules of explicit quantization."""
    import numpy as np

    own = "Quantize the float model with edgekit's own rules for this target."
    scale = graph.array(node.input[1])
    if scale is None:
        yield Problem(node=name, rule="its scale is computed, not a constant")
        return
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield Problem(node=name, rule="a scale is not a positive number", remedy=own)
    if len(node.input) < 3 or not node.input[2]:
        yield Problem(
            node=name, rule="it has no zero point, so it stands for uint8; INT8 only", remedy=own
        )
        return
    zero = graph.array(node.input[2])
    if zero is None:
        yield Problem(node=name, rule="its zero point is computed, not a constant")
        return
    if zero.dtype == np.int32:
        yield Problem(
            node=name,
            rule="an INT32 bias is a parse error: biases stay float",
            remedy=own,
        )
        return
    if zero.dtype != np.int8:
        yield Problem(
            node=name, rule=f"it is {zero.dtype}; TensorRT quantizes to INT8 only", remedy=own
        )
    if (zero != 0).any():
        first = zero.reshape(-1)[zero.reshape(-1) != 0][0]
        yield Problem(
            node=name,
            rule=f"its zero point is {first}; TensorRT is symmetric, it must be 0",
            remedy=own,
        )
    if scale.size > 1:
        yield from _channels(name, node, graph)


def _channels(name: str, node: onnx.NodeProto, graph: _Graph) -> Iterator[Problem]:
    """Scales per channel are for weights, along the output channels."""
    source = node.input[0]
    producer = graph.producers.get(source)
    if producer is not None and producer.op_type == "QuantizeLinear":
        source = producer.input[0]
    if source not in graph.constants:
        yield Problem(
            node=name, rule="activations have one scale per tensor, this has one per channel"
        )
        return
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    for reader, index in graph.readers.get(node.output[0], ()):
        wanted = _WEIGHT_AXIS.get(reader.op_type)
        if index == 1 and wanted is not None and axis != wanted:
            yield Problem(
                node=name,
                rule=f"its scales lie along axis {axis}; for {reader.op_type} it must be {wanted}",
            )


def counts(model: onnx.ModelProto) -> Mapping[str, int]:
    """How many layers read integers on both sides, by operator type."""
    graph = _Graph(model)
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and len(node.input) > 1:
            makers = [graph.producers.get(name) for name in node.input[:2]]
            if all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
                found[node.op_type] = found.get(node.op_type, 0) + 1
    return found
