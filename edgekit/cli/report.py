"""`edgekit report`: one HTML page on a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.console import emit, json_option, note, progress


@click.command(
    epilog="""\b
Examples:
  edgekit report best-x86-int8/
  edgekit report best-x86-int8/ --out best.html --float prepared.onnx
"""
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page.  [default: BUNDLE.html beside the bundle]",
)
@click.option(
    "--float",
    "float_model",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="The prepared float ONNX model that the bundle was made of. "
    "[default: found in the stage cache]",
)
@json_option
def command(bundle: Path, out: Path | None, float_model: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page on BUNDLE: no network, light and dark, fit for a phone.

    Verdict, stages with parity, latency, accuracy, layers with time and loss, activations with
    their ranges, the golden images with boxes, sizes, provenance. The model is run on the golden
    samples; the float model is taken from the stage cache where it is still there.
    """
    from edgekit.pipeline import report

    page = out if out is not None else default_page(bundle)
    with progress(quiet=as_json) as bar:
        found = report.write(bundle, page, float_model=float_model, progress=bar)
    if as_json:
        emit(
            {
                "page": page,
                "size_mb": page.stat().st_size / 1e6,
                "verdict": found.verdict,
                "missing": found.missing,
            }
        )
        return
    for line in found.missing:
        note(f"Note: {line}")
    click.echo(f"Report: {page}")


def default_page(bundle: Path) -> Path:
    """BUNDLE.html beside the bundle."""
    folder = bundle.resolve()
    return bundle.parent / f"{folder.name}.html"
