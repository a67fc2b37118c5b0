"""`edgekit export`: the whole way from a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.checkpoint_options import checkpoint_options, load_options
from edgekit.cli.console import console, emit, json_option, note, progress
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.pipeline import ExportRequest, ExportResult
    from edgekit.project import Project
    from edgekit.stages.search import Choice
    from edgekit.types import Progress

EPILOG = """\b
Examples:
  edgekit export best.pt --target x86-int8 --images calib/ --data data.yaml
  edgekit export weights.pt --arch mynet.model:build --arch-arg width=16 \\
      --imgsz 192 --target x86-int8 --images calib/ --max-drop 1
  edgekit export model.onnx --target x86-fp32
In a folder with an edgekit.toml, `edgekit export` alone does what the file says.
"""


@click.command(epilog=EPILOG)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--target", "-t", help="Target profile (`edgekit targets list`) or a TOML file.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Calibration images: a folder or .npz."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Labelled data: data.yaml, COCO json, "
    "ImageFolder or .npz; accuracy is measured before and after.",
)
@click.option("--split", help="Split of the labelled data.  [default: val]")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most so many labelled images.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="Bundle folder.  [default: NAME-TARGET]"
)
@click.option("--imgsz", help="Input size: N or HxW.")
@click.option("--input-shape", help="Input shape, e.g. 1,3,320,320.")
@click.option("--dynamic", is_flag=True, help="Leave the batch axis free.")
@click.option(
    "--dequantize",
    is_flag=True,
    help="Turn a quantized model (dynamic INT8, QDQ, QAT) into float first.",
)
@click.option("--head", help="How outputs are decoded: yolov5, yolov8, yolo26, yolox, logits.")
@click.option(
    "--method",
    help="Ranges: minmax, entropy, percentile, mse, or auto: searched together "
    "with the layers that stay float, judged on the calibration images.  [default: auto]",
)
@click.option(
    "--search-seconds",
    type=click.FloatRange(min=0),
    default=180.0,
    show_default=True,
    help="Limit of that search, in seconds of its own CPU time.",
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Quantize as an earlier export did (its bundle or manifest.json), without searching.",
)
@click.option(
    "--keep-float",
    multiple=True,
    metavar="NODE",
    help="A node of the prepared graph that stays float (repeatable).",
)
@click.option(
    "--ncnn-table",
    type=click.Path(path_type=Path),
    help="ncnn only: a calibration table of ncnn2table, whose scales are used as they are.",
)
@click.option(
    "--calibration-batches",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="TensorRT only: carry so many preprocessed images for TensorRT's own calibrators.",
)
@click.option(
    "--half-io",
    is_flag=True,
    help="TensorRT only: inputs and outputs of the float16 graph are float16, too.",
)
@click.option(
    "--runner/--no-runner",
    default=None,
    help="ncnn only: pack the native runner for the board, which needs no Python there; it is built "
    "where it is not.  [default: for ARM boards, when it is built already]",
)
@click.option("--max-drop", type=click.FloatRange(min=0), help="Accuracy budget in points.")
@click.option("--max-p99-ms", type=click.FloatRange(min=0, min_open=True), help="Latency budget.")
@click.option("--max-p50-ms", type=click.FloatRange(min=0, min_open=True), help="Latency budget.")
@click.option(
    "--max-bad-images",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of calibration images that may be unreadable.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that collect statistics.",
)
@click.option(
    "--report", is_flag=True, help="Write an HTML page on the bundle beside it (OUT.html)."
)
@click.option("--fresh", is_flag=True, help="Do every stage again although the cache knows it.")
@checkpoint_options
@preprocess_options
@json_option
def command(checkpoint: Path | None, as_json: bool, **arguments: Any) -> None:
    """Take CHECKPOINT to a verified, measured bundle for a target.

    The stages: export to ONNX, simplify, prepare, calibrate, quantize, build, evaluate (with
    --data), measure, pack. Each is compared with the one before; finished stages are remembered, so
    that an interrupted run goes on where it stopped and an unchanged one does nothing.
    """
    from edgekit.pipeline import export
    from edgekit.project import load_project

    request = _request(checkpoint, load_project(Path.cwd()), arguments)
    with progress(quiet=as_json) as bar:
        result, missed = export(request, bar, note)
        page = _report(result.bundle, bar) if arguments["report"] and missed is None else None
    if as_json and missed is None:
        emit({**_answer(result), "report": page})
    elif not as_json:
        _show(result)
        if page is not None:
            console().print(f"Report: {page}", soft_wrap=True)
    if missed is not None:
        raise missed


def _report(bundle: Path, progress: Progress) -> Path:
    """Write the bundle's page beside it."""
    from edgekit.cli.report import default_page
    from edgekit.pipeline import report

    page = default_page(bundle)
    report.write(bundle, page, progress=progress)
    return page


def _request(
    checkpoint: Path | None, project: Project | None, arguments: dict[str, Any]
) -> ExportRequest:
    """Flags over edgekit.toml over defaults."""
    from edgekit.pipeline import ExportRequest
    from edgekit.target_files import load_target

    section = project.export if project else None

    def chosen(name: str, fallback: Any = None) -> Any:
        given = arguments[name]
        if given is None and section is not None:
            given = getattr(section, name) or None
        return fallback if given is None else given

    if checkpoint is None:
        if project is None or not project.checkpoint.path:
            raise UsageError(
                "No checkpoint was given, and this folder has no edgekit.toml that names one.",
                hint="edgekit export CHECKPOINT --target TARGET --images DIR",
            )
        checkpoint = Path(project.checkpoint.path)
    name = chosen("target")
    if name is None:
        raise UsageError(
            "No target was given.", hint="Choose one of `edgekit targets list`: --target."
        )
    target = load_target(name)
    overrides = {**(project.preprocess if project else {}), **contract_overrides(arguments)}
    for key in ("mean", "std"):
        if isinstance(overrides.get(key), list):
            overrides[key] = tuple(overrides[key])
    budget = project.budget if project else None

    def limit_of(key: str) -> float | None:
        given: float | None = arguments[key]
        return given if given is not None else (getattr(budget, key) if budget else None)

    images, data = chosen("images"), chosen("data")
    return ExportRequest(
        checkpoint=checkpoint,
        target=target,
        out=Path(chosen("out", f"{checkpoint.stem}-{target.name}")),
        images=None if images is None else Path(images),
        data=None if data is None else Path(data),
        split=chosen("split", "val"),
        limit=chosen("limit"),
        load=load_options(_with_project(arguments, project)),
        size=_size(chosen("imgsz"), chosen("input_shape")),
        overrides=overrides,
        head=chosen("head"),
        method=chosen("method", "auto"),
        search_seconds=arguments["search_seconds"],
        replay=_replay(arguments),
        keep_float=arguments["keep_float"],
        ncnn_table=arguments["ncnn_table"],
        calibration_batches=arguments["calibration_batches"],
        half_io=arguments["half_io"],
        runner=arguments["runner"],
        dequantize=arguments["dequantize"],
        dynamic_batch=arguments["dynamic"] or bool(section and section.dynamic),
        max_bad_share=arguments["max_bad_images"],
        workers=arguments["workers"],
        max_drop=limit_of("max_drop"),
        max_p99_ms=limit_of("max_p99_ms"),
        max_p50_ms=limit_of("max_p50_ms"),
        fresh=arguments["fresh"],
    )


def _replay(arguments: dict[str, Any]) -> Choice | None:
    """What the bundle of --replay chose; other choices beside it would contradict it."""
    if arguments["replay"] is None:
        return None
    if arguments["method"] is not None:
        raise UsageError("--replay says how to quantize; --method cannot be given beside it.")
    from edgekit.pipeline.choosing import read_choice

    return read_choice(arguments["replay"])


def _with_project(arguments: dict[str, Any], project: Project | None) -> dict[str, Any]:
    """The checkpoint flags, filled from edgekit.toml where they were not given."""
    if project is None:
        return arguments
    section = project.checkpoint
    filled = dict(arguments)
    if not filled["arch"]:
        filled["arch"] = section.arch or None
        if section.arch and not filled["arch_args"]:
            filled["arch_args"] = tuple(f"{k}={v}" for k, v in project.arch_args.items())
    filled["code"] = filled["code"] or tuple(project.folder / folder for folder in section.code)
    filled["weights"] = filled["weights"] or section.weights
    filled["dtype"] = filled["dtype"] or section.dtype or None
    return filled


def _size(imgsz: str | None, input_shape: str | None) -> tuple[int, int] | None:
    """(height, width) from --imgsz or --input-shape."""
    try:
        if imgsz is not None:
            parts = [int(part) for part in imgsz.lower().replace(",", "x").split("x")]
            if len(parts) not in (1, 2) or min(parts) < 1:
                raise ValueError
            return (parts[0], parts[-1])
        if input_shape is not None:
            shape = [int(part) for part in input_shape.lower().replace("x", ",").split(",")]
            if len(shape) != 4 or min(shape) < 1:
                raise ValueError
            return (shape[1], shape[2]) if shape[3] in (1, 3) else (shape[2], shape[3])
    except ValueError as error:
        raise UsageError(
            f"The input size {imgsz or input_shape!r} cannot be read.",
            hint="--imgsz 320, --imgsz 320x416 or --input-shape 1,3,320,416",
        ) from error
    return None


def _answer(result: ExportResult) -> dict[str, Any]:
    """The JSON object of the design's contract."""
    from edgekit.pipeline import parity_of

    accuracy = None
    if result.float_accuracy is not None:
        accuracy = {
            "metric": result.float_accuracy.metric,
            "float": result.float_accuracy.value,
            "int8": result.int8_accuracy.value if result.int8_accuracy else None,
        }
    return {
        "verdict": result.verdict,
        "bundle": result.bundle,
        "unchanged": result.unchanged,
        "precision": result.precision,
        "stages": [
            {
                "name": stage.name,
                "seconds": stage.seconds,
                "cached": stage.cached,
                "size_mb": stage.size_mb,
                "parity": parity_of(stage),
                "notes": stage.notes,
            }
            for stage in result.stages
        ],
        "model": {"params": result.parameters, "size_mb": result.size_mb},
        "latency": {
            "float": result.float_latency,
            "int8": result.int8_latency,
            "speedup": result.speedup,
        },
        "accuracy": accuracy,
        "warnings": result.warnings,
    }


def _show(result: ExportResult) -> None:
    from edgekit.report.export_table import accuracy_table, latency_table, stage_table

    out = console()
    out.print(stage_table(result.stages))
    if result.float_latency is not None:
        out.print(latency_table(result.float_latency, result.int8_latency, result.speedup))
    if result.float_accuracy is not None:
        out.print(accuracy_table(result.float_accuracy, result.int8_accuracy))
    out.print(f"[bold]{result.verdict}[/bold]", soft_wrap=True)
    if result.unchanged:
        out.print(f"Nothing changed: {result.bundle} is up to date (all stages from the cache).")
    else:
        done = "Bundle" if result.bundle.exists() else "No bundle was written at"
        out.print(f"{done}: {result.bundle}", soft_wrap=True)
