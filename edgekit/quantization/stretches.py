"""Stretches of layers: neighbours in the graph that work at one image size.

What INT8 gains depends on the image size (large and shallow layers move much and compute little), and
each border between INT8 and float costs a conversion, so stretches are what is worth timing in float.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from edgekit.quantization.macs import static_shape


def stretches(graph: Any, layers: Collection[str], most: int = 10) -> list[tuple[str, ...]]:
    """Split `layers` (names of compute nodes) into runs of one spatial size, in graph order.

    Layers on single pixels (squeeze and excite) belong to the run around them. At most `most` runs
    are returned, those that move the most values; a graph of one run has none.
    """
    runs: list[list[str]] = []
    moved: list[int] = []
    last: tuple[int, ...] | None = None
    for node in graph:
        if node.name not in layers:
            continue
        shape = static_shape(node.outputs[0])
        if shape is None:
            return []
        size = shape[2:]
        if not runs or (size != last and math.prod(size) > 1):
            runs.append([])
            moved.append(0)
            last = size
        runs[-1].append(node.name)
        moved[-1] += math.prod(shape)
    if len(runs) < 2:
        return []
    largest = sorted(range(len(runs)), key=lambda index: -moved[index])[:most]
    return [tuple(runs[index]) for index in sorted(largest)]
