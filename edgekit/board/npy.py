""".npy of version 1.0, little-endian, C order, without numpy: docs/bundle.md has the format."""

from __future__ import annotations

import re
from pathlib import Path

from edgekit.board.errors import BadInput
from edgekit.board.tensor import ITEM_BYTES, Tensor, count

_CODES = {
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "u1": "uint8",
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "i8": "int64",
    "b1": "bool",
}
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00.."
    rb"\{'descr': '([<|])(f2|f4|f8|u1|i1|i2|i4|i8|b1)', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,12}, ?)*(?:[0-9]{1,12})?)\), \} *\n",
    re.DOTALL,
)
_MAGIC = b"\x93NUMPY\x01\x00"
_ALIGNMENT = 64


def read_npy(path: Path) -> Tensor:
    """Read a .npy file as `npy_bytes` writes it. Raises BadInput for everything else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    header = _HEADER.match(data)
    if header is None or header.end() != 10 + int.from_bytes(data[8:10], "little"):
        raise BadInput(f"{path} is not a .npy file of version 1.0, little-endian and in C order.")
    dtype = _CODES[header[2].decode()]
    shape = tuple(int(size) for size in header[3].replace(b",", b" ").split())
    values = memoryview(data)[header.end() :]
    if count(shape) * ITEM_BYTES[dtype] != values.nbytes:
        raise BadInput(f"{path} does not hold the {list(shape)} values that its header names.")
    return Tensor(shape, dtype, values)


def npy_bytes(tensor: Tensor) -> bytes:
    """`tensor` as .npy, the same bytes as numpy writes."""
    code = next(code for code, dtype in _CODES.items() if dtype == tensor.dtype)
    order = "|" if ITEM_BYTES[tensor.dtype] == 1 else "<"
    shape = ", ".join(str(size) for size in tensor.shape) + ("," if len(tensor.shape) == 1 else "")
    header = f"{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({shape}), }}"
    spaces = -(len(_MAGIC) + 2 + len(header) + 1) % _ALIGNMENT
    text = header.encode() + b" " * spaces + b"\n"
    return _MAGIC + len(text).to_bytes(2, "little") + text + bytes(tensor.data)
