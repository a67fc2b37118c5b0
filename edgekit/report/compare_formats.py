"""A comparison's table as Markdown, CSV, or for the terminal."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from edgekit.report.compare_presets import CompareTable

if TYPE_CHECKING:
    from rich.table import Table


def markdown(table: CompareTable) -> str:
    """A GitHub table; groups are lines of their own, notes a list beneath."""
    widths = [len(title) for title in table.titles]
    for group in table.groups:
        for row in group.rows:
            widths = [
                max(width, len(_escaped(cell.text)))
                for width, cell in zip(widths, row, strict=True)
            ]
    lines = [_line([_escaped(title) for title in table.titles], widths, table.numeric)]
    rules = [
        "-" * (width - 1) + ":" if number else "-" * width
        for width, number in zip(widths, table.numeric, strict=True)
    ]
    lines.append("| " + " | ".join(rules) + " |")
    for group in table.groups:
        if group.heading:
            heading = [f"**{_escaped(group.heading)}**", *([""] * (len(widths) - 1))]
            lines.append(_line(heading, widths, table.numeric))
        for row in group.rows:
            lines.append(_line([_escaped(cell.text) for cell in row], widths, table.numeric))
    if table.notes:
        lines += ["", *(f"- {_plain(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _line(texts: list[str], widths: list[int], numeric: tuple[bool, ...]) -> str:
    padded = [
        text.rjust(width) if number else text.ljust(width)
        for text, width, number in zip(texts, widths, numeric, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


def _escaped(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    return " ".join(text.split())


def comma_separated(table: CompareTable) -> str:
    """CSV with plain numbers, one column for the group where there are groups, and one for errors."""
    grouped = any(group.heading for group in table.groups)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(["Group"] if grouped else []), *table.titles, "Error"])
    for group in table.groups:
        for row, failed in zip(group.rows, group.failed, strict=True):
            values = ["" if cell.value is None else cell.value for cell in row]
            writer.writerow([*([group.heading] if grouped else []), *values, failed])
    return buffer.getvalue()


def for_terminal(table: CompareTable) -> Table:
    """The table for rich, notes as its caption."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(caption_justify="left")
    for title, number in zip(table.titles, table.numeric, strict=True):
        shown.add_column(title, justify="right" if number else "left", overflow="fold")
    for group in table.groups:
        if group.heading:
            shown.add_section()
            shown.add_row(f"[bold]{escape(group.heading)}[/bold]")
        for row, failed in zip(group.rows, group.failed, strict=True):
            shown.add_row(*(escape(cell.text) for cell in row), style="red" if failed else None)
    return shown
