"""TensorRT's log: warnings and errors are kept, so that a failed call can say what TensorRT said."""

from __future__ import annotations

from typing import Any

KEPT = 200


def make(trt: Any) -> Any:
    """A logger of TensorRT's class with `errors` and `warnings` (texts, the newest last)."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = trt.ILogger.Severity
            if severity in (level.ERROR, level.INTERNAL_ERROR):
                del self.errors[:-KEPT]
                self.errors.append(message)
            elif severity == level.WARNING:
                del self.warnings[:-KEPT]
                self.warnings.append(message)

    return Logger()


def said(logger: Any, otherwise: str = "it gave no reason") -> str:
    """The last errors in one line."""
    lines = [line.strip() for line in logger.errors[-3:]]
    return "; ".join(lines) if lines else otherwise
