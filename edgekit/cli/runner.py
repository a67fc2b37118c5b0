"""`edgekit runner`: the native NCNN runner for a board, built on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.console import emit, json_option, note, print_table, progress


@click.group("runner")
def command() -> None:
    """Build the native NCNN runner, a program that needs no Python on the board.

    The first build for an architecture compiles ncnn (minutes); it is kept in the folder that
    EDGEKIT_NATIVE_CACHE names (default: edgekit-native in the user's cache folder).

    \b
    Example:
      edgekit runner build --arch aarch64 --static --out edgekit-ncnn
      edgekit runner list
    """


@command.command("build")
@click.option("--arch", required=True, metavar="ARCH", help="aarch64, armhf or x86_64.")
@click.option(
    "--static/--dynamic",
    default=True,
    show_default=True,
    help="A program that needs nothing on the board but the kernel, or one that uses its libraries.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Put a copy of the program there.",
)
@json_option
def build_command(arch: str, static: bool, out: Path | None, as_json: bool) -> None:
    """Build the runner for an architecture, or say where it lies already."""
    from edgekit.stages import runner_build, toolchain

    arch = toolchain.known_arch(arch)
    with progress(quiet=as_json) as heard:
        path = runner_build.build(arch, static=static, out=out, progress=heard)
    runner = runner_build.describe(path, arch, static)
    if as_json:
        emit(runner)
        return
    click.echo(path)
    note(f"{arch}, {'static' if static else 'dynamic'}, {runner.size_mb:.1f} MB, {runner.sha256}")


@command.command("library")
@click.option("--arch", required=True, metavar="ARCH", help="aarch64, armhf or x86_64.")
@json_option
def library_command(arch: str, as_json: bool) -> None:
    """Build libncnn alone; prints its prefix, for `cmake -Dncnn_DIR=PREFIX/lib/cmake/ncnn`."""
    from edgekit.stages.ncnn_library import library

    with progress(quiet=as_json) as heard:
        prefix = library(arch, heard)
    if as_json:
        emit({"prefix": prefix})
        return
    click.echo(prefix)


@command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the runners that are built, the newest first."""
    from edgekit.stages import runner_build

    runners = runner_build.built()
    if as_json:
        emit({"runners": runners})
        return
    from rich.table import Table

    table = Table()
    for name in ("arch", "kind", "MB", "program"):
        table.add_column(name, overflow="fold")
    for runner in runners:
        kind = "static" if runner.static else "dynamic"
        table.add_row(runner.arch, kind, f"{runner.size_mb:.1f}", str(runner.path))
    print_table(table)


@command.command("clear")
@json_option
def clear_command(as_json: bool) -> None:
    """Remove the built runners, libncnn and its source; the next build takes minutes again."""
    from edgekit.stages import runner_build
    from edgekit.stages.ncnn_source import native_cache

    removed, freed_mb = runner_build.clear()
    if as_json:
        emit({"folder": native_cache(), "removed": removed, "freed_mb": freed_mb})
        return
    note(f"Removed {removed} entries, {freed_mb:.1f} MB, from {native_cache()}.")
