"""`edgekit targets list|show`."""

from __future__ import annotations

import json
from typing import Any

import click

from edgekit.cli.console import emit, json_option, print_table


@click.group(
    epilog="""\b
Examples:
  edgekit targets list
  edgekit targets show x86-int8 > mine.toml    # a start for a target of your own
"""
)
def command() -> None:
    """List and show target profiles.

    Profiles are TOML files. More are found in the folders named by EDGEKIT_TARGETS, and wherever a
    target is asked for, the path of a TOML file will do.
    """


@command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the targets, with the part that this version lacks for some."""
    from edgekit.stages.doctor import missing_part
    from edgekit.target_files import list_targets, load_target

    profiles = [load_target(name) for name in list_targets()]
    if as_json:
        emit(
            {
                "targets": [
                    {
                        "name": profile.name,
                        "description": profile.description,
                        "arch": profile.device.arch,
                        "runtime": profile.runtime.name,
                        "precision": profile.build.precision,
                        "missing": missing_part(profile),
                    }
                    for profile in profiles
                ]
            }
        )
        return
    from rich.table import Table

    table = Table()
    for column in ("target", "runtime", "precision", "description"):
        table.add_column(column, no_wrap=column != "description")
    missing = set()
    for profile in profiles:
        part = missing_part(profile)
        missing.update([part] if part else [])
        name = f"{profile.name} *" if part else profile.name
        table.add_row(name, profile.runtime.name, profile.build.precision, profile.description)
    print_table(table)
    for part in sorted(missing):
        click.echo(f"* {part}")


@command.command("show")
@click.argument("name", metavar="NAME|FILE.toml")
@json_option
def show_command(name: str, as_json: bool) -> None:
    """Show a target with everything it extends merged in, as TOML."""
    from edgekit.stages.doctor import missing_part
    from edgekit.target_files import load_target

    profile = load_target(name)
    part = missing_part(profile)
    values = profile.to_dict()
    if as_json:
        emit({**values, "missing": part})
        return
    if part:
        click.echo(f"# {part}")
    click.echo(to_toml(values), nl=False)


def to_toml(values: dict[str, Any]) -> str:
    """A profile's `to_dict()` as a TOML file that loads as the same profile; unknown facts left out."""
    lines = [f"# {values['name']}", f"description = {_toml(values['description'])}"]
    for section, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]"]
            lines += [
                f"{key} = {_toml(value)}"
                for key, value in table.items()
                if value is not None and value != "" and value != []
            ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # for strings without control characters, booleans, numbers and lists of strings, JSON is TOML
    return json.dumps(value, ensure_ascii=False)
