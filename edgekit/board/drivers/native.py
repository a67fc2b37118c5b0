"""ncnn through the native runner that the bundle carries: nothing need be installed."""

from __future__ import annotations

from edgekit.board.manifest import Manifest
from edgekit.board.session import Availability, SessionOptions

NAME = "ncnn"


def available(manifest: Manifest | None, options: SessionOptions) -> Availability:
    """Whether the bundle carries a runner for this board's architecture that starts here."""
    if manifest is None:
        return Availability(ok=False, why="it comes with a bundle: name one")
    return Availability(ok=False, why="the bundle carries no runner")
