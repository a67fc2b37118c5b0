"""Latency of a model on this machine, and of two models against each other in one run.

Each model runs in a process of its own (its peak memory is then its own, and a crash costs only that
process). What is timed is one call of the runtime, from input arrays in memory to output arrays in
memory, on one thread of Python.

Two models take turns in blocks, A B B A and B A A B by turns and as many of the one as of the other,
one computing while the other sleeps: slow drifts and disturbances hit both alike, and neither has the
better place. The first hundredth of a second of a turn (one run at least), which finds the caches full
of the other's data, is not timed. With more than one thread the runtimes' pools do not
spin (`SessionOptions.spinning` False), because a pool that waits busily slows down the other model.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import NotPossible, UsageError
from edgekit.metrics.latency import settled, speed_up, summary
from edgekit.stages.machine_load import LoadMeter
from edgekit.stages.timing_inputs import batch_of, make_feeds, write_feeds
from edgekit.stages.timing_process import TimingProcess
from edgekit.types import LatencyReport, Progress, SpeedUp, no_progress

if TYPE_CHECKING:
    from edgekit.preprocess import Preprocess
    from edgekit.target import Measure

# without --runs and --seconds: enough runs for a p99, and long enough to see slow changes
_ENOUGH_RUNS = 100
_ENOUGH_S = 3.0
_TOO_LONG_S = 30.0
# a model's turn: long against the switch to it, short against what disturbs the machine
_TURN_S = 0.1
_REFILL_S = 0.01
_LEAST_BLOCKS = 12
_WARMUP_LIMIT_S = 5.0
_WARMUP_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class ModelToTime:
    """A model as `edgekit.runtimes.open_session` takes it. `contract` shapes random inputs, `inputs`
    is an .npy or .npz of real ones; see edgekit.stages.timing_inputs."""

    name: str
    runtime: str
    files: tuple[Path, ...]
    contract: Preprocess | None = None
    inputs: Path | None = None


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
class _Timed:
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

    @property
    def refill_runs(self) -> int:
        """Untimed runs at the beginning of a turn."""
        return max(1, round(_REFILL_S * 1e3 / max(self.p50_ms, 1e-3)))

    @property
    def samples_ms(self) -> list[float]:
        return [sample for block in self.blocks_ms for sample in block]


def measure(
    model: ModelToTime,
    options: MeasureOptions | None = None,
    progress: Progress = no_progress,
) -> LatencyReport:
    """Time `model` alone.

    Raises what opening and running it raises (BadInput, MissingDependency, …), BuildFailed when its
    process dies, DeviceUnreachable when it does not answer in time.
    """
    options = options or MeasureOptions()
    with _opened(model, options, spinning=True) as timed:
        _warm_up([timed], options, progress)
        turn = _runs_per_turn(timed.p50_ms)
        stop = _Stop(options)

        def block(left: int | None) -> int:
            runs = turn if left is None else min(turn, left)
            timed.blocks_ms.append(timed.process.run(runs))
            return runs

        load = _timed_part([timed], stop, block, f"timing {model.name}", progress)
        return _report(timed, options, load)


def measure_against(
    this: ModelToTime,
    other: ModelToTime,
    options: MeasureOptions | None = None,
    progress: Progress = no_progress,
) -> tuple[LatencyReport, LatencyReport, SpeedUp]:
    """Time two models in turns: (report of this, report of other, other's p50 / this one's p50).

    The ratio is above 1 when `this` is faster; its interval holds 95 %, by bootstrap over blocks.
    Raises as `measure`.
    """
    options = options or MeasureOptions()
    spinning = options.threads == 1
    with (
        _opened(this, options, spinning=spinning) as first,
        _opened(other, options, spinning=spinning) as second,
    ):
        _warm_up([first, second], options, progress)
        plan = _block_sizes(options.runs, _runs_per_turn(max(first.p50_ms, second.p50_ms)))
        stop = _Stop(options, least_blocks=_LEAST_BLOCKS, even=True)

        def block(left: int | None) -> int:
            runs = next(plan)
            outer, inner = (first, second) if stop.blocks % 2 == 0 else (second, first)
            head = outer.process.run((runs + 1) // 2, untimed=outer.refill_runs)
            # the two turns in the middle are one
            inner.blocks_ms.append(inner.process.run(runs, untimed=inner.refill_runs))
            tail = outer.process.run(runs // 2, untimed=outer.refill_runs) if runs > 1 else []
            outer.blocks_ms.append(head + tail)
            return runs

        what = f"timing {this.name} against {other.name}"
        load = _timed_part([first, second], stop, block, what, progress)
        ratio = speed_up(first.blocks_ms, second.blocks_ms, seed=options.seed)
        return _report(first, options, load), _report(second, options, load), ratio


@dataclass
class _Stop:
    """When the timed part ends."""

    options: MeasureOptions
    least_blocks: int = 1
    even: bool = False
    runs: int = 0
    blocks: int = 0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int | None:
        return None if self.options.runs is None else self.options.runs - self.runs

    def reached(self) -> bool:
        elapsed = time.monotonic() - self.started_s
        if not self.blocks:
            return False
        if self.options.runs is not None and self.runs >= self.options.runs:
            return True
        if self.even and self.blocks % 2:
            return False
        if self.options.seconds is not None:
            return elapsed >= self.options.seconds
        if self.options.runs is not None:
            return False
        enough = self.runs >= _ENOUGH_RUNS and elapsed >= _ENOUGH_S
        return elapsed >= _TOO_LONG_S or (enough and self.blocks >= self.least_blocks)

    def estimate(self) -> int:
        """About how many runs there will be; 0 when it cannot be told."""
        if self.options.runs is not None or self.options.seconds is None or not self.runs:
            return self.options.runs or 0
        elapsed = time.monotonic() - self.started_s
        return max(self.runs, round(self.runs * self.options.seconds / max(elapsed, 1e-6)))


@contextlib.contextmanager
def _opened(model: ModelToTime, options: MeasureOptions, spinning: bool) -> Iterator[_Timed]:
    _check_affinity(options.affinity)
    with TimingProcess(
        model.name,
        model.runtime,
        model.files,
        threads=options.threads,
        spinning=spinning,
        affinity=options.affinity,
        timeout_s=options.timeout_s,
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
        yield _Timed(
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


def _warm_up(models: list[_Timed], options: MeasureOptions, progress: Progress) -> None:
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
            turn = timed.process.run(_runs_per_turn(min(last)))
            timed.warmup += len(turn)
            timed.settled = settled(last, turn, _WARMUP_TOLERANCE)
            last = turn
            done = timed.warmup >= options.warmup and timed.settled
            if done or time.monotonic() - started >= _WARMUP_LIMIT_S:
                break
        timed.p50_ms = sorted(last)[len(last) // 2]


def _block_sizes(runs: int | None, turn: int) -> Iterator[int]:
    """Runs of each model in block after block: two turns' worth, for ever; or `runs` in all, spread
    evenly over an even number of blocks, at least _LEAST_BLOCKS where there are runs enough."""
    if runs is None:
        yield from itertools.repeat(2 * turn)
        return
    blocks = max(_LEAST_BLOCKS, 2 * round(runs / (4 * turn)))
    blocks = min(blocks, runs - runs % 2) or 1
    for number in range(blocks):
        yield runs * (number + 1) // blocks - runs * number // blocks


def _runs_per_turn(run_ms: float) -> int:
    return max(1, round(_TURN_S * 1e3 / max(run_ms, 1e-3)))


def _timed_part(
    models: list[_Timed],
    stop: _Stop,
    block: Callable[[int | None], int],
    what: str,
    progress: Progress,
) -> float:
    """Run blocks until `stop`; return the share of the machine that others used meanwhile."""
    for timed in models:
        timed.cpu_start_s, _ = timed.process.usage()
    own_start = time.process_time()
    meter = LoadMeter()
    while not stop.reached():
        stop.runs += block(stop.left)
        stop.blocks += 1
        progress(stop.runs, stop.estimate(), what)
    for timed in models:
        cpu_s, timed.peak_rss_mb = timed.process.usage()
        timed.cpu_s = cpu_s - timed.cpu_start_s
    own = time.process_time() - own_start
    return meter.share(own + sum(timed.cpu_s for timed in models))


def _report(timed: _Timed, options: MeasureOptions, load: float) -> LatencyReport:
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
    )
