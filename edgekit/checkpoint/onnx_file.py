"""ONNX: checked where it lies, never run, never through torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.checkpoint.described import HEADS, TASKS, names_of
from edgekit.checkpoint.sniff import Sniff
from edgekit.errors import BadInput, EdgekitError
from edgekit.preprocess import Preprocess
from edgekit.types import Checkpoint, OnnxModel, TensorSpec

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions

# fields of ModelProto (onnx/onnx.proto) and their wire types: 0 varint, 2 length-delimited
_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH = 7
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu", "LSTM", "GRU")
_NO_PARAMETERS = ("INT64", "BOOL", "STRING", "UNDEFINED")  # shapes, indices, axes
_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")


def sniff(head: Sniff) -> bool:
    """Whether the top level reads as a ModelProto with a graph, or the name says so."""
    if head.is_zip or head.is_legacy_torch:
        return False
    return head.path.suffix.lower() == ".onnx" or _is_model_proto(head)


def _is_model_proto(head: Sniff) -> bool:
    """Walk the top level's fields by their lengths; reads a few bytes of each field only."""
    has_graph = False
    try:
        with open(head.path, "rb") as file:
            position = 0
            for _ in range(10_000):
                if position == head.size:
                    return has_graph
                file.seek(position)
                raw = file.read(20)
                tag, used = _varint(raw, 0)
                number, wire = tag >> 3, tag & 7
                if _FIELDS.get(number) != wire:
                    return False
                value, end = _varint(raw, used)
                position += end + (value if wire == 2 else 0)
                has_graph = has_graph or number == _GRAPH
                if position > head.size:
                    return False
    except (OSError, ValueError):
        return False
    return False


def _varint(data: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(start, min(len(data), start + 10)):
        value |= (data[index] & 0x7F) << shift
        if not data[index] & 0x80:
            return value, index + 1
        shift += 7
    raise ValueError("no varint")


def load(head: Sniff, options: LoadOptions) -> Checkpoint:
    """Check the file and say what it says of itself.

    Raises BadInput: no valid graph, external data outside of the model's folder or missing, NaN or
    infinity in the weights (named), more than one input.
    """
    model = _parse(head.path)
    tensors = list(_all_tensors(model.graph))
    _check_external(head.path, tensors)
    _check_graph(head.path, model)
    described = onnx_file.describe(head.path, model)
    source = _image_input(head.path, described.inputs)
    if not described.outputs:
        raise BadInput(f"{head.path} has no outputs.", hint="Export it again.")
    _check_values(head.path, tensors, _weights(model.graph))
    notes = _quantized_notes(model)
    metadata = described.metadata
    shape = _shape(source, metadata)
    return Checkpoint(
        path=head.path,
        sha256=described.sha256,
        kind="onnx",
        onnx=head.path,
        input_shape=shape,
        preprocess=_contract(described, shape),
        task=_task(metadata),
        head=_head(metadata, shape, described.outputs),
        names=_names(described),
        parameters=sum(
            _count(item)
            for item in model.graph.initializer
            if item.dims and _kind(item) not in _NO_PARAMETERS
        ),
        notes=notes,
    )


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"{path} is not a readable ONNX model: {error}.",
            hint="Copy or download the file again, or export it anew.",
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise BadInput(f"{path} holds no graph.", hint="Copy the file again, or export it anew.")
    return model


def _all_tensors(graph: Any, depth: int = 0) -> Iterator[Any]:
    """Every TensorProto: initializers and attributes, in subgraphs too."""
    if depth > 50:
        raise BadInput("The ONNX graph nests its subgraphs more than 50 deep.")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _all_tensors(attribute.g, depth + 1)
            for inner in attribute.graphs:
                yield from _all_tensors(inner, depth + 1)


def _check_external(path: Path, tensors: list[Any]) -> None:
    """External data may only lie in the model's own folder, and must be there whole."""
    folder = path.resolve().parent
    for tensor in tensors:
        if tensor.data_location != tensor.EXTERNAL and not tensor.external_data:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if not location or Path(location).is_absolute() or "\0" in location or "\\" in location:
            raise _outside(path, tensor.name, location)
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise _outside(path, tensor.name, location)
        if not file.is_file():
            raise BadInput(
                f"{path}: the file '{location}' with the data of '{tensor.name}' is missing.",
                hint="Copy it beside the model, or save the model as one file.",
            )
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
        except ValueError as error:
            raise BadInput(f"{path}: '{tensor.name}' has an unreadable place of data.") from error
        needed = length or _bytes(tensor)
        if offset < 0 or needed < 0 or offset + needed > file.stat().st_size:
            raise BadInput(
                f"{path}: '{location}' is shorter than the data of '{tensor.name}' needs.",
                hint="The copy was cut off; copy the file again.",
            )


def _outside(path: Path, name: str, location: str) -> BadInput:
    return BadInput(
        f"{path}: the data of '{name}' is said to lie at '{location}', outside of the model's folder.",
        hint="A model may only read files beside it. If the place is right, move the data there.",
    )


def _kind(tensor: Any) -> str:
    import onnx

    try:
        return str(onnx.TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return "UNDEFINED"


def _count(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= max(int(size), 0)
    return count


def _bytes(tensor: Any) -> int:
    import onnx

    try:
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError, ValueError):
        item = 1
    return _count(tensor) * int(item)


def _check_graph(path: Path, model: Any) -> None:
    import onnx

    try:
        if any(tensor.external_data for tensor in model.graph.initializer):
            onnx.checker.check_model(str(path))
        else:
            onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{path} is not a valid ONNX model: {first}",
            hint="Export it again; onnx.checker.check_model must accept it.",
        ) from error


def _image_input(path: Path, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(inputs) != 1:
        listed = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs) or "none"
        raise BadInput(
            f"{path} has {len(inputs)} inputs ({listed}); edgekit takes models of one image input."
        )
    return inputs[0]


def _weights(graph: Any) -> set[str]:
    """Names that layers with weights read: what must be finite."""
    return {name for node in graph.node if node.op_type in _LAYERS for name in node.input}


def _check_values(path: Path, tensors: list[Any], weights: set[str]) -> None:
    """Raises BadInput for NaN anywhere, infinity in a weight, and data that misses its shape.

    Infinities elsewhere have a meaning: limits of a Clip, attention masks.
    """
    import numpy as np
    import onnx

    for tensor in tensors:
        if _kind(tensor) == "UNDEFINED":
            raise BadInput(f"{path}: the tensor '{tensor.name}' has no known element type.")
        if _kind(tensor) not in _FLOATS:
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor, base_dir=str(path.resolve().parent))
        except (ValueError, TypeError, RuntimeError, OSError, IndexError) as error:
            raise BadInput(
                f"{path}: the data of '{tensor.name}' is unreadable: {error}."
            ) from error
        if values.size == 0:
            continue
        low, high = np.float64(np.min(values)), np.float64(np.max(values))
        finite = np.isfinite(low) and np.isfinite(high)
        if np.isnan(low) or (tensor.name in weights and not finite):
            bad = int(np.count_nonzero(~np.isfinite(values.astype(np.float64))))
            raise BadInput(
                f"{path}: the weight '{tensor.name}' holds {bad} values that are NaN or infinite, of "
                f"{values.size}.",
                hint="The training diverged or the file is damaged; use an earlier checkpoint.",
            )


def _quantized_notes(model: Any) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    notes = []
    pairs = counts.get("DequantizeLinear", 0)
    if pairs:
        notes.append(
            f"already quantized: {counts.get('QuantizeLinear', 0)} QuantizeLinear, {pairs} "
            "DequantizeLinear (QDQ)"
        )
    dynamic = {
        k: counts[k]
        for k in ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
        if k in counts
    }
    if dynamic:
        listed = ", ".join(f"{count} {kind}" for kind, count in dynamic.items())
        notes.append(f"dynamically quantized: {listed}")
    integer = sum(count for kind, count in counts.items() if kind.startswith("QLinear"))
    if integer:
        notes.append(f"already quantized: {integer} QLinear operators")
    return tuple(notes)


def _shape(source: TensorSpec, metadata: dict[str, str]) -> tuple[int, ...] | None:
    """The input's shape with a free batch as 1; free sides from Ultralytics' `imgsz`."""
    shape: list[int | str] = list(source.shape)
    if len(shape) == 4 and not isinstance(shape[0], int):
        shape[0] = 1
    sides = _literal(metadata.get("imgsz", ""))
    if len(shape) == 4 and isinstance(sides, (list, tuple)) and len(sides) == 2:
        for axis, side in zip((2, 3), sides, strict=True):
            if not isinstance(shape[axis], int) and isinstance(side, int) and side > 0:
                shape[axis] = side
    sizes = [size for size in shape if isinstance(size, int) and size > 0]
    return tuple(sizes) if sizes and len(sizes) == len(shape) else None


def _literal(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _from_ultralytics(metadata: dict[str, str]) -> bool:
    return "stride" in metadata and "task" in metadata and "imgsz" in metadata


def _contract(model: OnnxModel, shape: tuple[int, ...] | None) -> Preprocess | None:
    own, metadata = onnx_file.read_contract(model), model.metadata
    if own is not None:
        return own
    if not _from_ultralytics(metadata) or shape is None or len(shape) != 4 or shape[1] != 3:
        return None
    resize = "center_crop" if metadata["task"] == "classify" else "letterbox"
    try:
        return Preprocess(height=shape[2], width=shape[3], resize=resize)
    except EdgekitError:
        return None


def _task(metadata: dict[str, str]) -> str | None:
    task = metadata.get(onnx_file.TASK_KEY) or metadata.get("task")
    return task if task in TASKS else None


def _names(model: OnnxModel) -> tuple[str, ...]:
    return onnx_file.read_names(model) or names_of(_literal(model.metadata.get("names", "")))


def _head(
    metadata: dict[str, str], shape: tuple[int, ...] | None, outputs: tuple[TensorSpec, ...]
) -> str | None:
    own = metadata.get(onnx_file.HEAD_KEY)
    if own in HEADS:
        return own
    if not _from_ultralytics(metadata) or len(outputs) != 1:
        return None
    if metadata["task"] == "classify":
        return None  # Ultralytics' export ends in a softmax: no logits
    out = outputs[0].shape
    if metadata["task"] != "detect" or len(out) != 3:
        return None
    return "yolo26" if out[2] == 6 and isinstance(out[1], int) and out[1] <= 1000 else "yolov8"
