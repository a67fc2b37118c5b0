"""The columns of comparison tables: what stands in each, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from edgekit.report.comparison import (
    ONNX_RUNTIME,
    Comparison,
    Row,
    precision_name,
    runtime_name,
)
from edgekit.types import SpeedUp

NOTHING = "–"
"""What stands in a cell that has no value."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Text for people and the plain value behind it (None where there is none)."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one line of the table is about: a row, or a row in one runtime."""

    row: Row
    runtime: str = ONNX_RUNTIME


@dataclass(frozen=True, kw_only=True)
class Column:
    title: str
    cell: Callable[[Line], Cell]
    numeric: bool = True
    # a column in which no line has anything is left out, unless it is essential
    essential: bool = False


@dataclass
class Columns:
    """Makes columns that know the whole comparison; latencies are those of its first batch size."""

    comparison: Comparison
    batch: int = field(init=False)

    def __post_init__(self) -> None:
        self.batch = self.comparison.batches[0]

    # --- columns ----------------------------------------------------------------------------

    def name(self, title: str = "Model") -> Column:
        return Column(
            title=title, cell=lambda line: text_cell(line.row.name), numeric=False, essential=True
        )

    def precision(self) -> Column:
        return Column(
            title="Precision",
            cell=lambda line: text_cell(precision_name(line.row.precision)),
            numeric=False,
        )

    def parameters(self) -> Column:
        return Column(
            title="Params (M)",
            cell=lambda line: number_cell(
                None if line.row.parameters is None else line.row.parameters / 1e6, "{:.3f}"
            ),
        )

    def size(self, title: str = "Size (MB)") -> Column:
        return Column(title=title, cell=lambda line: number_cell(line.row.size_mb, "{:.2f}"))

    def flops(self) -> Column:
        return Column(title="FLOPs reduction", cell=lambda line: self._flops(line.row))

    def _flops(self, row: Row) -> Cell:
        base = self.comparison.baseline(row) or row
        if row.macs is None or not base.macs:
            return number_cell(None, "")
        return number_cell(100 * (1 - row.macs / base.macs), "{:.1f} %")

    def macs(self) -> Column:
        return Column(
            title="MACs (G)",
            cell=lambda line: number_cell(
                None if line.row.macs is None else line.row.macs / 1e9, "{:.3f}"
            ),
        )

    def pruned(self) -> Column:
        """Channels that are gone, or weights that are zero where no channel is."""

        def cell(line: Line) -> Cell:
            row = line.row
            share = row.pruned_share
            if (share is None or share <= 0.0) and row.sparsity is not None:
                share = row.sparsity if row.sparsity > 0.05 and row.precision != "int8" else share
            return number_cell(None if share is None else 100 * max(share, 0.0), "{:.0f} %")

        return Column(title="Pruned", cell=cell, essential=True)

    def sparsity(self) -> Column:
        return Column(
            title="Sparsity",
            cell=lambda line: number_cell(
                None if line.row.sparsity is None else 100 * line.row.sparsity, "{:.1f} %"
            ),
        )

    def latency(self, runtime: str, title: str | None = None) -> Column:
        return Column(
            title=title or f"{runtime_name(runtime)} (ms)",
            cell=lambda line: self.latency_in(line.row, runtime),
        )

    def latency_in(self, row: Row, runtime: str, batch: int | None = None) -> Cell:
        found = row.latency(runtime, batch or self.batch)
        return number_cell(None if found is None else found.p50_ms, "{:.2f}")

    def speedup(self, runtime: str, title: str | None = None) -> Column:
        return Column(
            title=title or f"{runtime_name(runtime)} speed-up",
            cell=lambda line: self._speedup(line.row, runtime),
        )

    def _speedup(self, row: Row, runtime: str) -> Cell:
        timing = row.timing(runtime, self.batch)
        if timing is None or timing.latency is None:
            return number_cell(None, "")
        if timing.speedup is None:
            return Cell(text="1.00×" if not row.baseline else NOTHING, value=1.0)
        return speedup_cell(timing.speedup)

    def memory(self, title: str = "Peak memory (MB)") -> Column:
        def cell(line: Line) -> Cell:
            timing = line.row.timing(line.runtime, self.batch) or line.row.deployed(self.batch)
            latency = timing.latency if timing else None
            return number_cell(None if latency is None else latency.peak_rss_mb, "{:.0f}")

        return Column(title=title, cell=cell)

    def throughput(self, batch: int) -> Column:
        def cell(line: Line) -> Cell:
            timing = line.row.timing(line.runtime, batch) or line.row.deployed(batch)
            latency = timing.latency if timing else None
            return number_cell(None if latency is None else latency.throughput_fps, "{:.1f}")

        title = "Images/s" if self.comparison.batches == (1,) else f"Images/s, batch {batch}"
        return Column(title=title, cell=cell)

    def accuracy(self) -> list[Column]:
        """The figures of the task."""
        if self.comparison.task is None:
            return []
        if self.comparison.task == "detect":
            return [self._figure("mAP50", "map50"), self._figure("mAP50-95", "map50_95")]
        return [self._figure("Top-1", "top1"), self._figure("Top-5", "top5")]

    def _figure(self, title: str, key: str) -> Column:
        def cell(line: Line) -> Cell:
            accuracy = line.row.accuracy
            value = getattr(accuracy, key) if accuracy is not None else None
            return number_cell(None if value is None else 100 * value, "{:.1f}")

        return Column(title=f"{title} (%)", cell=cell)

    def main_accuracy(self) -> list[Column]:
        return self.accuracy()[-1:] if self.comparison.task == "detect" else self.accuracy()[:1]

    def drop(self, title: str = "Change (points)") -> list[Column]:
        if self.comparison.task is None:
            return []
        return [Column(title=title, cell=lambda line: drop_cell(line.row))]

    def ratio(self, row: Row) -> float | None:
        base = self.comparison.baseline(row) or row
        if not row.size_mb or not base.size_mb:
            return None
        return base.size_mb / row.size_mb

    def compression(self) -> Column:
        return Column(
            title="Compression", cell=lambda line: number_cell(self.ratio(line.row), "{:.2f}×")
        )

    def deployed(self) -> Column:
        """Latency in the runtime that the model would be deployed with."""

        def cell(line: Line) -> Cell:
            timing = line.row.deployed(self.batch)
            latency = timing.latency if timing else None
            return number_cell(None if latency is None else latency.p50_ms, "{:.2f}")

        return Column(title="Latency (ms)", cell=cell)


def method_of(row: Row, comparison: Comparison) -> str:
    """How a model was compressed, read from the model itself: "pruned 34 % + INT8"."""
    base = comparison.baseline(row)
    parts = []
    if row.pruned_share is not None and row.pruned_share > 0.005:
        parts.append(f"pruned {100 * row.pruned_share:.0f} %")
    if row.ternary_share is not None and row.ternary_share > 0.5:
        parts.append("ternary")
    elif row.sparsity is not None and row.sparsity > 0.05 and row.precision != "int8":
        parts.append(f"sparse {100 * row.sparsity:.0f} %")
    if row.precision not in ("fp32", "unknown", ""):
        parts.append(precision_name(row.precision))
    if parts:
        return " + ".join(parts)
    return "baseline" if base is None else "float"


def speedup_cell(found: SpeedUp) -> Cell:
    """The ratio; a mark says when the interval holds 1, so that no difference can be told."""
    mark = " ≈" if found.low <= 1.0 <= found.high else ""
    return Cell(text=f"{found.ratio:.2f}×{mark}", value=found.ratio)


def drop_cell(row: Row) -> Cell:
    """The difference in points with its interval, "+" for a gain."""
    if row.drop is None:
        return number_cell(None, "")
    points = 100 * row.drop.difference
    text = f"{points:+.1f}"
    if row.drop.low is not None and row.drop.high is not None:
        text += f" ({100 * row.drop.low:+.1f} to {100 * row.drop.high:+.1f})"
    return Cell(text=text, value=points)


def text_cell(value: str) -> Cell:
    return Cell(text=value, value=value)


def number_cell(value: float | None, form: str) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell(text=NOTHING)
    return Cell(text=form.format(value), value=value)
