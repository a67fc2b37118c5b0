"""`info`: what this board is, what can run here, and what of a bundle it can run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.board import drivers
from edgekit.board.machine import system
from edgekit.board.manifest import read_manifest
from edgekit.board.session import SessionOptions


def info(folder: Path | None) -> dict[str, Any]:
    """The answer of `info`: `machine`, `runtimes`, and of the bundle its models and what runs them."""
    manifest = None if folder is None else read_manifest(folder)
    options = SessionOptions()
    runtimes = {}
    for name in drivers.DRIVERS:
        found = drivers.available(name, manifest, options)
        runtimes[name] = {
            "available": found.ok,
            "version": found.version,
            "why_not": found.why or None,
            **found.facts,
        }
    answer: dict[str, Any] = {"machine": system.describe(), "runtimes": runtimes, "bundle": None}
    if manifest is not None:
        answer["bundle"] = {
            "name": manifest.name,
            "target": manifest.target,
            "verdict": manifest.raw.get("verdict"),
            "models": [
                {
                    "runtime": model.runtime,
                    "precision": model.precision,
                    "runs_with": [
                        name
                        for name, (_, runtime) in drivers.DRIVERS.items()
                        if runtime == model.runtime and runtimes[name]["available"]
                    ],
                    "inputs": list(model.inputs),
                    "outputs": list(model.outputs),
                }
                for model in manifest.models
            ],
        }
    return answer
