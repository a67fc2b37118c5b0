"""Forms taken behind the insertion of QDQ: the same integers by operators that are faster.

Each is asked for by name in a target's `forms`; the measured gains are in docs/int8-speed.md.

- "few_channels": a convolution with a stride that reads very few channels (the first one: RGB) reads
  blocks of stride x stride pixels as channels instead (space to depth), with its kernel laid out
  accordingly. ONNX Runtime gathers the rows of a kernel one memmove at a time, and a row of a few
  bytes costs as much as a long one. Bit-identical.
- "resize": nearest neighbour by a whole factor becomes concatenations of whole pixels and rows in
  channels-last order. Bit-identical.
- "hard_swish": HardSigmoid(x) = clip(alpha x + beta, 0, 1) is an addition whose integer result clips
  by itself, and HardSwish that times x: both on 8-bit data.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from edgekit.quantization.macs import static_shape
from edgekit.quantization.placement import Placement

_FEW_CHANNELS = 4
_STRIDES = (2, 3, 4)
# coordinate_transformation_mode, nearest_mode, and the largest factor for which output i reads i // factor
_REPEATS = {
    ("asymmetric", "floor"): math.inf,
    ("half_pixel", "round_prefer_floor"): math.inf,
    ("pytorch_half_pixel", "round_prefer_floor"): math.inf,
    ("asymmetric", "round_prefer_floor"): 2,
}


def take(model: Any, placement: Placement, forms: Collection[str]) -> int:
    """Give the QDQ graph `model` (onnx_ir.Model, changed in place) the integer forms among `forms`.

    Only nodes that `placement` computes or carries in integers are touched. Returns how many were.
    """
    shaper = _Shaper(model.graph)
    compute, carry = set(placement.compute), set(placement.carry)
    taken = 0
    for node in list(model.graph):
        if "few_channels" in forms and node.op_type == "Conv" and node.name in compute:
            taken += shaper.blocks_as_channels(node)
        elif "resize" in forms and node.op_type == "Resize" and node.name in carry:
            taken += shaper.repeat(node)
        elif "hard_swish" in forms and node.name in carry:
            if node.op_type == "HardSigmoid":
                taken += shaper.hard_sigmoid(node)
            elif node.op_type == "HardSwish":
                taken += shaper.hard_swish(node)
    return taken


def _ints(node: Any, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return default if attribute is None else [int(value) for value in attribute.as_ints()]


def _string(node: Any, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.as_string())


def _array(value: Any) -> Any:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _dequantizer(value: Any) -> Any:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _quantizer(value: Any) -> Any:
    """The QuantizeLinear that alone reads `value`."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != "QuantizeLinear":
        return None
    return uses[0].node


class _Shaper:
    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def _constant(self, name: str, array: np.ndarray[Any, Any]) -> Any:
        import onnx_ir as ir

        value = ir.Value(name=name, const_value=ir.tensor(np.array(array, order="C"), name=name))
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
        self.graph.initializers[name] = value
        return value

    def _node(
        self, before: Any, op_type: str, inputs: list[Any], name: str, *attributes: Any
    ) -> Any:
        import onnx_ir as ir

        made = ir.Node("", op_type, inputs=inputs, attributes=attributes, name=name)
        made.outputs[0].name = f"{name}.output"
        self.graph.insert_before(before, [made])
        return made.outputs[0]

    def _reshaped(self, before: Any, value: Any, sizes: list[int], name: str) -> Any:
        # 0 keeps the batch size, whatever it is
        shape = self._constant(f"{name}.shape", np.array([0, *sizes], np.int64))
        return self._node(before, "Reshape", [value, shape], name)

    def _transposed(self, before: Any, value: Any, order: list[int], name: str) -> Any:
        import onnx_ir as ir

        return self._node(before, "Transpose", [value], name, ir.AttrInt64s("perm", order))

    def blocks_as_channels(self, conv: Any) -> bool:
        """Let a strided convolution read blocks of s x s pixels as channels.

        With top padding p, q = ceil(p / s) blocks of padding start at row -s q, so that kernel row i
        becomes row (i + s q - p) // s of a kernel over blocks, in sub-row (i + s q - p) mod s; rows
        that no kernel row falls on are zero.
        """
        import onnx_ir as ir

        strides = _ints(conv, "strides", [1, 1])
        dequantize, weights = _dequantizer(conv.inputs[0]), _dequantizer(conv.inputs[1])
        integers = None if weights is None else _array(weights.inputs[0])
        source = static_shape(conv.inputs[0])
        result = static_shape(conv.outputs[0])
        if dequantize is None or integers is None or integers.ndim != 4 or source is None:
            return False
        stride = strides[0]
        plain = (
            conv.attributes.get("group") is None or conv.attributes["group"].as_int() == 1
        ) and set(_ints(conv, "dilations", [1, 1])) == {1}
        automatic = _string(conv, "auto_pad", "NOTSET") != "NOTSET"
        channels, height, width = source[1:]
        if (
            not plain
            or automatic
            or result is None
            or stride not in _STRIDES
            or strides[1] != stride
            or channels > _FEW_CHANNELS
            or height % stride
            or width % stride
        ):
            return False
        pads = _ints(conv, "pads", [0, 0, 0, 0])
        kernel, first = integers, []
        last = []
        for axis, (size, pad) in enumerate(zip((height, width), pads[:2], strict=True)):
            blocks = -(-pad // stride)
            kernel = _in_blocks(kernel, 2 + axis, stride, stride * blocks - pad)
            taps = kernel.shape[2 + axis]
            first.append(blocks)
            last.append(result[2 + axis] - 1 + taps - blocks - size // stride)
        if min(last) < 0:
            return False
        name = f"{conv.name}.blocks"
        value = self._reshaped(
            dequantize, dequantize.inputs[0], [channels, height // stride, stride, width], name
        )
        value = self._transposed(dequantize, value, [0, 3, 1, 2, 4], f"{name}.rows")
        deep = [channels * stride, height // stride, width]
        value = self._reshaped(dequantize, value, deep, f"{name}.deep")
        value = self._transposed(dequantize, value, [0, 2, 3, 1], f"{name}.last")
        flat = [height // stride, width // stride, channels * stride * stride]
        value = self._reshaped(dequantize, value, flat, f"{name}.pixels")
        value = self._transposed(dequantize, value, [0, 3, 1, 2], f"{name}.first")
        read = self._node(
            conv, "DequantizeLinear", [value, *dequantize.inputs[1:]], f"{name}.dequantized"
        )
        read.shape = ir.Shape([source[0], flat[2], flat[0], flat[1]])
        read.type = conv.inputs[0].type
        stored = self._constant(f"{name}.weight", kernel)
        weight = self._node(
            conv,
            "DequantizeLinear",
            [stored, *weights.inputs[1:]],
            f"{name}.weight.dequantized",
            *weights.attributes.values(),
        )
        weight.shape, weight.type = stored.shape, conv.inputs[1].type
        conv.replace_input_with(0, read)
        conv.replace_input_with(1, weight)
        conv.attributes["strides"] = ir.AttrInt64s("strides", [1, 1])
        conv.attributes["pads"] = ir.AttrInt64s("pads", [*first, *last])
        conv.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(kernel.shape[2:]))
        self._drop(dequantize)
        self._drop(weights)
        return True

    def _drop(self, node: Any) -> None:
        """Take a node away that nobody reads any more, with the constants that it alone read."""
        if node.outputs[0].uses() or node.outputs[0].is_graph_output():
            return
        inputs = list(node.inputs)
        self.graph.remove(node, safe=True)
        for value in inputs:
            if value is not None and value.name in self.graph.initializers and not value.uses():
                del self.graph.initializers[value.name]

    def repeat(self, node: Any) -> bool:
        """Nearest-neighbour enlargement as copies of pixels (channels last) and of rows."""
        import onnx_ir as ir

        before, after = _dequantizer(node.inputs[0]), _quantizer(node.outputs[0])
        source, result = static_shape(node.inputs[0]), static_shape(node.outputs[0])
        if before is None or after is None or source is None or result is None or len(source) != 4:
            return False
        if not _same_params(before, after) or source[1] != result[1]:
            return False
        factors = [large // small for small, large in zip(source[2:], result[2:], strict=True)]
        exact = all(
            small * factor == large
            for small, factor, large in zip(source[2:], factors, result[2:], strict=True)
        )
        modes = (
            _string(node, "coordinate_transformation_mode", "half_pixel"),
            _string(node, "nearest_mode", "round_prefer_floor"),
        )
        if not exact or max(factors) > _REPEATS.get(modes, 0) or max(factors) < 2:
            return False
        channels, height, width = source[1:]
        name = f"{node.name}.repeat"
        value = self._transposed(node, before.inputs[0], [0, 2, 3, 1], name)
        value = self._node(
            node, "Concat", [value] * factors[1], f"{name}.pixels", ir.AttrInt64("axis", 3)
        )
        value = self._reshaped(node, value, [height, width * factors[1] * channels], f"{name}.flat")
        value = self._node(
            node, "Concat", [value] * factors[0], f"{name}.rows", ir.AttrInt64("axis", 2)
        )
        sizes = [height * factors[0], width * factors[1], channels]
        value = self._reshaped(node, value, sizes, f"{name}.image")
        value = self._transposed(node, value, [0, 3, 1, 2], f"{name}.first")
        ir.convenience.replace_all_uses_with(after.outputs[0], value, replace_graph_outputs=True)
        self.graph.remove(after, safe=True)
        self.graph.remove(node, safe=True)
        self._drop(before)
        return True

    def hard_sigmoid(self, node: Any) -> bool:
        """HardSigmoid(x) = Add(alpha x, beta): its QuantizeLinear clips at 0 and at most at 1."""
        before, after = _dequantizer(node.inputs[0]), _quantizer(node.outputs[0])
        if not _unsigned(before) or not _unsigned(after) or int(_array(after.inputs[2])) != 0:
            return False
        if float(_array(after.inputs[1])) * 255 > 1.0 + 1e-5:
            return False
        alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
        value = self._sum(
            node,
            before,
            0.2 if alpha is None else float(alpha.as_float()),
            0.5 if beta is None else float(beta.as_float()),
        )
        value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
        after.replace_input_with(0, value)
        self.graph.remove(node, safe=True)
        self._drop(before)
        return True

    def hard_swish(self, node: Any) -> bool:
        """HardSwish(x) = x * clip(x / 6 + 1/2, 0, 1), the second factor in steps of 1/255."""
        before, after = _dequantizer(node.inputs[0]), _quantizer(node.outputs[0])
        if not _unsigned(before) or not _unsigned(after):
            return False
        name = f"{node.name}.gate"
        value = self._sum(node, before, 1 / 6, 0.5)
        scale = self._constant(f"{name}.scale", np.array(1 / 255, np.float32))
        zero = self._constant(f"{name}.zero_point", np.array(0, np.uint8))
        value = self._node(node, "QuantizeLinear", [value, scale, zero], f"{name}.quantized")
        value = self._node(node, "DequantizeLinear", [value, scale, zero], f"{name}.dequantized")
        value = self._node(node, "Mul", [before.outputs[0], value], f"{node.name}.product")
        value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
        after.replace_input_with(0, value)
        self.graph.remove(node, safe=True)
        return True

    def _sum(self, node: Any, before: Any, alpha: float, beta: float) -> Any:
        """alpha x + beta in front of `node`; alpha goes into the scale that x is read with."""
        name = f"{node.name}.line"
        scale = self._constant(
            f"{name}.scale", np.array(float(_array(before.inputs[1])) * alpha, np.float32)
        )
        scaled = self._node(
            node,
            "DequantizeLinear",
            [before.inputs[0], scale, before.inputs[2]],
            f"{name}.dequantized",
        )
        step = self._constant(f"{name}.beta.scale", np.array(beta / 255, np.float32))
        zero = self._constant(f"{name}.beta.zero_point", np.array(0, np.uint8))
        most = self._constant(f"{name}.beta.uint8", np.array(255, np.uint8))
        offset = self._node(
            node, "DequantizeLinear", [most, step, zero], f"{name}.beta.dequantized"
        )
        return self._node(node, "Add", [scaled, offset], name)


def _in_blocks(
    kernel: np.ndarray[Any, Any], axis: int, stride: int, offset: int
) -> np.ndarray[Any, Any]:
    """Lay one spatial axis of a kernel [C_out, C_in, kH, kW] out over blocks: [C_out, stride * C_in, …].

    Sub-position j of channel c becomes channel j * C_in + c.
    """
    moved = np.moveaxis(kernel, axis, 2)
    made, taken, size, other = moved.shape
    taps = -(-(size + offset) // stride)
    wide = np.zeros((made, taken, taps * stride, other), kernel.dtype)
    wide[:, :, offset : offset + size] = moved
    split = wide.reshape(made, taken, taps, stride, other).transpose(0, 3, 1, 2, 4)
    return np.moveaxis(split.reshape(made, stride * taken, taps, other), 2, axis)


def _same_params(before: Any, after: Any) -> bool:
    pairs = zip(before.inputs[1:], after.inputs[1:], strict=True)
    return all(np.array_equal(_array(one), _array(other)) for one, other in pairs)


def _unsigned(node: Any) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has one scale and an 8-bit unsigned zero point."""
    if node is None or len(node.inputs) < 3:
        return False
    scale, zero = _array(node.inputs[1]), _array(node.inputs[2])
    return scale is not None and zero is not None and scale.size == 1 and zero.dtype == np.uint8
