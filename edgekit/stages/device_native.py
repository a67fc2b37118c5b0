"""Boards without Python: the bundle's native runner, started by a constant line of shell."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.manifest import Manifest
from edgekit.transports.board import Board, BoardFile, Outcome
from edgekit.transports.bootstrap import PythonMissing


def outcome(
    board: Board,
    command: str,
    options: Sequence[str],
    run: str,
    bundles: Sequence[Manifest],
    files: Sequence[list[BoardFile]],
    missing: PythonMissing,
) -> Outcome:
    """Verify or measure with the native runner. Raises `missing` where that cannot be."""
    raise missing
