"""How commands talk: results on stdout (one JSON object under --json), progress and notes on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.types import Progress, no_progress, to_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """Add `--json`: one object on stdout and nothing else there. Argument name: `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(
        function
    )


def emit(value: Any) -> None:
    """Print `value` (dicts, lists, edgekit types) as one JSON object on stdout."""
    click.echo(json.dumps(to_json(value), indent=2))


def note(message: str) -> None:
    """One line for the user on stderr."""
    click.echo(message, err=True)


def warn(message: str) -> None:
    """A warning on stderr."""
    click.secho(f"Warning: {message}", fg="yellow", err=True)


def console(stderr: bool = False) -> Console:
    """A rich console; wide enough for tables when the output is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 120, highlight=False)


def print_table(table: Table) -> None:
    """Print a rich table on stdout."""
    console().print(table)


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """Yield a `Progress` that draws a bar on stderr.

    On a terminal it is a live bar that disappears at the end; elsewhere (a CI log) each piece of
    work gets one line when it starts, so that logs stay short.
    """
    if quiet:
        yield no_progress
        return
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def plain(done: int, total: int, what: str) -> None:
            if what not in seen:
                seen.add(what)
                note(f"  {what}" + (f" ({total})" if total else ""))

        yield plain
        return

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    with Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    ) as bar:
        tasks: dict[str, Any] = {}

        def live(done: int, total: int, what: str) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield live
