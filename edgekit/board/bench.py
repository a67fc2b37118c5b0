"""`bench`: latency that can be believed, of one bundle or of two that take turns.

What is timed is one call of the runtime, from input arrays in memory to output arrays in memory. The
model runs in a process of its own; this one watches the machine. Two bundles take turns in blocks,
A B B A and B A A B, one computing while the other sleeps: slow drifts hit both alike, and neither has
the better place. The first hundredth of a second of a turn, which finds the caches full of the
other's data, is not timed.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Iterator

from edgekit.board import drivers, integrity
from edgekit.board.errors import NotPossible, UsageError
from edgekit.board.latency import (
    Drift,
    SpeedUp,
    drift,
    median_interval,
    regression,
    settled,
    speed_up,
    summary,
)
from edgekit.board.machine.watch import Watch, caveats
from edgekit.board.manifest import Manifest, Model, read_manifest
from edgekit.board.process import WorkerProcess
from edgekit.board.run import input_file
from edgekit.board.session import Progress, SessionOptions

# a turn: long against the switch to it, short against what disturbs the machine
_TURN_S = 0.1
_REFILL_S = 0.01
# a turn's times travel as one line
_MOST_PER_TURN = 2000
_WARMUP_LIMIT_S = 10.0
_WARMUP_TOLERANCE = 0.05
_WARMUP_AGREEMENTS = 2
_ENOUGH_RUNS = 100
_ENOUGH_S = 3.0
_ENOUGH_TURNS = 8
_LEAST_BLOCKS = 12
# the bootstrap is looked at again when there are so many times more blocks
_LOOK_AGAIN = 1.25


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    `runs` and `seconds` end the measurement where they are given. Otherwise it goes on until the 95 %
    interval of the median (with `against`: of the ratio) is within `precision` of it, after 100
    runs and 3 s at least and `max_seconds` at most (None: 30, with `against` 60). `warmup`: untimed
    runs at least; more follow until their times stop changing (by 5 %, twice in a row) or 10 s are
    over. `affinity`: CPUs to pin to. `cooldown_s`: rest before anything runs.
    """

    against: Path | None = None
    runtime: str | None = None
    session: SessionOptions = field(default_factory=SessionOptions)
    runs: int | None = None
    seconds: float | None = None
    warmup: int = 10
    precision: float = 0.02
    max_seconds: float | None = None
    cooldown_s: float = 0.0
    affinity: tuple[int, ...] = ()
    input: Path | None = None
    tolerance: float = 0.03
    timeout_s: float = 600.0
    samples: bool = False
    seed: int = 0


@dataclass
class _Timed:
    """A bundle open in its process, and what is known of it so far."""

    manifest: Manifest
    driver: str
    model: Model
    process: WorkerProcess
    source: Path
    warmup: int = 0
    settled: bool = False
    turn_ms: float = 0.0
    all_runs: int = 0
    cpu_start_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mb: float | None = None
    blocks_ms: list[list[float]] = field(default_factory=list)

    @property
    def refill_runs(self) -> int:
        """Untimed runs at the beginning of a turn."""
        return max(1, round(_REFILL_S * 1e3 / max(self.turn_ms, 1e-3)))

    @property
    def samples_ms(self) -> list[float]:
        return [sample for block in self.blocks_ms for sample in block]

    def run(self, timed: int, untimed: int = 0) -> list[float]:
        self.all_runs += timed + untimed
        return self.process.run(timed, untimed)


def bench(folder: Path, options: BenchOptions, progress: Progress) -> dict[str, Any]:
    """The answer of `bench`; docs/device.md has its keys.

    Raises VerificationFailed for a changed model file, TimedOut, and what opening and running raise.
    """
    _check_affinity(options.affinity)
    pair = options.against is not None
    # pools that wait busily slow down the other model
    session = replace(options.session, spinning=not pair or options.session.threads == 1)
    watch = Watch()
    with ExitStack() as stack:
        stack.callback(watch.close)
        folders = [folder, *([options.against] if options.against is not None else [])]
        models = [_opened(stack, place, options, session, progress) for place in folders]
        if options.cooldown_s:
            progress(f"resting {options.cooldown_s:g} s")
            watch.rest(options.cooldown_s)
        for timed in models:
            progress(f"warming up {timed.manifest.name}")
            _warm_up(timed, options)
            timed.cpu_start_s, _ = timed.process.usage()
            timed.all_runs = 0
        own_start = time.process_time()
        progress("timing " + " against ".join(timed.manifest.name for timed in models))
        watch.start()
        ratio = None
        if pair:
            ratio = _pair(models, options)
        else:
            _alone(models[0], options)
        conditions = _stop(watch, models, time.process_time() - own_start)
        return _answer(models, options, session, conditions, ratio)


def _stop(watch: Watch, models: list[_Timed], own_s: float) -> dict[str, Any]:
    for timed in models:
        cpu_s, timed.peak_rss_mb = timed.process.usage()
        timed.cpu_s = cpu_s - timed.cpu_start_s
    return watch.stop(
        own_cpu_s=own_s + sum(timed.cpu_s for timed in models),
        own_pids=[os.getpid(), *(timed.process.pid for timed in models)],
        inferences=models[0].all_runs if len(models) == 1 else None,
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
            f"Available: {', '.join(map(str, sorted(available)))}.",
        )


def _opened(
    stack: ExitStack,
    folder: Path,
    options: BenchOptions,
    session: SessionOptions,
    progress: Progress,
) -> _Timed:
    manifest = read_manifest(folder)
    driver, model = drivers.choose(manifest, options.runtime, session)
    integrity.demand_files(manifest, model)
    if driver == "edgekit-ncnn" and options.input is not None:
        raise NotPossible(
            "The native runner measures on the bundle's own golden sample 0.", "Leave --input out."
        )
    source = input_file(manifest, None, options.input)
    progress(f"opening {manifest.name} with {driver}")
    process = stack.enter_context(WorkerProcess(manifest.name, options.timeout_s))
    process.open(driver, folder, session, options.affinity)
    if len(process.inputs) != 1:
        raise NotPossible(f"The model has {len(process.inputs)} inputs, not one.")
    process.feed({process.inputs[0]["name"]: source})
    return _Timed(manifest, driver, model, process, source)


def _warm_up(timed: _Timed, options: BenchOptions) -> None:
    """Run until the times stop changing, and learn about how long a run takes."""
    started = time.monotonic()
    # the first run allocates, the second tells how long a turn must be
    last = timed.run(1, untimed=1)
    agreements = 0
    while True:
        turn = timed.run(_runs_per_turn(min(last)))
        agreements = agreements + 1 if settled(last, turn, _WARMUP_TOLERANCE) else 0
        last = turn
        timed.settled = agreements >= _WARMUP_AGREEMENTS
        if timed.settled and timed.all_runs >= options.warmup:
            break
        if time.monotonic() - started >= _WARMUP_LIMIT_S and timed.all_runs >= options.warmup:
            break
    timed.warmup = timed.all_runs
    timed.turn_ms = sorted(last)[len(last) // 2]


def _runs_per_turn(run_ms: float) -> int:
    return min(_MOST_PER_TURN, max(1, round(_TURN_S * 1e3 / max(run_ms, 1e-3))))


@dataclass
class _Stop:
    """When the timed part ends."""

    options: BenchOptions
    pair: bool
    runs: int = 0
    blocks: int = 0
    started_s: float = field(default_factory=time.monotonic)
    look_at: float = 0.0

    @property
    def left(self) -> int | None:
        return None if self.options.runs is None else self.options.runs - self.runs

    def reached(self, precision: Callable[[], float]) -> bool:
        """`precision` is asked for only when it can end the measurement."""
        options, elapsed = self.options, time.monotonic() - self.started_s
        if not self.blocks:
            return False
        if options.runs is not None and self.runs >= options.runs:
            return True
        # as many blocks that begin with the one as with the other
        if self.pair and self.blocks % 2:
            return False
        if options.seconds is not None:
            return elapsed >= options.seconds
        if options.runs is not None:
            return False
        if elapsed >= (options.max_seconds or (60.0 if self.pair else 30.0)):
            return True
        least = _LEAST_BLOCKS if self.pair else _ENOUGH_TURNS
        if self.runs < _ENOUGH_RUNS or elapsed < _ENOUGH_S or self.blocks < least:
            return False
        if self.blocks < self.look_at:
            return False
        self.look_at = self.blocks * _LOOK_AGAIN
        return precision() <= options.precision


def _alone(timed: _Timed, options: BenchOptions) -> None:
    stop = _Stop(options, pair=False)
    turn = _runs_per_turn(timed.turn_ms)
    while not stop.reached(lambda: _median_precision(timed)):
        runs = turn if stop.left is None else min(turn, stop.left)
        timed.blocks_ms.append(timed.run(runs))
        stop.runs += runs
        stop.blocks += 1


def _pair(models: list[_Timed], options: BenchOptions) -> SpeedUp:
    first, second = models

    def ratio() -> SpeedUp:
        return speed_up(first.blocks_ms, second.blocks_ms, seed=options.seed)

    plan = _block_sizes(options.runs, _runs_per_turn(max(first.turn_ms, second.turn_ms)))
    stop = _Stop(options, pair=True)
    while not stop.reached(lambda: ratio().precision):
        runs = next(plan)
        outer, inner = (first, second) if stop.blocks % 2 == 0 else (second, first)
        head = outer.run((runs + 1) // 2, outer.refill_runs)
        # the two turns in the middle are one
        inner.blocks_ms.append(inner.run(runs, inner.refill_runs))
        tail = outer.run(runs // 2, outer.refill_runs) if runs > 1 else []
        outer.blocks_ms.append(head + tail)
        stop.runs += runs
        stop.blocks += 1
    return ratio()


def _block_sizes(runs: int | None, turn: int) -> Iterator[int]:
    """Runs of each model in block after block: two turns' worth for ever, or `runs` in all, spread
    evenly over an even number of blocks, at least _LEAST_BLOCKS where there are runs enough."""
    if runs is None:
        yield from itertools.repeat(2 * turn)
        return
    blocks = max(_LEAST_BLOCKS, 2 * round(runs / (4 * turn)))
    blocks = min(blocks, runs - runs % 2) or 1
    for number in range(blocks):
        yield runs * (number + 1) // blocks - runs * number // blocks


def _median_precision(timed: _Timed) -> float:
    """Half the interval of the median as a share of it, from the medians of the turns."""
    medians = [statistics.median(block) for block in timed.blocks_ms]
    low, high = median_interval(medians)
    return (high - low) / 2.0 / statistics.median(medians)


def _answer(
    models: list[_Timed],
    options: BenchOptions,
    session: SessionOptions,
    conditions: dict[str, Any],
    ratio: SpeedUp | None,
) -> dict[str, Any]:
    first = models[0]
    answer = _report(first, options, session, conditions)
    answer["against"] = None
    reached = _median_precision(first) if ratio is None else ratio.precision
    of = "p50" if ratio is None else "the ratio"
    answer["precision"] = {
        "of": of,
        "asked": options.precision,
        "reached": reached,
        "ok": reached <= options.precision,
    }
    doubts = caveats(conditions)
    if ratio is not None:
        answer["against"] = {
            "ratio": ratio.ratio,
            "low": ratio.low,
            "high": ratio.high,
            "blocks": len(first.blocks_ms),
            "other": _report(models[1], options, session, conditions),
            "regression": regression(ratio, options.tolerance),
        }
    for timed in models:
        doubts += _own_doubts(timed, options, ratio is None)
    if reached > options.precision:
        text = f"Too few runs to give an interval of {of}."
        if math.isfinite(reached):
            text = (
                f"The interval of {of} reaches {100 * reached:.1f} % to each side, "
                f"not {100 * options.precision:g} %."
            )
        doubts.append({"kind": "precision", "text": text})
    if session.emulator is not None:
        text = f"Run under {session.emulator[0]}: these times say nothing about a board."
        doubts.append({"kind": "emulated", "text": text})
    answer["conditions"] = conditions
    answer["caveats"] = doubts
    return answer


def _own_doubts(timed: _Timed, options: BenchOptions, alone: bool) -> list[dict[str, str]]:
    doubts = []
    name = timed.manifest.name
    if not timed.settled:
        text = f"{name} had not settled after {timed.warmup} warm-up runs."
        doubts.append({"kind": "warmup", "text": text})
    trend = _drift(timed)
    if alone and trend is not None and trend.is_trend:
        text = f"{name} went {abs(100 * trend.share):.1f} % {'slower' if trend.share > 0 else 'faster'}"
        doubts.append({"kind": "drift", "text": text + " from the first quarter to the last."})
    if len(timed.samples_ms) < _ENOUGH_RUNS:
        text = f"p99 of {len(timed.samples_ms)} runs is close to their maximum."
        doubts.append({"kind": "runs", "text": text})
    return doubts


def _drift(timed: _Timed) -> Drift | None:
    return drift([statistics.median(block) for block in timed.blocks_ms])


def _report(
    timed: _Timed, options: BenchOptions, session: SessionOptions, conditions: dict[str, Any]
) -> dict[str, Any]:
    """The keys of one measurement; those of `edgekit bench --json` have the same meaning."""
    samples = timed.samples_ms
    figures: dict[str, Any] = dict(summary(samples))
    medians = [statistics.median(block) for block in timed.blocks_ms]
    low, high = median_interval(medians)
    p50, trend = figures["p50_ms"], _drift(timed)
    batch = timed.process.inputs[0]["shape"][0] if timed.process.inputs[0]["shape"] else 1
    batch = batch if isinstance(batch, int) else 1
    figures.update(
        p50_interval_ms=[min(low, p50), max(high, p50)] if math.isfinite(high) else None,
        runs=len(samples),
        turns=len(timed.blocks_ms),
        threads=session.threads,
        batch=batch,
        throughput_fps=batch * 1e3 / figures["mean_ms"],
        peak_rss_mb=timed.peak_rss_mb,
        device_ms=timed.process.device_ms,
        load=conditions["other_load"],
        bundle=timed.manifest.name,
        runtime=timed.driver,
        runtime_facts=timed.process.facts,
        model_precision=timed.model.precision,
        model_sha256=timed.manifest.files[timed.model.files[0]].sha256,
        affinity=list(options.affinity),
        spinning=session.spinning,
        warmup=timed.warmup,
        settled=timed.settled,
        inputs=str(timed.source),
        drift=None if trend is None else {"share": trend.share, "trend": trend.is_trend},
    )
    if options.samples:
        figures["samples_ms"] = samples
    return figures
