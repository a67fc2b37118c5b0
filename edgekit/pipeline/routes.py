"""The way from the prepared graph to what a runtime loads differs by runtime: one class of steps each."""

from __future__ import annotations

import importlib

from edgekit.filehash import FileHashes
from edgekit.pipeline.request import ExportRequest
from edgekit.pipeline.runner import StageRunner
from edgekit.pipeline.steps import Steps

# runtime → "module:class" with steps of its own; all others quantize the ONNX graph
ROUTES = {
    "ncnn": "edgekit.pipeline.steps_ncnn:NcnnSteps",
    "tensorrt": "edgekit.pipeline.steps_tensorrt:TensorRtSteps",
}


def steps_for(request: ExportRequest, runner: StageRunner, hashes: FileHashes) -> Steps:
    """The stages of `request`, as its target's runtime needs them."""
    place = ROUTES.get(request.target.runtime.name)
    if place is None:
        return Steps(request, runner, hashes)
    module, _, name = place.partition(":")
    steps: Steps = getattr(importlib.import_module(module), name)(request, runner, hashes)
    return steps
