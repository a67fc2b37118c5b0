"""`edgekit build`: engines, here or on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.console import emit, json_option, note, progress
from edgekit.cli.device_options import (
    answers_json,
    device_choice,
    device_options,
    do_on_devices,
    show_errors,
)

if TYPE_CHECKING:
    from edgekit.stages.device import DeviceAnswer


@click.command(
    epilog="""\b
Examples:
  edgekit build best-jetson-int8/                              # on the board itself
  edgekit build best-jetson-int8/ --device ssh://me@jetson     # from here
"""
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["auto", "qdq", "entropy", "minmax"]),
    default="auto",
    show_default=True,
    help="Where INT8 ranges come from: the graph, or a calibration cache.",
)
@click.option("--fp16", is_flag=True, help="Allow float16 layers.")
@click.option("--workspace-mb", type=click.IntRange(min=1), help="Scratch memory of the builder.")
@click.option("--dla", type=click.IntRange(min=0), metavar="CORE", help="Build for a DLA core.")
@click.option("--force", is_flag=True, help="Build again what is there.")
@device_options
@json_option
def command(
    bundle: Path,
    method: str,
    fp16: bool,
    workspace_mb: int | None,
    dla: int | None,
    force: bool,
    as_json: bool,
    **arguments: Any,
) -> int:
    """Build what BUNDLE needs built on its device: TensorRT's engines.

    ONNX Runtime and ncnn take a bundle's files as they are: then there is nothing to build, and the
    command says so. With --device the bundle is sent there and built there; the engine stays with it on
    the device, where `bench --device` and `verify --device` find it.
    """
    from edgekit.stages.build import EngineOptions, build_here

    choice = device_choice(arguments)
    options = EngineOptions(
        method=method, fp16=fp16, workspace_mb=workspace_mb, dla=dla, force=force
    )
    if not choice.devices:
        with progress(quiet=as_json) as report:
            answer = build_here(bundle, options, report)
        if as_json:
            emit(answer)
        else:
            note(_in_words(answer))
        return 0
    from edgekit.stages.device import worst

    answers = do_on_devices(choice, "build", bundle, options.words(), quiet=as_json)
    if as_json:
        emit(answers_json(answers))
    else:
        _show(answers)
        show_errors(answers)
    return worst(answers)


def _show(answers: list[DeviceAnswer]) -> None:
    for answer in answers:
        if answer.error is None and answer.answer is not None:
            note(f"{answer.device}: {_in_words(answer.answer)}")


def _in_words(answer: dict[str, Any]) -> str:
    if answer.get("nothing_to_build"):
        return "There is nothing to build: the runtime takes the bundle's files as they are."
    return f"Built for {answer.get('runtime')}."
