"""`edgekit compare`: models side by side, in the tables people publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.checkpoint_options import checkpoint_options, load_options
from edgekit.cli.console import console, emit, json_option, note, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.cli.model_options import size_of
from edgekit.errors import UsageError, nearest

if TYPE_CHECKING:
    from edgekit.report.comparison import Comparison

FORMATS = ("table", "md", "csv", "json", "html")
PRESETS = ("default", "pruning", "compression", "deployment", "ablation")


def batch_sizes(text: str) -> tuple[int, ...]:
    """Batch sizes from 1,2,4; without repetitions, in their order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise UsageError(f"--batch {text!r} is not a list of sizes.", hint="--batch 1,2,4,8,16")
    return tuple(dict.fromkeys(int(part) for part in parts))


@click.command(
    epilog="""\b
Examples:
  edgekit compare cells.pt cells_p30.pt cells_p50.pt --data data.yaml --preset pruning
  edgekit compare runs/ --baseline runs/full.pt --batch 1,2,4,8,16 --format md
  edgekit compare best.pt --target x86-int8 --images calib/ --preset deployment
  edgekit compare best.pt best-x86-int8/ --data data.yaml --format html --out report.html
  edgekit compare best.pt --target x86-int8 --images calib/ --preset ablation
"""
)
@click.argument("models", metavar="MODEL...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="What the others are held against. [default: the first]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Labelled data for the accuracy columns: data.yaml, COCO json, ImageFolder or .npz.",
)
@click.option("--split", default="val", show_default=True, help="train, val or test.")
@click.option(
    "--data-images",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of a COCO json's images. [default: found beside it]",
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), help="Use N labelled images, spread evenly."
)
@click.option(
    "--target",
    "-t",
    default="x86-fp32",
    show_default=True,
    help="Target profile for exports and measurement; an INT8 one adds each model's INT8 form.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Calibration images for an INT8 target: a folder or .npz.",
)
@click.option(
    "--preset",
    default="default",
    show_default=True,
    help="Layout: default, pruning, compression, deployment or ablation.",
)
@click.option(
    "--format",
    "form",
    default="table",
    show_default=True,
    help="table, md, csv, json or html.",
)
@click.option(
    "--out",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the table there instead of to stdout.",
)
@click.option("--imgsz", metavar="N|HxW", help="Input size, where a model leaves it open.")
@click.option(
    "--batch",
    metavar="N,N,…",
    default="1",
    show_default=True,
    help="Batch sizes to time; latencies are shown for the first.",
)
@click.option("--head", help="How outputs are decoded: yolov5, yolov8, yolo26, yolox, logits.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    help="Calibration for an INT8 target: auto (as `edgekit export`), or a method's name.",
)
@click.option(
    "--search-seconds",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="Longest search of ranges and float layers, for each model.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Runtime threads. [default: target's]")
@click.option(
    "--runs", type=click.IntRange(min=1), help="Timed runs of each model. [default: 100 or more]"
)
@click.option(
    "--resamples",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Bootstrap resamples for the interval of accuracy differences; 0 for none.",
)
@click.option("--fresh", is_flag=True, help="Do everything again although the cache knows it.")
@checkpoint_options
@preprocess_options
@json_option
def command(
    models: tuple[Path, ...],
    form: str,
    out: Path | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Compare MODELs: checkpoints, ONNX files, bundles, or folders of them; one row each.

    Latencies are measured in turns in one run; a checkpoint is timed in PyTorch and, exported, in
    ONNX Runtime. What fails for one model stands in its row. Everything that was worked out is
    remembered, so an interrupted comparison goes on where it stopped.
    """
    from edgekit.pipeline.compare import CompareRequest, compare
    from edgekit.target_files import load_target

    form = "json" if as_json else form
    if form not in FORMATS:
        raise UsageError(f"Unknown format '{form}'.", hint=nearest(form, FORMATS))
    if not models:
        raise UsageError("No model was given.", hint="edgekit compare MODEL... [--data DATA]")
    overrides = contract_overrides(arguments)
    request = CompareRequest(
        models=models,
        target=load_target(arguments["target"]),
        preset=arguments["preset"],
        baseline=arguments["baseline"],
        data=arguments["data"],
        split=arguments["split"],
        data_images=arguments["data_images"],
        limit=arguments["limit"],
        images=arguments["images"],
        size=size_of(arguments["imgsz"]),
        batches=batch_sizes(arguments["batch"]),
        threads=arguments["threads"],
        runs=arguments["runs"],
        resamples=arguments["resamples"],
        load=load_options(arguments),
        overrides=overrides,
        head=arguments["head"],
        method=arguments["method"],
        search_seconds=arguments["search_seconds"],
        fresh=arguments["fresh"],
    )
    with progress(quiet=as_json) as bar:
        comparison = compare(request, bar, note)
    _write(comparison, request.preset, form, out)
    if form != "json":
        for row, error in comparison.errors():
            warn(f"{row.name}: {error}")


def _write(comparison: Comparison, preset: str, form: str, out: Path | None) -> None:
    """The comparison in the chosen form, to a file or to stdout."""
    from edgekit.atomic import write_text
    from edgekit.report.compare_formats import comma_separated, for_terminal, markdown
    from edgekit.report.compare_presets import compare_table

    table = compare_table(comparison, preset)
    if form == "json" and out is None:
        emit(answer(comparison, preset))
        return
    if form == "table" and out is None:
        from rich.measure import Measurement

        screen, shown = console(), for_terminal(table)
        if not screen.is_terminal:
            # nothing needs folding in a file or a pipe
            wide = Measurement.get(screen, screen.options.update(max_width=2000), shown)
            screen.width = max(screen.width, wide.maximum)
        screen.print(shown)
        for line in table.notes:
            screen.print(line, style="dim", markup=False, soft_wrap=True)
        return
    if form == "json":
        import json

        from edgekit.types import to_json

        text = json.dumps(to_json(answer(comparison, preset)), indent=2) + "\n"
    elif form == "csv":
        text = comma_separated(table)
    elif form == "html":
        from edgekit.report.compare_page import render

        text = render(comparison, table, preset)
    else:
        text = markdown(table)
    if out is None:
        click.echo(text, nl=False)
        return
    write_text(out, text)
    note(f"Written to {out}.")


def answer(comparison: Comparison, preset: str) -> dict[str, Any]:
    """The JSON object: every row with everything that is known of it, whatever the preset."""
    from edgekit.report.compare_columns import method_of
    from edgekit.types import to_json

    rows = []
    for row in comparison.rows:
        value = to_json(row)
        for timing in value["timings"]:
            if timing["latency"] is not None:
                del timing["latency"]["samples_ms"]
        if value["accuracy"] is not None:
            del value["accuracy"]["confusion"]
        value["method"] = method_of(row, comparison)
        base = comparison.baseline(row) or row
        value["flops_reduction"] = 1 - row.macs / base.macs if row.macs and base.macs else None
        value["compression"] = base.size_mb / row.size_mb if row.size_mb and base.size_mb else None
        rows.append(value)
    return {
        "preset": preset,
        "task": comparison.task,
        "images": comparison.images,
        "batches": comparison.batches,
        "settings": comparison.settings,
        "load": comparison.load,
        "notes": comparison.notes,
        "rows": rows,
    }
