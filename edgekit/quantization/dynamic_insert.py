"""Dynamic quantization: INT8 weights, and activations whose range is taken anew from every input.

    xq, sx, zx = DynamicQuantizeLinear(x)
    y = Cast(ConvInteger(xq, wq, zx)) * (sx * sw) + b

sw is a scalar or, per channel, [C_out] along the output's channel axis; wq is symmetric. No calibration
is needed; every layer pays for finding its range, and between layers everything is float.
Sources: https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html, onnx__ConvInteger.html,
onnx__MatMulInteger.html. `edgekit.quantization.dynamic` reads this form back.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantization.macs import graph_macs
from edgekit.quantization.placement import Placement
from edgekit.quantization.rules import Rules, channel_axis, compute_nodes
from edgekit.quantization.scheme import Scheme, choose_weight_scale, quantize_weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

INTEGER_OPERATOR = {"Conv": "ConvInteger", "Gemm": "MatMulInteger", "MatMul": "MatMulInteger"}


def place(model: Any, rules: Rules, keep: Collection[str] = ()) -> Placement:
    """The layers that become INT8 and, with reasons, those that stay float; no tensor has a range."""
    macs = graph_macs(model.graph)
    chosen, floats = compute_nodes(model.graph, rules, keep, macs)
    compute = []
    for node in chosen:
        if node.op_type not in INTEGER_OPERATOR:
            floats[node.name] = f"{node.op_type} has no operator on integers"
        elif node.op_type == "MatMul" and channel_axis(node) is None:
            floats[node.name] = "its weight is no matrix"
        else:
            compute.append(node.name)
    return Placement(compute=tuple(compute), carry=(), tensors={}, floats=floats, macs=macs)


def insert(model: Any, placement: Placement, scheme: Scheme) -> None:
    """Put integer operators in the place of the placed layers of `model` (onnx_ir.Model), in place.

    Of `scheme` the weights' part counts: bits, and scales per channel or per tensor.
    """
    writer = _Writer(model, scheme)
    placed = set(placement.compute)
    for node in list(model.graph):
        if node.name in placed:
            writer.layer(node)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


class _Writer:
    """Writes layers; a tensor that several of them read is quantized once."""

    def __init__(self, model: Any, scheme: Scheme) -> None:
        self._graph = model.graph
        self._scheme = scheme
        self._quantized: dict[str, tuple[Any, Any, Any]] = {}

    def _constant(self, name: str, array: NDArray[Any]) -> Any:
        import onnx_ir as ir

        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
        self._graph.initializers[name] = value
        return value

    def _add(
        self, before: Any, op_type: str, inputs: list[Any], names: list[str], *attributes: Any
    ) -> list[Any]:
        import onnx_ir as ir

        made = ir.Node(
            "",
            op_type,
            inputs=inputs,
            attributes=attributes,
            num_outputs=len(names),
            name=f"{names[0]}.{op_type}",
        )
        for value, name in zip(made.outputs, names, strict=True):
            value.name = name
        self._graph.insert_before(before, made)
        return list(made.outputs)

    def _input(self, node: Any) -> tuple[Any, Any, Any]:
        """(integers, scale, zero point) of what the node reads."""
        source = node.inputs[0]
        if source.name not in self._quantized:
            names = [f"{source.name}.{part}" for part in ("integers", "scale", "zero_point")]
            integers, scale, zero = self._add(node, "DynamicQuantizeLinear", [source], names)
            self._quantized[source.name] = integers, scale, zero
        return self._quantized[source.name]

    def layer(self, node: Any) -> None:
        """Replace one layer by its integer form."""
        import onnx_ir as ir

        stem = node.name
        axis = channel_axis(node) if self._scheme.per_channel else None
        weight = np.asarray(node.inputs[1].const_value.numpy())
        scale = choose_weight_scale(weight, axis, self._scheme)
        integers = quantize_weight(weight, scale, axis, self._scheme)
        attributes: list[Any] = []
        if node.op_type == "Conv":
            attributes = list(node.attributes.values())
        elif node.op_type == "Gemm" and channel_axis(node) == 0:
            integers = np.ascontiguousarray(integers.T)
        # the scale multiplies the output: [C, 1, 1] of a convolution, [N] of a product
        trailing = (1,) * (weight.ndim - 2) if node.op_type == "Conv" else ()
        if axis is not None:
            scale = scale.reshape(-1, *trailing)
        quantized, input_scale, zero = self._input(node)
        (sums,) = self._add(
            node,
            INTEGER_OPERATOR[node.op_type],
            [quantized, self._constant(f"{stem}.weight.int8", integers), zero],
            [f"{stem}.sums"],
            *attributes,
        )
        to_float = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        (wide,) = self._add(node, "Cast", [sums], [f"{stem}.float"], to_float)
        weight_scale = self._constant(f"{stem}.weight.scale", scale)
        (unit,) = self._add(node, "Mul", [input_scale, weight_scale], [f"{stem}.unit"])
        (result,) = self._add(node, "Mul", [wide, unit], [f"{stem}.scaled"])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            array = np.asarray(bias.const_value.numpy())
            shaped = array.reshape(-1, *trailing) if trailing else array
            value = self._constant(f"{stem}.bias.float", shaped)
            (result,) = self._add(node, "Add", [result, value], [f"{stem}.biased"])
        self._take_over(node, result)

    def _take_over(self, node: Any, result: Any) -> None:
        import onnx_ir as ir

        old = node.outputs[0]
        name, shape, kind = old.name, old.shape, old.type
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        old.name = None
        result.name, result.shape, result.type = name, shape, kind
