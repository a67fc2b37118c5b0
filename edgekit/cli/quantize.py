"""`edgekit quantize`: insert INT8 QDQ with the ranges of a calibration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.console import console, emit, json_option, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.cli.ranges import parse_overrides
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.pipeline.searching import Found
    from edgekit.preprocess import Preprocess

EPILOG = """\b
Examples:
  edgekit simplify model.onnx --prepare --out prepared.onnx
  edgekit calibrate prepared.onnx --images calib/ --out calibration.npz
  edgekit quantize prepared.onnx --calibration calibration.npz --target x86-int8
  edgekit quantize prepared.onnx --calibration calibration.npz --images calib/ --search
  edgekit quantize prepared.onnx --calibration calibration.npz --replay bundle/
  edgekit quantize prepared.onnx --mode dynamic --images calib/
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Statistics of this very model."
)
@click.option(
    "--mode",
    type=click.Choice(["static", "dynamic"]),
    default="static",
    show_default=True,
    help="Ranges from a calibration, or from every input anew.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Images for the parity check.")
@click.option("--target", "-t", default="x86-int8", show_default=True, help="Target profile.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="[default: MODEL.int8.onnx]")
@click.option(
    "--method",
    default="percentile",
    show_default=True,
    help="minmax, entropy, percentile or mse; no image is run again.",
)
@click.option(
    "--override",
    "overrides",
    multiple=True,
    metavar="TENSOR=METHOD|LOW,HIGH",
    help="Another method, or a range, for one tensor (repeatable).",
)
@click.option(
    "--per-channel/--per-tensor", default=None, help="Weight scales; default: the profile's."
)
@click.option(
    "--weight-bits", type=click.Choice(["4", "6", "7", "8"]), help="Default: the profile's."
)
@click.option(
    "--bias-correction",
    is_flag=True,
    help="Take what rounding the weights adds to the mean outputs off the biases.",
)
@click.option(
    "--full-bias-correction",
    is_flag=True,
    help="Correct the biases layer by layer, by what the quantized network computes on --images.",
)
@click.option(
    "--weight-range",
    type=click.Choice(["absmax", "mse"]),
    default="absmax",
    show_default=True,
    help="Weight scales by the largest weight, or by the least squared error.",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "adaround", "gptq"]),
    default="nearest",
    show_default=True,
    help="How weights are rounded; the others look at the layers' outputs on --images.",
)
@click.option(
    "--keep-float", multiple=True, metavar="NODE", help="A node that stays float (repeatable)."
)
@click.option(
    "--search",
    is_flag=True,
    help="Look for ranges and float layers that keep accuracy and pay in speed, judged on --images.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Search: how far from the float model's own answers the result may be.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Search: no new trial starts after that much CPU time.",
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    metavar="BUNDLE|JSON",
    help="Quantize as a bundle, or the record of a search, says: without searching.",
)
@preprocess_options
@json_option
def command(
    model: Path,
    calibration: Path | None,
    mode: str,
    images: Path | None,
    target: str,
    out: Path | None,
    method: str,
    overrides: tuple[str, ...],
    per_channel: bool | None,
    weight_bits: str | None,
    bias_correction: bool,
    full_bias_correction: bool,
    weight_range: str,
    rounding: str,
    keep_float: tuple[str, ...],
    search: bool,
    max_drop: float | None,
    minutes: float,
    replay: Path | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Insert INT8 QDQ into MODEL by the target's placement rules.

    With --mode dynamic the layers become operators on integers that find the range of what they read
    for every input: no calibration, but slower, and everything between them is float. The result is
    a plain ONNX file. With --images its outputs are compared with the float model's, block by block.

    --search tries ranges, bias correction and float layers, times what it tries where this machine is
    the target's, and takes the fastest that is near enough to float; what it tried stands in
    OUT.search.json. An interrupted search goes on where it stopped.
    """
    from edgekit.cpu import available_cores
    from edgekit.pipeline.single import open_for_parity
    from edgekit.stages import calibrate, quantize, quantize_dynamic
    from edgekit.stages.recover import RecoverOptions
    from edgekit.target_files import load_target

    if mode == "dynamic" and calibration is not None:
        raise UsageError("--mode dynamic takes no calibration.", hint="Leave out --calibration.")
    if mode == "dynamic" and overrides:
        raise UsageError("--mode dynamic has no ranges to override.")
    chosen = parse_overrides(overrides)
    if mode == "static" and calibration is None:
        raise UsageError(
            "No calibration was given.",
            hint=f"edgekit calibrate {model} --images DIR --out calibration.npz",
        )
    _check_search(search, replay, images, calibration, max_drop, overrides)
    profile = load_target(target)
    subject = open_for_parity(model, images, contract_overrides(arguments))
    if subject.warning and images is not None:
        warn(subject.warning)
    options = quantize.QuantizeOptions(
        keep_float=keep_float,
        per_channel=per_channel,
        weight_bits=int(weight_bits) if weight_bits else None,
        bias_correction=bias_correction,
        weight_range=weight_range,
        recover=RecoverOptions(rounding=rounding, full_bias=full_bias_correction),
    )
    if mode == "dynamic" and (options.recover.needed or bias_correction):
        raise UsageError("--mode dynamic rounds weights to nearest and corrects no biases.")
    with progress(quiet=as_json) as bar:
        bar(0, 0, "quantize")
        feeds = subject.feeds if images is not None else []
        out = out or model.with_suffix(".int8.onnx")
        record: Found | None = None
        if calibration is None:
            done = quantize_dynamic.run(subject.model, profile, feeds, out, options)
        else:
            symmetric = profile.quantize is not None and profile.quantize.symmetric_activations
            ranges = calibrate.open_calibration(
                calibration, method, symmetric=symmetric, overrides=chosen
            )
            if search:
                assert images is not None
                from edgekit.pipeline import searching

                found = searching.search(
                    subject.model,
                    ranges,
                    profile,
                    subject.contract,
                    images,
                    options,
                    searching.limits_of(max_drop, minutes),
                    out.with_suffix(".search.json"),
                    bar,
                )
                ranges, options, record = found.ranges, found.options, found
            elif replay is not None:
                from edgekit.pipeline.choosing import read_choice, taken

                ranges, options = taken(
                    subject.model, ranges, profile, read_choice(replay), options
                )
            looked_at = []
            if options.recover.needed:
                looked_at = _looked_at(images, subject.contract)
            done = quantize.run(
                subject.model,
                ranges,
                profile,
                feeds,
                out,
                options,
                recovery_feeds=looked_at,
                threads=available_cores(),
                progress=bar,
            )
    if as_json:
        emit(
            {
                "model": done.model.path,
                "size_mb": done.model.size_mb,
                "int8_mac_share": done.placement.int8_mac_share,
                "int8_layers": len(done.placement.compute),
                "float_layers": done.placement.floats,
                "parity": done.parity,
                "search": record.record if record else None,
                "agreement": record.result.best.agreement if record else None,
            }
        )
        return
    text = f"{done.model.path}: {done.model.size_mb:.2f} MB; " + "; ".join(done.notes)
    if done.parity is not None:
        text += f"; cosine {done.parity.cosine:.5f}, SQNR {done.parity.sqnr_db:.1f} dB"
    console().print(text, soft_wrap=True)
    if record is not None:
        from edgekit.pipeline.choosing import search_notes

        told = "; ".join(search_notes(record.result))
        console().print(f"{told}. Record: {record.record}", soft_wrap=True)
    for name, reason in done.placement.floats.items():
        console().print(f"  float: {name}: {reason}", soft_wrap=True)


def _check_search(
    search: bool,
    replay: Path | None,
    images: Path | None,
    calibration: Path | None,
    max_drop: float | None,
    overrides: tuple[str, ...],
) -> None:
    """Refuse what contradicts a search or a replay."""
    if search and replay is not None:
        raise UsageError("--search and --replay contradict each other.")
    if max_drop is not None and not search:
        raise UsageError("--max-drop is a limit of --search.")
    if (search or replay is not None) and calibration is None:
        raise UsageError("--search and --replay need --calibration: they choose its ranges.")
    if (search or replay is not None) and overrides:
        raise UsageError("--override contradicts --search and --replay, which choose the ranges.")
    if search and images is None:
        raise UsageError(
            "--search needs images to judge by.", hint="The calibration images: --images DIR."
        )


def _looked_at(images: Path | None, contract: Preprocess) -> list[Any]:
    """Input tensors of the images that rounding and full bias correction look at."""
    from edgekit.images import list_images, read_all
    from edgekit.preprocess import apply
    from edgekit.stages.recover import IMAGES

    if images is None:
        return []
    found: list[Any] = []
    paths = list_images(images)
    # spread over the folder: the first ones may be alike
    spread = [
        paths[i * len(paths) // min(IMAGES, len(paths))] for i in range(min(IMAGES, len(paths)))
    ]
    for _, image in read_all(spread, []):
        found.append(apply(image, contract)[0])
    return found
