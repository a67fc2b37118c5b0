"""What the commands that run any model have in common: how it is opened, and its input size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.checkpoint_options import load_options
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.stages.opening import NamedModel


F = TypeVar("F", bound=Callable[..., Any])


def runtime_option(function: F) -> F:
    """Add `--runtime`: which of a bundle's models is meant."""
    return click.option(
        "--runtime",
        help="Which of a bundle's runtimes: onnxruntime, ncnn, … [default: its main one]",
    )(function)


def open_model(path: Path, arguments: dict[str, Any]) -> NamedModel:
    """Describe the model at `path`; takes --runtime and the checkpoint flags out of `arguments`."""
    from edgekit.stages.opening import describe

    runtime = arguments.pop("runtime", None)
    return describe(path, load_options(arguments), runtime=runtime)


def size_of(imgsz: str | None) -> tuple[int, int] | None:
    """(height, width) from the text of --imgsz: N or HxW. Raises UsageError for anything else."""
    if imgsz is None:
        return None
    parts = imgsz.lower().replace(",", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(
            f"The input size {imgsz!r} cannot be read.", hint="--imgsz 320 or --imgsz 320x416"
        )
    return int(parts[0]), int(parts[-1])
