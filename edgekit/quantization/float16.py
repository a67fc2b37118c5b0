"""A float32 graph, with QDQ or without, typed float16: what strongly typed builders compute in.

TensorRT 11 (and 10 with STRONGLY_TYPED) computes everything in the type that the graph says, so a
float32 QDQ graph leaves its float rest in float32. Here the layers and what lies between them become
float16; these stay float32:

- inputs and outputs of the graph (Cast stands between), unless asked otherwise;
- what no layer lies behind: a detector's decoding of boxes in pixels, where float16 has steps of
  half a pixel at 640, and which costs next to nothing;
- operators that are not known to be safe in float16, and nodes that read or make values beyond
  WIDEST in calibration.

Scales. A float16 QuantizeLinear has a float16 scale. It is rounded up, so that amax stays inside 127
levels, and the weights are put on its grid: float16(q * scale16), with q the integers of the rounded
scale. |q| <= 127 and float16 has 11 significant bits, so the operator's own rounding gives q back.
Source: ONNX QuantizeLinear-19, where x and y_scale have one type.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantization.rules import is_constant, is_weighted_sum
from edgekit.types import Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 19
"""The first one whose QuantizeLinear takes float16; TensorRT 10 parses up to 20, 11 up to 25."""

WIDEST = 2.0**14
"""Values up to this stay at a factor of four from float16's largest, 65504."""

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SAFE = frozenset(
    {
        *_LAYERS,
        *_QDQ,
        *("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid"),
        *(
            "HardSwish",
            "Tanh",
            "Elu",
            "Selu",
            "Softplus",
            "Mish",
            "Gelu",
            "PRelu",
            "Erf",
            "Softmax",
        ),
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Neg",
            "Abs",
            "Max",
            "Min",
            "Sqrt",
            "Concat",
            "Split",
            "Slice",
        ),
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Gather"),
        *(
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Resize",
            "Pad",
            "Identity",
        ),
        *("DepthToSpace", "SpaceToDepth", "LayerNormalization"),
    }
)
# operator → inputs whose type is float32 whatever the data's
_FLOAT32_INPUTS = {"Resize": (1, 2)}


@dataclass(frozen=True, kw_only=True)
class Float16Report:
    """How many nodes compute in float16, and the layers that stay float32, each with the reason."""

    nodes: int
    floats: dict[str, str]


def to_float16(
    model: Any,
    *,
    ranges: Mapping[str, Range] | None = None,
    keep: Collection[str] = (),
    half_io: bool = False,
) -> Float16Report:
    """Type `model` (onnx_ir.Model of opset 19 or later, shapes inferred) float16, in place.

    `ranges` are min-max ranges by tensor, for values too wide for float16; `keep` names nodes that
    stay float32. `half_io` makes the graph's inputs and outputs float16, too. Raises ValueError for
    an older opset.
    """
    opset = model.graph.opset_imports.get("", 0)
    if opset < OPSET:
        raise ValueError(f"opset {opset}: float16 QDQ needs {OPSET}")
    reasons = _float32_nodes(model.graph, ranges or {}, keep)
    typer = _Typer(model, {node for node in model.graph if node not in reasons})
    typer.run(half_io)
    floats = {node.name: why for node, why in reasons.items() if node.op_type in _LAYERS}
    return Float16Report(nodes=len(typer.half), floats=floats)


def _is_float32(value: Any) -> bool:
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def _float32_nodes(
    graph: Any, ranges: Mapping[str, Range], keep: Collection[str]
) -> dict[Any, str]:
    """The nodes that stay float32, with the reason."""
    behind: dict[Any, bool] = {}
    for node in reversed(list(graph)):
        readers = [use.node for output in node.outputs for use in output.uses()]
        own = node.op_type in _LAYERS and not is_weighted_sum(node)
        behind[node] = own or any(behind.get(reader, False) for reader in readers)
    found: dict[Any, str] = {}
    for node in graph:
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        wide = [
            value.name
            for value in values
            if value.name in ranges and ranges[value.name].amax > WIDEST
        ]
        if not any(_is_float32(value) for value in values):
            continue  # shapes and indices: no float type to choose
        if node.name in keep:
            found[node] = "asked to stay float32"
        elif not behind[node]:
            found[node] = "no layer lies behind it"
        elif node.op_type not in _SAFE:
            found[node] = f"{node.op_type} is not known to be safe in float16"
        elif wide and node.op_type not in _QDQ:
            found[node] = f"'{wide[0]}' reaches {ranges[wide[0]].amax:g}"
    return found


def half_scale(scale: NDArray[np.floating]) -> NDArray[np.float16]:
    """`scale` as float16, rounded up, and never below the smallest float16 above 0."""
    wide = np.asarray(scale, np.float64)
    half = wide.astype(np.float16)
    half = np.where(half.astype(np.float64) < wide, np.nextafter(half, np.float16(np.inf)), half)
    result: NDArray[np.float16] = np.maximum(half, np.float16(2.0**-24)).astype(np.float16)
    return result


class _Typer:
    """Rewrites one graph: constants, casts, types."""

    def __init__(self, model: Any, half: set[Any]) -> None:
        self.model, self.graph, self.half = model, model.graph, half
        self._casts: dict[tuple[Any, Any], Any] = {}
        self._constants: dict[tuple[str, str], Any] = {}
        self._halves: set[Any] = set()  # values that are float16 now

    def run(self, half_io: bool) -> None:
        import onnx_ir as ir

        floats = [value for value in self.graph.inputs if _is_float32(value)]
        if half_io:
            for value in floats:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
                self._halves.add(value)
        nodes = list(self.graph)
        for node in nodes:
            self._operands(node)
            if node in self.half:
                for output in node.outputs:
                    if _is_float32(output):
                        output.type = ir.TensorType(ir.DataType.FLOAT16)
                        self._halves.add(output)
        for index, value in enumerate(list(self.graph.outputs)):
            if (value in self._halves) != half_io and (value in self._halves or _is_float32(value)):
                self._output(index, value, half_io)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _operands(self, node: Any) -> None:
        """Give `node` its inputs in the type it computes in."""
        half = node in self.half
        if half and node.op_type == "QuantizeLinear" and is_constant(node.inputs[0]):
            self._weight(node)
            return
        for index, value in enumerate(node.inputs):
            if value is None or not (_is_float32(value) or value in self._halves):
                continue
            wanted = half and index not in _FLOAT32_INPUTS.get(node.op_type, ())
            if is_constant(value):
                if wanted:
                    role = "scale" if index == 1 and node.op_type in _QDQ else "value"
                    node.replace_input_with(index, self._constant(value, role))
            elif (value in self._halves) != wanted:
                node.replace_input_with(index, self._cast(value, wanted))

    def _constant(self, value: Any, role: str) -> Any:
        key = (value.name, role)
        if key not in self._constants:
            array = np.asarray(value.const_value.numpy())
            if role == "scale":
                narrow = half_scale(array)
            else:
                largest = float(np.finfo(np.float16).max)
                narrow = np.clip(array, -largest, largest).astype(np.float16)
            self._constants[key] = self._new(f"{value.name}.{role}16", narrow)
        return self._constants[key]

    def _new(self, name: str, array: NDArray[Any]) -> Any:
        import onnx_ir as ir

        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
        self.graph.initializers[name] = value
        return value

    def _weight(self, quantize: Any) -> None:
        """Float16 weights on the grid of the float16 scale."""
        weight = np.asarray(quantize.inputs[0].const_value.numpy()).astype(np.float64)
        scale = self._constant(quantize.inputs[1], "scale")
        half = np.asarray(scale.const_value.numpy()).astype(np.float64)
        axis = quantize.attributes.get("axis")
        if half.ndim:
            shape = [1] * weight.ndim
            shape[int(axis.as_int()) if axis is not None else 1] = -1
            half = half.reshape(shape)
        levels = np.clip(np.rint(weight / half), -127, 127)
        grid = (levels * half).astype(np.float16)
        stem = f"{quantize.inputs[0].name}.grid16"
        name = stem if stem not in self.graph.initializers else f"{stem}.{len(self._constants)}"
        quantize.replace_input_with(0, self._new(name, grid))
        quantize.replace_input_with(1, scale)

    def _cast(self, value: Any, to_half: bool) -> Any:
        import onnx_ir as ir

        key = (value, to_half)
        if key not in self._casts:
            dtype = ir.DataType.FLOAT16 if to_half else ir.DataType.FLOAT
            name = f"{value.name}.{'half' if to_half else 'float'}"
            cast = ir.Node(
                "",
                "Cast",
                inputs=[value],
                attributes=[ir.AttrInt64("to", int(dtype))],
                name=f"{name}.Cast",
            )
            made = cast.outputs[0]
            made.name, made.shape, made.type = name, value.shape, ir.TensorType(dtype)
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], [cast])
            else:
                self.graph.insert_after(producer, [cast])
            self._casts[key] = made
        return self._casts[key]

    def _output(self, index: int, value: Any, to_half: bool) -> None:
        """The graph's output in the type wanted, under its name."""
        name = value.name
        made = self._cast(value, to_half)
        value.name = f"{name}.inner"
        made.name = name
        self.graph.outputs[index] = made
