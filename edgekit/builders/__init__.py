"""Builders: (QDQ) ONNX → what a runtime loads. One module per runtime, found by name."""

from __future__ import annotations

import importlib
from pathlib import Path

from edgekit.errors import NotPossible
from edgekit.target import TargetProfile
from edgekit.types import Engine, OnnxModel

# runtime → module with `build(model, profile, out) -> Engine`; a new builder is a module and a line
BUILDERS = {
    "onnxruntime": "edgekit.builders.onnxruntime",
    "ncnn": "edgekit.builders.ncnn",
    "tensorrt": "edgekit.builders.tensorrt",
}


def demand_builder(profile: TargetProfile) -> None:
    """Raise NotPossible when this version has no builder for the profile's runtime."""
    name = profile.runtime.name
    if name not in BUILDERS:
        raise NotPossible(
            f"The target {profile.name} needs the {name} builder, which is not part of this version.",
            hint="`edgekit targets list` shows the targets that are ready.",
        )


def build(model: OnnxModel, profile: TargetProfile, out: Path) -> Engine:
    """Build `model` for the profile's runtime under the folder `out`.

    Raises NotPossible when this version has no builder for the runtime, BuildFailed when the
    runtime refuses the model.
    """
    demand_builder(profile)
    engine: Engine = importlib.import_module(BUILDERS[profile.runtime.name]).build(
        model, profile, out
    )
    return engine
