"""Build an architecture from `--arch package.module:factory` and `--arch-arg key=value`."""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint.torch_file import importable
from edgekit.errors import BadInput, UsageError, nearest

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions

_FORM = "Write it as package.module:factory, e.g. --arch mymodels.resnet:resnet20."


def parse_value(text: str) -> Any:
    """A Python literal where `text` is one ("3", "0.5", "True", "(1, 2)", "None"), else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def split_arch(arch: str) -> tuple[str, str]:
    """Module and factory of "package.module:factory". Raises UsageError for another form."""
    module, colon, name = arch.partition(":")
    parts = [*module.split("."), name]
    if not colon or not all(part.isidentifier() for part in parts):
        raise UsageError(f"--arch {arch!r} names no factory.", hint=_FORM)
    return module, name


def build(options: LoadOptions) -> Any:
    """The torch module that the factory returns for the given arguments.

    What the user's code prints goes to stderr, because stdout is for results. Raises UsageError
    (malformed --arch, unknown argument), BadInput (not found, fails, returns something else).
    """
    import torch

    assert options.arch is not None
    module_name, name = split_arch(options.arch)
    values = {key: parse_value(text) for key, text in options.arch_args.items()}
    with importable(options.code), contextlib.redirect_stdout(sys.stderr):
        factory = _find(module_name, name)
        if isinstance(factory, torch.nn.Module):
            return copy.deepcopy(factory)  # a module that stands ready under this name
        _check_arguments(factory, options.arch, values)
        try:
            made = factory(**values)
        # the factory is the user's code: whatever it raises is the answer
        except (Exception, SystemExit) as error:
            raise BadInput(
                f"--arch {options.arch} raised {_what(error)}",
                hint="Give its arguments with --arch-arg key=value." if not values else "",
            ) from error
    if not isinstance(made, torch.nn.Module):
        raise BadInput(
            f"--arch {options.arch} returned a {type(made).__name__}, not a torch.nn.Module.",
            hint="Name the class of the model, or a function that returns an instance of it.",
        )
    return made


def _find(module_name: str, name: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(missing + "."):
            raise BadInput(
                f"--arch: the module '{missing}' is not found.",
                hint="Add the folder that holds it with --code DIR.",
            ) from error
        raise BadInput(
            f"--arch: {module_name} needs the module '{missing}', which is not installed.",
            hint=f"Install it, or add its folder with --code DIR. ({_what(error)})",
        ) from error
    # any code may stand at the top of the user's module
    except (Exception, SystemExit) as error:
        raise BadInput(f"--arch: importing {module_name} raised {_what(error)}") from error
    factory = getattr(module, name, None)
    if factory is None:
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise BadInput(
            f"--arch: {module_name} has no '{name}'.", hint=nearest(name, known) or _FORM
        )
    if not callable(factory):
        raise BadInput(f"--arch: {module_name}:{name} is a {type(factory).__name__}.", hint=_FORM)
    return factory


def _check_arguments(factory: Any, arch: str, values: Mapping[str, Any]) -> None:
    """Raises UsageError, naming the argument, for one that the factory does not take."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    for key in values:
        if key not in named:
            raise UsageError(
                f"--arch-arg {key}: {arch} has no such argument.",
                hint=nearest(key, named) if named else "It takes none.",
            )
    try:
        signature.bind(**values)
    except TypeError as error:
        raise UsageError(
            f"--arch {arch}: {error}.", hint=f"Give it with --arch-arg. Its form: {signature}"
        ) from error


def _what(error: BaseException) -> str:
    """The exception in one line, with the place in the user's code where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}{place}"
