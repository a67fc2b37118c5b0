"""What INT8 costs at each blob of an ncnn model: its signal-to-noise ratio against the float one.

An INT8 model that was made of a float one keeps the names of its blobs, so both are run on the same
tensors and compared blob by blob, as edgekit.stages.layer_loss does for ONNX. Where a layer hands
integers to the next one, they are taken back to real numbers with the scale that the layer made them
with (real = integer / scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput
from edgekit.formats import ncnn_bin, ncnn_json, ncnn_param
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.ncnn import NcnnSession
from edgekit.stages.layer_loss import add_noise, decibels
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCALE_TERM, _REQUANTIZES = 8, 100
"""Parameter "int8_scale_term" of ncnn's layers; above 100 the output is requantized."""


def integer_blobs(model: Path) -> dict[str, float]:
    """Blobs of the model.json `model` that hold integers, with their scale."""
    sidecar = ncnn_json.read(model)
    graph = ncnn_param.read(model.parent / sidecar.param.file)
    weights = ncnn_bin.read(model.parent / sidecar.bin.file, graph)
    found: dict[str, float] = {}
    for layer, arrays in zip(graph.layers, weights, strict=True):
        if layer.integer(_SCALE_TERM) > _REQUANTIZES and "output_scale" in arrays:
            found[layer.outputs[0]] = float(arrays["output_scale"].values.reshape(-1)[0])
        elif layer.type == "Split" and layer.inputs[0] in found:
            found.update(dict.fromkeys(layer.outputs, found[layer.inputs[0]]))
    return found


def run(
    reference: Path,
    candidate: Path,
    tensors: Sequence[NDArray[Any]],
    *,
    threads: int = 1,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """SQNR in dB of every blob that both ncnn models (model.json) have, in the candidate's order.

    inf where they are equal. Raises BadInput when they have none in common, or other inputs.
    """
    sidecars = [ncnn_json.read(path) for path in (reference, candidate)]
    names = [[(t.name, t.shape) for t in sidecar.inputs] for sidecar in sidecars]
    if names[0] != names[1]:
        raise BadInput(
            f"The inputs of {reference} are {names[0]}, those of {candidate} {names[1]}.",
            hint="Give the float model that the INT8 one was made of.",
        )
    graphs = [
        ncnn_param.read(path.parent / sidecar.param.file)
        for path, sidecar in zip((reference, candidate), sidecars, strict=True)
    ]
    known = set(graphs[0].blobs)
    blobs = tuple(
        blob
        for layer in graphs[1].layers
        if layer.type != "Input"
        for blob in layer.outputs
        if blob in known
    )
    if not blobs:
        raise BadInput(
            f"{reference} and {candidate} have no blob in common.",
            hint="Give the float model that the INT8 one was made of.",
        )
    scales = integer_blobs(candidate)
    sums: dict[str, list[float]] = {}
    options = SessionOptions(threads=threads)
    with (
        NcnnSession(reference, options, observe=blobs) as one,
        NcnnSession(candidate, options, observe=blobs) as two,
    ):
        for number, tensor in enumerate(tensors):
            progress(number, len(tensors), "quantization loss")
            feeds = {sidecars[0].inputs[0].name: tensor}
            found = two.run_blobs(feeds, blobs)
            for blob, scale in scales.items():
                if blob in found:
                    found[blob] = found[blob] / scale
            add_noise(one.run_blobs(feeds, blobs), found, sums)
    return {blob: decibels(*sums[blob]) for blob in blobs if blob in sums}
