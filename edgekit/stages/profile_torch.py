"""Time per module and per operator of a torch checkpoint, by torch's own profiler."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import atomic
from edgekit.require import require
from edgekit.stages.profile import Profile, assemble
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WARMUP = 3
_RUN = "edgekit.run"
_LAYER = "edgekit.layer."


def run(
    module: Any,
    feeds: Sequence[NDArray[Any]],
    *,
    runs: int = 20,
    threads: int = 1,
    trace: Path | None = None,
    progress: Progress = no_progress,
) -> Profile:
    """Profile `module` on `feeds`, taken in turns; `trace` gets the runs as a Chrome trace.

    A layer is a module without modules inside it; what is computed between layers (additions,
    concatenations) shows in the operators only. Operator times are without those they call.
    """
    torch = require("torch", "Profiling a checkpoint")
    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(feed.copy()) for feed in feeds]
    profiler = torch.profiler
    with (
        torch.inference_mode(),
        _named_layers(torch, module) as kinds,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for number in range(_WARMUP):
            module(tensors[number % len(tensors)])
        with profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as found:
            for number in range(runs):
                progress(number, runs, "profiling")
                with profiler.record_function(_RUN):
                    module(tensors[number % len(tensors)])
    if trace is not None:
        with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
            file = Path(folder) / "trace.json"
            found.export_chrome_trace(str(file))
            atomic.write_bytes(trace, file.read_bytes())
    samples: dict[str, list[float]] = defaultdict(list)
    whole: list[float] = []
    operators: dict[str, tuple[int, float]] = {}
    for event in found.events():
        if event.name == _RUN:
            whole.append(event.cpu_time_total / 1e3)
        elif event.name.startswith(_LAYER):
            samples[event.name.removeprefix(_LAYER)].append(event.cpu_time_total / 1e3)
        elif event.name.startswith("aten::"):
            count, ms = operators.get(event.name, (0, 0.0))
            operators[event.name] = (count + 1, ms + event.self_cpu_time_total / 1e3)
    layers = []
    for name, kind in kinds.items():
        times = samples.get(name)
        if times:
            # a module that is called several times a run counts with all its calls
            calls = max(1, round(len(times) / runs))
            layers.append((name, kind, statistics.median(times) * calls, ()))
    per_run = {
        name: (max(1, round(count / runs)), ms / runs) for name, (count, ms) in operators.items()
    }
    total = statistics.median(whole) if whole else None
    return assemble("torch", layers, runs, threads, total, per_run)


@contextlib.contextmanager
def _named_layers(torch: Any, module: Any) -> Iterator[dict[str, str]]:
    """Give every leaf module a named range in the profile; yields name → class name."""
    kinds: dict[str, str] = {}
    handles: list[Any] = []
    try:
        # the modules inside a compiled or scripted one cannot be told apart
        if not isinstance(module, torch.jit.ScriptModule):
            for name, layer in module.named_modules():
                if name and next(layer.children(), None) is None:
                    kinds[name] = type(layer).__name__
                    handles += _hooks(torch, layer, _LAYER + name)
        yield kinds
    finally:
        for handle in handles:
            handle.remove()


def _hooks(torch: Any, layer: Any, label: str) -> list[Any]:
    open_ranges: list[Any] = []

    def before(*_: Any) -> None:
        scope = torch.profiler.record_function(label)
        scope.__enter__()
        open_ranges.append(scope)

    def after(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
