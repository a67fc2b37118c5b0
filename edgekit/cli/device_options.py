"""The options of every command that can do its work on a board instead of here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.console import note, print_table, progress
from edgekit.errors import EdgekitError, UsageError

if TYPE_CHECKING:
    from edgekit.stages.device import DeviceAnswer
    from edgekit.transports.settings import Device

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option(
        "--device",
        "device",
        metavar="DEVICE",
        multiple=True,
        help="Do it there: local, ssh://user@host[:port][/folder], adb://serial, or a name from "
        "devices.toml; repeatable.",
    ),
    click.option(
        "--devices",
        "devices_file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Where devices have names and settings. [default: devices.toml, where there is one]",
    ),
    click.option(
        "--device-limit",
        metavar="S",
        type=click.FloatRange(min=0, min_open=True),
        help="Longest time for all the work on a device, in seconds. [default: the device's, 900]",
    ),
    click.option(
        "--device-python",
        metavar="PATH",
        help="Python on the device that has the runtime, such as /opt/venv/bin/python.",
    ),
    click.option(
        "--ssh-option",
        "ssh_options",
        metavar="KEY=VALUE",
        multiple=True,
        help="An option of ssh_config, such as IdentityFile=lab_key; repeatable.",
    ),
    click.option("--keep", is_flag=True, help="Leave the run's folder on the device."),
    click.option(
        "--pick-up",
        metavar="RUN",
        help="Fetch the result of a run whose connection was lost, and start none.",
    ),
]
DEVICE_PARAMETERS = (
    "device",
    "devices_file",
    "device_limit",
    "device_python",
    "ssh_options",
    "keep",
    "pick_up",
)
"""The names of the options' parameters."""


def device_options(function: F) -> F:
    """Add the options; take them out of the command's keyword arguments with `device_choice`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, kw_only=True)
class DeviceChoice:
    """Which devices, and how; `devices` is empty when the work is to be done here."""

    devices: tuple[Device, ...]
    limit_s: float | None
    keep: bool
    run: str | None


def device_choice(arguments: dict[str, Any]) -> DeviceChoice:
    """What the options ask for; removes them from `arguments`.

    Raises UsageError for unknown devices, wrong addresses, and options that need --device.
    """
    names: Sequence[str] = arguments.pop("device")
    file: Path | None = arguments.pop("devices_file")
    limit_s: float | None = arguments.pop("device_limit")
    python: str | None = arguments.pop("device_python")
    ssh_options: Sequence[str] = arguments.pop("ssh_options")
    keep: bool = arguments.pop("keep")
    run: str | None = arguments.pop("pick_up")
    if not names:
        given = {
            "--devices": file is not None,
            "--device-limit": limit_s is not None,
            "--device-python": python is not None,
            "--ssh-option": bool(ssh_options),
            "--keep": keep,
            "--pick-up": run is not None,
        }
        alone = [option for option, is_given in given.items() if is_given]
        if alone:
            raise UsageError(
                f"{alone[0]} goes with --device.",
                hint="For example: --device ssh://pi@raspberrypi.local",
            )
        return DeviceChoice(devices=(), limit_s=None, keep=False, run=None)
    from edgekit.transports.settings import check_ssh_option, find_devices

    devices = find_devices(names, file)
    if run is not None and len(devices) > 1:
        raise UsageError("--pick-up fetches a run from the one device that has it.")
    extra = tuple(check_ssh_option(option, "--ssh-option") for option in ssh_options)
    changed = [
        dataclasses.replace(
            device,
            # ssh takes the first value that it is given
            ssh_options=(*extra, *device.ssh_options),
            python=python if python is not None else device.python,
        )
        for device in devices
    ]
    return DeviceChoice(devices=tuple(changed), limit_s=limit_s, keep=keep, run=run)


def refuse_here_only(context: click.Context, names: Sequence[str]) -> None:
    """Raise UsageError when one of the parameters `names` was given: they mean nothing on a device."""
    from click.core import ParameterSource

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{parameter.opts[0]} does not go with --device: a bundle is measured with what it "
                "carries."
            )


def given(context: click.Context, name: str) -> Any:
    """The parameter `name` where the command line names it; None where it is the default."""
    from click.core import ParameterSource

    if context.get_parameter_source(name) is ParameterSource.DEFAULT:
        return None
    return context.params[name]


def do_on_devices(
    choice: DeviceChoice,
    command: str,
    bundle: Path,
    options: Sequence[str] = (),
    *,
    against: Path | None = None,
    quiet: bool = False,
) -> list[DeviceAnswer]:
    """Run a command of the bundle's device program on every device; one answer for each."""
    from edgekit.stages.device import DeviceWork, work_on_all

    work = DeviceWork(
        command=command,
        bundle=bundle,
        against=against,
        options=tuple(options),
        limit_s=choice.limit_s,
        keep=choice.keep,
        run=choice.run,
    )

    def announce(device: str, run: str) -> None:
        # the local device is this machine: nothing can be cut
        if not device.startswith("local"):
            note(f"{device}: run {run}; --pick-up {run} fetches it, should the connection be lost")

    with progress(quiet=quiet) as report:
        return work_on_all(choice.devices, work, report, None if quiet else announce)


def answers_json(answers: Sequence[DeviceAnswer]) -> dict[str, Any]:
    """One device: its answer with what is known of it. Several: `devices`, a list of the same."""
    from edgekit.stages.device import worst

    objects = [answer_json(answer) for answer in answers]
    if len(objects) == 1:
        return objects[0]
    code = worst(answers)
    failed = [answer.device for answer in answers if answer.error is not None]
    summary: dict[str, Any] = {"devices": objects}
    if failed:
        summary |= {"error": f"Failed: {', '.join(failed)}.", "hint": "", "exit_code": code}
    return summary


def answer_json(answer: DeviceAnswer) -> dict[str, Any]:
    """The program's answer, with `device` beside it; an error replaces its own words."""
    found = dict(answer.answer or {})
    found["device"] = {
        "name": answer.device,
        "address": answer.address,
        "run": answer.run,
        "seconds": answer.seconds,
        "sent_bytes": answer.sent_bytes,
        "host": answer.facts.host if answer.facts else None,
        "machine": answer.facts.machine if answer.facts else None,
    }
    if answer.error is not None:
        found |= error_json(answer.error)
    return found


def error_json(error: EdgekitError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def show_errors(answers: Sequence[DeviceAnswer]) -> None:
    """Each device's error and its next step, on stderr."""
    for answer in answers:
        if answer.error is not None:
            note(f"Error: {answer.error.message}")
            if answer.error.hint:
                note(f"Hint: {answer.error.hint}")


def show_checks(answers: Sequence[DeviceAnswer]) -> None:
    """What `verify` found, device by device."""
    from rich.markup import escape
    from rich.table import Table

    from edgekit.transports.board import printable

    table = Table()
    for title in ("device", "check", "", "found"):
        table.add_column(title, overflow="fold")
    for answer in answers:
        for check in (answer.answer or {}).get("checks", []):
            skipped = check.get("skipped")
            word = "[yellow]skipped" if skipped else "[green]ok" if check["ok"] else "[red]FAILED"
            table.add_row(
                answer.device,
                escape(printable(str(check["name"]))),
                word,
                escape(printable(str(check["detail"]))),
            )
    if table.row_count:
        print_table(table)
