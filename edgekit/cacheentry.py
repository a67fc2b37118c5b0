"""One entry of the stage cache: its files, their hashes, and how it is checked."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import atomic

RESULT, ENTRY = "result.json", "entry.json"
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OSError)
"""What reading an entry raises when its files are not as they were put."""


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """A stage's answer: `result` is its result.json, `folder` holds its files.

    The files belong to the cache: copy what is to be kept, never change one in place.
    """

    key: str
    stage: str
    folder: Path
    result: dict[str, Any]

    def file(self, name: str) -> Path:
        """Path of the file `name` (relative) of this entry."""
        return self.folder / name


@dataclass(frozen=True, kw_only=True)
class EntryInfo:
    """One line of `edgekit cache show`; times in seconds since the epoch."""

    key: str
    stage: str
    size_mb: float
    created_s: float
    used_s: float
    in_use: bool
    partial: bool


def describe(folder: Path, key: str, stage: str, fields: dict[str, Any]) -> None:
    """Write entry.json: sha256 and size of each file in `folder`; everything is fsynced."""
    if not (folder / RESULT).is_file():
        raise ValueError(f"the stage {stage} put no {RESULT} into its cache entry")
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = file.relative_to(folder).as_posix()
            files[name] = {"sha256": atomic.sha256_file(file), "size": file.stat().st_size}
    atomic.write_json(
        folder / ENTRY,
        {"key": key, "stage": stage, "fields": fields, "files": files, "created_s": time.time()},
    )
    atomic.fsync_tree(folder)


def checked(folder: Path, key: str) -> tuple[dict[str, Any], str]:
    """(result.json, stage) of the entry in `folder`; ValueError when a file is not what was put."""
    stored = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    if stored["key"] != key:
        raise ValueError(f"it is the entry of {stored['key']}")
    for name, expected in stored["files"].items():
        file = folder / name
        if file.stat().st_size != expected["size"] or (
            atomic.sha256_file(file) != expected["sha256"]
        ):
            raise ValueError(f"{name} has changed")
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if not isinstance(result, dict):
        raise ValueError(f"{RESULT} is not an object")
    return result, str(stored["stage"])
