"""`edgekit check`: gates for CI, on one or many devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.console import emit, json_option, note, print_table
from edgekit.cli.device_options import (
    DeviceChoice,
    answer_json,
    device_choice,
    device_options,
    do_on_devices,
)
from edgekit.cli.history_options import history_option, remember
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.stages.device import DeviceAnswer
    from edgekit.stages.gates import Budgets, Gate

_POSITIVE = click.FloatRange(min=0, min_open=True)


def share_of(text: str, option: str) -> float:
    """3% or 0.03 as 0.03. Raises UsageError for anything else."""
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        value = -1.0
    if rest or not 0.0 <= value < 1.0:
        raise UsageError(f"{option} {text!r} is not a share.", hint=f"For example: {option} 3%")
    return value


@click.command(
    epilog="""\b
Examples:
  edgekit check best-rpi5-int8/ --device ssh://pi@raspberrypi.local --max-p99-ms 25
  edgekit check new/ --baseline released/ --device pi --max-regression 3% --junit edgekit.xml
  edgekit check best-x86-int8/ --max-drop 0.5 --max-size-mb 4       # no device needed
"""
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--max-p50-ms", type=_POSITIVE, help="Fail when the median is above this.")
@click.option("--max-p99-ms", type=_POSITIVE, help="Fail when p99 is above this.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="Fail when more than so many points of accuracy were lost at export.",
)
@click.option("--max-size-mb", type=_POSITIVE, help="Fail when the main model's files are larger.")
@click.option(
    "--max-joules", type=_POSITIVE, help="Fail when one inference takes more energy than this."
)
@click.option(
    "--max-rss-mb", type=_POSITIVE, help="Fail when the process that runs it needs more memory."
)
@click.option(
    "--baseline",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Fail when it is slower than this one; both are timed in turns, on the device.",
)
@click.option(
    "--max-regression",
    metavar="P%",
    help="How much slower than the baseline is allowed, beyond the noise. [default: 3%]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Runtime threads. [default: the device's, 1]"
)
@click.option("--runtime", help="Which of the bundle's runtimes. [default: its main one]")
@click.option("--precision", metavar="P%", help="Measure until the median is known this well.")
@click.option("--runs", type=click.IntRange(min=1), help="Timed runs. [default: as needed]")
@click.option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the gates as JUnit XML.",
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a summary in markdown.",
)
@device_options
@history_option
@json_option
def command(
    bundle: Path,
    baseline: Path | None,
    threads: int | None,
    runtime: str | None,
    precision: str | None,
    runs: int | None,
    junit: Path | None,
    markdown_file: Path | None,
    no_history: bool,
    as_json: bool,
    **arguments: Any,
) -> int:
    """Hold a bundle against budgets and a baseline; exit code 0 only when every gate passed.

    On every device the bundle is verified first, then measured. Budgets come from the options, then
    from [budget] of edgekit.toml. A value that is not available fails its gate. Exit codes: 6 accuracy,
    7 latency, size, memory, energy or baseline, 9 verification, 10 device; of several the highest.
    """
    from edgekit.manifest import read_manifest
    from edgekit.stages import gates as gating

    choice = device_choice(arguments)
    budgets = _budgets(arguments, baseline)
    manifest = read_manifest(bundle)
    gates = gating.bundle_gates(manifest, budgets)
    if not choice.devices and (budgets.measured or baseline is not None):
        choice = _here(choice)
    if choice.run is not None:
        raise UsageError("--pick-up goes with bench and verify.")
    if not gates and not choice.devices:
        raise UsageError(
            "There is nothing to check.",
            hint="Give a budget such as --max-p99-ms 25, a --baseline, or a --device to verify on.",
        )
    answers: list[DeviceAnswer] = []
    if choice.devices:
        words = _words(threads=threads, runtime=runtime, precision=precision, runs=runs)
        found, answers = _on_devices(choice, bundle, baseline, budgets, words, as_json)
        gates += found
        if not no_history:
            remember(bundle, answers)
    if junit is not None or markdown_file is not None:
        _write(manifest.name, gates, answers, junit, markdown_file)
    code = gating.exit_code(gates)
    if as_json:
        answer: dict[str, Any] = {
            "ok": code == 0,
            "bundle": str(bundle),
            "gates": gates,
            "devices": [answer_json(each) for each in answers],
        }
        if code:
            answer |= {"error": _failed_text(gates), "hint": "", "exit_code": code}
        emit(answer)
    else:
        _show(gates)
        note(f"Error: {_failed_text(gates)}" if code else f"All {len(gates)} gates passed.")
    return code


def _here(choice: DeviceChoice) -> DeviceChoice:
    from edgekit.transports.settings import find_devices

    return dataclasses.replace(choice, devices=tuple(find_devices(["local"])))


def _budgets(arguments: dict[str, Any], baseline: Path | None) -> Budgets:
    """The options over [budget] of the edgekit.toml in the working folder."""
    from edgekit.project import load_project
    from edgekit.stages.gates import Budgets

    project = load_project(Path())
    values: dict[str, float] = {}
    names = ("max_p50_ms", "max_p99_ms", "max_drop", "max_size_mb", "max_joules", "max_rss_mb")
    for name in names:
        given = arguments.pop(name)
        if given is None and project is not None:
            given = getattr(project.budget, name)
        if given is not None:
            values[name] = given
    regression: str | None = arguments.pop("max_regression")
    if regression is not None and baseline is None:
        raise UsageError("--max-regression goes with --baseline.")
    if regression is None and project is not None and project.budget.max_regression:
        regression = project.budget.max_regression
    if regression is not None:
        values["max_regression"] = share_of(regression, "--max-regression")
    return Budgets(**values)


def _words(**values: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _on_devices(
    choice: DeviceChoice,
    bundle: Path,
    baseline: Path | None,
    budgets: Budgets,
    words: list[str],
    quiet: bool,
) -> tuple[list[Gate], list[DeviceAnswer]]:
    """Verify everywhere; measure where that went well. Gates device by device, and the answers."""
    from edgekit.stages import gates as gating

    common = [word for word in words if word.startswith(("--threads", "--runtime"))]
    verified = do_on_devices(choice, "verify", bundle, common, quiet=quiet)
    gates = [gating.verify_gate(answer) for answer in verified]
    good = {gate.device for gate in gates if gate.ok}
    left = tuple(device for device in choice.devices if device.name in good)
    answers: list[DeviceAnswer] = []
    if left and budgets.measured:
        some = dataclasses.replace(choice, devices=left)
        measured = do_on_devices(some, "bench", bundle, words, quiet=quiet)
        answers += measured
        for answer in measured:
            gates += gating.device_gates(answer, budgets)
    if left and baseline is not None:
        some = dataclasses.replace(choice, devices=left)
        words = [*words, f"--tolerance={100 * budgets.max_regression:g}%"]
        compared = do_on_devices(some, "bench", bundle, words, against=baseline, quiet=quiet)
        answers += compared
        gates += [gating.baseline_gate(answer, budgets.max_regression) for answer in compared]
    order = {device.name: number for number, device in enumerate(choice.devices)}
    gates.sort(key=lambda gate: order[gate.device or ""])
    return gates, answers


def _write(
    name: str,
    gates: list[Gate],
    answers: list[DeviceAnswer],
    junit: Path | None,
    markdown_file: Path | None,
) -> None:
    from edgekit import atomic
    from edgekit.cli.device_bench import remarks
    from edgekit.report.gate_report import junit_xml, markdown

    if junit is not None:
        atomic.write_bytes(junit, junit_xml(name, gates))
    if markdown_file is not None:
        lines = [
            f"{answer.device}: {line}"
            for answer in answers
            for line in remarks(answer.answer or {})
        ]
        atomic.write_text(markdown_file, markdown(name, gates, list(dict.fromkeys(lines))))


def _failed_text(gates: list[Gate]) -> str:
    failed = [gate for gate in gates if not gate.ok]
    shown = "; ".join(
        f"{gate.name}{f' on {gate.device}' if gate.device else ''}: {gate.detail}"
        for gate in failed[:3]
    )
    return f"{len(failed)} of {len(gates)} gates failed: {shown}" + ("; …" if failed[3:] else "")


def _show(gates: list[Gate]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for title in ("gate", "device", "", "found"):
        table.add_column(title, overflow="fold")
    for gate in gates:
        word = "[green]ok" if gate.ok else "[red]FAILED"
        table.add_row(gate.name, escape(gate.device or "–"), word, escape(gate.detail))
    print_table(table)
