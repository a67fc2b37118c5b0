"""QuantizeLinear/DequantizeLinear insertion: a Placement and ranges become a QDQ graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantization import existing
from edgekit.quantization.bias_correction import bias_of_matmul, can_correct, mean_shift
from edgekit.quantization.placement import Placement
from edgekit.quantization.rules import channel_axis, is_constant
from edgekit.quantization.scheme import (
    Scheme,
    activation_params,
    choose_weight_scale,
    dequantize_weight,
    quantize_bias,
    quantize_weight,
    widen_for_bias,
)
from edgekit.types import QuantParams, Range

if TYPE_CHECKING:
    from numpy.typing import NDArray


def insert(
    model: Any,
    placement: Placement,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    means: Mapping[str, NDArray[np.float64]] | None = None,
) -> dict[str, QuantParams]:
    """Put QDQ into `model` (onnx_ir.Model, changed in place); return the parameters by tensor name.

    Each placed tensor gets one QuantizeLinear and one DequantizeLinear behind its producer. What an
    INT8 node made is read by everybody through them (a runtime fuses the convolution with the
    QuantizeLinear only when that is its sole reader); what a float node made is read by float nodes
    as it is; in a placement of operands only, all but its nodes do. Weights and biases get a
    DequantizeLinear of their own. `means`, float64 [C_in] by tensor, corrects the biases of the
    layers that read these tensors (`bias_correction`).
    Quantization that the graph has already stays as it is (`existing`); its layers only get an
    integer bias.
    """
    fixed = existing.fixed_tensors(model.graph)
    inserter = _Inserter(model, scheme, means or {})
    integer = set(placement.compute) | set(placement.carry)
    params: dict[str, QuantParams] = {}
    values = {value.name: value for value in model.graph.inputs}
    for node in model.graph:
        for output in node.outputs:
            values[output.name] = output
    for name, owner in placement.tensors.items():
        params[name] = fixed.get(owner) or activation_params(ranges[owner], scheme)
        inserter.activation(values[name], params[name], integer, placement.operands_only)
    compute = set(placement.compute)
    for node in list(model.graph):
        if node.name in compute:
            source = node.inputs[0].meta.get("edgekit.quantized") or node.inputs[0].name
            read = params[source] if source in params else fixed[source]
            if existing.weight_of(node.inputs[1]) is not None:
                inserter.bias(node, read)
            else:
                inserter.weights(node, source, read)
    # float weights and biases that only integers replace now would be dead bytes in the file
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    return params


class _Inserter:
    """Makes the nodes and constants, sharing what is equal."""

    def __init__(
        self, model: Any, scheme: Scheme, means: Mapping[str, NDArray[np.float64]]
    ) -> None:
        self.graph = model.graph
        self.scheme = scheme
        self.means = means
        # found before QDQ comes between a MatMul and its Add
        self._adds = {
            node.name: bias_of_matmul(node)
            for node in model.graph
            if means and node.op_type == "MatMul"
        }
        self._weights: dict[tuple[Any, ...], Any] = {}

    def constant(self, name: str, array: NDArray[Any]) -> Any:
        import onnx_ir as ir

        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
        self.graph.initializers[name] = value
        return value

    def _node(self, op_type: str, inputs: list[Any], output: str, axis: int | None) -> Any:
        import onnx_ir as ir

        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        made = ir.Node(
            "", op_type, inputs=inputs, attributes=attributes, name=f"{output}.{op_type}"
        )
        made.outputs[0].name = output
        return made

    def activation(
        self, value: Any, params: QuantParams, integer: set[str], operands_only: bool
    ) -> None:
        """Q and DQ behind `value`, and the readers that take the dequantized value."""
        name = value.name
        producer = value.producer()
        made_by_integer = (
            not operands_only
            and producer is not None
            and (producer.name in integer or self._fused_into_integer(producer, integer))
        )
        uses = list(value.uses())
        scale = self.constant(f"{name}.scale", params.scale)
        zero = self.constant(f"{name}.zero_point", params.zero_point)
        quantize = self._node("QuantizeLinear", [value, scale, zero], f"{name}.quantized", None)
        dequantize = self._node(
            "DequantizeLinear", [quantize.outputs[0], scale, zero], f"{name}.dequantized", None
        )
        dequantized = dequantize.outputs[0]
        dequantized.shape, dequantized.type = value.shape, value.type
        dequantized.meta["edgekit.quantized"] = name
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantize, dequantize])
        else:
            self.graph.insert_after(producer, [quantize, dequantize])
        for use in uses:
            if made_by_integer or use.node.name in integer:
                use.node.replace_input_with(use.idx, dequantized)
        if made_by_integer and value.is_graph_output():
            self._take_output(value, dequantized, name)

    def _fused_into_integer(self, producer: Any, integer: set[str]) -> bool:
        """Whether `producer` is an activation right behind an INT8 node."""
        if producer.op_type not in ("Relu", "Clip") or producer.inputs[0] is None:
            return False
        before = producer.inputs[0].producer()
        return before is not None and before.name in integer

    def _take_output(self, value: Any, dequantized: Any, name: str) -> None:
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = dequantized
        value.name = f"{name}.float"
        dequantized.name = name

    def weights(self, node: Any, source: str, params: QuantParams) -> None:
        """Quantize the node's weight and, where the scheme says so, its bias.

        `source` is the tensor that the node reads, `params` what it is quantized with.
        """
        weight_value = node.inputs[1]
        weight = np.asarray(weight_value.const_value.numpy())
        axis = channel_axis(node) if self.scheme.per_channel else None
        scale = choose_weight_scale(weight, axis, self.scheme)
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = None
        if bias_value is not None and is_constant(bias_value):
            bias = np.asarray(bias_value.const_value.numpy())
        if bias is not None and self.scheme.integer_bias:
            largest = bias if axis is not None else np.abs(bias).max()
            scale = np.asarray(widen_for_bias(scale, largest, params.scale), np.float32)
        shift = self._shift(node, source, weight, scale, axis)
        node.replace_input_with(1, self._weight(weight_value, weight, scale, axis))
        if shift is not None:
            if node.op_type == "MatMul":
                self._correct_behind(node, shift)
            else:
                bias = self._correct(node, bias, shift)
        if bias is not None and self.scheme.integer_bias:
            node.replace_input_with(2, self._bias(node, bias, scale, axis, params))

    def bias(self, node: Any, params: QuantParams) -> None:
        """An int32 bias for a node whose weight is quantized already, where it fits into 31 bits."""
        value = node.inputs[2] if len(node.inputs) > 2 else None
        found = existing.params_of(existing.weight_of(node.inputs[1]))
        if value is None or not is_constant(value) or found is None or not self.scheme.integer_bias:
            return
        bias, scale = np.asarray(value.const_value.numpy()), found.scale
        if params.scale.size != 1 or scale.size not in (1, bias.size):
            return
        units = params.scale.astype(np.float64) * scale.astype(np.float64)
        if (np.abs(bias) < units * 2.0**30).all():
            axis = None if scale.size == 1 else 0
            node.replace_input_with(2, self._bias(node, bias, scale, axis, params))

    def _shift(
        self,
        node: Any,
        source: str,
        weight: NDArray[Any],
        scale: NDArray[np.float32],
        axis: int | None,
    ) -> NDArray[np.float64] | None:
        """What rounding the weights adds to the mean of each output channel; None: not corrected."""
        mean = self.means.get(source)
        possible = self._adds.get(node.name) if node.op_type == "MatMul" else can_correct(node)
        if mean is None or not possible:
            return None
        integers = quantize_weight(weight, scale, axis, self.scheme)
        shift = mean_shift(node, dequantize_weight(integers, scale, axis) - weight, mean)
        return shift if shift is not None and np.isfinite(shift).all() else None

    def _correct(
        self, node: Any, bias: NDArray[Any] | None, shift: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Give the node the bias less `shift`; returns it, float32 [C_out]."""
        flat = np.zeros(shift.shape) if bias is None else bias.astype(np.float64)
        # Gemm broadcasts its bias: [1], [N] or [1, N]
        corrected = (np.broadcast_to(flat.reshape(-1), shift.shape) - shift).astype(np.float32)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, self.constant(f"{node.name}.bias.corrected", corrected))
        return corrected

    def _correct_behind(self, node: Any, shift: NDArray[np.float64]) -> None:
        """Correct the bias that an Add behind a MatMul holds."""
        found = self._adds[node.name]
        if found is None:
            return
        add, index = found
        bias = np.asarray(add.inputs[index].const_value.numpy()).astype(np.float64)
        corrected = (bias - shift).astype(np.float32)
        add.replace_input_with(index, self.constant(f"{node.name}.bias.corrected", corrected))

    def _weight(
        self, value: Any, weight: NDArray[Any], scale: NDArray[np.float32], axis: int | None
    ) -> Any:
        key = (value.name, axis, scale.tobytes())
        if key in self._weights:
            return self._weights[key]
        suffix = (
            f".{len(self._weights)}" if f"{value.name}.scale" in self.graph.initializers else ""
        )
        stem = f"{value.name}{suffix}"
        scale_value = self.constant(f"{stem}.scale", scale)
        zero = self.constant(f"{stem}.zero_point", np.zeros(scale.shape, np.int8))
        if self.scheme.explicit_weights:
            quantize = self._node("QuantizeLinear", [value, scale_value, zero], f"{stem}.q", axis)
            self.graph.insert_before(self.graph[0], [quantize])
            integers = quantize.outputs[0]
            after = quantize
        else:
            quantized = quantize_weight(weight, scale, axis, self.scheme)
            integers = self.constant(f"{stem}.int8", quantized)
            after = None
        dequantize = self._node(
            "DequantizeLinear", [integers, scale_value, zero], f"{stem}.dq", axis
        )
        if after is None:
            self.graph.insert_before(self.graph[0], [dequantize])
        else:
            self.graph.insert_after(after, [dequantize])
        result = dequantize.outputs[0]
        result.shape, result.type = value.shape, value.type
        self._weights[key] = result
        return result

    def _bias(
        self,
        node: Any,
        bias: NDArray[Any],
        scale: NDArray[np.float32],
        axis: int | None,
        source: QuantParams,
    ) -> Any:
        stem = f"{node.name}.bias"
        integers = quantize_bias(bias, source.scale, scale)
        units = (source.scale.astype(np.float64) * scale.astype(np.float64)).astype(np.float32)
        bias_axis = 0 if axis is not None else None
        inputs = [
            self.constant(f"{stem}.int32", integers),
            self.constant(f"{stem}.scale", units),
            self.constant(f"{stem}.zero_point", np.zeros(units.shape, np.int32)),
        ]
        dequantize = self._node("DequantizeLinear", inputs, f"{stem}.dq", bias_axis)
        self.graph.insert_before(node, [dequantize])
        return dequantize.outputs[0]
