"""`edgekit doctor`: what this machine has, what each target lacks, what does not work together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgekit.cli.console import emit, json_option, print_table, progress

if TYPE_CHECKING:
    from edgekit.stages.doctor import Diagnosis, Package


@click.command(
    epilog="""\b
Examples:
  edgekit doctor
  edgekit doctor --json | python -m json.tool
"""
)
@click.option(
    "--quick", is_flag=True, help="Only read the packages' metadata; do not try to import them."
)
@json_option
def command(quick: bool, as_json: bool) -> None:
    """Show what this machine has and what each target lacks.

    Python, the CPU's instruction sets, installed runtimes and their versions; for each target
    whether bundles can be prepared here, with the install line of what is missing; and pairs of
    packages that are known not to work together.
    """
    from edgekit.stages.doctor import examine

    with progress(quiet=as_json) as report_progress:
        diagnosis = examine(probe=not quick, progress=report_progress)
    if as_json:
        emit(diagnosis)
    else:
        _show(diagnosis)


def _show(diagnosis: Diagnosis) -> None:
    from rich.markup import escape
    from rich.table import Table

    cpu = diagnosis.cpu
    click.echo(f"edgekit {diagnosis.edgekit}, Python {diagnosis.python} ({diagnosis.executable})")
    click.echo(f"{cpu.model}: {cpu.arch}, {cpu.cores} cores, {' '.join(cpu.isa) or 'isa unknown'}")
    if cpu.arch == "x86_64" and not cpu.has_vnni:
        click.echo("No VNNI: the target x86-int8 uses 7-bit weights here.")

    table = Table(title="Packages")
    for column in ("package", "version", "state"):
        table.add_column(column)
    for name, package in {**diagnosis.runtimes, **diagnosis.packages}.items():
        # an extra's name in brackets would be taken for markup
        table.add_row(name, package.version or "-", escape(_state(package)))
    print_table(table)

    table = Table(title="Targets")
    for column in ("target", "ready", "remarks"):
        table.add_column(column)
    for name, state in diagnosis.targets.items():
        remarks = "; ".join(state.missing) or state.remark
        table.add_row(name, "yes" if state.ready else "no", escape(remarks))
    print_table(table)

    lines = dict.fromkeys(line for state in diagnosis.targets.values() for line in state.install)
    if lines:
        click.echo("To install what is missing:")
        for line in lines:
            click.echo(f"  {line}")
    if diagnosis.problems:
        click.echo("Problems:")
        for problem in diagnosis.problems:
            click.echo(f"  - {problem.what}\n    {problem.fix}\n    {problem.source}")
    else:
        click.echo("No known problems.")


def _state(package: Package) -> str:
    if package.version is None:
        return f"not installed: {package.install}"
    if package.imports is None:
        return "installed"
    return "works" if package.imports else f"does not import: {package.detail}"
