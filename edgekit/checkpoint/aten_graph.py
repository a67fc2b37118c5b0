"""A serialized ATen graph as a torch module that calls its operators one after the other.

torch.export.load evaluates text of the file (symbolic shapes, guards) and resolves any name below
`torch`, `math` and `operator`, so it must not see a file of unknown origin. This reader takes the
graph as data (torch/_export/serde/schema.py, schema version 8): operators must lie in the ATen
namespaces and change nothing outside of the graph, everything else is a number or a name of a value.
Shapes are not checked against the exported ones, so a graph without fixed sizes runs for any.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_TARGET = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed)\.(\w+)\.(\w+)")
# what reaches files or foreign memory, or gives a tensor another storage or device
_REFUSED = re.compile(
    r"from_file|set_|set_data|resize.*|record_stream|_?pin_memory|_print|_copy_from.*|_cudnn.*"
    r"|.*_sparse.*|_foreach.*|_nested.*|data_ptr|dist_.*|_c10d.*|_unsafe_set_data"
)
_SCALARS: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in (
        *("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "getitem"),
        *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"),
    )
}
_SET_GRAD = "torch.ops.higher_order.wrap_with_set_grad_enabled"
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
_MEMORY[4] = torch.preserve_format


class GraphError(ValueError):
    """The graph is not one that can be run safely; the text says why."""


@dataclass(frozen=True)
class Value:
    """A value of the graph by its name."""

    name: str


@dataclass(frozen=True)
class Step:
    """One call: operator, arguments (with `Value`s inside), names of its results, values that end."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Any, ...]
    free: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Steps from `inputs` to `outputs`, all by name."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]

    def run(self, values: dict[str, Any]) -> tuple[Any, ...]:
        for step in self.steps:
            args = [_resolve(arg, values) for arg in step.args]
            kwargs = {name: _resolve(arg, values) for name, arg in step.kwargs.items()}
            _assign(step.results, step.call(*args, **kwargs), values)
            for name in step.free:
                values.pop(name, None)
        return tuple(_resolve(output, values) for output in self.outputs)


def _resolve(arg: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(arg, Value):
        return values[arg.name]
    if isinstance(arg, list):
        return [_resolve(item, values) for item in arg]
    if isinstance(arg, Graph):
        return arg
    return arg


def _assign(names: tuple[Any, ...], result: Any, values: dict[str, Any]) -> None:
    if len(names) == 1 and isinstance(names[0], str):
        if isinstance(result, (tuple, list)) and len(result) == 1:
            result = result[0]
        values[names[0]] = result
        return
    flat = names[0] if len(names) == 1 and isinstance(names[0], tuple) else names
    if isinstance(result, Tensor) or not isinstance(result, (tuple, list)):
        raise GraphError("an operator returned fewer values than the graph expects")
    for name, item in zip(flat, result, strict=False):
        if name is not None:
            values[name] = item


class Program(nn.Module):  # type: ignore[misc]
    """The graph with its tensors, under the names they had in the exported module.

    Tensors `[...]` in, the graph's one tensor out (a tuple when it has several).
    """

    def __init__(
        self,
        graph: Graph,
        bound: Mapping[str, str],
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self._graph = graph
        self._bound = dict(bound)
        for name, tensor in parameters.items():
            owner, leaf = self._owner(name)
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        for name, tensor in buffers.items():
            owner, leaf = self._owner(name)
            owner.register_buffer(leaf, tensor)
        self._inputs = [name for name in graph.inputs if name not in self._bound]

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        parts = name.split(".")
        if not all(re.fullmatch(r"\w+", part) for part in parts):
            raise GraphError(f"a tensor with the name {name!r}")
        owner: nn.Module = self
        for part in parts[:-1]:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
            if not isinstance(owner, nn.Module):
                raise GraphError(f"a tensor with the name {name!r}")
        if hasattr(owner, parts[-1]):
            raise GraphError(f"two tensors with the name {name!r}")
        return owner, parts[-1]

    def forward(self, *inputs: Tensor) -> Any:
        if len(inputs) != len(self._inputs):
            raise ValueError(f"the graph takes {len(self._inputs)} inputs, not {len(inputs)}")
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        for name, tensor in self._bound.items():
            owner, _, leaf = tensor.rpartition(".")
            values[name] = getattr(self.get_submodule(owner), leaf)
        outputs = self._graph.run(values)
        return outputs[0] if len(outputs) == 1 else outputs


def read_graph(record: Any, depth: int = 0) -> Graph:
    """The graph in `record` (the JSON of schema.Graph). Raises GraphError."""
    if depth > 8:
        raise GraphError("graphs nested more than 8 deep")
    steps = [_step(node, depth) for node in _list(record, "nodes")]
    inputs = tuple(_named(arg) for arg in _list(record, "inputs"))
    outputs = tuple(_argument(arg, depth) for arg in _list(record, "outputs"))
    known = set(inputs)
    for step in steps:
        for name in (*_used(step.args), *_used(list(step.kwargs.values()))):
            if name not in known:
                raise GraphError(f"the value '{name}' is used before it is made")
        known.update(_results(step.results))
    if not set(_used(outputs)) <= known:
        raise GraphError("the graph returns a value that it does not make")
    return Graph(inputs=inputs, steps=_with_ends(steps, outputs), outputs=outputs)


def _with_ends(steps: Sequence[Step], outputs: tuple[Any, ...]) -> tuple[Step, ...]:
    """The steps, each knowing which values nobody needs after it, so that memory is given back."""
    alive = set(_used(outputs))
    done: list[Step] = []
    for step in reversed(steps):
        touched = {*_used(step.args), *_used(list(step.kwargs.values())), *_results(step.results)}
        done.append(Step(step.call, step.args, step.kwargs, step.results, tuple(touched - alive)))
        alive |= touched
    return tuple(reversed(done))


def _results(names: tuple[Any, ...]) -> list[str]:
    flat: list[str] = []
    for name in names:
        flat.extend(name if isinstance(name, tuple) else [name] if name is not None else [])
    return flat


def _used(args: Any) -> list[str]:
    if isinstance(args, Value):
        return [args.name]
    if isinstance(args, (list, tuple)):
        return [name for item in args for name in _used(item)]
    return []


def _list(record: Any, key: str) -> list[Any]:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, list) or len(value) > 100_000:
        raise GraphError(f"no list of {key}")
    return value


def _step(node: Any, depth: int) -> Step:
    target = node.get("target") if isinstance(node, dict) else None
    if not isinstance(target, str):
        raise GraphError("a node without an operator")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    call = _operator(target)
    schema = getattr(call, "_schema", None)
    places = {a.name: a for a in schema.arguments} if schema is not None else {}
    for entry in _list(node, "inputs"):
        name = entry.get("name") if isinstance(entry, dict) else None
        value = _argument(entry.get("arg") if isinstance(entry, dict) else None, depth)
        keyword = isinstance(name, str) and (
            entry.get("kind") == 2 or (name in places and places[name].kwarg_only)
        )
        if keyword:
            kwargs[str(name)] = value
        else:
            args.append(value)
        if (
            name in ("training", "train", "use_input_stats")
            and value is True
            and target != _SET_GRAD
        ):
            raise GraphError(f"it was exported in training mode ({target})")
    results = tuple(_result(output) for output in _list(node, "outputs"))
    return Step(call, tuple(args), kwargs, results)


def _result(output: Any) -> Any:
    """Name of one result, a tuple of names for a list of tensors, None for none."""
    kind, value = _tagged(output)
    if kind == "as_none":
        return None
    if kind == "as_tensors" and isinstance(value, list):
        return tuple(_text(item, "name") for item in value)
    return _named(output)


def _text(record: Any, key: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str) or not value:
        raise GraphError(f"a value without a {key}")
    return value


def _tagged(record: Any) -> tuple[str, Any]:
    """Tag and value of a union of the schema: {"as_int": 3}."""
    if not isinstance(record, dict) or len(record) != 1:
        raise GraphError("an argument without one meaning")
    ((kind, value),) = record.items()
    return str(kind), value


def _named(record: Any) -> str:
    kind, value = _tagged(record)
    if kind == "as_tensor":
        return _text(value, "name")
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return _text(value, "as_name")
    raise GraphError(f"a value of kind {kind}")


def _operator(target: str) -> Callable[..., Any]:
    if target in _SCALARS:
        return _SCALARS[target]
    if target == "torch.sym_not":
        return operator.not_
    if target == _SET_GRAD:
        return _without_gradients
    match = _TARGET.fullmatch(target)
    if match is None or _REFUSED.fullmatch(match.group(2)) or match.group(2).startswith("__"):
        raise GraphError(f"the operator {target} is not on the list")
    if match.group(1) == "quantized_decomposed":
        # the module that registers the operators; torch has moved it once already
        with contextlib.suppress(ImportError):
            importlib.import_module("torch.ao.quantization.fx._decomposed")
    space = getattr(torch.ops, match.group(1))
    try:
        found = getattr(getattr(space, match.group(2)), match.group(3))
    except (AttributeError, RuntimeError) as error:
        raise GraphError(f"this version of torch has no operator {target}") from error
    if not isinstance(found, torch._ops.OpOverload):
        raise GraphError(f"{target} is no operator")
    call: Callable[..., Any] = found
    return call


def _without_gradients(enabled: bool, graph: Any, *args: Any) -> Any:
    """The body of a `torch.no_grad` block: its graph, run on `args`."""
    if not isinstance(graph, Graph) or len(graph.inputs) != len(args):
        raise GraphError("a block of another form")
    return graph.run(dict(zip(graph.inputs, args, strict=True)))


def _plain(value: Any, kinds: tuple[type, ...]) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise GraphError(f"a constant of type {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    # JSON has no infinities; the serializer writes them as text
    if isinstance(value, str) and value in ("Infinity", "-Infinity", "NaN"):
        return float(value.replace("Infinity", "inf"))
    return float(_plain(value, (int, float)))


def _enum(value: Any, table: Mapping[int, Any]) -> Any:
    if not isinstance(value, int) or value not in table:
        raise GraphError(f"an unknown type or layout ({value!r})")
    return table[value]


def _symbol(value: Any) -> Any:
    kind, inner = _tagged(value)
    if kind == "as_name":
        return Value(str(inner))
    return _plain(inner, (int, float, bool))


def _optional(value: Any) -> Any:
    kind, inner = _tagged(value)
    return None if kind == "as_none" else Value(_text(inner, "name"))


def _tensors(value: Any) -> list[Any]:
    return [Value(_text(item, "name")) for item in _items(value)]


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > 100_000:
        raise GraphError("a list that is none")
    return value


# tags of schema.Argument → how the value is read
_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda v: None,
    "as_tensor": lambda v: Value(_text(v, "name")),
    "as_tensors": _tensors,
    "as_int": lambda v: _plain(v, (int,)),
    "as_ints": lambda v: [_plain(item, (int,)) for item in _items(v)],
    "as_float": _number,
    "as_floats": lambda v: [_number(item) for item in _items(v)],
    "as_string": lambda v: _plain(v, (str,)),
    "as_bool": lambda v: _plain(v, (bool,)),
    "as_bools": lambda v: [_plain(item, (bool,)) for item in _items(v)],
    "as_sym_int": _symbol,
    "as_sym_ints": lambda v: [_symbol(item) for item in _items(v)],
    "as_sym_bool": _symbol,
    "as_sym_float": _symbol,
    "as_scalar_type": lambda v: _enum(v, _DTYPES),
    "as_memory_format": lambda v: _enum(v, _MEMORY),
    "as_layout": lambda v: _enum(v, {7: torch.strided}),
    "as_device": lambda v: torch.device("cpu"),
    "as_optional_tensor": _optional,
    "as_optional_tensors": lambda v: [_optional(item) for item in _items(v)],
}


def _argument(record: Any, depth: int) -> Any:
    kind, value = _tagged(record)
    if kind == "as_graph":
        return read_graph(value.get("graph") if isinstance(value, dict) else None, depth + 1)
    reader = _ARGUMENTS.get(kind)
    if reader is None:
        raise GraphError(f"an argument of kind {kind}")
    return reader(value)
