"""A bundle's files as they are sent to a board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.atomic import sha256_file
from edgekit.errors import BadInput
from edgekit.manifest import MANIFEST, SUMS, Manifest


@dataclass(frozen=True, kw_only=True)
class BoardFile:
    """A file of a bundle, by its path there: size in bytes, hex sha256, and where it is here."""

    path: str
    source: Path
    size_bytes: int
    sha256: str


def bundle_files(manifest: Manifest) -> list[BoardFile]:
    """All files of a bundle, with the hashes of what lies there now.

    Raises BadInput when one is missing.
    """
    files = []
    for path in [*manifest.files, MANIFEST, SUMS]:
        source = manifest.folder / path
        if not source.is_file():
            raise BadInput(
                f"{manifest.folder}: {path} is missing.", hint="`edgekit verify` checks the bundle."
            )
        files.append(
            BoardFile(
                path=path,
                source=source,
                size_bytes=source.stat().st_size,
                sha256=sha256_file(source),
            )
        )
    return files


def bundle_key(files: Sequence[BoardFile]) -> str:
    """The name of a bundle's folder on a board: it depends on the content alone."""
    return next(item.sha256 for item in files if item.path == MANIFEST)[:32]
