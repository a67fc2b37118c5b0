"""A model open in a timing process of its own: what to time, how, and what is known of it so far."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import NotPossible, UsageError
from edgekit.metrics.latency import settled, summary
from edgekit.stages.timing_inputs import batch_of, make_feeds, write_feeds
from edgekit.stages.timing_process import TimingProcess
from edgekit.types import LatencyReport, Progress

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions
    from edgekit.preprocess import Preprocess
    from edgekit.target import Measure

# a model's turn: long against the switch to it, short against what disturbs the machine
_TURN_S = 0.1
_REFILL_S = 0.01
_WARMUP_LIMIT_S = 5.0
_WARMUP_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class ModelToTime:
    """A model as `edgekit.stages.opening.open_session` takes it.

    `contract` shapes random inputs (and a checkpoint's), `inputs` is an .npy or .npz of real ones; see
    edgekit.stages.timing_inputs. `load` says how a checkpoint is loaded (runtime "torch"); `optimize`
    False runs the graph without the runtime's own optimizations.
    """

    name: str
    runtime: str
    files: tuple[Path, ...]
    contract: Preprocess | None = None
    inputs: Path | None = None
    load: LoadOptions | None = None
    optimize: bool = True


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How to measure.

    `runs`: timed runs (of each model); `seconds`: stop after that long, whichever comes first. With
    neither: 100 runs and at least 3 s, but no more than 30 s. `warmup`: untimed runs at least; more
    follow until their times stop changing (by 5 % from one tenth of a second to the next) or 5 s are
    over. `batch` None: the model's own, 1 where it is free. `affinity`: CPUs to pin to, () for
    none. `cooldown_s`: rest before anything runs. `timeout_s`: longest wait for one answer of the
    timing process, which is one turn of 0.1 s or one run.
    """

    runs: int | None = None
    seconds: float | None = None
    warmup: int = 10
    threads: int = 1
    batch: int | None = None
    affinity: tuple[int, ...] = ()
    cooldown_s: float = 0.0
    timeout_s: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("runs", "seconds", "threads", "batch", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} must be above 0, not {value}.")
        for name in ("warmup", "cooldown_s"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be negative.")

    @classmethod
    def from_profile(cls, measure: Measure) -> MeasureOptions:
        """The options that a target's [measure] section asks for."""
        return cls(
            runs=measure.iterations,
            warmup=measure.warmup,
            threads=measure.threads,
            cooldown_s=measure.cooldown_s,
        )


@dataclass
class Timed:
    """A model open in its process, and what is known of it so far."""

    model: ModelToTime
    process: TimingProcess
    batch: int
    inputs: str
    spinning: bool
    warmup: int = 0
    settled: bool = False
    p50_ms: float = 0.0
    cpu_start_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mb: float = math.nan
    blocks_ms: list[list[float]] = field(default_factory=list)
    device_ms: dict[str, float] = field(default_factory=dict)

    @property
    def refill_runs(self) -> int:
        """Untimed runs at the beginning of a turn."""
        return max(1, round(_REFILL_S * 1e3 / max(self.p50_ms, 1e-3)))

    @property
    def samples_ms(self) -> list[float]:
        return [sample for block in self.blocks_ms for sample in block]


@contextlib.contextmanager
def opened(model: ModelToTime, options: MeasureOptions, spinning: bool) -> Iterator[Timed]:
    _check_affinity(options.affinity)
    with TimingProcess(
        model.name,
        model.runtime,
        model.files,
        threads=options.threads,
        spinning=spinning,
        affinity=options.affinity,
        timeout_s=options.timeout_s,
        optimize=model.optimize,
        load=model.load,
        contract=model.contract,
    ) as process:
        batch = batch_of(process.inputs, options.batch, model.name)
        feeds = make_feeds(
            process.inputs,
            batch,
            contract=model.contract,
            file=model.inputs,
            name=model.name,
            seed=options.seed,
        )
        with tempfile.TemporaryDirectory(prefix="edgekit-timing-") as folder:
            file = Path(folder) / "feeds.npz"
            write_feeds(feeds, process.inputs, file)
            process.feed(file)
        del feeds
        yield Timed(
            model=model,
            process=process,
            batch=batch,
            inputs="given" if model.inputs else "random",
            spinning=spinning,
        )


def _check_affinity(affinity: tuple[int, ...]) -> None:
    if not affinity:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise NotPossible("This system cannot pin a process to CPUs.")
    available = os.sched_getaffinity(0)
    missing = sorted(set(affinity) - available)
    if missing:
        raise UsageError(
            f"--affinity names CPU {missing[0]}, which this process may not use.",
            hint=f"Available: {', '.join(map(str, sorted(available)))}",
        )


def warm_up(models: list[Timed], options: MeasureOptions, progress: Progress) -> None:
    """Run each model until its times stop changing, and learn about how long a run takes."""
    if options.cooldown_s:
        progress(0, 0, f"resting {options.cooldown_s:g} s")
        time.sleep(options.cooldown_s)
    for timed in models:
        progress(0, 0, f"warming up {timed.model.name}")
        started = time.monotonic()
        # the first run allocates, the second tells how long a turn must be
        last = timed.process.run(1, untimed=1)
        timed.warmup = 2
        while True:
            turn = timed.process.run(runs_per_turn(min(last)))
            timed.warmup += len(turn)
            timed.settled = settled(last, turn, _WARMUP_TOLERANCE)
            last = turn
            done = timed.warmup >= options.warmup and timed.settled
            if done or time.monotonic() - started >= _WARMUP_LIMIT_S:
                break
        timed.p50_ms = sorted(last)[len(last) // 2]


def runs_per_turn(run_ms: float) -> int:
    return max(1, round(_TURN_S * 1e3 / max(run_ms, 1e-3)))


def report(timed: Timed, options: MeasureOptions, load: float) -> LatencyReport:
    samples = timed.samples_ms
    figures = summary(samples)
    return LatencyReport(
        **figures,
        runs=len(samples),
        threads=options.threads,
        batch=timed.batch,
        throughput_fps=timed.batch * 1e3 / figures["mean_ms"],
        peak_rss_mb=timed.peak_rss_mb,
        load=load,
        runtime=timed.model.runtime,
        affinity=tuple(options.affinity),
        spinning=timed.spinning,
        warmup=timed.warmup,
        settled=timed.settled,
        inputs=timed.inputs,
        samples_ms=tuple(samples),
        device_ms=dict(timed.device_ms),
    )
