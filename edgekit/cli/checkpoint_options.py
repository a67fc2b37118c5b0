"""The options that say how a checkpoint is loaded, shared by every command that takes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.errors import UsageError, nearest

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option(
        "--arch",
        metavar="PACKAGE.MODULE:FACTORY",
        help="What builds the network of a state_dict, e.g. mymodels.resnet:resnet20.",
    ),
    click.option(
        "--arch-arg",
        "arch_args",
        metavar="KEY=VALUE",
        multiple=True,
        help="Argument of the factory; repeatable. Python literals, else text.",
    ),
    click.option(
        "--code",
        metavar="DIR",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Folder to import the network's code from; repeatable.",
    ),
    click.option(
        "--trust-checkpoint",
        "trust",
        is_flag=True,
        help="Unpickle the checkpoint whatever it holds. This can run any code in the file.",
    ),
    click.option(
        "--weights",
        metavar="auto|ema|model",
        default=None,
        help="Which weights, when there are averaged ones (EMA) too. Default: auto, the EMA.",
    ),
    click.option(
        "--dtype",
        metavar="float32",
        default=None,
        help="Convert weights of mixed float types, which are refused otherwise.",
    ),
]
_NAMES = ("arch", "arch_args", "code", "trust", "weights", "dtype")
_WEIGHTS = ("auto", "ema", "model")


def checkpoint_options(function: F) -> F:
    """Add the options; pass the command's keyword arguments to `load_options`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def load_options(arguments: dict[str, Any]) -> LoadOptions:
    """The `LoadOptions` that the flags ask for; removes the flags from `arguments`.

    Raises UsageError for an --arch-arg without "=", given twice, or without --arch, and for an
    unknown --weights or --dtype.
    """
    from edgekit.checkpoint import LoadOptions

    given = {name: arguments.pop(name, None) for name in _NAMES}
    weights = given["weights"] or "auto"
    if weights not in _WEIGHTS:
        raise UsageError(f"--weights {weights!r}.", hint=nearest(weights, _WEIGHTS))
    if given["dtype"] not in (None, "float32"):
        raise UsageError(
            f"--dtype {given['dtype']!r}: checkpoints are computed in float32.",
            hint="Use --dtype float32, or leave it out.",
        )
    pairs = arch_arguments(given["arch_args"] or ())
    if pairs and not given["arch"]:
        raise UsageError("--arch-arg without --arch.", hint="Name the factory with --arch.")
    return LoadOptions(
        arch=given["arch"],
        arch_args=pairs,
        code=tuple(Path(folder) for folder in given["code"] or ()),
        trust=bool(given["trust"]),
        weights=weights,
        dtype=given["dtype"],
    )


def arch_arguments(texts: tuple[str, ...] | list[str]) -> dict[str, str]:
    """ "key=value" texts as a dictionary; values stay text."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise UsageError(
                f"--arch-arg {text!r} is not key=value.", hint="For example: --arch-arg width=0.5"
            )
        if key in pairs:
            raise UsageError(f"--arch-arg {key} is given twice.")
        pairs[key] = value
    return pairs
