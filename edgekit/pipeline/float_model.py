"""The float model that a quantized one was made of: not in the bundle, but often still at hand.

The manifest names the prepared graph by its sha256, and the stage cache keeps that file. Found by
content, it is the right one or none.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.atomic import sha256_file
from edgekit.cache import StageCache
from edgekit.manifest import Manifest


def prepared_sha256(manifest: Manifest) -> str | None:
    """sha256 of the prepared float graph that the bundle's chain names."""
    chain = manifest.raw.get("chain")
    for step in chain if isinstance(chain, list) else []:
        if isinstance(step, dict) and step.get("name") == "prepare":
            outputs = step.get("output_sha256")
            if isinstance(outputs, list) and outputs and isinstance(outputs[0], str):
                return outputs[0]
    return None


def find_float_model(manifest: Manifest, cache: StageCache) -> Path | None:
    """The prepared float graph of the bundle from the stage cache; None when it is not there.

    The file stays the cache's: it is safe from eviction until `cache` is closed.
    """
    wanted = prepared_sha256(manifest)
    if wanted is None:
        return None
    for info in cache.show():
        if info.stage != "prepare" or info.partial:
            continue
        entry = cache.get(info.key)
        if entry is None:
            continue
        for file in entry.folder.glob("*.onnx"):
            if sha256_file(file) == wanted:
                return file
    return None
