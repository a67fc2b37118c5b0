"""`edgekit history`: what was measured, over time."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.console import emit, json_option, note, print_table
from edgekit.errors import NotPossible, UsageError, nearest

if TYPE_CHECKING:
    from edgekit.history import Result


@click.command(
    epilog="""\b
Examples:
  edgekit history
  edgekit history --model best-rpi5-int8 --device pi --metric p99_ms --plot latency.html
  edgekit history --csv > results.csv
"""
)
@click.option("--model", help="Only results of this model (the bundle's name).")
@click.option("--device", help="Only results of this device.")
@click.option(
    "--metric", default="p50_ms", show_default=True, help="Which value: p50_ms, p99_ms, joules, …"
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest N.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the metric over time, per model and device: FILE.html or FILE.png.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print the results as CSV.")
@json_option
def command(
    model: str | None,
    device: str | None,
    metric: str,
    limit: int | None,
    plot: Path | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Show results that `bench` and `check` have added, the newest last.

    The history is the SQLite file that EDGEKIT_HISTORY names (`off`: none is kept), by default
    edgekit/history.sqlite in the user's data folder.
    """
    from edgekit import history

    history.check_metric(metric)
    if as_csv and as_json:
        raise UsageError("--csv and --json are two ways to print the same.")
    path = history.history_path()
    if path is None:
        raise NotPossible(
            "The history is switched off.", hint="Unset EDGEKIT_HISTORY, or name a file with it."
        )
    for column, value in (("model", model), ("device", device)):
        known = history.names(path, column)
        if value is not None and known and value not in known:
            raise UsageError(f"There are no results of the {column} {value!r}.",
                             hint=nearest(value, known))  # fmt: skip
    results = history.read(path, model=model, device=device, limit=limit)
    if plot is not None:
        _plot(results, metric, plot)
        note(f"Written: {plot}")
    if as_json:
        emit({"history": str(path), "results": [history.as_row(each) for each in results]})
    elif as_csv:
        _csv(results)
    elif plot is not None:
        return
    elif not results:
        note(f"There are no results yet in {path}.")
    else:
        _show(results, metric)


def _plot(results: list[Result], metric: str, file: Path) -> None:
    from edgekit import atomic, history
    from edgekit.report import history_page

    groups = history.series(results)
    if file.suffix.lower() in (".html", ".htm"):
        atomic.write_text(file, history_page.render(groups, metric))
    elif file.suffix.lower() == ".png":
        with atomic.replacing(file) as temporary:
            history_page.write_png(groups, metric, temporary)
    else:
        raise UsageError(f"--plot {str(file)!r} is neither .html nor .png.")


def _csv(results: list[Result]) -> None:
    from edgekit import history

    rows = [history.as_row(each) for each in results]
    names = [field.name for field in dataclasses.fields(history.Result) if field.name != "answer"]
    writer = csv.DictWriter(sys.stdout, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _show(results: list[Result], metric: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    from edgekit.history import METRICS

    table = Table()
    for title in ("time (UTC)", "model", "device", "runtime"):
        table.add_column(title, overflow="fold")
    for title in (f"{metric} ({METRICS[metric]})", "runs", "other load"):
        table.add_column(title, justify="right")
    for each in results:
        value = getattr(each, metric)
        table.add_row(
            each.utc,
            escape(each.model),
            escape(each.device),
            escape(f"{each.runtime} {each.precision}".strip()),
            "not available" if value is None else f"{value:.4g}",
            "" if each.runs is None else f"{each.runs:.0f}",
            "not available" if each.load is None else f"{each.load:.0%}",
        )
    print_table(table)
