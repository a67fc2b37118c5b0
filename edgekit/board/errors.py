"""Expected failures on the board: what is wrong, what to do next, and the exit code.

The codes are those of edgekit's own commands. Everything else that escapes is a bug and exits with 1.
"""

from __future__ import annotations


class DeviceError(Exception):
    """Base of the expected failures: `message` says what is wrong, `hint` what to do next."""

    exit_code = 8

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DeviceError):
    """An unknown command, option or value."""

    exit_code = 2


class MissingDependency(DeviceError):
    """A runtime or program that this step needs is not on the board."""

    exit_code = 3


class NotPossible(DeviceError):
    """The request makes sense, but not for this board, this model or this version."""

    exit_code = 4


class BuildFailed(DeviceError):
    """The runtime could not build or run the model."""

    exit_code = 5


class BadInput(DeviceError):
    """A bundle, a file or a tensor that cannot be used as it is."""

    exit_code = 8


class VerificationFailed(DeviceError):
    """The bundle is not what its manifest says, or computes something else."""

    exit_code = 9


class TimedOut(DeviceError):
    """The runtime did not answer in time."""

    exit_code = 10


class NoSpace(DeviceError):
    """The disk (or quota) is full."""

    exit_code = 11


INTERRUPTED = 130
"""Exit code after SIGINT or SIGTERM."""
