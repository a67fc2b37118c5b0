"""`edgekit cache`: what the stage cache holds, and emptying it."""

from __future__ import annotations

import time

import click

from edgekit.cli.console import emit, json_option, note, print_table


@click.group("cache")
def command() -> None:
    """Show or clear the stage cache.

    Finished stages are kept there and not repeated while their inputs, options and versions are the
    same. EDGEKIT_CACHE names the folder, EDGEKIT_CACHE_MAX_MB its size cap: above it the entries
    used least recently go.

    \b
    Example:
      edgekit cache show
      edgekit cache clear
    """


@command.command("show")
@json_option
def show(as_json: bool) -> None:
    """List what is kept, the last used first."""
    from edgekit.cache import StageCache

    with StageCache() as cache:
        entries = cache.show()
        total_mb = sum(entry.size_mb for entry in entries)
        if as_json:
            emit(
                {
                    "folder": cache.folder,
                    "size_mb": total_mb,
                    "max_mb": cache.max_size_mb,
                    "entries": entries,
                }
            )
            return
        if entries:
            from rich.table import Table

            table = Table()
            for name in ("stage", "entry", "last used"):
                table.add_column(name)
            table.add_column("size, MB", justify="right")
            table.add_column("")
            for entry in entries:
                used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
                marks = [
                    word
                    for word, true in (("unfinished", entry.partial), ("in use", entry.in_use))
                    if true
                ]
                short = entry.key.removeprefix(f"{entry.stage}-")[:12]
                table.add_row(entry.stage, short, used, f"{entry.size_mb:.1f}", ", ".join(marks))
            print_table(table)
        note(
            f"{len(entries)} entries, {total_mb:.1f} of {cache.max_size_mb:.0f} MB, "
            f"in {cache.folder}."
        )


@command.command("clear")
@json_option
def clear(as_json: bool) -> None:
    """Remove everything that no running edgekit uses."""
    from edgekit.cache import StageCache

    with StageCache() as cache:
        removed, freed_mb, kept = cache.clear()
        if as_json:
            emit(
                {
                    "folder": cache.folder,
                    "removed": removed,
                    "freed_mb": freed_mb,
                    "in_use": kept,
                }
            )
            return
        note(
            f"Removed {removed} entries, {freed_mb:.1f} MB, from {cache.folder}."
            + (f" {kept} are in use and stay." if kept else "")
        )
