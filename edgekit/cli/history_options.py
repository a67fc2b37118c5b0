"""How commands that measure add to the history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.console import warn
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.history import Result
    from edgekit.stages.device import DeviceAnswer

F = TypeVar("F", bound=Callable[..., Any])


def history_option(function: F) -> F:
    """Add `--no-history`. Argument name: `no_history`."""
    return click.option("--no-history", is_flag=True, help="Do not add the result to the history.")(
        function
    )


def remember(bundle: Path, answers: Sequence[DeviceAnswer]) -> None:
    """Add what was measured on devices."""
    from edgekit.stages.history import of_device

    results = [of_device(bundle, answer) for answer in answers]
    _append([result for result in results if result is not None])


def remember_report(bundle: Path, found: Mapping[str, Any]) -> None:
    """Add what was measured on this machine."""
    from edgekit.stages.history import of_report

    _append([of_report(bundle, found)])


def _append(results: list[Result]) -> None:
    """A history that cannot be written is a warning: the measurement itself stands."""
    from edgekit import history

    path = history.history_path()
    if path is None or not results:
        return
    try:
        try:
            history.append(path, results)
        except EdgekitError as error:
            if path.exists():
                raise
            # a damaged one has just been put aside
            warn(error.message)
            history.append(path, results)
    except EdgekitError as error:
        warn(f"The result is not in the history. {error.message}")
