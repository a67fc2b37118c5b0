"""The tables people publish: which columns a preset has, and how its rows are grouped and sorted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgekit.report.compare_columns import (
    Cell,
    Column,
    Columns,
    Line,
    method_of,
    number_cell,
    speedup_cell,
    text_cell,
)
from edgekit.report.comparison import (
    ONNX_RUNTIME,
    TORCH,
    Comparison,
    Row,
    precision_name,
    runtime_name,
)

# share of the machine in others' hands above which the figures are in doubt
_BUSY = 0.1


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows under one heading, "" for none. `failed[i]` names what failed in row i, "" for nothing."""

    heading: str
    rows: tuple[tuple[Cell, ...], ...]
    failed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CompareTable:
    """A finished table: `numeric[i]` says whether column i holds numbers."""

    titles: tuple[str, ...]
    numeric: tuple[bool, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Columns, and groups of lines with their headings."""

    columns: list[Column]
    groups: list[tuple[str, list[Line]]]


def _default(comparison: Comparison) -> Layout:
    """Everything: sizes, latency and speed-up in each runtime, memory, throughput, accuracy."""
    make, runtimes = Columns(comparison), comparison.runtimes()
    columns = [
        make.name(),
        make.precision(),
        make.parameters(),
        make.size(),
        make.flops(),
        make.sparsity(),
        *(make.latency(runtime) for runtime in runtimes),
        *(make.speedup(runtime) for runtime in runtimes),
        make.memory(),
        *(make.throughput(batch) for batch in comparison.batches),
        *make.accuracy(),
        *make.drop(),
    ]
    return Layout(columns=columns, groups=[("", [Line(row=row) for row in comparison.rows])])


def _pruning(comparison: Comparison) -> Layout:
    """Share pruned, parameters, FLOPs reduction, speed-ups, accuracy; grouped by training batch."""
    make = Columns(comparison)
    several = len({row.precision for row in comparison.rows if row.precision}) > 1
    others = [name for name in comparison.runtimes() if name not in (TORCH, ONNX_RUNTIME)]
    columns = [
        make.name(),
        *([make.precision()] if several else []),
        make.pruned(),
        make.parameters(),
        make.flops(),
        make.speedup(TORCH, "PyTorch speed-up"),
        make.speedup(ONNX_RUNTIME, "ONNX speed-up"),
        *(make.speedup(runtime) for runtime in others),
        *make.accuracy(),
    ]
    batches = sorted(
        {row.training_batch for row in comparison.rows},
        key=lambda batch: (batch is None, batch or 0),
    )
    groups = []
    for batch in batches:
        heading = "" if batches == [None] else f"Training batch {batch or 'not known'}"
        rows = [row for row in comparison.rows if row.training_batch == batch]
        groups.append((heading, [Line(row=row) for row in rows]))
    return Layout(columns=columns, groups=groups)


def _compression(comparison: Comparison) -> Layout:
    """Method, compression, accuracy, parameters, size, latency; per architecture, sorted."""
    make = Columns(comparison)
    columns = [
        Column(
            title="Method",
            cell=lambda line: text_cell(method_of(line.row, comparison)),
            numeric=False,
            essential=True,
        ),
        make.name(),
        make.compression(),
        *make.main_accuracy(),
        *make.drop(),
        make.parameters(),
        make.size(),
        make.deployed(),
    ]
    groups = []
    for kind in dict.fromkeys(row.architecture for row in comparison.rows):
        rows = [row for row in comparison.rows if row.architecture == kind]
        rows.sort(key=lambda row: make.ratio(row) or 0.0)
        groups.append((kind, [Line(row=row) for row in rows]))
    return Layout(columns=columns, groups=groups)


def _deployment(comparison: Comparison) -> Layout:
    """Solution, latency, throughput, memory, model size: a line for each row and runtime."""
    make, batch = Columns(comparison), comparison.batches[0]
    several = len({row.source for row in comparison.rows}) > 1

    def solution(line: Line) -> Cell:
        text = f"{runtime_name(line.runtime)} {precision_name(line.row.precision)}".strip()
        name = line.row.made_from or line.row.name
        return text_cell(f"{name}, {text}" if several else text)

    def order(line: Line) -> float:
        found = line.row.latency(line.runtime, batch)
        return -found.p50_ms if found is not None else math.inf

    columns = [
        Column(title="Solution", cell=solution, numeric=False, essential=True),
        Column(
            title="Latency (ms)",
            cell=lambda line: make.latency_in(line.row, line.runtime),
            essential=True,
        ),
        *(make.throughput(size) for size in comparison.batches),
        make.memory("Memory (MB)"),
        make.size("Model size (MB)"),
        *make.main_accuracy(),
    ]
    lines = []
    for row in comparison.rows:
        runtimes = dict.fromkeys(timing.runtime for timing in row.timings if timing.latency)
        lines += [Line(row=row, runtime=runtime) for runtime in runtimes]
        if not runtimes:
            lines.append(Line(row=row, runtime=""))
    return Layout(columns=columns, groups=[("", sorted(lines, key=order))])


def _ablation(comparison: Comparison) -> Layout:
    """Each optimization switched off, and what that changes."""
    make, batch = Columns(comparison), comparison.batches[0]
    everything = comparison.rows[0]

    def without(line: Line) -> Cell:
        return text_cell(f"− {line.row.variant}" if line.row.variant else "everything on")

    def p50_ms(row: Row) -> float | None:
        timing = row.deployed(batch)
        return timing.latency.p50_ms if timing is not None and timing.latency else None

    def change(line: Line) -> Cell:
        mine, theirs = p50_ms(line.row), p50_ms(everything)
        if line.row is everything or mine is None or theirs is None:
            return number_cell(None, "")
        return number_cell(mine - theirs, "{:+.2f}")

    def speed(line: Line) -> Cell:
        timing = line.row.deployed(batch)
        if timing is None or timing.speedup is None:
            return number_cell(None, "")
        return speedup_cell(timing.speedup)

    def grown(line: Line) -> Cell:
        if line.row is everything or line.row.size_mb is None or everything.size_mb is None:
            return number_cell(None, "")
        return number_cell(line.row.size_mb - everything.size_mb, "{:+.2f}")

    columns = [
        Column(title="Optimization off", cell=without, numeric=False, essential=True),
        make.precision(),
        make.deployed(),
        Column(title="Δ latency (ms)", cell=change),
        Column(title="Speed against everything on", cell=speed),
        *make.main_accuracy(),
        *make.drop("Δ accuracy (points)"),
        make.size(),
        Column(title="Δ size (MB)", cell=grown),
    ]
    return Layout(columns=columns, groups=[("", [Line(row=row) for row in comparison.rows])])


# a new published layout is a function and a line here
LAYOUTS: dict[str, Callable[[Comparison], Layout]] = {
    "default": _default,
    "pruning": _pruning,
    "compression": _compression,
    "deployment": _deployment,
    "ablation": _ablation,
}


def compare_table(comparison: Comparison, preset: str) -> CompareTable:
    """The table of a preset; columns in which no row has anything are left out."""
    layout = LAYOUTS[preset](comparison)
    columns = layout.columns
    cells = [
        [[column.cell(line) for column in columns] for line in lines] for _, lines in layout.groups
    ]
    kept = [
        index
        for index, column in enumerate(columns)
        if column.essential or any(row[index].value is not None for part in cells for row in part)
    ]
    titles = tuple(columns[index].title for index in kept)
    return CompareTable(
        titles=titles,
        numeric=tuple(columns[index].numeric for index in kept),
        groups=tuple(
            Group(
                heading=heading,
                rows=tuple(tuple(row[index] for index in kept) for row in part),
                failed=tuple("; ".join(line.row.errors) for line in lines),
            )
            for (heading, lines), part in zip(layout.groups, cells, strict=True)
        ),
        notes=tuple(_notes(comparison, titles)),
    )


def _notes(comparison: Comparison, titles: tuple[str, ...]) -> Iterator[str]:
    """What a reader must know to believe the numbers."""
    settings = comparison.settings
    timings = [timing for row in comparison.rows for timing in row.timings]
    runs = [timing.latency.runs for timing in timings if timing.latency is not None]
    if runs:
        threads = settings.get("threads", 1)
        yield (
            f"Latency: median of {min(runs)} runs or more, taking turns, batch "
            f"{comparison.batches[0]}, {threads} thread{'s' if threads != 1 else ''}, "
            f"{settings.get('machine')}."
        )
        if comparison.load is not None and comparison.load > _BUSY:
            yield f"Other processes used {comparison.load:.0%} of the machine during the runs."
    held = {row.baseline for row in comparison.rows if row.baseline}
    if len(held) == 1:
        yield f"Baseline: {held.pop()}."
    if "Pruned" in titles:
        yield "Pruned: output channels of the baseline that are gone, or weights that are zero."
    ratios = [timing.speedup for timing in timings if timing.speedup is not None]
    if any(ratio.low <= 1 <= ratio.high for ratio in ratios):
        yield "≈ the 95 % interval of the ratio holds 1: no difference can be told."
    if comparison.images:
        text = f"Accuracy on {comparison.images} images of {settings.get('data')}"
        text += f" ({settings.get('split')})"
        if any("points" in title for title in titles):
            text += "; in brackets the paired 95 % interval of the difference"
        yield text + "."
    for row in comparison.rows:
        yield from (f"{row.name}: {note}" for note in row.notes)
        yield from (f"{row.name} failed: {error}" for error in row.errors)
        yield from (
            f"{row.name}, {runtime_name(timing.runtime)}, batch {timing.batch}: {timing.error}"
            for timing in row.timings
            if timing.error
        )
