"""`edgekit build`: engines, here or on a device."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.console import console, emit, json_option, note, progress
from edgekit.cli.device_options import (
    answers_json,
    device_choice,
    device_options,
    do_on_devices,
    show_errors,
)

if TYPE_CHECKING:
    from edgekit.stages.device import DeviceAnswer

_LEAST_LIMIT_S = 3600.0


@click.command(
    epilog="""\b
Examples:
  edgekit build best-jetson-int8/                              # on the board itself
  edgekit build best-jetson-int8/ --device ssh://me@jetson     # from here
  edgekit build best-jetson-int8/ --method entropy --dla 0
  edgekit build best-jetson-int8/ --trtexec
"""
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["auto", "qdq", "entropy", "minmax", "float"]),
    default="auto",
    show_default=True,
    help="Where INT8 comes from: the QDQ graph, a calibration cache (TensorRT up to 10.16), or no "
    "INT8 at all. auto: QDQ; the entropy cache on DLA, and where QDQ does not build.",
)
@click.option(
    "--fp16/--no-fp16",
    default=True,
    show_default=True,
    help="What is not INT8 may be float16.",
)
@click.option("--workspace-mb", type=click.IntRange(min=1), help="Scratch memory of the builder.")
@click.option("--dla", type=click.IntRange(min=0), metavar="CORE", help="Build for a DLA core.")
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Largest batch of a model exported with --dynamic.",
)
@click.option("--version-compatible", is_flag=True, help="The engine loads in later versions, too.")
@click.option(
    "--hardware-compatible", is_flag=True, help="The engine loads on other GPUs from Ampere on."
)
@click.option("--force", is_flag=True, help="Build again what is there.")
@click.option(
    "--trtexec",
    is_flag=True,
    help="Build nothing; print trtexec's command line for the same build.",
)
@device_options
@json_option
def command(bundle: Path, trtexec: bool, as_json: bool, **arguments: Any) -> int:
    """Build what BUNDLE needs built on its device: TensorRT's engines.

    ONNX Runtime and ncnn take a bundle's files as they are: then there is nothing to build, and the
    command says so. With --device the bundle is sent there and built there; the engine stays with it on
    the device, where `bench --device` and `verify --device` find it.
    """
    from edgekit.stages.build import EngineOptions, build_here, trtexec_lines

    names = [item.name for item in dataclasses.fields(EngineOptions)]
    options = EngineOptions(**{name: arguments.pop(name) for name in names})
    if trtexec:
        _show_trtexec(trtexec_lines(bundle, options), as_json)
        return 0
    choice = device_choice(arguments)
    if not choice.devices:
        with progress(quiet=as_json) as report:
            answer = build_here(bundle, options, report)
        if as_json:
            emit(answer)
        else:
            note(_in_words(answer))
        return 0
    from edgekit.stages.device import worst

    # an engine takes its time: devices of the default limit get an hour
    patient = [
        dataclasses.replace(device, limit_s=max(device.limit_s, _LEAST_LIMIT_S))
        for device in choice.devices
    ]
    choice = dataclasses.replace(choice, devices=tuple(patient))
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


def _show_trtexec(lines: dict[str, list[str]], as_json: bool) -> None:
    if as_json:
        emit({"trtexec": lines})
        return
    for kind, words in lines.items():
        note(f"{kind}, in the bundle's folder:")
        console().print(shlex.join(words), soft_wrap=True, highlight=False)


def _in_words(answer: dict[str, Any]) -> str:
    if answer.get("nothing_to_build"):
        return "There is nothing to build: the runtime takes the bundle's files as they are."
    flags = ", ".join(answer.get("flags") or ["no flags"])
    text = f"Built for {answer.get('runtime')}: {answer.get('method')}, {flags}"
    text += ", was there already." if answer.get("reused") else "."
    timing = answer.get("timing_ms")
    if timing:
        text += (
            f" p50 {timing['wall']:.2f} ms with copies, {timing['wall_compute']:.2f} ms without (the "
            f"GPU's own clock: {timing['gpu']:.2f} and {timing['gpu_compute']:.2f}); `edgekit bench` "
            "measures properly."
        )
    for remark in answer.get("remarks") or []:
        text += f" Note: {remark}"
    return text
