"""Time per layer of an ncnn model, by asking for one blob after the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import atomic
from edgekit.formats import ncnn_json
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.ncnn import NcnnSession
from edgekit.stages.profile import Profile, assemble
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WARMUP = 2


def run(
    model: Path,
    tensors: Sequence[NDArray[Any]],
    *,
    runs: int = 20,
    threads: int = 1,
    trace: Path | None = None,
    progress: Progress = no_progress,
) -> Profile:
    """Profile the ncnn model of the `model.json` on `tensors`, taken in turns.

    `trace`: where the runs go as a Chrome trace. `total_ms` is the median of ordinary runs, which are
    a little shorter than the layers' sum: layers that work in place need not copy there.
    """
    sidecar = ncnn_json.read(model)
    name = sidecar.inputs[0].name
    feeds = [{name: tensor} for tensor in tensors]
    options = SessionOptions(threads=threads)
    samples: list[list[tuple[str, str, tuple[str, ...], float]]] = []
    outputs = tuple(tensor.blob for tensor in sidecar.outputs)
    with NcnnSession(model, options, observe=outputs) as session:
        for number in range(_WARMUP + runs):
            progress(number, _WARMUP + runs, "profiling")
            found = session.layer_times(feeds[number % len(feeds)])
            if number >= _WARMUP:
                samples.append(found)
    if trace is not None:
        atomic.write_json(trace, {"traceEvents": trace_events(samples), "displayTimeUnit": "ms"})
    layers = [
        (name, kind, statistics.median(times[index][3] for times in samples), blobs)
        for index, (kind, name, blobs, _) in enumerate(samples[0])
        if kind != "Input"
    ]
    whole = []
    with NcnnSession(model, options) as session:
        for number in range(_WARMUP + runs):
            started = time.perf_counter_ns()
            session.run(feeds[number % len(feeds)])
            whole.append((time.perf_counter_ns() - started) / 1e6)
    return assemble("ncnn", layers, runs, threads, statistics.median(whole[_WARMUP:]))


def trace_events(
    samples: Sequence[Sequence[tuple[str, str, tuple[str, ...], float]]],
) -> list[dict[str, Any]]:
    """Complete events ("X", microseconds) of the layers of every run, one after the other.

    Format: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
    """
    events: list[dict[str, Any]] = []
    now_us = 0.0
    for number, run_times in enumerate(samples):
        started_us = now_us
        for kind, name, blobs, ms in run_times:
            event = {"name": name, "cat": "Node", "ph": "X", "pid": 1, "tid": 1}
            timing = {"ts": round(now_us, 3), "dur": round(ms * 1e3, 3)}
            events.append({**event, **timing, "args": {"op_name": kind, "outputs": list(blobs)}})
            now_us += ms * 1e3
        whole = {"name": f"run {number}", "cat": "Session", "ph": "X", "pid": 1, "tid": 1}
        duration = {"ts": round(started_us, 3), "dur": round(now_us - started_us, 3)}
        events.append({**whole, **duration, "args": {}})
    return events
