"""A tensor as plain bytes, so that nothing but the standard library is needed to carry one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Union

Buffer = Union[bytes, bytearray, memoryview]

ITEM_BYTES: dict[str, int] = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}
"""Every dtype that a tensor may have, and the bytes of one value."""


@dataclass(frozen=True)
class Tensor:
    """`shape`, the dtype's name ("float32", see ITEM_BYTES), and the values: little-endian, C order.

    `data` is anything bytes-like, of count(shape) * itemsize bytes. Raises ValueError otherwise.
    """

    shape: tuple[int, ...]
    dtype: str
    data: Buffer

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"a tensor cannot be {self.dtype!r}")
        wanted = count(self.shape) * ITEM_BYTES[self.dtype]
        if memoryview(self.data).nbytes != wanted:
            found = memoryview(self.data).nbytes
            raise ValueError(
                f"{list(self.shape)} {self.dtype} takes {wanted} bytes, there are {found}"
            )

    @property
    def size(self) -> int:
        """The number of values."""
        return count(self.shape)


def count(shape: Sequence[int]) -> int:
    """The number of values in `shape`; 1 for a scalar's empty shape."""
    product = 1
    for size in shape:
        product *= size
    return product
