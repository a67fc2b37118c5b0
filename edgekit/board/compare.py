"""Comparing outputs with golden ones, block by block (docs/bundle.md), with numpy or without.

Per block of reference r and candidate c, over all samples:

    cosine        = sum(r c) / sqrt(sum(r^2) sum(c^2)); 1 when both are equal, 0 when one is all zero
    max_rel_error = max |r - c| / max |r|; infinite when the reference is all zero and c is not

Columns (classes, coordinates) that vary in the reference and stand still in the candidate break the
block, however small they are beside the others.
"""

from __future__ import annotations

import array
import itertools
import math
import operator
import struct
import sys
from dataclasses import dataclass, field
from typing import Any, Iterator, Mapping, Sequence

from edgekit.board.errors import VerificationFailed
from edgekit.board.manifest import Block, Limits
from edgekit.board.tensor import Tensor, count

_COLUMN_MIN_SIZE = 16
_COLLAPSED_RANGE = 0.01
_SIGNIFICANT_RANGE = 0.2
_CODES = {"float64": "d", "uint8": "B", "int8": "b", "int16": "h", "int32": "i", "int64": "q"}


@dataclass(frozen=True)
class BlockResult:
    """How near one block came."""

    name: str
    cosine: float
    max_abs_error: float
    max_rel_error: float

    def problem(self, limits: Limits) -> str | None:
        """How it breaks `limits`; None when it keeps them. A nan breaks every limit."""
        if not self.max_rel_error <= limits.max_rel_error:
            return f"max_rel_error {self.max_rel_error:.3g} (limit {limits.max_rel_error:g})"
        if not self.cosine >= limits.min_cosine:
            return f"cosine {self.cosine:.4f} (at least {limits.min_cosine:g})"
        return None


def floats(tensor: Tensor) -> array.array[float]:
    """The values of any tensor as float32."""
    if tensor.dtype == "float32":
        values = array.array("f")
        values.frombytes(bytes(tensor.data))
        if sys.byteorder == "big":
            values.byteswap()
        return values
    if tensor.dtype == "float16":
        return array.array("f", struct.unpack(f"<{tensor.size}e", bytes(tensor.data)))
    raw = array.array(_CODES.get(tensor.dtype, "B"))
    raw.frombytes(bytes(tensor.data))
    if sys.byteorder == "big":
        raw.byteswap()
    return array.array("f", raw)


@dataclass
class _Sums:
    reference: float = 0.0
    candidate: float = 0.0
    product: float = 0.0
    error: float = 0.0
    max_error: float = 0.0
    max_reference: float = 0.0
    # column → low and high of the reference, low and high of the candidate
    columns: dict[int, list[float]] = field(default_factory=dict)

    def column(self, index: int, r: Sequence[float], c: Sequence[float]) -> None:
        ends = self.columns.setdefault(index, [math.inf, -math.inf, math.inf, -math.inf])
        ends[0], ends[1] = min(ends[0], min(r)), max(ends[1], max(r))
        ends[2], ends[3] = min(ends[2], min(c)), max(ends[3], max(c))

    def add(self, r: Sequence[float], c: Sequence[float]) -> None:
        differences = list(map(operator.sub, r, c))
        self.reference += sum(map(operator.mul, r, r))
        self.candidate += sum(map(operator.mul, c, c))
        self.product += sum(map(operator.mul, r, c))
        self.error += sum(map(operator.mul, differences, differences))
        self.max_error = max(self.max_error, max(map(abs, differences)))
        self.max_reference = max(self.max_reference, max(map(abs, r)))

    def results(self, name: str) -> list[BlockResult]:
        if self.error == 0.0:
            found = [BlockResult(name, 1.0, 0.0, 0.0)]
        else:
            norm = math.sqrt(self.reference) * math.sqrt(self.candidate)
            cosine = max(-1.0, min(1.0, self.product / norm)) if norm else 0.0
            relative = self.max_error / self.max_reference if self.max_reference else math.inf
            found = [BlockResult(name, cosine, self.max_error, relative)]
        alive = _SIGNIFICANT_RANGE * self.max_reference
        collapsed = [
            index
            for index, (low, high, found_low, found_high) in sorted(self.columns.items())
            if high - low > alive and found_high - found_low < _COLLAPSED_RANGE * (high - low)
        ]
        if collapsed:
            shown = ", ".join(map(str, collapsed[:5])) + (" …" if collapsed[5:] else "")
            found.append(BlockResult(f"{name} column {shown} (constant)", 0.0, self.max_error, 1.0))
        return found


class Comparison:
    """Compares samples one after the other; `use_numpy` None takes numpy where it is there."""

    def __init__(self, blocks: Sequence[Block], use_numpy: bool | None = None) -> None:
        self._blocks = tuple(blocks)
        self._sums = [_Sums() for _ in self._blocks]
        self._numpy: Any = None
        if use_numpy is not False:
            try:
                import numpy

                self._numpy = numpy
            except ImportError:
                if use_numpy:
                    raise

    def add(self, reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> None:
        """Add one sample. Raises VerificationFailed for a missing output, another shape, nan, inf."""
        checked = {}
        for name in dict.fromkeys(block.output for block in self._blocks):
            checked[name] = _checked(name, reference, candidate)
        for block, sums in zip(self._blocks, self._sums):
            shape = reference[block.output].shape
            indices = _indices(block, shape)
            if all(indices) or not shape:
                one, other = checked[block.output]
                if self._numpy is not None:
                    _add_numpy(self._numpy, sums, one, other, shape, indices)
                else:
                    _add(sums, one, other, shape, indices)

    def results(self) -> list[BlockResult]:
        """One result a block, and one more for a block with columns that stand still."""
        return [
            result
            for block, sums in zip(self._blocks, self._sums)
            for result in sums.results(block.name)
        ]


def _checked(
    name: str, reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]
) -> tuple[array.array[float], array.array[float]]:
    if name not in reference:
        raise VerificationFailed(f"There is no golden output '{name}'.")
    if name not in candidate:
        has = ", ".join(candidate) or "none"
        raise VerificationFailed(f"The model has no output '{name}'; it has: {has}.")
    wanted, found = list(reference[name].shape), list(candidate[name].shape)
    if wanted != found:
        raise VerificationFailed(f"Output '{name}' has the shape {found} instead of {wanted}.")
    one, other = floats(reference[name]), floats(candidate[name])
    for values, whose in ((one, "golden"), (other, "model's")):
        # a sum is finite unless a value is not (or values are beyond all reason)
        if not math.isfinite(sum(values)):
            bad = sum(1 for value in values if not math.isfinite(value))
            if bad:
                raise VerificationFailed(
                    f"The {whose} output '{name}' holds nan or inf ({bad} of {len(values)} values)."
                )
    return one, other


def _indices(block: Block, shape: Sequence[int]) -> list[list[int]]:
    """For each axis the indices that the block takes."""
    if len(block.axes) > len(shape):
        raise VerificationFailed(
            f"block {block.name} needs {len(block.axes)} axes, not {len(shape)}"
        )
    chosen = []
    for axis, size in enumerate(shape):
        spans = block.axes[axis] if axis < len(block.axes) else ()
        for start, stop, step in spans:
            if not 0 <= start < stop <= size or step < 1:
                raise VerificationFailed(f"block {block.name} does not fit the shape {list(shape)}")
        if spans:
            chosen.append([index for span in spans for index in range(*span)])
        else:
            chosen.append(list(range(size)))
    return chosen


def _column_axis(sizes: Sequence[int]) -> int | None:
    """The shortest axis behind the batch axis; None where its columns hold too little."""
    axes = [axis for axis in range(1, len(sizes)) if sizes[axis] > 1]
    if not axes:
        return None
    axis = min(axes, key=lambda axis: sizes[axis])
    return axis if count(sizes) // sizes[axis] >= _COLUMN_MIN_SIZE else None


def _rows(
    values: array.array[float], shape: Sequence[int], indices: Sequence[Sequence[int]]
) -> Iterator[array.array[float]]:
    """The block's values, one row of the last axis after the other."""
    strides = [count(shape[axis + 1 :]) for axis in range(len(shape))]
    last = indices[-1]
    step = last[1] - last[0] if len(last) > 1 else 1
    regular = list(last) == list(range(last[0], last[0] + step * len(last), step))
    for place in itertools.product(*indices[:-1]):
        base = sum(index * stride for index, stride in zip(place, strides))
        if regular:
            yield values[base + last[0] : base + last[-1] + 1 : step]
        else:
            yield array.array("f", [values[base + index] for index in last])


def _add(
    sums: _Sums,
    reference: array.array[float],
    candidate: array.array[float],
    shape: Sequence[int],
    indices: Sequence[Sequence[int]],
) -> None:
    if not shape:
        sums.add(reference, candidate)
        return
    sizes = [len(chosen) for chosen in indices]
    axis = _column_axis(sizes)
    places = itertools.product(*(range(size) for size in sizes[:-1]))
    rows = zip(_rows(reference, shape, indices), _rows(candidate, shape, indices))
    kept: list[tuple[array.array[float], array.array[float]]] = []
    for place, (r, c) in zip(places, rows):
        sums.add(r, c)
        if axis is not None and axis < len(shape) - 1:
            sums.column(place[axis], r, c)
        elif axis is not None:
            kept.append((r, c))
    if kept:
        for index, (one, other) in enumerate(
            zip(zip(*(r for r, _ in kept)), zip(*(c for _, c in kept)))
        ):
            sums.column(index, one, other)


def _add_numpy(
    numpy: Any,
    sums: _Sums,
    reference: array.array[float],
    candidate: array.array[float],
    shape: Sequence[int],
    indices: Sequence[Sequence[int]],
) -> None:
    r, c = (
        numpy.frombuffer(values, dtype=numpy.float32).reshape(shape).astype(numpy.float64)
        for values in (reference, candidate)
    )
    if shape:
        r, c = r[numpy.ix_(*indices)], c[numpy.ix_(*indices)]
    difference = r - c
    sums.reference += float(numpy.vdot(r, r))
    sums.candidate += float(numpy.vdot(c, c))
    sums.product += float(numpy.vdot(r, c))
    sums.error += float(numpy.vdot(difference, difference))
    sums.max_error = max(sums.max_error, float(abs(difference).max()))
    sums.max_reference = max(sums.max_reference, float(abs(r).max()))
    axis = _column_axis(r.shape)
    if axis is None:
        return
    others = tuple(other for other in range(r.ndim) if other != axis)
    ends = (r.min(others), r.max(others), c.min(others), c.max(others))
    for index, (low, high, found_low, found_high) in enumerate(
        zip(*(end.tolist() for end in ends))
    ):
        sums.column(index, (low, high), (found_low, found_high))
