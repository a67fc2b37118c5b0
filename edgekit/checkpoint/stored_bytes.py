"""The sizes that a pickle claims, held against the bytes that its file has."""

from __future__ import annotations

import math
from typing import Any

from edgekit.checkpoint.pickle_tree import Call, Global, Persistent, PickleError
from edgekit.checkpoint.sniff import Sniff

# bytes of one element, by the names of torch's storage classes
ITEM_BYTES = {
    "UntypedStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "BoolStorage": 1,
    "ShortStorage": 2,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "IntStorage": 4,
    "FloatStorage": 4,
    "LongStorage": 8,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}


class StoredBytes:
    """How many bytes each storage really has in the file, to hold the pickle's claims against."""

    def __init__(self, file: Sniff, folder: str) -> None:
        self._file = file
        self._folder = folder
        self._left = 0 if file.is_zip else file.size - file.legacy_data_offset
        self._seen: dict[str, int] = {}

    def numel(self, node: Any) -> tuple[int, int]:
        """Elements and bytes per element of a storage."""
        if not isinstance(node, Persistent) or not isinstance(node.id, tuple) or len(node.id) < 5:
            raise PickleError("a tensor has no storage")
        kind, storage_type, key, _location, numel = node.id[:5]
        if kind not in ("storage", b"storage") or not isinstance(storage_type, Global):
            raise PickleError(f"a persistent id of kind {kind!r}")
        size = ITEM_BYTES.get(storage_type.name)
        if size is None or not is_count(numel) or not isinstance(key, (str, int)):
            raise PickleError("a storage of unknown type or size")
        if len(node.id) > 5 and node.id[5] is not None:
            view = node.id[5]
            if not (
                isinstance(view, tuple)
                and len(view) == 3
                and is_count(view[1])
                and is_count(view[2])
                and view[1] + view[2] <= numel
            ):
                raise PickleError("a view of a storage reaches outside of it")
            return view[2], size
        return numel, size

    def check(self, node: Persistent) -> None:
        """Raises PickleError when the storage claims more bytes than the file holds for it."""
        self.numel(node)
        storage_type, key, numel = node.id[1], str(node.id[2]), node.id[4]
        claimed = numel * ITEM_BYTES[storage_type.name]
        if self._file.is_zip:
            member = self._file.members.get(f"{self._file.folder}{self._folder}{key}")
            if member is None:
                raise PickleError(f"the data of storage {key} is missing")
            if claimed > member.size:
                raise PickleError(
                    f"storage {key} claims {claimed} bytes, the file holds {member.size}"
                )
        elif key not in self._seen:
            self._seen[key] = claimed
            self._left -= claimed + 8  # each is written after its length
            if self._left < 0:
                raise PickleError(f"the file ends before the data of storage {key}")
        elif self._seen[key] != claimed:
            raise PickleError(f"storage {key} has two sizes")

    def fits(self, offset: Any, size: Any, stride: Any, storage: Any) -> None:
        """Raises PickleError when a tensor reaches outside of its storage, or repeats it too often."""
        numel, item = self.numel(storage)
        sizes, strides = counts(size), counts(stride)
        if not is_count(offset) or len(sizes) != len(strides):
            raise PickleError("a tensor without a proper size, stride or offset")
        elements = math.prod(sizes)
        if elements:
            last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
            if last >= numel:
                raise PickleError(
                    f"a tensor of shape {list(sizes)} reaches outside of its storage of {numel}"
                )
        if elements * item > max(64 << 20, 4 * self._file.size):
            raise PickleError(
                f"a tensor of shape {list(sizes)} in a file of {self._file.size} bytes"
            )


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def counts(value: Any) -> tuple[int, ...]:
    if isinstance(value, Call) and value.path == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    # a list could still be changed after the tensor was made
    if not isinstance(value, tuple) or len(value) > 32:
        raise PickleError("a tensor without a proper shape")
    if not all(is_count(item) for item in value):
        raise PickleError("a tensor with a negative or meaningless shape")
    return value
