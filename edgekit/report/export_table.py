"""The tables at the end of an export."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types import AccuracyReport, LatencyReport, SpeedUp, StageReport


def stage_table(stages: Sequence[StageReport]) -> Table:
    """Per stage: time, size, parity with the stage before (the worst block counts), remarks."""
    table = Table(title="Stages", title_justify="left", caption_justify="left")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("SQNR dB", justify="right")
    table.add_column("max rel", justify="right")
    table.add_column("remarks", overflow="fold", ratio=1)
    for stage in stages:
        parity = stage.parity
        table.add_row(
            stage.name,
            "cached" if stage.cached else f"{stage.seconds:.1f} s",
            "" if stage.size_mb is None else f"{stage.size_mb:.2f}",
            "" if parity is None else f"{parity.cosine:.6f}",
            "" if parity is None else _decibels(parity.sqnr_db),
            "" if parity is None else f"{parity.max_rel_error:.1e}",
            "; ".join(stage.notes),
        )
    return table


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.1f}"


def latency_table(
    float_latency: LatencyReport, int8_latency: LatencyReport | None, speedup: SpeedUp | None
) -> Table:
    """Latency of float and INT8, measured taking turns in one run."""
    title = f"Latency, ms ({float_latency.threads} thread"
    title += "s" if float_latency.threads > 1 else ""
    table = Table(title=title + f", batch {float_latency.batch})", title_justify="left")
    table.add_column("model")
    for name in (
        "p50",
        "p90",
        "p95",
        "p99",
        "mean",
        "std",
        "min",
        "max",
        "img/s",
        "peak MB",
        "runs",
    ):
        table.add_column(name, justify="right")
    rows = [("float", float_latency)] + ([("int8", int8_latency)] if int8_latency else [])
    for name, report in rows:
        table.add_row(
            name,
            *(
                f"{value:.2f}"
                for value in (
                    report.p50_ms,
                    report.p90_ms,
                    report.p95_ms,
                    report.p99_ms,
                    report.mean_ms,
                    report.std_ms,
                    report.min_ms,
                    report.max_ms,
                )
            ),
            f"{report.throughput_fps:.1f}",
            f"{report.peak_rss_mb:.0f}",
            str(report.runs),
        )
    if speedup is not None:
        table.caption = (
            f"speed-up of INT8 {speedup.ratio:.2f}x, 95 % interval "
            f"{speedup.low:.2f}-{speedup.high:.2f}; other load {float_latency.load:.0%}"
        )
    return table


def accuracy_table(before: AccuracyReport, after: AccuracyReport | None) -> Table:
    """Accuracy before and after, in percent, and the difference in points."""
    table = Table(title=f"Accuracy on {before.images} labelled images, %", title_justify="left")
    table.add_column("metric")
    table.add_column("float", justify="right")
    if after is not None:
        table.add_column("int8", justify="right")
        table.add_column("points", justify="right")
    names = {
        "map50_95": "mAP50-95",
        "map50": "mAP50",
        "map75": "mAP75",
        "precision": "precision",
        "recall": "recall",
        "top1": "top-1",
        "top5": "top-5",
    }
    for key, label in names.items():
        value = getattr(before, key)
        if value is None:
            continue
        row = [label, f"{100 * value:.2f}"]
        if after is not None:
            other = getattr(after, key)
            row += [f"{100 * other:.2f}", f"{100 * (other - value):+.2f}"]
        table.add_row(*row)
    return table
