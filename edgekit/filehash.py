"""Hashes of files that were read before: unchanged images are not read again to know their content.

A file counts as unchanged when path, device, inode, size, modification and status-change time are
the ones it was hashed with. A file changed less than two seconds before it was hashed is not
remembered: another change within the clock's step would not show (git calls such entries racy).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from edgekit import atomic
from edgekit.errors import BadInput, EdgekitError
from edgekit.types import Progress, no_progress

_RACY_NS = 2_000_000_000
_LIMIT = 300_000  # entries; the oldest half goes when there are more


class FileHashes:
    """sha256 by path, remembered in `file` (hashes.json of the cache) from run to run.

    Use it as a context manager; `save` writes what was learnt and never fails a run for it.
    """

    def __init__(self, file: Path) -> None:
        self._file = Path(file)
        self._known: dict[str, list[object]] = _load(self._file)
        self._new: dict[str, list[object]] = {}

    def sha256(self, path: Path) -> str:
        """Hex sha256 of the file at `path`. Raises BadInput when it cannot be read."""
        name = os.path.abspath(path)  # noqa: PTH100 (a link may be pointed elsewhere: no resolve)
        try:
            before = _state(name)
            known = self._new.get(name) or self._known.get(name)
            if known is not None and known[:-1] == before:
                return str(known[-1])
            digest = atomic.sha256_file(Path(name))
            after = _state(name)
        except FileNotFoundError as error:
            raise BadInput(f"The file {path} does not exist.") from error
        except OSError as error:
            raise BadInput(f"The file {path} cannot be read: {error.strerror}.") from error
        newest = max(after[3], after[4])
        if before == after and time.time_ns() - newest > _RACY_NS:
            self._new[name] = [*after, digest]
        return digest

    def sha256_all(
        self, paths: Sequence[Path], progress: Progress = no_progress
    ) -> tuple[str, ...]:
        """`sha256` of each of `paths`, in order."""
        hashes = []
        for number, path in enumerate(paths):
            progress(number, len(paths), "hash")
            hashes.append(self.sha256(path))
        progress(len(paths), len(paths), "hash")
        return tuple(hashes)

    def save(self) -> None:
        """Write the memo; what other processes wrote meanwhile is kept."""
        if not self._new:
            return
        merged = {**_load(self._file), **self._new}
        if len(merged) > _LIMIT:
            merged = dict(list(merged.items())[-_LIMIT // 2 :])
        # a memo that cannot be written costs time, not correctness
        with contextlib.suppress(OSError, EdgekitError):
            text = json.dumps(merged, separators=(",", ":"))
            atomic.write_text(self._file, text)
        self._known, self._new = merged, {}

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.save()


def _state(name: str) -> list[int]:
    """What must stay the same: device, inode, size, mtime_ns, ctime_ns."""
    status = os.stat(name)  # noqa: PTH116 (called for every image; a Path costs as much again)
    return [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    ]


def _load(file: Path) -> dict[str, list[object]]:
    """The memo in `file`; empty when there is none or it is damaged."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {
        name: value
        for name, value in stored.items()
        if isinstance(value, list)
        and len(value) == 6
        and isinstance(value[5], str)
        and len(value[5]) == 64
    }
