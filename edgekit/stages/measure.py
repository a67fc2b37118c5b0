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

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edgekit.metrics.latency import speed_up
from edgekit.stages.machine_load import LoadMeter
from edgekit.stages.timed import (
    MeasureOptions,
    ModelToTime,
    Timed,
    opened,
    report,
    runs_per_turn,
    warm_up,
)
from edgekit.types import LatencyReport, Progress, SpeedUp, no_progress

__all__ = ["MeasureOptions", "ModelToTime", "measure", "measure_against"]

# without --runs and --seconds: enough runs for a p99, and long enough to see slow changes
_ENOUGH_RUNS = 100
_ENOUGH_S = 3.0
_TOO_LONG_S = 30.0
_LEAST_BLOCKS = 12


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
    with opened(model, options, spinning=True) as timed:
        warm_up([timed], options, progress)
        turn = runs_per_turn(timed.p50_ms)
        stop = _Stop(options)

        def block(left: int | None) -> int:
            runs = turn if left is None else min(turn, left)
            timed.blocks_ms.append(timed.process.run(runs))
            return runs

        load = _timed_part([timed], stop, block, f"timing {model.name}", progress)
        return report(timed, options, load)


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
        opened(this, options, spinning=spinning) as first,
        opened(other, options, spinning=spinning) as second,
    ):
        warm_up([first, second], options, progress)
        plan = _block_sizes(options.runs, runs_per_turn(max(first.p50_ms, second.p50_ms)))
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
        return report(first, options, load), report(second, options, load), ratio


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


def _timed_part(
    models: list[Timed],
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
        timed.device_ms = dict(timed.process.device_ms)
    own = time.process_time() - own_start
    return meter.share(own + sum(timed.cpu_s for timed in models))
