"""Time per layer and per kind of operator of an ONNX model, by ONNX Runtime's own profiler.

The optimizer renames, fuses and adds nodes. A node of the run is given back to the node of the file
whose name it still carries; what has none (reorderings of the layout) keeps the runtime's name. Times
are medians over the runs: one disturbed run changes nothing.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import atomic, onnx_file
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.onnxruntime import OnnxRuntimeSession
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WARMUP = 3
# what the optimizer appends to the name of the node it started from
_REST = re.compile(
    r"(_token_\d+|_nchwc|_nhwc|_output_\d+|_quant|_fused|/\w+Fusion/?|_\w+Fusion\w*)*"
)


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """One node of the run: median milliseconds, and its share of all layers' time.

    `name` is the node's in the file, `op_type` what the runtime ran ("QLinearConv" for a quantized
    Conv), `outputs` the tensors that the file's node makes. `sqnr_db` is the signal-to-noise ratio of
    its output against the float model's, None where it is not known.
    """

    name: str
    op_type: str
    ms: float
    share: float
    outputs: tuple[str, ...] = ()
    sqnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """All nodes of one operator type together."""

    op_type: str
    count: int
    ms: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of a run goes.

    `layers` in the order they run; `operators` the longest first; `total_ms` is the median of whole
    runs under the profiler, which is a little more than the layers' sum.
    """

    runtime: str
    runs: int
    threads: int
    total_ms: float
    layers: tuple[LayerTime, ...]
    operators: tuple[OperatorTime, ...]


def run(
    model: Path,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    runs: int = 20,
    threads: int = 1,
    trace: Path | None = None,
    progress: Progress = no_progress,
) -> Profile:
    """Profile an ONNX file on `feeds`, taken in turns; `trace` gets the runs as a Chrome trace.

    The trace opens in chrome://tracing and https://ui.perfetto.dev. Raises what opening and running
    the model raises.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
        options = SessionOptions(threads=threads, profile_prefix=str(Path(folder) / "trace"))
        with OnnxRuntimeSession(model, options) as session:
            for number in range(_WARMUP + runs):
                progress(number, _WARMUP + runs, "profiling")
                session.run(feeds[number % len(feeds)])
            data = session.end_profiling().read_bytes()
    events = json.loads(data)
    if trace is not None:
        atomic.write_bytes(trace, data)
    names = _names(model)
    samples: dict[str, list[float]] = defaultdict(list)
    labels: dict[str, tuple[str, str]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        key = str(event["args"].get("node_index", name))
        labels.setdefault(
            key, (name.removesuffix("_kernel_time"), event["args"].get("op_name", ""))
        )
        samples[key].append(event["dur"] / 1e3)
    whole = [event["dur"] / 1e3 for event in events if event.get("name") == "model_run"]
    times = {key: statistics.median(values[-runs:]) for key, values in samples.items()}
    layers = []
    for key, ms in times.items():
        label, op_type = labels[key]
        node = _origin(label, names)
        layers.append((node or label, op_type, ms, names.get(node or "", ())))
    return assemble(
        "onnxruntime", layers, runs, threads, statistics.median(whole[-runs:]) if whole else None
    )


def assemble(
    runtime: str,
    layers: Sequence[tuple[str, str, float, tuple[str, ...]]],
    runs: int,
    threads: int,
    total_ms: float | None = None,
    operators: Mapping[str, tuple[int, float]] | None = None,
) -> Profile:
    """A profile from (name, operator type, ms, outputs) of each layer, in running order.

    `operators` (count and ms by type) is summed from the layers where it is not given.
    """
    whole = sum(ms for _, _, ms, _ in layers) or 1e-9
    kinds: dict[str, tuple[int, float]] = dict(operators or {})
    if operators is None:
        for _, op_type, ms, _ in layers:
            count, before = kinds.get(op_type, (0, 0.0))
            kinds[op_type] = (count + 1, before + ms)
    all_kinds = sum(ms for _, ms in kinds.values()) or 1e-9
    return Profile(
        runtime=runtime,
        runs=runs,
        threads=threads,
        total_ms=whole if total_ms is None else total_ms,
        layers=tuple(
            LayerTime(name=name, op_type=op_type, ms=ms, share=ms / whole, outputs=outputs)
            for name, op_type, ms, outputs in layers
        ),
        operators=tuple(
            OperatorTime(op_type=op_type, count=count, ms=ms, share=ms / all_kinds)
            for op_type, (count, ms) in sorted(kinds.items(), key=lambda item: -item[1][1])
        ),
    )


def _names(model: Path) -> dict[str, tuple[str, ...]]:
    """Node names of the file with their outputs."""
    graph = onnx_file.load(model, external_data=False).graph
    return {node.name: tuple(node.output) for node in graph.node if node.name}


def _origin(label: str, names: Mapping[str, tuple[str, ...]]) -> str | None:
    """The node of the file that the runtime's node `label` was made of; None when it shows none."""
    for end in range(len(label), 0, -1):
        if label[:end] in names and _REST.fullmatch(label, end):
            return label[:end]
    return None
