"""TensorRT: an engine is built on the device that runs it."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import NotPossible
from edgekit.target import TargetProfile
from edgekit.types import Engine, OnnxModel

VERSION = 1


def build(model: OnnxModel, profile: TargetProfile, out: Path) -> Engine:
    """Raises NotPossible: the engine is built from the bundle, on the device."""
    raise NotPossible(
        f"An engine for {profile.name} is built on its device.",
        hint="`edgekit export` makes the bundle; on the device: edgekit-device.pyz build BUNDLE",
    )
