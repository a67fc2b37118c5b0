"""`edgekit calibrate`: collect activation statistics, once for every method and target."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.console import emit, json_option, note, print_table, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.errors import BadInput, UsageError

if TYPE_CHECKING:
    from edgekit.cache import StageCache
    from edgekit.calibration.stability import Stability
    from edgekit.preprocess import Preprocess
    from edgekit.stages.calibrate import CalibrateOptions
    from edgekit.types import Calibration, Checkpoint, OnnxModel, Range

EPILOG = """\b
Examples:
  edgekit calibrate prepared.onnx --images calib/ --out calibration.npz
  edgekit calibrate prepared.onnx --images calib/ --out calibration.npz --method all
  edgekit calibrate --merge one.npz two.npz --out both.npz
"""
_ALL = "all"
# chosen for the JSON answer and the stability estimate when --method all asks for every one
_DEFAULT = "minmax"


@click.command(epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--images", type=click.Path(path_type=Path), help="Calibration images: a folder or an .npz."
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Statistics file (.npz).")
@click.option(
    "--method",
    default=_DEFAULT,
    show_default=True,
    help="Ranges to report: minmax, entropy, percentile, percentile=99.99, mse, or all in a table. "
    "The file serves every method.",
)
@click.option("--target", "-t", help="Observe what this target may quantize, with its scheme.")
@click.option("--all-tensors", is_flag=True, help="Observe every float tensor of the graph.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads in all.  [default: the cores]")
@click.option("--merge", is_flag=True, help="Add up the statistics files given instead.")
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
    method: str,
    target: str | None,
    all_tensors: bool,
    workers: int,
    threads: int | None,
    merge: bool,
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

    overrides = contract_overrides(arguments)
    if method != _ALL:
        method_named(method)
    if out is None:
        raise UsageError("No output file was given.", hint="Add --out calibration.npz")
    warnings: list[str] = []
    options = CalibrateOptions(
        method=_DEFAULT if method == _ALL else method,
        symmetric=_symmetric(target),
        workers=workers,
        threads=threads or _cores(),
        max_bad_share=max_bad_images,
    )
    if merge:
        if images is not None:
            raise UsageError("--merge adds up files, --images collects: give one of them.")
        calibration = _merged(model, files, out, options)
    else:
        if files:
            raise UsageError(f"Unexpected argument '{files[0]}'.", hint="Did you mean --merge?")
        if model is None or images is None:
            raise UsageError(
                "A model and images are needed.",
                hint="edgekit calibrate MODEL --images DIR --out calibration.npz",
            )
        subject, contract = _subject(model, overrides, imgsz, warnings)
        if not all_tensors:
            tensors, channels = _observed(subject, target)
            options = dataclasses.replace(options, tensors=tensors, channels=channels)
        with progress(quiet=as_json) as bar:
            calibration = _collected(subject, images, contract, out, options, bar, as_json)
    _report(calibration, method, options, warnings, as_json)


def _cores() -> int:
    from edgekit.cpu import available_cores

    return available_cores()


def _symmetric(target: str | None) -> bool:
    if target is None:
        return False
    from edgekit.stages.quantize import rules_of
    from edgekit.target import load_target

    profile = load_target(target)
    rules_of(profile)  # refuses a float target
    return profile.quantize is not None and profile.quantize.symmetric_activations


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


def _subject(
    path: Path, overrides: dict[str, Any], imgsz: str | None, warnings: list[str]
) -> tuple[OnnxModel, Preprocess]:
    """The model and its preprocessing: flags over metadata over an assumption that is said."""
    from edgekit import onnx_file
    from edgekit.checkpoint import load
    from edgekit.stages.contract import resolve

    checkpoint: Checkpoint = load(path)
    if checkpoint.onnx is None:
        raise BadInput(
            f"{path} is not an ONNX model.", hint=f"edgekit export {path} makes one on its way."
        )
    model = onnx_file.describe(path)
    size = _size(imgsz)
    own = onnx_file.read_contract(model)
    if size is None and own is not None and checkpoint.input_shape is None:
        size = (own.height, own.width)
    resolved = resolve(checkpoint, overrides, size)
    if resolved.warning:
        warnings.append(resolved.warning)
    contract = resolved.contract
    dtype = onnx_file.main_input(model).dtype
    if own is None and "dtype" not in overrides and dtype in ("float16", "uint8"):
        contract = contract.replace(dtype=dtype)
    return model, contract


def _size(imgsz: str | None) -> tuple[int, int] | None:
    if imgsz is None:
        return None
    parts = imgsz.lower().replace(",", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(
            f"The input size {imgsz!r} cannot be read.", hint="--imgsz 320 or --imgsz 320x416"
        )
    return int(parts[0]), int(parts[-1])


def _observed(model: OnnxModel, target: str | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Tensors that the target, or any INT8 target there is, may quantize.

    With them the channel axis of those whose channel means bias correction needs.
    """
    import onnx_ir as ir

    from edgekit.quantization.bias_correction import input_channels
    from edgekit.quantization.placement import observed
    from edgekit.stages.quantize import observed_channels, observed_tensors, rules_of
    from edgekit.target import list_targets, load_target

    if target is not None:
        profile = load_target(target)
        return observed_tensors(model, profile), observed_channels(model, profile)
    graph = ir.load(str(model.path))
    names: dict[str, None] = {}
    channels: dict[str, int] = {}
    seen = []
    for name in list_targets():
        profile = load_target(name)
        if profile.quantize is None:
            continue
        rules = rules_of(profile)
        if rules not in seen:
            seen.append(rules)
            names.update(dict.fromkeys(observed(graph, rules)))
            channels = {**input_channels(graph, rules), **channels}
    if not names:
        raise BadInput(
            f"{model.path} has nothing that a target computes in INT8.",
            hint="--all-tensors observes every float tensor.",
        )
    return tuple(names), channels


def _collected(
    model: OnnxModel,
    images: Path,
    contract: Preprocess,
    out: Path,
    options: CalibrateOptions,
    bar: Any,
    quiet: bool,
) -> Calibration:
    """From the stage cache when the content is known, else collected and kept there."""
    from edgekit.cache import StageCache
    from edgekit.calibration.source import open_source
    from edgekit.filehash import FileHashes
    from edgekit.stages import calibrate

    source = open_source(images)
    calibrate.check_fits(model, contract)
    with StageCache(note=note) as cache, FileHashes(cache.folder / "hashes.json") as hashes:
        options = dataclasses.replace(options, hash_file=hashes.sha256)
        found, _ = calibrate.fingerprints(source, hashes.sha256, bar)
        fields = calibrate.content_key(
            model, list(found), contract, options.tensors, options.channels
        ).fields
        key = cache.key("calibration", fields)
        cached = _from_cache(cache, key, out, options)
        if cached is not None:
            return cached
        if not quiet:
            note(f"Not in the cache: {cache.why_missed('calibration', fields)}.")
        options = dataclasses.replace(options, partial=cache.partial(key))
        return _into_cache(cache, key, model, source, contract, out, options, bar)


_FILE = "calibration.npz"
_KEPT = ("seconds", "inference_seconds", "peak_rss_mb")


def _from_cache(
    cache: StageCache, key: str, out: Path, options: CalibrateOptions
) -> Calibration | None:
    from edgekit.stages import calibrate

    entry = cache.get(key)
    if entry is None:
        return None
    _copy(entry.file(_FILE), out)
    calibration = calibrate.open_calibration(
        out, options.method, symmetric=options.symmetric, levels=options.levels
    )
    return dataclasses.replace(
        calibration,
        cached=True,
        seconds=float(entry.result["seconds"]),
        inference_seconds=float(entry.result["inference_seconds"]),
        peak_rss_mb=float(entry.result["peak_rss_mb"]),
    )


def _into_cache(
    cache: StageCache,
    key: str,
    model: OnnxModel,
    source: Any,
    contract: Preprocess,
    out: Path,
    options: CalibrateOptions,
    bar: Any,
) -> Calibration:
    from edgekit import atomic
    from edgekit.stages import calibrate

    with cache.put(key) as folder:
        made = calibrate.run(model, source, contract, folder / _FILE, options, bar)
        atomic.write_json(folder / "result.json", {name: getattr(made, name) for name in _KEPT})
        _copy(folder / _FILE, out)
    return dataclasses.replace(made, path=out)


def _copy(source: Path, out: Path) -> None:
    from edgekit.atomic import replacing

    with replacing(out) as temporary:
        shutil.copyfile(source, temporary)


def _report(
    calibration: Calibration,
    method: str,
    options: CalibrateOptions,
    warnings: list[str],
    as_json: bool,
) -> None:
    from edgekit.calibration import store
    from edgekit.calibration.methods import METHODS, choose
    from edgekit.calibration.stability import stability

    statistics, _ = store.read(calibration.path)
    names = list(METHODS) if method == _ALL else [method]
    ranges = {
        name: choose(statistics, name, symmetric=options.symmetric, levels=options.levels)
        for name in names
    }
    steady = stability(
        statistics, options.method, symmetric=options.symmetric, levels=options.levels
    )
    if steady.warning:
        warnings.append(steady.warning)
    if calibration.skipped:
        warnings.append(
            f"{len(calibration.skipped)} images were skipped: {calibration.skipped[0]}"
            + (" …" if len(calibration.skipped) > 1 else "")
        )
    if as_json:
        emit(_answer(calibration, method, ranges, steady, statistics.origin.preprocess, warnings))
        return
    for warning in warnings:
        warn(warning)
    if method == _ALL:
        _print_ranges(ranges)
    elsewhere = " (from the cache: nothing changed)" if calibration.cached else ""
    note(
        f"{calibration.path}: {len(calibration.ranges)} tensors over {calibration.images} images"
        f"{elsewhere}, ranges by {options.method}."
    )
    if not steady.warning:
        note(steady.message)


def _answer(
    calibration: Calibration,
    method: str,
    ranges: dict[str, dict[str, Range]],
    steady: Stability,
    preprocess: str,
    warnings: list[str],
) -> dict[str, Any]:
    import json

    return {
        "calibration": calibration.path,
        "sha256": calibration.sha256,
        "graph_sha256": calibration.graph_sha256,
        "images": calibration.images,
        "skipped": len(calibration.skipped),
        "skipped_images": calibration.skipped,
        "tensors": len(calibration.ranges),
        "seconds": calibration.seconds,
        "inference_seconds": calibration.inference_seconds or None,
        "peak_rss_mb": calibration.peak_rss_mb or None,
        "cached": calibration.cached,
        "method": method,
        "ranges": {
            name: {how: [by[name].low, by[name].high] for how, by in ranges.items()}
            for name in calibration.ranges
        },
        "stability": {
            "method": steady.method,
            "median": steady.median,
            "p90": steady.p90,
            "worst": [{"tensor": name, "error": error} for name, error in steady.worst],
            "needed_images": steady.needed_images,
        },
        "preprocess": json.loads(preprocess),
        "warnings": warnings,
    }


def _print_ranges(ranges: dict[str, dict[str, Range]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for name in ranges:
        table.add_column(name, justify="right", no_wrap=True)
    for tensor in next(iter(ranges.values())):
        row = [ranges[name][tensor] for name in ranges]
        table.add_row(tensor, *(f"{span.low:.4g} … {span.high:.4g}" for span in row))
    print_table(table)
