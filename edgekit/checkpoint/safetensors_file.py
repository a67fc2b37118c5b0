"""safetensors: a JSON header and raw tensors, with `--arch` for the network.

Format (https://github.com/huggingface/safetensors, section Format): 8 bytes little-endian length N,
N bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {text: text}}, then
the bytes that the offsets count from. Read here directly: it needs no package, and every size is
held against the file's.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint.sniff import Sniff
from edgekit.checkpoint.state_dict import demand_arch, from_mapping
from edgekit.errors import BadInput
from edgekit.require import require
from edgekit.types import Checkpoint

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions

_MAX_HEADER = 100_000_000  # the format's own limit
# dtype of the format → (name in torch, bytes)
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}


def sniff(head: Sniff) -> bool:
    named = head.path.suffix.lower() == ".safetensors"
    length = int.from_bytes(head.head[:8], "little")
    opens = len(head.head) > 9 and head.head[8:9] == b"{" and length + 8 <= head.size
    return (named and not head.is_zip) or (opens and b'"' in head.head[9:64])


def load(head: Sniff, options: LoadOptions) -> Checkpoint:
    """Read the tensors and fill the architecture. Raises BadInput for a header that does not hold."""
    demand_arch(head, options)
    require("torch", f"Loading {head.path.name}")
    header, start = _header(head)
    metadata = header.pop("__metadata__", {})
    tensors = _tensors(head, header, start)
    found: dict[Any, Any] = {"state_dict": tensors, **_described(metadata)}
    return from_mapping(head, found, options, "safetensors")


def _described(metadata: Any) -> dict[str, Any]:
    """Metadata values are text; those that are JSON count as what they say."""
    fields: dict[str, Any] = {}
    for key, text in metadata.items() if isinstance(metadata, dict) else ():
        if key in ("input_shape", "imgsz", "preprocess", "names", "task", "head", "edgekit"):
            try:
                fields[key] = json.loads(text) if isinstance(text, str) else text
            except (ValueError, RecursionError):
                fields[key] = text
    return fields


def _damaged(head: Sniff, detail: str) -> BadInput:
    return BadInput(
        f"{head.path} is no intact safetensors file: {detail}.",
        hint="Copy or download the file again; compare its size with the original's.",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _header(head: Sniff) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(head.head[:8], "little")
    if length > _MAX_HEADER or length + 8 > head.size:
        raise _damaged(head, f"its header claims {length} bytes of {head.size}")
    with open(head.path, "rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(head, f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(head, "its header is no table")
    return header, 8 + length


def _tensors(head: Sniff, header: dict[str, Any], start: int) -> dict[str, Any]:
    """Tensors by name. Raises BadInput when ranges overlap, leave holes or miss their shapes."""
    import torch

    places = []
    for name, entry in header.items():
        try:
            kind, size = _DTYPES[entry["dtype"]]
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(
                head, f"the entry of '{name}' is incomplete or of unknown type"
            ) from error
        numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise _damaged(head, f"'{name}' has an impossible shape")
        if len(shape) > 32 or end - begin != math.prod(shape) * size:
            raise _damaged(head, f"the data of '{name}' does not fit its shape {shape[:8]}")
        places.append((begin, end, name, kind, shape))
    places.sort(key=lambda place: place[:2])
    position = 0
    for begin, end, name, _, _ in places:
        if begin != position:
            raise _damaged(head, f"the data of '{name}' overlaps another's or leaves a hole")
        position = end
    if start + position != head.size:
        raise _damaged(head, f"it holds {head.size - start} bytes of data, not {position}")
    tensors: dict[str, Any] = {}
    with open(head.path, "rb") as file:
        for begin, end, name, kind, shape in places:
            dtype = getattr(torch, kind)
            if begin == end:
                tensors[name] = torch.zeros(shape, dtype=dtype)
                continue
            file.seek(start + begin)
            data = bytearray(file.read(end - begin))
            tensors[name] = torch.frombuffer(data, dtype=dtype).reshape(shape)
    return tensors
