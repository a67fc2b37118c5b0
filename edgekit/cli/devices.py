"""`edgekit devices`: the devices of devices.toml, what they are, and what lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.console import emit, json_option, note, print_table
from edgekit.cli.device_options import (
    device_choice,
    device_options,
    error_json,
)
from edgekit.errors import EdgekitError, UsageError


@click.group("devices")
def command() -> None:
    """List devices, see that they can be reached, and clear what was sent to them.

    \b
    Example:
      edgekit devices list
      edgekit devices info --device ssh://pi@raspberrypi.local
      edgekit devices clear --device pi
    """


@command.command("list")
@click.option(
    "--devices",
    "devices_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Which file. [default: devices.toml]",
)
@json_option
def list_command(devices_file: Path | None, as_json: bool) -> None:
    """List the devices of devices.toml."""
    from edgekit.transports.settings import FILE_NAME, load_devices

    devices = load_devices(devices_file or Path(FILE_NAME)).values()
    if as_json:
        emit({"devices": [{"name": each.name, "address": str(each.address),
                           "folder": each.address.folder} for each in devices]})  # fmt: skip
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "address", "folder")
    for each in devices:
        table.add_row(each.name, escape(str(each.address)), escape(each.address.folder))
    print_table(table)


@command.command("info")
@device_options
@json_option
def info_command(as_json: bool, **arguments: Any) -> int:
    """Connect to every --device and say what it is; the exit code is the worst of all."""
    return _each(arguments, as_json, clear=False)


@command.command("clear")
@device_options
@json_option
def clear_command(as_json: bool, **arguments: Any) -> int:
    """Remove all that edgekit has put on every --device: bundles, files by hash, results.

    Refused while a run goes on there. Files of others in the same folder stay, and are named.
    """
    return _each(arguments, as_json, clear=True)


def _each(arguments: dict[str, Any], as_json: bool, *, clear: bool) -> int:
    from edgekit.stages.device import board_facts

    choice = device_choice(arguments)
    if not choice.devices:
        raise UsageError("Name a --device.", hint="For example: --device ssh://pi@pi.local")
    if choice.run is not None or choice.keep:
        raise UsageError("--keep and --pick-up go with bench, verify, build and check.")
    found: list[dict[str, Any]] = []
    for device in choice.devices:
        row: dict[str, Any] = {"name": device.name, "address": str(device.address)}
        try:
            facts, left = board_facts(device, choice.limit_s or 60.0, clear=clear)
            row |= {"facts": facts, "left": left} if clear else {"facts": facts}
        except EdgekitError as error:
            row |= error_json(error)
        found.append(row)
    code = max((int(row.get("exit_code", 0)) for row in found), default=0)
    if as_json:
        answer: dict[str, Any] = {"devices": found}
        failed = [row["name"] for row in found if "error" in row]
        if failed:
            answer |= {"error": f"Failed: {', '.join(failed)}.", "hint": "", "exit_code": code}
        emit(answer)
        return code
    for row in found:
        if "error" in row:
            note(f"Error: {row['error']}")
            if row["hint"]:
                note(f"Hint: {row['hint']}")
            continue
        facts = row["facts"]
        python = f"Python {facts.python}" if facts.python else "no Python 3.8"
        click.echo(
            f"{row['name']}: {facts.host}, {facts.system} {facts.machine}, {python}, "
            f"{facts.free_bytes / 1e9:.1f} GB free" + (", cleared" if clear else "")
        )
        for name in row.get("left", []):
            note(f"{row['name']}: {name} is not ours and stays")
    return code
