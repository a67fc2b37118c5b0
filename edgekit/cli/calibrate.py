"""`edgekit calibrate`: collect activation statistics, once for every method and target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.calibrate_answer import ALL, report, report_study
from edgekit.cli.console import json_option, note, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.cli.ranges import parse_overrides, symmetric_for
from edgekit.errors import BadInput, UsageError

if TYPE_CHECKING:
    from edgekit.pipeline.collecting import Subject
    from edgekit.stages.calibrate import CalibrateOptions
    from edgekit.types import Calibration

EPILOG = """\b
Examples:
  edgekit calibrate prepared.onnx --images calib/ --out calibration.npz
  edgekit calibrate prepared.onnx --images calib/ --out calibration.npz --method all
  edgekit calibrate prepared.onnx --images calib/ --study 8,32,128 --data data.yaml
  edgekit calibrate --merge one.npz two.npz --out both.npz
"""
# chosen for the JSON answer and the stability estimate when --method all asks for every one
_DEFAULT = "minmax"
# of a study, which quantizes with it
_STUDIED = "percentile"
_STUDY_TARGET = "x86-int8"


@click.command(epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--images", type=click.Path(path_type=Path), help="Calibration images: a folder or an .npz."
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Statistics file (.npz).")
@click.option(
    "--method",
    help="Ranges to report: minmax, entropy, percentile, percentile=99.99, mse, or all in a table. "
    f"The file serves every method.  [default: {_DEFAULT}; of a study: {_STUDIED}]",
)
@click.option(
    "--override",
    "overrides",
    multiple=True,
    metavar="TENSOR=METHOD|LOW,HIGH",
    help="Another method, or a range, for one tensor (repeatable).",
)
@click.option("--target", "-t", help="Observe what this target may quantize, with its scheme.")
@click.option("--all-tensors", is_flag=True, help="Observe every float tensor of the graph.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads in all.  [default: the cores]")
@click.option("--merge", is_flag=True, help="Add up the statistics files given instead.")
@click.option(
    "--study",
    metavar="N,N,…",
    help="Tabulate INT8 against these numbers of images; each image is run once.",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Of a study: labelled data for its accuracy."
)
@click.option("--limit", type=click.IntRange(min=1), help="Of a study: so many labelled images.")
@click.option(
    "--max-bad-images",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of images that may be unusable.",
)
@click.option("--imgsz", metavar="N|HxW", help="Input size, where the model leaves it open.")
@preprocess_options
@json_option
def command(
    model: Path | None,
    files: tuple[Path, ...],
    images: Path | None,
    out: Path | None,
    method: str | None,
    overrides: tuple[str, ...],
    target: str | None,
    all_tensors: bool,
    workers: int,
    threads: int | None,
    merge: bool,
    study: str | None,
    data: Path | None,
    limit: int | None,
    max_bad_images: float,
    imgsz: str | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Collect statistics of MODEL's activations over images.

    The result depends on the set of images alone: not on their order, nor on --workers. An
    interrupted run goes on where it stopped; an unchanged one is answered from the cache.
    """
    from edgekit.calibration.methods import method_named
    from edgekit.stages.calibrate import CalibrateOptions

    fields = contract_overrides(arguments)
    if study is not None and method == ALL:
        raise UsageError("A study quantizes with one method.", hint="--method percentile, say.")
    method = method or (_DEFAULT if study is None else _STUDIED)
    if method != ALL:
        method_named(method)
    if (data is not None or limit is not None) and study is None:
        raise UsageError("--data and --limit belong to --study.", hint="--study 8,32,128")
    if out is None and study is None:
        raise UsageError("No output file was given.", hint="Add --out calibration.npz")
    if study is not None:
        target = target or _STUDY_TARGET
    warnings: list[str] = []
    options = CalibrateOptions(
        method=_DEFAULT if method == ALL else method,
        symmetric=symmetric_for(target),
        overrides=parse_overrides(overrides),
        workers=workers,
        threads=threads or _cores(),
        max_bad_share=max_bad_images,
    )
    if merge:
        if images is not None or study is not None:
            raise UsageError("--merge adds up files, --images and --study collect: give one.")
        assert out is not None
        report(_merged(model, files, out, options), method, options, warnings, as_json)
        return
    if files:
        raise UsageError(f"Unexpected argument '{files[0]}'.", hint="Did you mean --merge?")
    if model is None or images is None:
        raise UsageError(
            "A model and images are needed.",
            hint="edgekit calibrate MODEL --images DIR --out calibration.npz",
        )
    subject, options = _opened(model, fields, imgsz, target, all_tensors, options)
    if subject.warning:
        warnings.append(subject.warning)
    if study is not None:
        assert target is not None
        _study(subject, images, study, target, out, options, data, limit, warnings, as_json)
        return
    assert out is not None
    from edgekit.calibration.source import open_source
    from edgekit.pipeline.collecting import collect

    with progress(quiet=as_json) as bar:
        calibration = collect(
            subject, open_source(images), out, options, bar, _quiet if as_json else note
        )
    report(calibration, method, options, warnings, as_json)


def _quiet(message: str) -> None:
    """Under --json stderr stays empty."""


def _cores() -> int:
    from edgekit.cpu import available_cores

    return available_cores()


def _opened(
    path: Path,
    fields: Mapping[str, Any],
    imgsz: str | None,
    target: str | None,
    all_tensors: bool,
    options: CalibrateOptions,
) -> tuple[Subject, CalibrateOptions]:
    from edgekit.pipeline.collecting import observed, open_subject
    from edgekit.target_files import load_target

    subject = open_subject(path, fields, _size(imgsz))
    if not all_tensors:
        profile = None if target is None else load_target(target)
        tensors, channels = observed(subject.model, profile)
        options = dataclasses.replace(options, tensors=tensors, channels=channels)
    return subject, options


def _study(
    subject: Subject,
    images: Path,
    counts: str,
    target: str,
    out: Path | None,
    options: CalibrateOptions,
    data: Path | None,
    limit: int | None,
    warnings: list[str],
    as_json: bool,
) -> None:
    from edgekit.calibration.source import open_source
    from edgekit.pipeline import study
    from edgekit.target_files import load_target

    wanted = study.parse_counts(counts)
    dataset = None
    if data is not None:
        from edgekit.metrics.datasets import open_dataset

        dataset = open_dataset(data, limit=limit)
    for warning in [] if as_json else warnings:
        warn(warning)
    options = dataclasses.replace(options, time_inference=False)
    with progress(quiet=as_json) as bar:
        found = study.run(
            subject,
            open_source(images),
            wanted,
            load_target(target),
            out,
            options,
            data=dataset,
            progress=bar,
            say=warnings.append if as_json else note,
        )
    report_study(found, target, out, warnings, as_json)


def _merged(
    first: Path | None, files: Sequence[Path], out: Path, options: CalibrateOptions
) -> Calibration:
    """Statistics files added up; a leading .onnx must be the graph they were collected on."""
    from edgekit.atomic import sha256_file
    from edgekit.stages import calibrate

    model = first if first is not None and first.suffix.lower() == ".onnx" else None
    parts = [*([] if first is None or model is not None else [first]), *files]
    if len(parts) < 2:
        raise UsageError(
            "--merge needs two or more statistics files.",
            hint="edgekit calibrate --merge one.npz two.npz --out both.npz",
        )
    if model is not None:
        for part in parts:
            found = calibrate.open_calibration(part, options.method, symmetric=options.symmetric)
            if not model.is_file() or found.graph_sha256 != sha256_file(model):
                raise BadInput(
                    f"{part} was not collected on {model}.", hint="Calibrate this model again."
                )
    return calibrate.merge(parts, out, options)


def _size(imgsz: str | None) -> tuple[int, int] | None:
    if imgsz is None:
        return None
    parts = imgsz.lower().replace(",", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(
            f"The input size {imgsz!r} cannot be read.", hint="--imgsz 320 or --imgsz 320x416"
        )
    return int(parts[0]), int(parts[-1])
