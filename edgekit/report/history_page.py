"""The page of the history: one picture for each model and device, with its numbers beneath."""

from __future__ import annotations

import itertools
from calendar import timegm
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import gmtime, strftime, strptime
from typing import TYPE_CHECKING

from edgekit.history import METRICS, Result
from edgekit.report import svg
from edgekit.report.page import render_page
from edgekit.require import require

if TYPE_CHECKING:
    from pathlib import Path

    from markupsafe import Markup

_HEIGHT = 220


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One picture: results as (time, value, what else to know)."""

    model: str
    device: str
    picture: Markup
    upright: svg.Scale
    first: str
    last: str
    rows: tuple[tuple[str, str, str, str], ...]


def seconds_of(utc: str) -> float:
    """Seconds since 1970 of a result's time; 0 for one that cannot be read."""
    try:
        return float(timegm(strptime(utc, "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return 0.0


def render(groups: Mapping[tuple[str, str], Sequence[Result]], metric: str) -> str:
    """The page as HTML text: no network, no other file."""
    panels = []
    for (model, device), results in groups.items():
        known = [(each, getattr(each, metric)) for each in results]
        known = [(each, value) for each, value in known if value is not None]
        if known:
            panels.append(_panel(model, device, known))
    count = sum(len(panel.rows) for panel in panels)
    return render_page(
        "history.html.j2",
        title=f"{metric} over time",
        subtitle=f"{count} measurement{'s' if count != 1 else ''}",
        metric=metric,
        unit=METRICS[metric],
        panels=panels,
    )


def _panel(model: str, device: str, known: Sequence[tuple[Result, float]]) -> _Panel:
    times = [seconds_of(each.utc) for each, _ in known]
    values = [value for _, value in known]
    room = 0.04 * (max(times) - min(times)) or 1.0
    across = svg.Scale(low=min(times) - room, high=max(times) + room)
    # from zero: a change of 1 % must not look like a cliff
    upright = svg.Scale(low=0.0, high=1.1 * max(values) or 1.0)
    picture = svg.over_time(
        [(across.place(at), value) for at, value in zip(times, values, strict=True)],
        upright,
        f"{model} on {device}",
        height=_HEIGHT,
        # another bundle of the same name stands out
        marks=[False, *(a.bundle_sha256 != b.bundle_sha256
                        for (a, _), (b, _) in itertools.pairwise(known))],
    )  # fmt: skip
    return _Panel(
        model=model,
        device=device,
        picture=picture,
        upright=upright,
        first=strftime("%Y-%m-%d %H:%M", gmtime(times[0])),
        last=strftime("%Y-%m-%d %H:%M", gmtime(times[-1])),
        rows=tuple(
            (each.utc, f"{value:.4g}", f"{each.runtime} {each.precision}", each.bundle_sha256[:12])
            for each, value in known
        ),
    )


def write_png(groups: Mapping[tuple[str, str], Sequence[Result]], metric: str, path: Path) -> None:
    """The same as a picture file. Raises MissingDependency without matplotlib."""
    figure_module = require("matplotlib.figure", "Drawing a PNG")
    figure = figure_module.Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for (model, device), results in groups.items():
        known = [(seconds_of(r.utc), getattr(r, metric)) for r in results]
        known = [(at, value) for at, value in known if value is not None]
        if known:
            days = [at / 86400.0 for at, _ in known]
            axes.plot(days, [value for _, value in known], "o-", label=f"{model} on {device}")
    axes.xaxis.axis_date()
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{metric} ({METRICS[metric]})")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")
