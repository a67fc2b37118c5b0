"""The float model that a quantized one was made of: not in the bundle, but often still at hand.

The manifest names the prepared graph by its sha256, and the stage cache keeps that file. Found by
content, it is the right one or none.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.atomic import sha256_file
from edgekit.cache import StageCache
from edgekit.manifest import Manifest

# steps of the chain whose output is the float model, the nearest to the INT8 one first, with the
# cache's name of the stage and the files to look at: a graph with quantization of its own is compared
# with its float twin, an ncnn model with the one that it was converted to
_FLOAT_STEPS = {
    "float twin": ("float_twin", "*.onnx"),
    "convert": ("convert", "*.json"),
    "prepare": ("prepare", "*.onnx"),
}


def float_sha256(manifest: Manifest) -> tuple[str, str] | None:
    """(step, sha256) of the float model that the bundle's chain names."""
    chain = manifest.raw.get("chain")
    steps = {
        step.get("name"): step.get("output_sha256")
        for step in (chain if isinstance(chain, list) else [])
        if isinstance(step, dict)
    }
    for name in _FLOAT_STEPS:
        outputs = steps.get(name)
        if isinstance(outputs, list) and outputs and isinstance(outputs[0], str):
            return name, outputs[0]
    return None


def find_float_model(manifest: Manifest, cache: StageCache) -> Path | None:
    """The float model of the bundle from the stage cache (an ONNX file, or the model.json of an ncnn
    model); None when it is not there.

    The file stays the cache's: it is safe from eviction until `cache` is closed.
    """
    wanted = float_sha256(manifest)
    if wanted is None:
        return None
    stage, pattern = _FLOAT_STEPS[wanted[0]]
    for info in cache.show():
        if info.stage != stage or info.partial:
            continue
        entry = cache.get(info.key)
        if entry is None:
            continue
        for file in entry.folder.rglob(pattern):
            if sha256_file(file) == wanted[1]:
                return file
    return None
