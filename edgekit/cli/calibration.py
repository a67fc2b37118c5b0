"""`edgekit calibration`: look into a statistics file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.console import emit, json_option, note, print_table, warn
from edgekit.cli.ranges import parse_overrides
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.quantization.scheme import Scheme
    from edgekit.report.histograms import Drawn
    from edgekit.stages.calibration_report import CalibrationReport

_PLOTS = (".png", ".html")
_GRAPH_SHOWN = 12


@click.group("calibration")
def command() -> None:
    """Look into the statistics that `edgekit calibrate` wrote.

    \b
    Example:
      edgekit calibration show calibration.npz --plot ranges.html
    """


@command.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--target", "-t", help="With this target's scheme.  [default: uint8, asymmetric]")
@click.option(
    "--method",
    default="percentile",
    show_default=True,
    help="The method whose steadiness is estimated; ranges are shown for all.",
)
@click.option(
    "--override",
    "overrides",
    multiple=True,
    metavar="TENSOR=METHOD|LOW,HIGH",
    help="Another method, or a range, for one tensor (repeatable).",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw the worst tensors' histograms with all ranges into this .png or .html file.",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=12,
    show_default=True,
    help="Tensors to list and draw, the worst first; 0: all.",
)
@json_option
def show(
    file: Path,
    target: str | None,
    method: str,
    overrides: tuple[str, ...],
    plot: Path | None,
    top: int,
    as_json: bool,
) -> None:
    """Show the ranges that every method chooses, and what quantizing each tensor would lose.

    The tensors that 8 bits serve worst come first. SQNR is the signal-to-noise ratio in dB that
    clipping and rounding of this tensor alone leave: higher is better, 6 dB are one bit.
    """
    from edgekit.stages.calibration_report import describe

    if plot is not None and plot.suffix.lower() not in _PLOTS:
        raise UsageError(
            f"A plot cannot be written as '{plot.suffix or plot.name}'.",
            hint="Name a file that ends in .png or .html.",
        )
    chosen = parse_overrides(overrides)
    report = describe(file, _scheme(target), method=method, overrides=chosen)
    if plot is not None:
        _plot(report, plot, top)
    if as_json:
        emit(_answer(report, plot))
        return
    _show(report, top)
    if plot is not None:
        note(f"{plot}: histograms of {len(_first(report, top))} tensors.")


def _scheme(target: str | None) -> Scheme:
    from edgekit.quantization.scheme import Scheme
    from edgekit.stages.quantize import QuantizeOptions, rules_of, scheme_of
    from edgekit.target_files import load_target

    if target is None:
        return Scheme()
    profile = load_target(target)
    rules_of(profile)  # refuses a float target
    return scheme_of(profile, QuantizeOptions())


def _first(report: CalibrationReport, top: int) -> tuple[Any, ...]:
    return report.tensors[:top] if top else report.tensors


def _drawn(report: CalibrationReport, top: int) -> list[Drawn]:
    from edgekit.report.histograms import Drawn

    return [
        Drawn(
            name=tensor.name,
            bars=tensor.bars,
            ranges={
                how: (span.low, span.high, span.sqnr_db) for how, span in tensor.ranges.items()
            },
            best=tensor.best,
        )
        for tensor in _first(report, top)
    ]


def _summary(report: CalibrationReport) -> str:
    skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
    return (
        f"{len(report.tensors)} tensors over {report.images} images{skipped}, "
        f"graph {report.graph_sha256[:_GRAPH_SHOWN]}…"
    )


def _plot(report: CalibrationReport, out: Path, top: int) -> None:
    from edgekit import atomic

    drawn = _drawn(report, top)
    if out.suffix.lower() == ".png":
        from edgekit.report.histograms import png

        atomic.write_bytes(out, png(drawn, f"{report.path.name}: {_summary(report)}"))
        return
    from edgekit.report.calibration_page import CalibrationPage, render

    page = CalibrationPage(
        title=report.path.name,
        subtitle=_summary(report),
        stability=report.steady.message,
        facts=[
            ("sha256", report.sha256),
            ("graph", report.graph_sha256),
            ("preprocessing", report.preprocess),
            *report.versions.items(),
            *[("skipped", reason) for reason in report.skipped],
        ],
        drawn=drawn,
        rows=[
            (tensor.name, tensor.minimum, tensor.maximum, tensor.best, tensor.sqnr_db)
            for tensor in report.tensors
        ],
    )
    atomic.write_text(out, render(page))


def _answer(report: CalibrationReport, plot: Path | None) -> dict[str, Any]:
    import json

    from edgekit.cli.calibrate_answer import stability_answer

    return {
        "calibration": report.path,
        "sha256": report.sha256,
        "graph_sha256": report.graph_sha256,
        "images": report.images,
        "skipped": len(report.skipped),
        "skipped_images": report.skipped,
        "versions": report.versions,
        "preprocess": json.loads(report.preprocess) if report.preprocess else None,
        "stability": stability_answer(report.steady),
        "tensors": report.tensors,
        "plot": plot,
    }


def _loss(sqnr_db: float) -> str:
    from edgekit.report.calibration_page import decibels

    text = decibels(sqnr_db)
    return text if text == "lossless" else f"{text} dB"


def _show(report: CalibrationReport, top: int) -> None:
    from rich.table import Table

    if report.steady.warning:
        warn(report.steady.warning)
    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold", min_width=24)
    table.add_column("values", justify="right", no_wrap=True)
    methods = list(report.tensors[0].ranges) if report.tensors else []
    for name in methods:
        table.add_column(name, justify="right", no_wrap=True)
    for tensor in _first(report, top):
        cells = [f"{tensor.minimum:.4g} … {tensor.maximum:.4g}"]
        for name in methods:
            span = tensor.ranges[name]
            mark = "*" if name == tensor.best else ""
            cells.append(f"{span.low:.4g} … {span.high:.4g}\n{_loss(span.sqnr_db)}{mark}")
        table.add_row(tensor.name, *cells)
    print_table(table)
    hidden = len(report.tensors) - len(_first(report, top))
    more = f" The {hidden} others lose less (--top 0 lists all)." if hidden else ""
    note(f"{report.path}: {_summary(report)}; * loses least.{more}")
    if not report.steady.warning:
        note(report.steady.message)
