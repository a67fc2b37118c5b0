"""`edgekit profile`: time per layer and per operator, with the loss of quantization beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.checkpoint_options import checkpoint_options
from edgekit.cli.console import emit, json_option, note, print_table, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.cli.model_options import open_model, runtime_option, size_of

if TYPE_CHECKING:
    from edgekit.pipeline.profile import ProfileAnswer

# below this a layer's output is more noise than it should be
_POOR_DB = 10.0


@click.command(
    epilog="""\b
Examples:
  edgekit profile best-x86-int8/
  edgekit profile int8.onnx --float prepared.onnx --images photos/ --sort loss
  edgekit profile best.pt --trace trace.json      # opens in https://ui.perfetto.dev
"""
)
@click.argument("model", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Images to run on. [default: a bundle's golden samples, noise for a model]",
)
@click.option(
    "--float",
    "float_model",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="The float ONNX model that an INT8 one was made of. [default: found in the stage cache]",
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Timed runs."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Runtime threads."
)
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the runs as a Chrome trace.",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Layers to list; 0: all.",
)
@click.option(
    "--sort",
    type=click.Choice(["time", "loss", "order"]),
    default="time",
    show_default=True,
    help="Longest first, worst SQNR first, or as they run.",
)
@click.option("--imgsz", metavar="N|HxW", help="Input size, where the model leaves it open.")
@runtime_option
@checkpoint_options
@preprocess_options
@json_option
def command(
    model: Path,
    images: Path | None,
    float_model: Path | None,
    runs: int,
    threads: int,
    trace: Path | None,
    top: int,
    sort: str,
    imgsz: str | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Show where the time of MODEL goes: per layer and per kind of operator.

    For an INT8 model whose float model is known, each layer comes with the signal-to-noise ratio of
    its output (SQNR, in dB): what quantization cost up to there.
    """
    from edgekit.pipeline.profile import ProfileRequest, run

    overrides = contract_overrides(arguments)
    request = ProfileRequest(
        model=open_model(model, arguments),
        images=images,
        float_model=float_model,
        overrides=overrides,
        size=size_of(imgsz),
        runs=runs,
        threads=threads,
        trace=trace,
    )
    with progress(quiet=as_json) as bar:
        answer = run(request, bar)
    if as_json:
        emit(_answer(answer))
        return
    _show(request.model.name, answer, top, sort)
    if answer.remark:
        note(answer.remark)
    if trace is not None:
        note(f"Chrome trace: {trace}")


def _answer(answer: ProfileAnswer) -> dict[str, Any]:
    from edgekit.types import to_json

    found: dict[str, Any] = to_json(answer.profile)
    found["inputs"] = answer.inputs
    found["float"] = to_json(answer.reference)
    found["remark"] = answer.remark
    return found


def _show(name: str, answer: ProfileAnswer, top: int, sort: str) -> None:
    import math

    from rich.markup import escape
    from rich.table import Table

    found = answer.profile
    threads = f"{found.threads} thread" + ("s" if found.threads > 1 else "")
    click.echo(
        f"{name}: {found.total_ms:.2f} ms a run under the profiler of {found.runtime} "
        f"({found.runs} runs, {threads}), on {answer.inputs}"
    )
    kinds = Table(title="Operators", title_justify="left")
    for title in ("operator", "count", "ms", "share"):
        kinds.add_column(title, justify="left" if title == "operator" else "right")
    for kind in found.operators[: top or None]:
        kinds.add_row(escape(kind.op_type), str(kind.count), f"{kind.ms:.3f}", f"{kind.share:.1%}")
    print_table(kinds)
    layers = list(found.layers)
    if sort == "time":
        layers.sort(key=lambda layer: -layer.ms)
    elif sort == "loss":
        if not answer.loss:
            warn("Losses are not known, so layers are listed as they run.")
        layers.sort(key=lambda layer: math.inf if layer.sqnr_db is None else layer.sqnr_db)
    shown = layers[: top or None]
    table = Table(title=f"Layers ({len(shown)} of {len(layers)})", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("operator")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    if answer.loss:
        table.add_column("SQNR dB", justify="right")
    for layer in shown:
        row = [escape(layer.name), layer.op_type, f"{layer.ms:.3f}", f"{layer.share:.1%}"]
        if answer.loss:
            row.append(_decibels(layer.sqnr_db))
        poor = layer.sqnr_db is not None and layer.sqnr_db < _POOR_DB
        table.add_row(*row, style="yellow" if poor else None)
    print_table(table)


def _decibels(value: float | None) -> str:
    import math

    if value is None:
        return ""
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"
