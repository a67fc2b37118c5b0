"""Reading what an ONNX file says about itself, and writing ONNX files whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.atomic import replacing, sha256_file
from edgekit.errors import BadInput, NotPossible
from edgekit.preprocess import METADATA_KEY, Preprocess
from edgekit.types import OnnxModel, TensorSpec

if TYPE_CHECKING:
    import onnx

TASK_KEY = "edgekit.task"
HEAD_KEY = "edgekit.head"
NAMES_KEY = "edgekit.names"

# protobuf refuses messages of 2 GiB and more; edge models stay far below
_LIMIT = 2**31 - 1


def load(path: Path, *, external_data: bool = True) -> onnx.ModelProto:
    """Parse an ONNX file, with its external data or without. Raises BadInput when it is not one."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=external_data)
    except FileNotFoundError as error:
        raise BadInput(
            f"The model {path} does not exist, or its external data does not."
        ) from error
    except DecodeError as error:
        raise BadInput(
            f"{path} is not an ONNX model: {error}.", hint="Give an .onnx file, or export again."
        ) from error
    except (OSError, onnx.checker.ValidationError) as error:
        raise BadInput(f"{path} cannot be read: {error}.") from error


def _spec(value: Any) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape: tuple[int | str, ...] = tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?")
        for dim in tensor.shape.dim
    )
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        dtype = f"type {tensor.elem_type}"
    return TensorSpec(name=value.name, shape=shape, dtype=dtype)


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise BadInput("The model names no default operator set.")
    return int(max(versions))


def _elements(dims: Any) -> int:
    count = 1
    for size in dims:
        count *= size
    return count


def describe(path: Path, model: onnx.ModelProto | None = None) -> OnnxModel:
    """Read `path` (or use `model`, already parsed from it) into an `OnnxModel`.

    `parameters` counts the elements of floating and integer weights of rank 1 and more, so that
    scalar constants (an epsilon, a shape) do not count.
    """
    path = Path(path)
    parsed = load(path) if model is None else model
    initializers = {item.name for item in parsed.graph.initializer}
    return OnnxModel(
        path=path,
        sha256=sha256_file(path),
        inputs=tuple(_spec(v) for v in parsed.graph.input if v.name not in initializers),
        outputs=tuple(_spec(v) for v in parsed.graph.output),
        opset=opset_of(parsed),
        metadata={entry.key: entry.value for entry in parsed.metadata_props},
        size_bytes=path.stat().st_size,
        parameters=sum(_elements(item.dims) for item in parsed.graph.initializer if item.dims),
    )


def save(model: onnx.ModelProto, path: Path) -> OnnxModel:
    """Write `model` to `path` as one file, atomically, and describe it.

    Serialized deterministically, so that equal models give equal bytes and equal hashes.
    """
    if model.ByteSize() > _LIMIT:
        raise NotPossible("A model of 2 GiB or more does not fit into one ONNX file.")
    data = model.SerializeToString(deterministic=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return describe(path, model)


def set_metadata(model: onnx.ModelProto, entries: dict[str, str]) -> None:
    """Set metadata entries, replacing those of the same key; sorted, so that bytes are stable."""
    merged = {entry.key: entry.value for entry in model.metadata_props}
    merged.update(entries)
    del model.metadata_props[:]
    for key in sorted(merged):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, merged[key]


def contract_metadata(
    contract: Preprocess, task: str | None, head: str | None, names: tuple[str, ...]
) -> dict[str, str]:
    """The metadata entries that carry the preprocessing contract and the model's meaning."""
    entries = {METADATA_KEY: contract.to_json()}
    if task:
        entries[TASK_KEY] = task
    if head:
        entries[HEAD_KEY] = head
    if names:
        entries[NAMES_KEY] = json.dumps(list(names), ensure_ascii=False)
    return entries


def read_contract(model: OnnxModel) -> Preprocess | None:
    """The contract in the model's metadata, None when it carries none."""
    text = model.metadata.get(METADATA_KEY)
    return Preprocess.from_json(text, f"{model.path.name}: {METADATA_KEY}") if text else None


def read_names(model: OnnxModel) -> tuple[str, ...]:
    """Class names in the model's metadata, () when it carries none."""
    try:
        names = json.loads(model.metadata.get(NAMES_KEY, "[]"))
    except ValueError as error:
        raise BadInput(f"{model.path}: metadata {NAMES_KEY} is not a JSON list.") from error
    return tuple(str(name) for name in names)


def main_input(model: OnnxModel) -> TensorSpec:
    """The one image input. Raises NotPossible for models with several inputs."""
    if len(model.inputs) != 1:
        raise NotPossible(
            f"{model.path.name} has {len(model.inputs)} inputs; edgekit takes models with one image input."
        )
    return model.inputs[0]
