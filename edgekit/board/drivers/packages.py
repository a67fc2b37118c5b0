"""Python packages of runtimes: whether they are installed, and importing them."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from typing import Any

from edgekit.board.errors import MissingDependency
from edgekit.board.session import Availability


def installed(module: str, *distributions: str) -> Availability:
    """Whether `module` is installed, without importing it: that takes time, memory, and may crash.

    The version is that of the first of `distributions` (default: the module's name) that is there.
    """
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        return Availability(ok=False, why=f"the Python package {module} is not installed")
    for name in distributions or (module,):
        try:
            return Availability(ok=True, version=metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return Availability(ok=True)


def load(module: str) -> Any:
    """Import `module`. Raises MissingDependency when it is not there or does not load."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise MissingDependency(
            f"The Python package {module} does not load: {error}.",
            f"Install it again: python3 -m pip install --force-reinstall {module}",
        ) from error
