"""The tables of `edgekit inspect`, and their CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from edgekit.atomic import replacing

if TYPE_CHECKING:
    from edgekit.stages.inspect import Inspection, LayerFacts

CSV_COLUMNS = (
    *(
        "name",
        "type",
        "shape",
        "parameters",
        "macs",
        "mac_share",
        "sparsity",
        "levels",
        "precision",
    ),
    *("ternary", "wp_min", "wp_max", "wn_min", "wn_max", "weight_scale_min", "weight_scale_max"),
    *("input_scale", "bits"),
)


def layer_table(inspection: Inspection) -> Table:
    """One row per layer: what it is, its share of the work, its zeros and levels, its precision."""
    table = Table(title=f"Layers of {inspection.name}", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("type")
    table.add_column("weight", no_wrap=True)
    for name in ("MMACs", "share", "zeros", "levels"):
        table.add_column(name, justify="right")
    table.add_column("precision")
    ternary = any(layer.ternary for layer in inspection.layers)
    scales = any(layer.weight_scale or layer.input_scale for layer in inspection.layers)
    if ternary:
        table.add_column("Wp", justify="right")
        table.add_column("Wn", justify="right")
    if scales:
        table.add_column("weight scale", justify="right")
        table.add_column("input scale", justify="right")
    for layer in inspection.layers:
        row = [
            layer.name,
            layer.type,
            "x".join(str(size) for size in layer.shape),
            "" if layer.macs is None else f"{layer.macs / 1e6:.2f}",
            "" if layer.mac_share is None else f"{100 * layer.mac_share:.1f} %",
            f"{100 * layer.sparsity:.1f} %",
            str(layer.levels),
            f"ternary, {layer.precision}" if layer.ternary else layer.precision,
        ]
        if ternary:
            row += [_span(layer.wp), _span(layer.wn)]
        if scales:
            given = layer.input_scale
            row += [_span(layer.weight_scale), "" if given is None else f"{given:.4g}"]
        table.add_row(*row)
    return table


def totals_table(inspection: Inspection) -> Table:
    """The figures of the whole model, and beside the baseline when there is one."""
    table = Table(show_header=False, title_justify="left", box=None)
    table.add_column("what")
    table.add_column("value", justify="left")
    shape = "x".join(str(size) for size in inspection.input_shape)
    table.add_row("kind", inspection.kind)
    table.add_row("parameters", f"{inspection.parameters:,}")
    if inspection.macs is not None:
        table.add_row(
            "MACs",
            f"{inspection.macs / 1e9:.4g} G (FLOPs {2 * inspection.macs / 1e9:.4g} G)"
            + (f" at {shape}" if shape else ""),
        )
    table.add_row(
        "size", f"{inspection.size_mb:.2f} MB on disk, {inspection.memory_mb:.2f} MB in memory"
    )
    table.add_row("sparsity", f"{100 * inspection.sparsity:.1f} % of the layers' weights are zero")
    table.add_row(
        "parameters by kind",
        f"{100 * inspection.ternary_share:.1f} % ternary, {100 * inspection.int8_share:.1f} % INT8, "
        f"{100 * inspection.float_share:.1f} % float",
    )
    other = inspection.against
    table.add_row(
        "theoretical compression",
        f"{inspection.theoretical_compression:.2f}x "
        + ("against the baseline" if other else "against 32 bits per parameter"),
    )
    if other is not None:
        table.add_row(
            "parameters removed",
            f"{100 * other.parameters_removed:.1f} % of {other.parameters:,}",
        )
        if other.flops_reduction is not None and other.macs is not None:
            table.add_row(
                "FLOPs reduction",
                f"{100 * other.flops_reduction:.1f} % of {2 * other.macs / 1e9:.4g} G",
            )
    return table


def _span(values: tuple[float, ...]) -> str:
    return "-".join(f"{value:.4g}" for value in values)


def write_csv(inspection: Inspection, path: Path) -> None:
    """Write one line per layer to `path`, columns CSV_COLUMNS, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for layer in inspection.layers:
        writer.writerow(_row(layer))
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _row(layer: LayerFacts) -> list[Any]:
    return [
        layer.name,
        layer.type,
        "x".join(str(size) for size in layer.shape),
        layer.parameters,
        "" if layer.macs is None else layer.macs,
        "" if layer.mac_share is None else f"{layer.mac_share:.6f}",
        f"{layer.sparsity:.6f}",
        layer.levels,
        layer.precision,
        "yes" if layer.ternary else "no",
        *_pair(layer.wp),
        *_pair(layer.wn),
        *_pair(layer.weight_scale),
        "" if layer.input_scale is None else repr(layer.input_scale),
        layer.bits,
    ]


def _pair(values: tuple[float, ...]) -> tuple[str, str]:
    return (repr(values[0]), repr(values[-1])) if values else ("", "")
