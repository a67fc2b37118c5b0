"""torch.export's `.pt2` archives: the graph read as data, the weights from their raw records."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint.inference import ready
from edgekit.checkpoint.probe import check_forward
from edgekit.checkpoint.sniff import Sniff
from edgekit.errors import BadInput, EdgekitError, NotPossible
from edgekit.require import require
from edgekit.types import Checkpoint

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions

_MODEL = "models/model.json"
_WEIGHTS = "data/weights/"
_CONSTANTS = "data/constants/"
# schema.ScalarType → name in torch
_DTYPES = {
    **{1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32"},
    **{8: "float64", 12: "bool", 13: "bfloat16"},
}
_EXPORT_HINT = (
    "Export it again: torch.export.save(torch.export.export(model.eval(), (x,)), 'm.pt2')."
)


def sniff(head: Sniff) -> bool:
    return head.has(_MODEL) or "serialized_exported_program.json" in head.members


def load(head: Sniff, options: LoadOptions) -> Checkpoint:
    """Load the program as `aten_graph.Program`, float32.

    Raises BadInput for a damaged archive, operators that are not on the list, training mode;
    NotPossible for the archive format of torch before 2.8.
    """
    require("torch", "Loading a torch.export program")
    from edgekit.checkpoint import aten_graph

    if not head.has(_MODEL):
        raise NotPossible(
            f"{head.path} is in the format of torch.export before torch 2.8.",
            hint="Load and save it once with torch 2.8 or newer, or export the model again.",
        )
    try:
        record = _json(head, _MODEL)
        signature = record["graph_module"]["signature"]["input_specs"]
        graph = aten_graph.read_graph(record["graph_module"]["graph"])
        bound, parameters, buffers = _bind(head, signature)
        module = aten_graph.Program(graph, bound, parameters, buffers)
        shape = _input_shape(record["graph_module"]["graph"], signature)
    except aten_graph.GraphError as error:
        raise BadInput(f"{head.path} is refused: {error}.", hint=_EXPORT_HINT) from error
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{head.path} is damaged: its graph lacks {error}.", hint=_EXPORT_HINT
        ) from error
    made = ready(module, head.path, options.dtype)
    if len(module._inputs) == 1 and shape is not None:
        check_forward(made.module, shape, head.path, one_tensor=False)
    return Checkpoint(
        path=head.path,
        sha256="",
        kind="exported_program",
        module=made.module,
        input_shape=shape,
        parameters=made.parameters,
        notes=made.notes,
    )


def _json(head: Sniff, record: str) -> Any:
    try:
        return json.loads(head.record(record))
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{head.path} is damaged: {record} is no JSON ({error}).", hint=_EXPORT_HINT
        ) from error


def _bind(head: Sniff, signature: Any) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """Names of graph inputs → names of tensors, and the tensors: parameters and buffers."""
    from edgekit.checkpoint.aten_graph import GraphError

    weights = _json(head, _WEIGHTS + "model_weights_config.json")["config"]
    constants = _json(head, _CONSTANTS + "model_constants_config.json")["config"]
    bound: dict[str, str] = {}
    parameters: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    for spec in signature:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            continue
        if kind == "parameter":
            name = value["parameter_name"]
            parameters[name] = _tensor(head, _WEIGHTS, weights, name)
        elif kind == "buffer":
            name = value["buffer_name"]
            table, folder = (weights, _WEIGHTS) if name in weights else (constants, _CONSTANTS)
            buffers[name] = _tensor(head, folder, table, name)
        elif kind == "tensor_constant":
            name = value["tensor_constant_name"]
            buffers[name] = _tensor(head, _CONSTANTS, constants, name)
        else:
            raise GraphError(f"an input of kind {kind}")
        bound[value["arg"]["name"]] = name
    return bound, parameters, buffers


def _tensor(head: Sniff, folder: str, table: Mapping[str, Any], name: str) -> Any:
    """The tensor `name` from its raw record; its geometry is held against the record's size."""
    import torch

    entry = table[name]
    if entry.get("use_pickle"):
        raise BadInput(
            f"{head.path} is refused: the tensor '{name}' is pickled inside of the archive.",
            hint="Export the model with plain dense tensors.",
        )
    meta = entry["tensor_meta"]
    kind = _DTYPES.get(meta["dtype"])
    if kind is None:
        raise BadInput(f"{head.path}: the tensor '{name}' has an unknown type.")
    dtype = getattr(torch, kind)
    sizes = [_int(size) for size in meta["sizes"]]
    strides = [_int(stride) for stride in meta["strides"]]
    offset = _int(meta["storage_offset"])
    record = f"{head.folder}{folder}{entry['path_name']}"
    if record not in head.members:
        raise _damaged(head, name)
    data = head.member(record)
    elements = len(data) // dtype.itemsize
    fits = len(sizes) == len(strides) and min([0, offset, *sizes, *strides]) >= 0
    if not fits or math.prod(sizes) > max(elements, 1 << 24):
        raise _damaged(head, name)
    if math.prod(sizes) == 0:
        return torch.zeros(sizes, dtype=dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= elements:
        raise _damaged(head, name)
    flat = torch.frombuffer(bytearray(data[: elements * dtype.itemsize]), dtype=dtype)
    return flat.as_strided(sizes, strides, offset).clone()


def _damaged(head: Sniff, name: str) -> EdgekitError:
    return BadInput(
        f"{head.path} is damaged: the data of '{name}' does not fit its shape.", hint=_EXPORT_HINT
    )


def _int(value: Any) -> int:
    found = value["as_int"]
    if not isinstance(found, int) or isinstance(found, bool) or abs(found) >= 1 << 48:
        raise TypeError("a size")
    return found


def _input_shape(graph: Mapping[str, Any], signature: Any) -> tuple[int, ...] | None:
    """Shape of the one user input; a free first axis counts as 1, other free axes as unknown."""
    inputs = [spec["user_input"]["arg"] for spec in signature if "user_input" in spec]
    if len(inputs) != 1 or "as_tensor" not in inputs[0]:
        return None
    sizes = graph["tensor_values"][inputs[0]["as_tensor"]["name"]]["sizes"]
    shape: list[int] = []
    for axis, size in enumerate(sizes):
        value = size.get("as_int", 1 if axis == 0 else None)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 1 << 16:
            return None
        shape.append(value)
    return tuple(shape)
