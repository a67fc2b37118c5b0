"""What `edgekit calibrate` prints: ranges by method, how steady they are, a study's table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cli.console import emit, note, print_table, warn

if TYPE_CHECKING:
    from edgekit.calibration.stability import Stability
    from edgekit.pipeline.study import Study
    from edgekit.stages.calibrate import CalibrateOptions
    from edgekit.types import Calibration, Range

ALL = "all"
"""The method that stands for every one."""


def report(
    calibration: Calibration,
    method: str,
    options: CalibrateOptions,
    warnings: list[str],
    as_json: bool,
) -> None:
    """Print a calibration: warnings, the ranges of every method when asked for, a summary."""
    from edgekit.calibration import store
    from edgekit.calibration.methods import METHODS, choose
    from edgekit.calibration.stability import stability

    statistics, _ = store.read(calibration.path)
    chosen: dict[str, Any] = {
        "symmetric": options.symmetric,
        "levels": options.levels,
        "overrides": options.overrides,
    }
    ranges = {
        name: choose(statistics, name, **chosen)
        for name in (list(METHODS) if method == ALL else [method])
    }
    steady = stability(statistics, options.method, **chosen)
    warnings = list(warnings)
    if steady.warning:
        warnings.append(steady.warning)
    if calibration.skipped:
        more = " …" if len(calibration.skipped) > 1 else ""
        warnings.append(
            f"{len(calibration.skipped)} images were skipped: {calibration.skipped[0]}{more}"
        )
    if as_json:
        emit(_answer(calibration, method, ranges, steady, statistics.origin.preprocess, warnings))
        return
    for warning in warnings:
        warn(warning)
    if method == ALL:
        print_ranges(ranges)
    elsewhere = " (from the cache: nothing changed)" if calibration.cached else ""
    skipped = f", {len(calibration.skipped)} skipped" if calibration.skipped else ""
    apart = f", {len(options.overrides)} of them overridden" if options.overrides else ""
    note(
        f"{calibration.path}: {len(calibration.ranges)} tensors over {calibration.images} images"
        f"{skipped}{elsewhere}, ranges by {options.method}{apart}."
    )
    if not steady.warning:
        note(steady.message)


def _answer(
    calibration: Calibration,
    method: str,
    ranges: dict[str, dict[str, Range]],
    steady: Stability,
    preprocess: str,
    warnings: list[str],
) -> dict[str, Any]:
    return {
        "calibration": calibration.path,
        "sha256": calibration.sha256,
        "graph_sha256": calibration.graph_sha256,
        "images": calibration.images,
        "skipped": len(calibration.skipped),
        "skipped_images": calibration.skipped,
        "tensors": len(calibration.ranges),
        "seconds": calibration.seconds,
        "inference_seconds": calibration.inference_seconds or None,
        "peak_rss_mb": calibration.peak_rss_mb or None,
        "cached": calibration.cached,
        "method": method,
        "ranges": {
            name: {how: [by[name].low, by[name].high] for how, by in ranges.items()}
            for name in calibration.ranges
        },
        "stability": stability_answer(steady),
        "preprocess": json.loads(preprocess),
        "warnings": warnings,
    }


def stability_answer(steady: Stability) -> dict[str, Any]:
    """The estimate as the JSON answers have it."""
    return {
        "method": steady.method,
        "median": steady.median,
        "p90": steady.p90,
        "worst": [{"tensor": name, "error": error} for name, error in steady.worst],
        "needed_images": steady.needed_images,
        "message": steady.message,
    }


def print_ranges(ranges: dict[str, dict[str, Range]]) -> None:
    """One row for each tensor, one column for each method."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for name in ranges:
        table.add_column(name, justify="right", no_wrap=True)
    for tensor in next(iter(ranges.values())):
        row = [ranges[name][tensor] for name in ranges]
        table.add_row(tensor, *(f"{span.low:.4g} … {span.high:.4g}" for span in row))
    print_table(table)


def report_study(
    study: Study, target: str, out: Path | None, warnings: list[str], as_json: bool
) -> None:
    """Print a study: one row for each number of images."""
    if as_json:
        emit(
            {
                "target": target,
                "method": study.method,
                "judged_images": study.judged,
                "judged_images_seen": study.judged_seen,
                "metric": study.metric,
                "float_accuracy": study.float_accuracy,
                "rows": study.rows,
                "calibration": out,
                "sha256": study.calibration.sha256,
                "warnings": warnings,
            }
        )
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("images", justify="right")
    table.add_column("ranges certain to", justify="right")
    table.add_column("SQNR, dB", justify="right")
    table.add_column("worst block", overflow="fold")
    if study.metric is not None:
        table.add_column(f"{study.metric}, %", justify="right")
    for row in study.rows:
        cells = [
            str(row.images),
            "?" if row.uncertainty is None else f"{row.uncertainty:.1%}",
            f"{row.sqnr_db:.1f}",
            row.block,
        ]
        if row.accuracy is not None:
            cells.append(f"{100 * row.accuracy:.2f}")
        table.add_row(*cells)
    print_table(table)
    if study.float_accuracy is not None:
        note(f"The float model has {100 * study.float_accuracy:.2f} %.")
    note(
        f"Ranges by {study.method} for {target}; SQNR of the outputs on {study.judged} images "
        + (
            "that the largest row was calibrated on: there are no others."
            if study.judged_seen
            else "that no row was calibrated on."
        )
    )
    if out is not None:
        note(f"{out}: statistics of {study.calibration.images} images.")
