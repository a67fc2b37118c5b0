"""Latencies of all rows, taking turns in one run; through the stage cache.

More models than fit side by side are timed in groups. Each group has the baselines in it, and a row
is only ever held against the baseline of its own group.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import cpu
from edgekit.codec import to_record
from edgekit.errors import EdgekitError, NotPossible
from edgekit.pipeline.compare.candidates import Candidate, Runnable
from edgekit.pipeline.compare.request import CompareRequest
from edgekit.pipeline.runner import StageRunner
from edgekit.report.comparison import RowTiming
from edgekit.require import versions_of
from edgekit.stages.measure_many import Timing, measure_together
from edgekit.stages.timed import MeasureOptions
from edgekit.types import LatencyReport

_VERSION = 1
# processes that hold a model open side by side
_MOST_TOGETHER = 10


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """One model's timing as the cache keeps it; `error` is set where the model cannot run so."""

    report: LatencyReport | None = None
    error: str = ""
    blocks_ms: tuple[tuple[float, ...], ...] = ()

    @property
    def timing(self) -> Timing:
        error = NotPossible(self.error) if self.error else None
        return Timing(report=self.report, error=error, blocks_ms=self.blocks_ms)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One interleaved run."""

    stored: tuple[_Stored, ...]


class _Unfinished(Exception):
    """A run in which something failed that may succeed another time: it is used, not kept."""

    def __init__(self, timings: list[Timing]) -> None:
        super().__init__()
        self.timings = timings


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One form of one row."""

    row: int
    form: Runnable


def options_of(request: CompareRequest, batch: int) -> MeasureOptions:
    """The target's measurement, with what the request says over it."""
    settings = request.target.measure
    return MeasureOptions(
        runs=request.runs,
        warmup=settings.warmup,
        threads=request.threads or settings.threads,
        cooldown_s=settings.cooldown_s,
        batch=batch,
    )


def time_rows(
    rows: list[Candidate],
    baselines: list[int | None],
    request: CompareRequest,
    runner: StageRunner,
) -> list[list[RowTiming]]:
    """The timings of every row at every batch size; `baselines[i]` is the row that row i is held to."""
    found: list[list[RowTiming]] = [[] for _ in rows]
    for batch in request.batches:
        for group in _groups(rows, baselines):
            timings = _together(group, options_of(request, batch), runner)
            for entry, timing in zip(group, timings, strict=True):
                if any(t.runtime == _runtime(entry) and t.batch == batch for t in found[entry.row]):
                    continue  # a baseline that an earlier group has timed
                base = _baseline(entry, group, timings, baselines)
                found[entry.row].append(_row_timing(entry, batch, timing, base, request.resamples))
    return found


def _runtime(entry: _Entry) -> str:
    return entry.form.model.runtime


def _groups(rows: list[Candidate], baselines: list[int | None]) -> list[list[_Entry]]:
    """The forms to time side by side; a row's baseline is always in its group."""
    entries = [_Entry(row=row, form=form) for row, item in enumerate(rows) for form in item.forms]
    groups: list[list[_Entry]] = []
    left = entries
    while left:
        group: dict[tuple[int, int], _Entry] = {}
        rest: list[_Entry] = []
        for entry in left:
            base = baselines[entry.row]
            wanted = [e for e in entries if e.row in (entry.row, base) and _matches(e, entry)]
            new = {(e.row, id(e.form)): e for e in wanted}
            if group and len(group | new) > _MOST_TOGETHER:
                rest.append(entry)
            else:
                group |= new
        groups.append(list(group.values()))
        left = rest
    return groups


def _matches(other: _Entry, entry: _Entry) -> bool:
    """Whether `other` is the entry itself, or in the same runtime as it."""
    return other.form is entry.form or (
        other.row != entry.row and _runtime(other) == _runtime(entry)
    )


def _baseline(
    entry: _Entry,
    group: list[_Entry],
    timings: list[Timing],
    baselines: list[int | None],
) -> Timing | None:
    for other, timing in zip(group, timings, strict=True):
        if other.row == baselines[entry.row] and _runtime(other) == _runtime(entry):
            return timing
    return None


def _row_timing(
    entry: _Entry, batch: int, timing: Timing, baseline: Timing | None, resamples: int
) -> RowTiming:
    speedup = None
    if baseline is not None and timing.report is not None and baseline.report is not None:
        speedup = timing.against(baseline)
    return RowTiming(
        runtime=_runtime(entry),
        batch=batch,
        latency=timing.report,
        speedup=speedup,
        error="" if timing.report is not None else _reason(timing.error),
    )


def _reason(error: EdgekitError | None) -> str:
    return error.message if error is not None else "not timed"


def _together(group: list[_Entry], options: MeasureOptions, runner: StageRunner) -> list[Timing]:
    """The interleaved run of a group, from the cache when the same one was made before."""
    machine = cpu.detect()
    fields: dict[str, Any] = {
        "version": _VERSION,
        "libraries": versions_of("onnxruntime", "torch", "ncnn", "numpy"),
        "models": [
            {
                "sha256": entry.form.sha256,
                "runtime": _runtime(entry),
                "optimize": entry.form.model.optimize,
                "contract": None
                if entry.form.model.contract is None
                else entry.form.model.contract.to_dict(),
            }
            for entry in group
        ],
        "options": to_record(options),
        "machine": [platform.node(), machine.model, list(machine.isa), machine.cores],
    }

    def work(folder: Path) -> _Run:
        models = [entry.form.model for entry in group]
        timings = measure_together(models, options, runner.progress)
        lasting = all(t.error is None or isinstance(t.error, NotPossible) for t in timings)
        if not lasting:
            raise _Unfinished(timings)
        return _Run(
            stored=tuple(
                _Stored(
                    report=timing.report,
                    error=_reason(timing.error) if timing.report is None else "",
                    blocks_ms=timing.blocks_ms,
                )
                for timing in timings
            )
        )

    try:
        return [item.timing for item in runner.run("together", fields, _Run, work).value.stored]
    except _Unfinished as unfinished:
        return unfinished.timings
