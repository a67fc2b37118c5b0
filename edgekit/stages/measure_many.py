"""Latency of several models in one run: they take turns, so that their ratios can be believed.

Each model has a process of its own, and one computes while the others sleep. A block is a palindrome,
A B C C B A, and the next one begins with another model: slow drifts hit all alike, and none has the
better place. A model that cannot be opened, or fails on the way, drops out; the others go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.errors import EdgekitError
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

_RUNS = 100
_BLOCKS = 12
# all models together: two of them are given half a minute
_LONGEST_S_EACH = 15.0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What became of one model: its report and the runs of every block, or why there are none."""

    report: LatencyReport | None = None
    error: EdgekitError | None = None
    blocks_ms: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def against(self, baseline: Timing, seed: int = 0) -> SpeedUp:
        """The baseline's median / this one's: above 1 when this one is faster, with its interval.

        Both must come from the same call of `measure_together`; ValueError when one has no runs.
        """
        return speed_up(self.blocks_ms, baseline.blocks_ms, seed=seed)


@dataclass
class _Contender:
    """A model in the run: `timed` while it takes part, `error` once it has dropped out."""

    model: ModelToTime
    timed: Timed | None = None
    error: EdgekitError | None = None
    head_ms: list[float] = field(default_factory=list)

    def turn(self, runs: int) -> list[float]:
        assert self.timed is not None
        return self.timed.process.run(runs, untimed=self.timed.refill_runs) if runs else []


def measure_together(
    models: Sequence[ModelToTime],
    options: MeasureOptions | None = None,
    progress: Progress = no_progress,
) -> list[Timing]:
    """Time `models` in turns; one `Timing` for each, in their order.

    With `options.runs` every model makes so many timed runs; else at least 100, unless that takes
    longer than 15 s a model. `options.seconds` ends the run after that long.
    """
    options = options or MeasureOptions()
    contenders = [_Contender(model=model) for model in models]
    with contextlib.ExitStack() as stack:
        alone = len(models) == 1
        for contender in contenders:
            with _dropping_out(contender):
                contender.timed = stack.enter_context(
                    opened(contender.model, options, spinning=alone or options.threads == 1)
                )
        for number, contender in enumerate(contenders):
            rest = options if number == 0 else dataclasses.replace(options, cooldown_s=0.0)
            if contender.timed is not None:
                with _dropping_out(contender):
                    warm_up([contender.timed], rest, progress)
        load = _run(contenders, options, progress)
        return [_timing(contender, options, load) for contender in contenders]


@contextlib.contextmanager
def _dropping_out(contender: _Contender) -> Iterator[None]:
    """An expected failure takes this one model out of the run."""
    try:
        yield
    except EdgekitError as error:
        contender.error, contender.timed = error, None


def _run(contenders: list[_Contender], options: MeasureOptions, progress: Progress) -> float:
    """Blocks until there are enough; returns the share of the machine that others used."""
    for contender in contenders:
        if contender.timed is not None:
            contender.timed.cpu_start_s, _ = contender.timed.process.usage()
    own_start, started = time.process_time(), time.monotonic()
    meter = LoadMeter()
    total = options.runs or _RUNS
    blocks = min(_BLOCKS, total)
    limit_s = options.seconds
    if limit_s is None and options.runs is None:
        limit_s = _LONGEST_S_EACH * len(contenders)
    number = 0
    while number < blocks:
        share = total * (number + 1) // blocks - total * number // blocks
        _block(contenders, number, share, fill_turns=options.runs is None)
        number += 1
        progress(number, blocks, "timing in turns")
        if limit_s is not None and time.monotonic() - started >= limit_s:
            break
        if not any(contender.timed is not None for contender in contenders):
            break
    cpu_s = time.process_time() - own_start
    for contender in contenders:
        if contender.timed is not None:
            with _dropping_out(contender):
                used_s, contender.timed.peak_rss_mb = contender.timed.process.usage()
                contender.timed.cpu_s = used_s - contender.timed.cpu_start_s
                cpu_s += contender.timed.cpu_s
    return meter.share(cpu_s)


def _block(contenders: list[_Contender], number: int, share: int, *, fill_turns: bool) -> None:
    """One palindrome: `share` runs of each model, or two turns' worth where that is more."""
    order = [contender for contender in contenders if contender.timed is not None]
    if not order:
        return
    first = number % len(order)
    order = order[first:] + order[:first]
    runs: list[int] = []
    for contender in order:
        assert contender.timed is not None
        turn = runs_per_turn(contender.timed.p50_ms) if fill_turns else 0
        runs.append(max(share, 2 * turn))
    for contender, count in zip(order[:-1], runs[:-1], strict=True):
        with _dropping_out(contender):
            contender.head_ms = contender.turn((count + 1) // 2)
    middle = order[-1]
    with _dropping_out(middle):
        assert middle.timed is not None
        # the two turns in the middle are one
        middle.timed.blocks_ms.append(middle.turn(runs[-1]))
    for contender, count in reversed(list(zip(order[:-1], runs[:-1], strict=True))):
        if contender.timed is None:
            continue
        with _dropping_out(contender):
            tail = contender.turn(count // 2)
            contender.timed.blocks_ms.append(contender.head_ms + tail)


def _timing(contender: _Contender, options: MeasureOptions, load: float) -> Timing:
    timed = contender.timed
    if timed is None or not timed.samples_ms:
        return Timing(error=contender.error)
    return Timing(
        report=report(timed, options, load),
        blocks_ms=tuple(tuple(block) for block in timed.blocks_ms),
    )
