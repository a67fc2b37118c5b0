"""Packing `edgekit-device.pyz`: this folder as a zip that `python3` runs.

The bytes depend on the sources alone: files in sorted order, one date, not compressed (what zlib
makes of the same input differs between its versions).
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from edgekit.board import VERSION

PROGRAM = "edgekit-device.pyz"
"""The program's path in a bundle."""

WHAT = "the device program: python3 edgekit-device.pyz verify|build|bench|run|info ."

_FOLDER = Path(__file__).resolve().parent
_DATE = (1980, 1, 1, 0, 0, 0)
_PACKAGE = f'"""The part of edgekit that runs on the board."""\n\n__version__ = "{VERSION}"\n'


def sources() -> dict[str, bytes]:
    """Path in the program → content, for every file of it."""
    files = {"edgekit/__init__.py": _PACKAGE.encode()}
    for path in sorted(_FOLDER.rglob("*.py")):
        name = path.relative_to(_FOLDER).as_posix()
        if name == "__main__.py":
            files[name] = path.read_bytes()
        files[f"edgekit/board/{name}"] = path.read_bytes()
    return files


def program_bytes() -> bytes:
    """The whole program; the same sources give the same bytes on every machine."""
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(sources().items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, data)
    return buffer.getvalue()
