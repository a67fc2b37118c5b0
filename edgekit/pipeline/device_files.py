"""What a bundle carries for the board beside its model: the device program."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgekit.board.program import PROGRAM, WHAT, program_bytes
from edgekit.contents import ExtraFile


def device_key() -> str:
    """Hash of what `device_files` writes."""
    return hashlib.sha256(program_bytes()).hexdigest()


def device_files(folder: Path) -> tuple[ExtraFile, ...]:
    """Write the device program into `folder`, and say where it goes in the bundle."""
    program = folder / PROGRAM
    program.write_bytes(program_bytes())
    return (ExtraFile(path=PROGRAM, source=program, what=WHAT),)
