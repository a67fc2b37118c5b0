"""Every error a user can cause or meet, each with a hint and the exit code of the design's table.

An `EdgekitError` is shown as one message with one next step and no traceback. Anything else that
escapes is a bug: it keeps its traceback and exits with 1.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Base of the expected failures.

    `message` says what is wrong and where; `hint` says what to do next.
    """

    exit_code = 8

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgekitError):
    """An unknown option, target, key or value."""

    exit_code = 2


class MissingDependency(EdgekitError):
    """A package or program that this step needs is not installed."""

    exit_code = 3


class NotPossible(EdgekitError):
    """The request makes sense, but not for this target, this model or this version."""

    exit_code = 4


class BuildFailed(EdgekitError):
    """An exporter, a simplifier or a runtime could not produce its output."""

    exit_code = 5


class AccuracyBudgetMissed(EdgekitError):
    """The model is valid but loses more accuracy than the budget allows."""

    exit_code = 6


class LatencyBudgetMissed(EdgekitError):
    """The model is valid but slower than the budget allows."""

    exit_code = 7


class BadInput(EdgekitError):
    """A file, image, checkpoint or graph that cannot be used as it is."""

    exit_code = 8


class VerificationFailed(EdgekitError):
    """Two things that must agree do not: a hash, a golden output, the parity of two stages."""

    exit_code = 9


class DeviceUnreachable(EdgekitError):
    """A board could not be reached, or did not answer in time."""

    exit_code = 10


class NoSpace(EdgekitError):
    """The disk (or quota) is full."""

    exit_code = 11


INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return `Did you mean 'x'?` for the closest of `known`, or the whole list when none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return "Known: " + ", ".join(sorted(known)) if known else ""
