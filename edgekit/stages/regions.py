"""A set of array elements as few slices per axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.block import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def regions_of(mask: NDArray[np.bool_], limit: int = 512) -> list[tuple[tuple[Span, ...], ...]]:
    """Split a mask into parts that are products of index sets, one set per axis.

    A part is a tuple of spans per axis, () where it takes the whole axis, as in `Block.axes`. At
    most about `limit` parts are worked out.
    """
    import numpy as np

    indices = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        indices.append(np.flatnonzero(mask.any(axis=others)))
    if int(mask.sum()) == int(np.prod([len(index) for index in indices], dtype=np.int64)):
        return [
            tuple(
                () if len(index) == size else _spans(index)
                for index, size in zip(indices, mask.shape, strict=True)
            )
        ]
    # group the indices of one axis by the pattern they show on the others, and go on in each
    best: list[NDArray[np.int64]] | None = None
    for axis, index in enumerate(indices):
        if len(index) < 2:
            continue
        rows = np.moveaxis(mask, axis, 0)[index].reshape(len(index), -1)
        _, group = np.unique(np.packbits(rows, axis=1), axis=0, return_inverse=True)
        groups = [index[group.reshape(-1) == number] for number in range(int(group.max()) + 1)]
        if len(groups) > 1 and (best is None or len(groups) < len(best)):
            best, best_axis = groups, axis
    if best is None:
        raise AssertionError("a mask that is neither a product nor can be split")
    regions = []
    for chosen in best:
        part = np.zeros_like(mask)
        place = [slice(None)] * best_axis + [chosen]
        part[tuple(place)] = mask[tuple(place)]
        regions.extend(regions_of(part, limit))
        if len(regions) > limit:
            break
    return regions


def _spans(index: NDArray[np.int64]) -> tuple[Span, ...]:
    """Sorted indices as few slices: (start, stop, step)."""
    spans: list[Span] = []
    values = [int(value) for value in index]
    start = 0
    while start < len(values):
        if start + 1 == len(values):
            spans.append((values[start], values[start] + 1, 1))
            break
        step = values[start + 1] - values[start]
        end = start + 1
        while end + 1 < len(values) and values[end + 1] - values[end] == step:
            end += 1
        spans.append((values[start], values[end] + 1, step))
        start = end + 1
    return tuple(spans)
