"""Time per layer of a TensorRT engine, by TensorRT's own profiler, on the device that runs it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.runtimes import tensorrt
from edgekit.runtimes.base import SessionOptions
from edgekit.stages.profile import Profile, assemble
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WARMUP = 5


def run(
    files: Sequence[Path],
    tensors: Sequence[NDArray[Any]],
    *,
    runs: int = 20,
    progress: Progress = no_progress,
) -> Profile:
    """Profile the engine that belongs to `files` on `tensors`, taken in turns.

    A layer is what TensorRT made of one or more nodes; its name tells which. `total_ms` is the median
    of ordinary runs without copies, by the GPU's clock: the profiler keeps layers from overlapping, so
    their sum is a little more. Raises what opening the engine raises.
    """
    samples: dict[str, list[float]] = {}
    whole: list[float] = []
    with tensorrt.open(files, SessionOptions()) as session:
        name = session.inputs[0].name
        for number in range(_WARMUP + runs):
            progress(number, _WARMUP + runs, "profiling")
            session.prepare({name: tensors[number % len(tensors)]})
            ordinary = session.timings(1)["gpu_compute"][0]
            layers = session.layer_times()
            if number >= _WARMUP:
                whole.append(ordinary)
                for layer, ms in layers:
                    samples.setdefault(layer, []).append(ms)
    found = [(layer, "layer", statistics.median(ms), ()) for layer, ms in samples.items()]
    return assemble("tensorrt", found, runs, 1, statistics.median(whole))
