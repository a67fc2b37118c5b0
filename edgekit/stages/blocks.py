"""Finding the blocks of a model's outputs: which elements come from which tensor of the graph.

From each output the graph is walked back through the operators that only move elements (Concat,
Reshape, Transpose, Slice …, and the Q/DQ pairs of a quantized graph) to the tensors where values
are made: the leaves. The part in between is then run on integers, each leaf filled with its own
number, so that the output itself says which element came from where and nothing about shapes has to
be reasoned out. Where the head's layout is known, boxes, objectness and classes are told apart by
column too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.block import Block, whole
from edgekit.errors import BadInput
from edgekit.runtimes.base import SessionOptions
from edgekit.stages.layout import HEADS, Layout
from edgekit.stages.regions import regions_of

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

_MOVES = frozenset(("Concat", "QLinearConcat", "Split", "Slice", "Gather", "Transpose"))
_MOVES |= frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten"))
# these change the values or their type, not their places
_COPIES = frozenset(["Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"])
# element by element: looked through where they work on what a Concat has joined
_ARITHMETIC = frozenset(["Mul", "Div", "Add", "Sub"])
_FUNCTIONS = frozenset(
    ["Sigmoid", "HardSigmoid", "Relu", "Clip", "Exp", "Tanh", "Sqrt", "Abs", "Neg"]
)

_MAX_PARTS = 512


@dataclass
class _Tail:
    """What lies between one output and its leaves."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)  # outputs before inputs
    leaves: list[str] = field(default_factory=list)
    joins: bool = False


class _Graph:
    """Producers and constants of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.initializers = {item.name: item for item in graph.initializer}
        self._constant: dict[str, bool] = dict.fromkeys(self.initializers, True)
        self._constant.update({value.name: False for value in graph.input})
        # an initializer that is an input as well may be overridden; the default is what counts
        self._constant.update(dict.fromkeys(self.initializers, True))

    def is_constant(self, name: str) -> bool:
        """Whether `name` depends on no input (an initializer, a Constant, what is made of them)."""
        pending = [name]
        while pending:
            current = pending[-1]
            if current in self._constant:
                pending.pop()
                continue
            node = self.producer.get(current)
            if node is None or any(attribute.HasField("g") for attribute in node.attribute):
                self._constant[current] = False
                continue
            open_inputs = [item for item in node.input if item and item not in self._constant]
            if open_inputs:
                pending.extend(open_inputs)
                continue
            self._constant[current] = all(self._constant[item] for item in node.input if item)
        return self._constant[name]

    def data_inputs(self, node: onnx.NodeProto) -> list[str] | None:
        """The inputs whose elements reach the node's output unmixed; None when it makes values."""
        kind = node.op_type
        if kind == "QLinearConcat":
            return list(node.input[2::3])
        if node.domain not in ("", "ai.onnx"):
            return None
        if kind == "Concat":
            return list(node.input)
        if kind == "Gather":
            return [node.input[0]] if self.is_constant(node.input[1]) else None
        if kind in _MOVES or kind in _COPIES:
            return [node.input[0]]
        if kind in _ARITHMETIC or kind in _FUNCTIONS:
            return self._of_joined(node)
        return None

    def _of_joined(self, node: onnx.NodeProto) -> list[str] | None:
        """The variable input of an elementwise node, when a Concat lies behind it; else None."""
        if node.op_type in _FUNCTIONS:
            variable = [node.input[0]]
        else:
            variable = [name for name in node.input if not self.is_constant(name)]
            if len(variable) != 1 or len(node.input) != 2:
                return None
        name = variable[0]
        while (producer := self.producer.get(name)) is not None:
            kind = producer.op_type
            if kind in ("Concat", "QLinearConcat"):
                return variable
            if kind in _ARITHMETIC or kind in _FUNCTIONS:
                return variable if self._of_joined(producer) else None
            if kind not in _MOVES and kind not in _COPIES:
                return None
            name = producer.input[0]
        return None

    def tail(self, output: str) -> _Tail:
        tail = _Tail()
        seen: set[str] = set()
        pending = [output]
        done: set[int] = set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.producer.get(name)
            inputs = self.data_inputs(node) if node is not None else None
            if node is None or inputs is None or self.is_constant(name):
                tail.leaves.append(name)
                continue
            if id(node) not in done:
                done.add(id(node))
                tail.nodes.append(node)
            tail.joins = tail.joins or len(inputs) > 1
            pending.extend(reversed(inputs))
        return tail


def find_blocks(
    model: onnx.ModelProto | Path,
    head: str | None = None,
    feeds: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[Block, ...]:
    """The blocks of every output of `model`, in the outputs' order.

    `head` names a known layout ("yolov5", "yolov8", "yolo26", "yolox"); others say nothing. `feeds`
    is one sample of inputs, by default zeros with free dimensions taken as 1. An output that is not
    joined from parts, or whose parts cannot be told, is one block. Works on float and on quantized
    graphs. The model is run once where an output is joined.
    """
    import onnx

    proto = onnx.load(str(model)) if isinstance(model, Path) else model
    graph = _Graph(proto.graph)
    outputs = [value.name for value in proto.graph.output]
    tails = {name: graph.tail(name) for name in outputs}
    joined = {
        name: tail for name, tail in tails.items() if tail.joins and len(tail.leaves) <= _MAX_PARTS
    }
    if not joined and head not in HEADS:
        return whole(outputs)
    try:
        values, size = _values(proto, graph, joined, outputs, feeds)
    except BadInput:
        # a free dimension that cannot be 1, or a graph that needs another runtime
        return whole(outputs)
    blocks: list[Block] = []
    for name in outputs:
        shape = values[name]
        if name in joined:
            labels = _labels(proto, graph, joined[name], name, values)
            parts = [_node_of(graph, leaf) for leaf in joined[name].leaves]
        else:
            labels, parts = None, [""]
        blocks.extend(_blocks_of(name, shape, labels, parts, Layout.of(head, shape, size)))
    return tuple(blocks)


def _node_of(graph: _Graph, tensor: str) -> str:
    """The name by which a person finds the tensor in the graph: its node's, or its own."""
    node = graph.producer.get(tensor)
    return node.name if node is not None and node.name else tensor


def _parameters(graph: _Graph, node: onnx.NodeProto) -> list[str]:
    """The node's inputs that are not data: shapes, axes, indices."""
    if node.op_type in _COPIES | _FUNCTIONS or node.op_type == "QLinearConcat":
        return []
    data = set(graph.data_inputs(node) or ())
    return [name for name in node.input if name and name not in data]


def _values(
    proto: onnx.ModelProto,
    graph: _Graph,
    joined: Mapping[str, _Tail],
    outputs: list[str],
    feeds: Mapping[str, NDArray[Any]] | None,
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Run the model once: shapes of outputs and leaves, values of parameters; its input's shape."""
    import onnx

    from edgekit.runtimes.onnxruntime import open_bytes

    wanted = dict.fromkeys(outputs)
    parameters: set[str] = set()
    for tail in joined.values():
        wanted.update(dict.fromkeys(tail.leaves))
        for node in tail.nodes:
            parameters.update(_parameters(graph, node))
    values: dict[str, Any] = {}
    for name in [*wanted, *sorted(parameters)]:
        if name in graph.initializers:
            array = onnx.numpy_helper.to_array(graph.initializers[name])
            values[name] = array if name in parameters else array.shape
    asked = [name for name in {**wanted, **dict.fromkeys(sorted(parameters))} if name not in values]
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    inputs = {value.name for value in proto.graph.input}
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in inputs)
    with open_bytes(copy.SerializeToString(), SessionOptions(optimize=False)) as session:
        given = _zeros(session.inputs) if feeds is None else dict(feeds)
        if len(given) == len(session.inputs) == 1:  # another model may call its one input otherwise
            given = {session.inputs[0].name: next(iter(given.values()))}
        results = session.run(given)
    for name in asked:
        array = given[name] if name in inputs else results[name]
        values[name] = array if name in parameters else array.shape
    return values, next((array.shape for array in given.values()), ())


def _zeros(inputs: tuple[Any, ...]) -> dict[str, NDArray[Any]]:
    import numpy as np

    return {
        spec.name: np.zeros(
            [size if isinstance(size, int) else 1 for size in spec.shape], dtype=spec.dtype
        )
        for spec in inputs
    }


def _labels(
    proto: onnx.ModelProto,
    graph: _Graph,
    tail: _Tail,
    output: str,
    values: Mapping[str, Any],
) -> NDArray[np.int64]:
    """The output with every element replaced by the number of the leaf it came from."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from edgekit.runtimes.onnxruntime import open_bytes

    initializers: dict[str, onnx.TensorProto] = {}
    for number, leaf in enumerate(tail.leaves):
        filled = np.full(values[leaf], number, dtype=np.int64)
        initializers[leaf] = numpy_helper.from_array(filled, leaf)
    nodes = []
    for node in reversed(tail.nodes):
        data = graph.data_inputs(node) or []
        if node.op_type in _COPIES | _FUNCTIONS:
            nodes.append(helper.make_node("Identity", data, [node.output[0]]))
            continue
        if node.op_type == "QLinearConcat":
            axis = next(item.i for item in node.attribute if item.name == "axis")
            nodes.append(helper.make_node("Concat", data, list(node.output), axis=axis))
            continue
        for name in _parameters(graph, node):
            array = np.asarray(values[name])
            if node.op_type in _ARITHMETIC:  # adding zeros keeps labels and does the broadcast
                name, array = f"{name} as zeros", np.zeros(array.shape, dtype=np.int64)
            initializers[name] = numpy_helper.from_array(array, name)
        if node.op_type in _ARITHMETIC:
            other = f"{_parameters(graph, node)[0]} as zeros"
            nodes.append(helper.make_node("Add", [data[0], other], list(node.output)))
        else:
            nodes.append(node)
    result = helper.make_tensor_value_info(output, onnx.TensorProto.INT64, None)
    model = helper.make_model(
        helper.make_graph(
            _sorted(nodes, set(initializers)), "tail", [], [result], list(initializers.values())
        ),
        opset_imports=proto.opset_import,
    )
    model.ir_version = proto.ir_version
    with open_bytes(model.SerializeToString(), SessionOptions(optimize=False)) as session:
        labels: NDArray[np.int64] = session.run({})[output]
    return labels


def _sorted(nodes: list[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """The nodes in an order in which each one's inputs are known before it."""
    ordered: list[onnx.NodeProto] = []
    known, rest = set(known), nodes
    while rest:
        ready = [node for node in rest if all(not n or n in known for n in node.input)]
        if not ready:
            raise AssertionError("the tail of an output has a cycle")
        for node in ready:
            known.update(node.output)
        ordered.extend(ready)
        rest = [node for node in rest if node not in ready]
    return ordered


def _blocks_of(
    output: str,
    shape: tuple[int, ...],
    labels: NDArray[np.int64] | None,
    parts: list[str],
    layout: Layout | None,
) -> list[Block]:
    """Blocks of one output from its labels and what is known of its head."""
    import numpy as np

    meanings = layout.regions if layout else []
    combined = np.zeros(shape, dtype=np.int64) if labels is None else labels * (len(meanings) + 1)
    for number, (_, region) in enumerate(meanings, start=1):
        combined[region] += number
    found = np.unique(combined)
    if len(found) <= 1 or len(found) > _MAX_PARTS:
        return list(whole([output]))
    blocks = []
    words = ["", *(name for name, _ in meanings)]
    for value in found:
        part, meaning = divmod(int(value), len(meanings) + 1)
        origin = f"({parts[part]})" if parts[part] else ""
        name = " ".join(filter(None, [output, words[meaning], origin]))
        regions = regions_of(combined == value)
        for number, axes in enumerate(regions):
            suffix = f" #{number}" if len(regions) > 1 else ""
            blocks.append(Block(name=name + suffix, output=output, axes=axes))
    return blocks if len(blocks) <= _MAX_PARTS else list(whole([output]))
