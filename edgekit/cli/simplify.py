"""`edgekit simplify`: one stage of the way, as a command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.console import console, emit, json_option, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options

if TYPE_CHECKING:
    from edgekit.types import StageOutput

EPILOG = """\b
Example:
  edgekit simplify model.onnx --out model.simple.onnx --images photos/
  edgekit simplify dynamic-int8.onnx --dequantize --out float.onnx --images photos/
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="[default: MODEL.simple.onnx]")
@click.option("--images", type=click.Path(path_type=Path), help="Images for the parity check.")
@click.option(
    "--prepare", "also_prepare", is_flag=True, help="Fold BatchNorm and lift constants too."
)
@click.option(
    "--dequantize",
    "to_float",
    is_flag=True,
    help="Turn a quantized model (dynamic INT8 or QDQ) into float first.",
)
@click.option(
    "--time-limit", type=float, default=300.0, show_default=True, help="Seconds per tool."
)
@preprocess_options
@json_option
def command(
    model: Path,
    out: Path | None,
    images: Path | None,
    also_prepare: bool,
    to_float: bool,
    time_limit: float,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Simplify an ONNX MODEL: onnxsim, else onnxslim, else as it is.

    Each tool runs in a process of its own; its graph is accepted only when it computes the same on
    real images (--images), or on noise when none are given.
    """
    from edgekit import onnx_file
    from edgekit.pipeline.single import open_for_parity
    from edgekit.stages import dequantize, prepare, simplify

    target = out or model.with_suffix(".simple.onnx")
    subject = open_for_parity(model, images, contract_overrides(arguments))
    if subject.warning:
        warn(subject.warning)
    with progress(quiet=as_json) as bar:
        bar(0, 0, "simplify")
        options = simplify.SimplifyOptions(time_limit_s=time_limit)
        source = subject.model
        notes: tuple[str, ...] = ()
        if to_float:
            # the float model takes the place of the input; what it is compared with was the input
            turned = dequantize.run(source, subject.feeds, target)
            source, notes = turned.model, _turned(turned)
        done = simplify.run(source, subject.feeds, target, options)
        done = dataclasses.replace(done, notes=notes + done.notes)
        if also_prepare:
            bar(0, 0, "prepare")
            prepared = prepare.run(done.model, subject.feeds, target)
            done = dataclasses.replace(prepared, notes=done.notes + prepared.notes)
    if as_json:
        emit(
            {
                "model": done.model.path,
                "size_mb": done.model.size_mb,
                "parity": done.parity,
                "notes": done.notes,
            }
        )
        return
    written = onnx_file.describe(target)
    parity = done.parity
    console().print(
        f"{target}: {written.size_mb:.2f} MB, "
        + "; ".join(done.notes)
        + (f"; max_rel_error {parity.max_rel_error:.1e}" if parity else ""),
        soft_wrap=True,
    )


def _turned(done: StageOutput) -> tuple[str, ...]:
    """What was dequantized, and how far the float model is from the quantized one."""
    parity = done.parity
    if parity is None:
        return done.notes
    return (*done.notes, f"cosine {parity.cosine:.6f}, {parity.sqnr_db:.1f} dB to the INT8 model")
