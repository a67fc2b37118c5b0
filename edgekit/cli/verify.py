"""`edgekit verify`: a bundle against itself, or one model against another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.checkpoint_options import checkpoint_options
from edgekit.cli.console import emit, json_option, note, print_table, progress
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.cli.device_options import (
    DEVICE_PARAMETERS,
    DeviceChoice,
    answers_json,
    device_choice,
    device_options,
    do_on_devices,
    refuse_here_only,
    show_checks,
    show_errors,
)
from edgekit.errors import BadInput, UsageError, VerificationFailed

if TYPE_CHECKING:
    from edgekit.stages.verify import Check


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path), required=False)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of images to compare the two models on (default: random numbers).",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=8, show_default=True, help="Images to use."
)
@click.option("--imgsz", metavar="N|HxW", help="Input size, where two models leave it open.")
@device_options
@checkpoint_options
@preprocess_options
@json_option
def command(
    path: Path,
    reference: Path | None,
    images: Path | None,
    limit: int,
    imgsz: str | None,
    as_json: bool,
    **arguments: Any,
) -> int:
    """Check the bundle PATH, or the parity of the model PATH with the model REFERENCE.

    A bundle: the hash of every file, the preprocessing contract in all its places, golden inputs
    and golden outputs. Two models: the same interface, and the outputs block by block; where they
    part, the node is named. Every check is made; the exit code is 9 when one fails.

    \b
    Example:
      edgekit verify yolov5n-x86-int8/
      edgekit verify yolov5n-x86-int8/ --device ssh://me@board
      edgekit verify simplified.onnx exported.onnx --images photos/
      edgekit verify exported.onnx best.pt --images photos/
    """
    context = click.get_current_context()
    choice = device_choice(arguments)
    if choice.devices:
        return _on_devices(context, choice, path, reference, as_json)
    overrides = contract_overrides(arguments)
    if reference is not None and not (_is_onnx(path) and _is_onnx(reference)):
        checks = _any_two(path, reference, images, limit, overrides, imgsz, arguments, as_json)
    else:
        checks = _checks(path, reference, images, limit, overrides, as_json)
    ok = all(check.ok for check in checks)
    if as_json:
        emit({"ok": ok, "checks": checks})
    else:
        _print(checks)
        failed = [check.name for check in checks if not check.ok]
        skipped = [check.name for check in checks if check.skipped]
        if skipped:
            note(f"Not checked here: {', '.join(skipped)}.")
        note(
            f"Verified: {len(checks) - len(skipped)} checks passed."
            if ok
            else f"Error: verification failed: {', '.join(failed[:4])}"
            + (f" and {len(failed) - 4} more." if failed[4:] else ".")
        )
    return 0 if ok else VerificationFailed.exit_code


def _on_devices(
    context: click.Context,
    choice: DeviceChoice,
    path: Path,
    reference: Path | None,
    as_json: bool,
) -> int:
    """Every check of the device program, on every device; the exit code is the worst of all."""
    from edgekit.stages.device import worst

    if reference is not None:
        raise UsageError("A device checks one bundle; two models are compared here.")
    others = [name for name in context.params if name not in ("path", "reference", "as_json")]
    refuse_here_only(context, [name for name in others if name not in DEVICE_PARAMETERS])
    answers = do_on_devices(choice, "verify", path, quiet=as_json)
    if as_json:
        emit(answers_json(answers))
        return worst(answers)
    show_checks(answers)
    show_errors(answers)
    return worst(answers)


def _is_onnx(path: Path) -> bool:
    """Whether `path` is for the comparison of two ONNX models, or for its error messages."""
    from edgekit.bundle import is_bundle, read_manifest

    if is_bundle(path):
        return read_manifest(path).model().files[0].endswith(".onnx")
    return path.suffix.lower() == ".onnx" or not path.is_file()


def _any_two(
    path: Path,
    reference: Path,
    images: Path | None,
    limit: int,
    overrides: dict[str, Any],
    imgsz: str | None,
    arguments: dict[str, Any],
    quiet: bool,
) -> list[Check]:
    """Two models of which one at least is no ONNX graph: a checkpoint, another runtime's model."""
    from edgekit.cli.checkpoint_options import load_options
    from edgekit.cli.model_options import size_of
    from edgekit.stages.opening import describe
    from edgekit.stages.verify_any import verify_any

    load = load_options(arguments)
    with progress(quiet=quiet) as report:
        return verify_any(
            describe(path, load),
            describe(reference, load),
            images=images,
            overrides=overrides,
            size=size_of(imgsz),
            limit=limit,
            progress=report,
        )


def _checks(
    path: Path,
    reference: Path | None,
    images: Path | None,
    limit: int,
    overrides: dict[str, Any],
    quiet: bool,
) -> list[Check]:
    from edgekit.bundle import is_bundle

    if not path.exists():
        raise BadInput(f"{path} does not exist.", hint="Give a bundle's folder or an ONNX file.")
    with progress(quiet=quiet) as report:
        if reference is not None:
            from edgekit.stages.verify_models import verify_models

            return verify_models(
                path, reference, images=images, overrides=overrides, limit=limit, progress=report
            )
        if path.is_file() and not is_bundle(path):
            raise UsageError(
                f"{path} is a single model: there is nothing to check it against.",
                hint=f"Name the model to compare with: `edgekit verify {path} REFERENCE`.",
            )
        if images is not None or overrides:
            raise UsageError(
                "--images and the preprocessing options go with two models; a bundle carries its "
                "own golden inputs."
            )
        from edgekit.stages.verify import verify_bundle

        return verify_bundle(path, report)


def _print(checks: list[Check]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("check", overflow="fold")
    table.add_column("")
    table.add_column("found", overflow="fold")
    for check in checks:
        word = "[yellow]skipped" if check.skipped else "[green]ok" if check.ok else "[red]FAILED"
        table.add_row(escape(check.name), word, escape(check.detail))
    print_table(table)
