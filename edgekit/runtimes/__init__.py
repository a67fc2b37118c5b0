"""Runtimes: software that runs a model. One module each, found by name through `open_session`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import UsageError, nearest
from edgekit.runtimes.base import Session, SessionOptions

# name → module with `open(files, options) -> Session`; a new runtime is a module and a line here
RUNTIMES = {
    "onnxruntime": "edgekit.runtimes.onnxruntime",
    "ncnn": "edgekit.runtimes.ncnn",
    "tensorrt": "edgekit.runtimes.tensorrt",
}


def open_session(
    runtime: str, files: Sequence[Path] | Path, options: SessionOptions | None = None
) -> Session:
    """Open a model in `runtime`. Raises UsageError for an unknown runtime, BadInput for a bad file."""
    if runtime not in RUNTIMES:
        raise UsageError(f"Unknown runtime '{runtime}'.", hint=nearest(runtime, list(RUNTIMES)))
    module = importlib.import_module(RUNTIMES[runtime])
    paths = [Path(files)] if isinstance(files, (str, Path)) else [Path(file) for file in files]
    session: Session = module.open(paths, options or SessionOptions())
    return session
