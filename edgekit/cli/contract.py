"""The options that choose the preprocessing contract, shared by every command that feeds images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.preprocess import Preprocess

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option(
        "--preprocess",
        "preprocess_file",
        type=click.Path(path_type=Path),
        help="JSON file with the whole preprocessing contract.",
    ),
    click.option("--color", help="Channel order the model expects: rgb, bgr or gray."),
    click.option("--resize", help="letterbox, stretch, center_crop or none."),
    click.option("--pad-value", type=int, help="Grey level of the letterbox border, 0-255."),
    click.option(
        "--pad-place", help="Where the image lies: center or bottom_right (border there)."
    ),
    click.option("--interpolation", help="bilinear, nearest, area or bicubic."),
    click.option(
        "--crop-fraction", type=float, help="Share of the resized side kept by center_crop."
    ),
    click.option("--scale", type=str, help="Factor on the 0-255 pixel, e.g. 1/255 or 1."),
    click.option(
        "--mean", type=str, help="Mean per channel after scaling, e.g. 0.485,0.456,0.406."
    ),
    click.option("--std", type=str, help="Standard deviation per channel after scaling."),
    click.option("--layout", help="nchw or nhwc."),
]


def preprocess_options(function: F) -> F:
    """Add the contract's flags; pass the command's keyword arguments to `contract_overrides`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def number(text: str, option: str) -> float:
    """A number or a fraction such as 1/255."""
    try:
        if "/" in text:
            upper, lower = text.split("/", 1)
            return float(upper) / float(lower)
        return float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{option} {text!r} is not a number.") from error


def numbers(text: str, option: str) -> tuple[float, ...]:
    return tuple(number(part.strip(), option) for part in text.split(",") if part.strip())


def contract_overrides(arguments: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Preprocess` that the flags set; removes the flags from `arguments`.

    A `preprocess_file` becomes all its fields, the single flags go over it.
    """
    from edgekit.preprocess import Preprocess

    fields: dict[str, Any] = {}
    file = arguments.pop("preprocess_file", None)
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--preprocess {file}: {error.strerror}.") from error
        contract: Preprocess = Preprocess.from_json(text, str(file))
        fields.update({key: getattr(contract, key) for key in contract.to_dict()})
    for name in (
        "color",
        "resize",
        "pad_value",
        "pad_place",
        "interpolation",
        "crop_fraction",
        "layout",
    ):
        value = arguments.pop(name, None)
        if value is not None:
            fields[name] = value
    for name in ("mean", "std"):
        value = arguments.pop(name, None)
        if value is not None:
            fields[name] = numbers(value, f"--{name}")
    value = arguments.pop("scale", None)
    if value is not None:
        fields["scale"] = number(value, "--scale")
    return fields
