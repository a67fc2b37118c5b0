"""The page of a comparison: its table, sortable, and accuracy against latency as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.report import svg
from edgekit.report.bundle_report import GOOD, NEUTRAL, Tile
from edgekit.report.compare_presets import CompareTable
from edgekit.report.comparison import TORCH, Comparison, Row, precision_name, runtime_name
from edgekit.report.page import render_page

if TYPE_CHECKING:
    from markupsafe import Markup

_TITLES = {
    "default": "Models compared",
    "pruning": "Pruned models",
    "compression": "Compression methods",
    "deployment": "Ways to deploy",
    "ablation": "Each optimization on and off",
}


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """The picture with its axes."""

    picture: Markup
    points: tuple[svg.ParetoPoint, ...]
    across: svg.Scale
    upright: svg.Scale
    metric: str
    where: str


def render(comparison: Comparison, table: CompareTable, preset: str) -> str:
    """The page as HTML text: no network, no other file."""
    settings = comparison.settings
    models = len(comparison.rows)
    parts = [f"{models} model{'s' if models != 1 else ''}"]
    if settings.get("machine"):
        parts.append(str(settings["machine"]))
    if comparison.images:
        parts.append(f"{comparison.images} labelled images")
    return render_page(
        "compare.html.j2",
        title=_TITLES[preset],
        subtitle=", ".join(parts),
        table=table,
        columns=[
            (title, "n" if number else "")
            for title, number in zip(table.titles, table.numeric, strict=True)
        ],
        plane=_plane(comparison),
        tiles=_tiles(comparison),
        failures=[(row.name, error) for row, error in comparison.errors()],
        minus=svg.minus,
    )


def _metric(comparison: Comparison) -> str:
    return "mAP50-95" if comparison.task == "detect" else "Top-1"


def _plane(comparison: Comparison) -> _Plane | None:
    """Accuracy against latency; None where fewer than two models have both."""
    batch = comparison.batches[0]
    points: list[svg.ParetoPoint] = []
    runtimes: dict[str, None] = {}
    for row in comparison.rows:
        timing = row.deployed(batch)
        if row.accuracy is None or timing is None or timing.latency is None:
            continue
        runtimes[timing.runtime] = None
        points.append(
            svg.ParetoPoint(
                name=row.name,
                x=timing.latency.p50_ms,
                y=100 * row.accuracy.value,
                size=row.size_mb or 0.0,
                css="int8" if row.precision == "int8" else "float",
            )
        )
    if len(points) < 2:
        return None
    metric = _metric(comparison)
    listed = "; ".join(f"{p.name} {p.x:.2f} ms, {p.y:.1f} %" for p in points)
    picture, across, upright = svg.pareto(points, f"{metric} against latency: {listed}")
    where = ", ".join(runtime_name(runtime) for runtime in runtimes)
    return _Plane(
        picture=picture,
        points=tuple(points),
        across=across,
        upright=upright,
        metric=metric,
        where=f", {where}",
    )


def _tiles(comparison: Comparison) -> list[Tile]:
    """The best of the comparison: the fastest, the most accurate, the smallest."""
    batch = comparison.batches[0]
    tiles: list[Tile] = []
    timed = [
        (timing.latency.p50_ms, row, timing)
        for row in comparison.rows
        for timing in [row.deployed(batch)]
        if timing is not None and timing.latency is not None
    ]
    if len(timed) > 1:
        ms, row, timing = min(timed, key=lambda item: item[0])
        detail = f"{row.name}, {_where(row, timing.runtime)}"
        if timing.speedup is not None:
            detail += f", {timing.speedup.ratio:.2f}× the baseline"
        tiles.append(Tile(title="Fastest", value=f"{ms:.2f} ms", detail=detail, tone=GOOD))
    scored = [(row.accuracy.value, row) for row in comparison.rows if row.accuracy is not None]
    if len(scored) > 1:
        value, row = max(scored, key=lambda item: item[0])
        tiles.append(
            Tile(title=f"Best {_metric(comparison)}", value=f"{100 * value:.1f} %", detail=row.name)
        )
    sized = [(row.size_mb, row) for row in comparison.rows if row.size_mb]
    if len(sized) > 1:
        size, row = min(sized, key=lambda item: item[0])
        tiles.append(Tile(title="Smallest", value=f"{size:.2f} MB", detail=row.name))
    failed = sum(bool(row.errors) for row in comparison.rows)
    if failed:
        tiles.append(Tile(title="Failed", value=str(failed), detail="see below", tone=NEUTRAL))
    return tiles


def _where(row: Row, runtime: str) -> str:
    text = runtime_name(runtime)
    return text if runtime == TORCH else f"{text} {precision_name(row.precision)}"
