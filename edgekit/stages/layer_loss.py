"""What quantization costs at each tensor: its signal-to-noise ratio against the float model.

    sqnr_db = 10 log10(sum x^2 / sum (x - q)^2)

over all elements of the tensor x on all samples, q the same tensor of the quantized model. The noise
of everything before a tensor is in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.observe import ObservedModel
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

# tensors of either model held in memory at a time
_AT_ONCE = 32


def shared_tensors(reference: Path, candidate: Path) -> tuple[str, ...]:
    """Tensors that nodes of both graphs make under one name, in the candidate's order."""
    made = []
    for path in (reference, candidate):
        graph = onnx_file.load(path, external_data=False).graph
        made.append([name for node in graph.node for name in node.output if name])
    known = set(made[0])
    return tuple(name for name in made[1] if name in known)


def run(
    reference: Path,
    candidate: Path,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    threads: int = 1,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """SQNR in dB of every float tensor that both ONNX files make, in the candidate's order.

    inf where they are equal. Both run without their runtime's fusions, so that each tensor exists.
    Tensors of different shapes are left out.
    """
    names = shared_tensors(reference, candidate)
    found: dict[str, float] = {}
    options = SessionOptions(threads=threads, optimize=False)
    for start in range(0, len(names), _AT_ONCE):
        progress(start, len(names), "quantization loss")
        some = names[start : start + _AT_ONCE]
        with (
            ObservedModel(reference, some, options) as one,
            ObservedModel(candidate, some, options) as two,
        ):
            sums: dict[str, list[float]] = {}
            for feed in feeds:
                add_noise(one.run(feed), two.run(feed), sums)
        found.update({name: decibels(*pair) for name, pair in sums.items()})
    return found


def add_noise(
    reference: Mapping[str, NDArray[Any]],
    candidate: Mapping[str, NDArray[Any]],
    sums: dict[str, list[float]],
) -> None:
    """Add each tensor's sum of squares, and that of its difference, to `sums`: [signal, noise].

    Tensors that are missing, of another shape or not finite are left out.
    """
    import numpy as np

    for name, array in reference.items():
        other = candidate.get(name)
        if other is None or other.shape != array.shape:
            continue
        wide = array.astype(np.float64)
        noise = wide - other
        signal, error = float(np.vdot(wide, wide)), float(np.vdot(noise, noise))
        if not (math.isfinite(signal) and math.isfinite(error)):
            continue  # masks hold infinities on purpose
        pair = sums.setdefault(name, [0.0, 0.0])
        pair[0] += signal
        pair[1] += error


def decibels(signal: float, error: float) -> float:
    """SQNR in dB of two sums of squares."""
    if error == 0.0:
        return math.inf
    return 10 * math.log10(signal / error) if signal else -math.inf
