"""`build`: what has to be made on the board itself, which is TensorRT's engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.board import drivers, integrity
from edgekit.board.errors import MissingDependency
from edgekit.board.manifest import read_manifest
from edgekit.board.process import WorkerProcess
from edgekit.board.session import BuildOptions, Progress, SessionOptions

BUILDERS = ("tensorrt",)
"""The drivers whose models are built on the device."""


def build(folder: Path, options: BuildOptions, progress: Progress, quiet: bool) -> dict[str, Any]:
    """The answer of `build`: `nothing_to_build`, and what the driver says of what it built.

    Raises VerificationFailed for a changed model file, MissingDependency without the runtime, and what
    the driver raises.
    """
    manifest = read_manifest(folder)
    for name in BUILDERS:
        model = drivers.model_for(name, manifest)
        if model is None:
            continue
        integrity.demand_files(manifest, model)
        found = drivers.available(name, manifest, SessionOptions())
        if not found.ok:
            raise MissingDependency(
                f"{name} cannot be used here: {found.why}.",
                "Its engines are built on the board: run this there.",
            )
        progress(f"building for {name} {found.version or ''}".rstrip())
        with WorkerProcess(manifest.name, None) as worker:
            answer = worker.build(name, folder, options, quiet)
        return {"bundle": manifest.name, "nothing_to_build": False, "runtime": name, **answer}
    runtimes = ", ".join(sorted({model.runtime for model in manifest.models}))
    progress(f"nothing to build: {runtimes} takes the bundle's files as they are")
    return {"bundle": manifest.name, "nothing_to_build": True, "runtime": None}
