"""`edgekit debug`: where INT8 loses accuracy, layer by layer, and which knob mends it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.console import emit, json_option, print_table, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options

if TYPE_CHECKING:
    from edgekit.pipeline.debug import DebugAnswer
    from edgekit.stages.debug import LayerReport

EPILOG = """\b
Examples:
  edgekit debug model.onnx --target x86-int8 --images calib/
  edgekit debug model.int8.onnx --float model.onnx --images calib/
  edgekit debug prepared.onnx -t x86-int8 --images calib/ --calibration calibration.npz --json
"""

# images and nodes listed; --json has them all
_WORST_IMAGES = 5


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "-t", help="Target profile, one that is INT8.")
@click.option(
    "--float",
    "reference",
    type=click.Path(path_type=Path),
    help="MODEL is an INT8 ONNX file or a bundle: take it apart beside this float ONNX file.",
)
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of images: statistics are collected on all, outputs compared on up to 32.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Statistics of this very model; else they are collected.",
)
@click.option(
    "--method",
    default="percentile",
    show_default=True,
    help="minmax, entropy, percentile or mse.",
)
@click.option(
    "--per-channel/--per-tensor", default=None, help="Weight scales; default: the profile's."
)
@click.option(
    "--weight-bits", type=click.Choice(["4", "6", "7", "8"]), help="Default: the profile's."
)
@click.option("--bias-correction", is_flag=True, help="Correct the biases, as quantize does.")
@click.option(
    "--keep-float", multiple=True, metavar="NODE", help="A node that stays float (repeatable)."
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=15,
    show_default=True,
    help="Layers to list; 0: all.",
)
@preprocess_options
@json_option
def command(
    model: Path,
    target: str | None,
    reference: Path | None,
    images: Path,
    calibration: Path | None,
    method: str,
    per_channel: bool | None,
    weight_bits: str | None,
    bias_correction: bool,
    keep_float: tuple[str, ...],
    top: int,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Rank the layers of a float MODEL by what INT8 costs there, with the reason and a remedy.

    With --float FILE, MODEL is an INT8 ONNX file of whatever tool, or a bundle, and is judged as it is.

    Each layer is tried alone in INT8; its weights' error, the clipping and rounding of what it reads
    and makes, and the noise that has gathered at its output stand beside it. SQNR is the
    signal-to-noise ratio in dB: higher is better, 6 dB are one bit. INT8 is computed by ONNX Runtime
    here, by the target's rules and ranges, whatever runtime the target has.
    """
    from edgekit.pipeline.debug import DebugRequest, run
    from edgekit.stages.quantize import QuantizeOptions
    from edgekit.target_files import load_target

    request = DebugRequest(
        model=model,
        target=None if target is None else load_target(target),
        reference=reference,
        images=images,
        calibration=calibration,
        method=method,
        options=QuantizeOptions(
            keep_float=keep_float,
            per_channel=per_channel,
            weight_bits=int(weight_bits) if weight_bits else None,
            bias_correction=bias_correction,
        ),
        overrides=contract_overrides(arguments),
    )
    with progress(quiet=as_json) as bar:
        answer = run(request, bar)
    if answer.warning:
        warn(answer.warning)
    if as_json:
        emit(_answer(answer, target))
    else:
        _show(model.name, answer, top)


def _answer(answer: DebugAnswer, target: str | None) -> dict[str, Any]:
    from edgekit.types import to_json

    found: dict[str, Any] = to_json(answer.report)
    return {
        "target": target,
        "compared_images": answer.images,
        "warnings": [answer.warning] if answer.warning else [],
        **found,
    }


def _show(name: str, answer: DebugAnswer, top: int) -> None:
    from rich.table import Table

    report = answer.report
    click.echo(
        f"{name}: {_decibels(report.sqnr_db)} dB in INT8, block '{report.block}', on "
        f"{answer.images} images; {len(report.layers)} layers INT8, {len(report.floats)} float"
    )
    shown = report.layers[: top or None]
    table = Table(
        title=f"Layers, the most harmful first ({len(shown)} of {len(report.layers)}); SQNR in dB",
        title_justify="left",
    )
    table.add_column("layer", overflow="fold")
    for title in ("MACs", "alone", "gathered", "weights", "reads", "makes", "clipped"):
        table.add_column(title, justify="right")
    for layer in shown:
        table.add_row(*_row(layer))
    print_table(table)
    for layer in shown:
        if layer.suggestion:
            click.echo(f"  {layer.name}: {layer.suggestion}")
    click.echo("Images that suffer most:")
    for image in report.images[:_WORST_IMAGES]:
        click.echo(f"  {_decibels(image.sqnr_db)} dB  {image.name}")


def _row(layer: LayerReport) -> list[str]:
    from rich.markup import escape

    return [
        escape(layer.name),
        f"{layer.mac_share:.1%}",
        *map(
            _decibels,
            (
                layer.alone_db,
                layer.node_db,
                layer.weight_db,
                layer.input.sqnr_db,
                layer.output.sqnr_db,
            ),
        ),
        f"{max(layer.input.clipped_share, layer.output.clipped_share):.2%}",
    ]


def _decibels(value: float) -> str:
    return "exact" if value == float("inf") else f"{value:.1f}"
