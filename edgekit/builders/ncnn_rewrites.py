"""What pnnx cannot take of an ONNX graph, said in other words: exact rewrites, each on its own.

Established with pnnx 20261020: a Slice with steps comes out as a layer that ncnn does not have, and so
do Tile and Gather with constant indices; SpaceToDepth and the Reduce operators whose axes are an input
come out wrong without a word. Each rewrite computes the same numbers (ReduceSum up to rounding), and
the stage that applies them checks that against ONNX Runtime.

A rewrite takes an onnx_ir.Model, changes it in place and returns how many nodes it rewrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Rewrite = Callable[[Any], int]

# a Gather of more pieces than this is not a handful of slices any more
_MOST_PIECES = 64
_LAST = 2**62


def _constant(value: Any) -> list[int] | None:
    """The integers of a constant input, None when it is not one."""
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of `value` when it is known in full."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(value.shape)
    return sizes if all(isinstance(size, int) for size in sizes) else None


class _Maker:
    """Makes the nodes that stand in for `node`, in front of it."""

    def __init__(self, model: Any, node: Any) -> None:
        self._graph = model.graph
        self._node = node
        self._count = 0

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._node.outputs[0].name}.{what}{self._count}"

    def constant(self, numbers: Sequence[int] | Sequence[float], dtype: str = "int64") -> Any:
        import numpy as np
        import onnx_ir as ir

        name = self._name("constant")
        tensor = ir.tensor(np.array(numbers, dtype), name=name)
        value = ir.Value(
            name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
        )
        self._graph.initializers[name] = value
        return value

    def node(self, op_type: str, inputs: Sequence[Any], **attributes: Any) -> Any:
        """A new node; returns its output."""
        import onnx_ir as ir

        node = ir.node(op_type, list(inputs), attributes)
        name = self._name(op_type.lower())
        node.name = name
        node.outputs[0].name = name
        node.outputs[0].type = self._node.outputs[0].type
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def slice(self, data: Any, start: int, end: int, axis: int) -> Any:
        return self.node(
            "Slice",
            [data, self.constant([start]), self.constant([end]), self.constant([axis])],
        )

    def replace_by(self, value: Any) -> None:
        """Let `value` take the place of the node's output, its name included."""
        import onnx_ir as ir

        result = self._node.outputs[0]
        name = result.name
        value.shape = result.shape
        ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)
        result.name = None
        value.name = name


def strided_slices(model: Any) -> int:
    """Slice with steps: along height and width a Slice without, then MaxPool 1x1 with these strides.

    A pool of one element is that element, so nothing is rounded. Along other axes, and backwards, a
    Slice for each index, joined.
    """
    done = 0
    for node in list(model.graph):
        if node.op_type == "Slice" and _unstride(model, node):
            done += 1
    return done


def _slices(node: Any, shape: tuple[int, ...]) -> list[tuple[int, range]] | None:
    """(axis, the indices taken along it) of a Slice with constant parameters; None for others."""
    starts, ends = (_constant(value) for value in node.inputs[1:3])
    if starts is None or ends is None:
        return None
    given = list(node.inputs[3:]) + [None] * (5 - len(node.inputs))
    axes = list(range(len(starts))) if given[0] is None else _constant(given[0])
    steps = [1] * len(starts) if given[1] is None else _constant(given[1])
    if axes is None or steps is None:
        return None
    taken = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(shape)
        taken.append((axis, range(*slice(start, end, step).indices(shape[axis]))))
    return taken


def _unstride(model: Any, node: Any) -> bool:
    shape = _shape(node.inputs[0])
    taken = None if shape is None else _slices(node, shape)
    if shape is None or taken is None or all(indices.step == 1 for _, indices in taken):
        return False
    pooled = {
        axis: indices.step
        for axis, indices in taken
        if len(shape) == 4 and axis >= 2 and indices.step > 1
    }
    single = [item for item in taken if item[1].step != 1 and item[0] not in pooled]
    if any(axis == 0 or not 0 < len(indices) <= _MOST_PIECES for axis, indices in single):
        return False
    maker = _Maker(model, node)
    value = node.inputs[0]
    for axis, indices in taken:
        if (axis, indices) in single:
            parts = [maker.slice(value, index, index + 1, axis) for index in indices]
            value = parts[0] if len(parts) == 1 else maker.node("Concat", parts, axis=axis)
        elif indices.start != 0 or indices.stop != shape[axis]:
            value = maker.slice(value, indices.start, indices.stop, axis)
    if pooled:
        strides = [pooled.get(2, 1), pooled.get(3, 1)]
        value = maker.node("MaxPool", [value], kernel_shape=[1, 1], strides=strides, pads=[0] * 4)
    maker.replace_by(value)
    return True


def space_to_depth(model: Any) -> int:
    """SpaceToDepth: its b x b grids as strided slices, joined along the channels.

    Output channel (y * b + x) * C + c holds input[c, y::b, x::b] (ONNX operator SpaceToDepth). Comes
    before `strided_slices`.
    """
    done = 0
    for node in list(model.graph):
        if node.op_type != "SpaceToDepth":
            continue
        block = node.attributes["blocksize"].as_int()
        maker = _Maker(model, node)
        parts = []
        for row in range(block):
            for column in range(block):
                numbers = ([row, column], [_LAST, _LAST], [2, 3], [block, block])
                value = maker.node(
                    "Slice", [node.inputs[0], *(maker.constant(item) for item in numbers)]
                )
                value.shape = None
                parts.append(value)
        maker.replace_by(maker.node("Concat", parts, axis=1))
        done += 1
    return done


def gathers(model: Any) -> int:
    """Gather with constant indices: a Slice for each run of neighbours, joined in their order."""
    done = 0
    for node in list(model.graph):
        if node.op_type != "Gather":
            continue
        shape, indices = _shape(node.inputs[0]), _constant(node.inputs[1])
        rank = None if node.inputs[1].const_value is None else len(node.inputs[1].const_value.shape)
        if shape is None or len(shape) < 2 or not indices or rank != 1:
            continue
        if not _is_float(node.inputs[0]):
            continue
        axis_attribute = node.attributes.get("axis")
        axis = (axis_attribute.as_int() if axis_attribute is not None else 0) % len(shape)
        runs: list[list[int]] = []
        for index in indices:
            index %= shape[axis]
            if runs and runs[-1][1] == index:
                runs[-1][1] = index + 1
            else:
                runs.append([index, index + 1])
        if len(runs) > _MOST_PIECES or axis == 0:
            continue
        maker = _Maker(model, node)
        parts = [maker.slice(node.inputs[0], start, end, axis) for start, end in runs]
        maker.replace_by(parts[0] if len(parts) == 1 else maker.node("Concat", parts, axis=axis))
        done += 1
    return done


def _is_float(value: Any) -> bool:
    import onnx_ir as ir

    return value.dtype in (None, ir.DataType.FLOAT)


def tiles(model: Any) -> int:
    """Tile with constant repeats: Concat of the tensor with itself, axis by axis."""
    done = 0
    for node in list(model.graph):
        repeats = _constant(node.inputs[1]) if node.op_type == "Tile" else None
        if repeats is None or any(count < 1 for count in repeats) or repeats[0] != 1:
            continue
        if max(repeats) > _MOST_PIECES:
            continue
        maker = _Maker(model, node)
        value = node.inputs[0]
        for axis, count in enumerate(repeats):
            if count > 1:
                value = maker.node("Concat", [value] * count, axis=axis)
        if value is node.inputs[0]:
            continue
        maker.replace_by(value)
        done += 1
    return done


def reduce_sums(model: Any) -> int:
    """ReduceSum over axes of known size: ReduceMean times their product; opset 17 and below.

    ReduceSum has its axes as an input from opset 13 on, where pnnx does not look for them.
    """
    if (model.graph.opset_imports.get("") or 0) >= 18:
        return 0
    done = 0
    for node in list(model.graph):
        if node.op_type != "ReduceSum" or len(node.inputs) < 2:
            continue
        shape, axes = _shape(node.inputs[0]), _constant(node.inputs[1])
        if shape is None or not axes:
            continue
        count = 1
        for axis in axes:
            count *= shape[axis]
        keep = node.attributes.get("keepdims")
        maker = _Maker(model, node)
        mean = maker.node(
            "ReduceMean",
            [node.inputs[0]],
            axes=axes,
            keepdims=1 if keep is None else keep.as_int(),
        )
        maker.replace_by(maker.node("Mul", [mean, maker.constant([float(count)], "float32")]))
        done += 1
    return done


_REDUCTIONS = frozenset(
    f"Reduce{what}" for what in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp")
) | {"ReduceSumSquare"}


def lower_opset(model: Any) -> int:
    """Opset 18 and above to 17 where a Reduce operator asks for it: its axes become an attribute again.

    Only where every operator exists in opset 17; Split loses `num_outputs` for explicit sizes.
    """
    import onnx

    version = model.graph.opset_imports.get("") or 0
    nodes = [node for node in model.graph if node.domain in ("", "ai.onnx")]
    if version <= 17 or not any(
        n.op_type in _REDUCTIONS or n.op_type == "ReduceSum" for n in nodes
    ):
        return 0
    if not all(onnx.defs.has(node.op_type, 17, "") for node in nodes):
        return 0
    done = 0
    for node in nodes:
        if node.op_type in _REDUCTIONS and len(node.inputs) > 1:
            axes = _constant(node.inputs[1])
            if axes is None or node.attributes.get("noop_with_empty_axes") is not None:
                return 0
    for node in nodes:
        if node.op_type in _REDUCTIONS and len(node.inputs) > 1:
            _axes_to_attribute(node)
            done += 1
        elif node.op_type == "Split" and "num_outputs" in node.attributes:
            _explicit_split(model, node)
    model.graph.opset_imports[""] = 17
    return done or 1


def _axes_to_attribute(node: Any) -> None:
    import onnx_ir as ir

    axes = _constant(node.inputs[1])
    node.resize_inputs(1)
    node.attributes["axes"] = ir.AttrInt64s("axes", axes or [])


def _explicit_split(model: Any, node: Any) -> None:
    del node.attributes["num_outputs"]
    axis_attribute = node.attributes.get("axis")
    axis = axis_attribute.as_int() if axis_attribute is not None else 0
    sizes = [shape[axis] if (shape := _shape(value)) else None for value in node.outputs]
    if len(node.inputs) < 2 and all(size is not None for size in sizes):
        node.resize_inputs(2)
        known = [size for size in sizes if size is not None]
        node.replace_input_with(1, _Maker(model, node).constant(known))


REWRITES: tuple[tuple[str, Rewrite], ...] = (
    ("Reduce with opset 17", lower_opset),
    ("ReduceSum as ReduceMean", reduce_sums),
    ("SpaceToDepth as Slice", space_to_depth),
    ("Slice with steps as MaxPool", strided_slices),
    ("Gather as Slice", gathers),
    ("Tile as Concat", tiles),
)
"""The rewrites of what is known to fail, in the order in which they apply, and what they do."""
