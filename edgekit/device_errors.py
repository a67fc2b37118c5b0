"""The expected failures of edgekit.board as edgekit's own: the same kinds under the same names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgekit import errors
from edgekit.board.errors import DeviceError
from edgekit.errors import EdgekitError


@contextmanager
def board_errors() -> Iterator[None]:
    """Turn a DeviceError into the EdgekitError of its kind, with message and hint."""
    try:
        yield
    except DeviceError as error:
        kind: type[EdgekitError] = getattr(errors, type(error).__name__, EdgekitError)
        raise kind(error.message, hint=error.hint) from error
