"""`edgekit inspect`: what a model or a checkpoint is made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.checkpoint_options import checkpoint_options, load_options
from edgekit.cli.console import emit, json_option, note, print_table
from edgekit.cli.model_options import size_of

if TYPE_CHECKING:
    from edgekit.stages.inspect import Inspection


@click.command(
    epilog="""\b
Examples:
  edgekit inspect best.pt
  edgekit inspect pruned.pt --baseline original.pt
  edgekit inspect weights.pt --arch mynet:resnet20 --imgsz 32 --csv layers.csv
  edgekit inspect best-x86-int8/ --json
"""
)
@click.argument("model", metavar="MODEL|CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="The model before compression; the checkpoint options apply to it too.",
)
@click.option("--imgsz", metavar="N|HxW", help="Input size, where the model leaves it open.")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path), help="Write one line per layer to a file."
)
@checkpoint_options
@json_option
def command(
    model: Path,
    baseline: Path | None,
    imgsz: str | None,
    csv_file: Path | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Show what a MODEL, a bundle or a CHECKPOINT of any kind is made of.

    Per layer: shape, MACs, zeros, distinct levels, precision, ternary levels and scales. For the
    whole: parameters, MACs, size, sparsity, and the compression in theory; beside --baseline what was
    removed.
    """
    from edgekit.report import inspect_table
    from edgekit.stages import inspect
    from edgekit.stages.opening import describe

    size = size_of(imgsz)
    load = load_options(arguments)
    if size is not None:
        load = dataclasses.replace(load, input_shape=(1, 3, *size))
    found = inspect.run(describe(model, load), size)
    if baseline is not None:
        if size is None and len(found.input_shape) == 4:  # MACs are compared at one size
            size = (found.input_shape[2], found.input_shape[3])
            load = dataclasses.replace(load, input_shape=found.input_shape)
        found = inspect.against(found, inspect.run(describe(baseline, load), size))
    if csv_file is not None:
        inspect_table.write_csv(found, csv_file)
    if as_json:
        emit(_answer(found))
        return
    print_table(inspect_table.layer_table(found))
    print_table(inspect_table.totals_table(found))
    for line in found.notes:
        note(f"Note: {line}")


def _answer(found: Inspection) -> dict[str, Any]:
    """The JSON object: the design's keys and more."""
    other = found.against
    return {
        "model": found.name,
        "kind": found.kind,
        "params": found.parameters,
        "macs": found.macs,
        "flops": found.flops,
        "size_mb": found.size_mb,
        "memory_mb": found.memory_mb,
        "sparsity": found.sparsity,
        "ternary_share": found.ternary_share,
        "int8_share": found.int8_share,
        "float_share": found.float_share,
        "theoretical_compression": found.theoretical_compression,
        "input_shape": list(found.input_shape) or None,
        "baseline": None
        if other is None
        else {
            "params": other.parameters,
            "macs": other.macs,
            "size_mb": other.size_mb,
            "params_removed": other.parameters_removed,
            "flops_reduction": other.flops_reduction,
        },
        "layers": [
            {
                "name": layer.name,
                "type": layer.type,
                "shape": list(layer.shape),
                "params": layer.parameters,
                "macs": layer.macs,
                "mac_share": layer.mac_share,
                "sparsity": layer.sparsity,
                "levels": layer.levels,
                "precision": layer.precision,
                "ternary": layer.ternary,
                "per_channel": layer.per_channel,
                "wp": list(layer.wp) or None,
                "wn": list(layer.wn) or None,
                "weight_scale": list(layer.weight_scale) or None,
                "input_scale": layer.input_scale,
                "bits": layer.bits,
            }
            for layer in found.layers
        ],
        "notes": list(found.notes),
    }
