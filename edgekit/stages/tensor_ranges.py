"""The activations of a quantized model: how they are distributed, and the range each was given.

Ranges are read from the model itself (QuantizeLinear of each activation), distributions from the
calibration statistics of the same tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from edgekit.calibration.histogram import Histogram

_BARS = 96


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """One activation, per-tensor quantized.

    low, high: the values that the lowest and highest level stand for; scale: the step between two
    levels. minimum, maximum: what the calibration images gave. `bars` are (low, high, count) of equal
    stretches from minimum to maximum. `clipped_share` of the values lie outside the range;
    `sqnr_db` is the signal-to-noise ratio that rounding and clipping leave this tensor, from its
    distribution alone (the noise of earlier layers is not in it).
    """

    name: str
    low: float
    high: float
    scale: float
    minimum: float
    maximum: float
    bars: tuple[tuple[float, float, int], ...]
    clipped_share: float
    sqnr_db: float


def read(model: Path, calibration: Path) -> list[TensorRange]:
    """Every activation of the QDQ model that the statistics know, the lowest SQNR first.

    Raises BadInput for a damaged calibration file.
    """
    from edgekit.calibration import store

    statistics, _ = store.read(calibration)
    found = []
    for name, (scale, zero_point, low, high) in _quantizers(model).items():
        if name not in statistics.tensors:
            continue
        histogram = statistics.histogram(name)
        if not histogram.count or scale <= 0:
            continue
        found.append(
            _describe(
                name, histogram, scale, (low - zero_point) * scale, (high - zero_point) * scale
            )
        )
    return sorted(found, key=lambda tensor: tensor.sqnr_db)


def _quantizers(model: Path) -> dict[str, tuple[float, int, int, int]]:
    """Per activation: scale, zero point, lowest and highest level of its QuantizeLinear."""
    import numpy as np
    import onnx

    graph = onnx_file.load(model).graph
    constants = {item.name: item for item in graph.initializer}

    def value(name: str) -> NDArray[Any] | None:
        item: onnx.TensorProto | None = constants.get(name)
        return None if item is None else onnx.numpy_helper.to_array(item)

    found: dict[str, tuple[float, int, int, int]] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        scale = value(node.input[1])
        zero = value(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
            continue
        levels = np.iinfo(zero.dtype)
        found[node.input[0]] = (
            float(scale.reshape(())),
            int(zero.reshape(())),
            int(levels.min),
            int(levels.max),
        )
    return found


def _describe(
    name: str, histogram: Histogram, scale: float, low: float, high: float
) -> TensorRange:
    import numpy as np

    edges = histogram.edges()
    counts = histogram.counts.astype(np.float64)
    centers = (edges[:-1] + edges[1:]) / 2
    levels = np.rint(np.clip(centers, low, high) / scale) * scale
    signal = float(np.dot(counts, centers**2))
    # up to half a step beyond its ends a range still rounds, and does not clip
    inside = (centers >= low - scale / 2) & (centers <= high + scale / 2)
    noise = float(np.dot(counts, (centers - levels) ** 2))
    outside = float(counts[~inside].sum())
    sqnr_db = math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
    return TensorRange(
        name=name,
        low=low,
        high=high,
        scale=scale,
        minimum=histogram.minimum,
        maximum=histogram.maximum,
        bars=tuple(bars(histogram)),
        clipped_share=outside / histogram.count,
        sqnr_db=sqnr_db,
    )


def bars(histogram: Histogram, most: int = _BARS) -> list[tuple[float, float, int]]:
    """The histogram in at most `most` equal stretches of whole bins over the values that occur.

    (low, high, count) each; empty for an empty histogram.
    """
    import numpy as np

    edges, counts = histogram.edges(), histogram.counts
    used = np.flatnonzero(counts)
    if not used.size:
        return []
    first, last = int(used[0]), int(used[-1]) + 1
    step = max(1, -(-(last - first) // most))
    return [
        (
            float(edges[start]),
            float(edges[min(start + step, last)]),
            int(counts[start : min(start + step, last)].sum()),
        )
        for start in range(first, last, step)
    ]
