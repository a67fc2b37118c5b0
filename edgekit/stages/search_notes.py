"""What a search has found so far, in a file that the next run of the same search reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgekit import atomic
from edgekit.codec import from_json, to_record
from edgekit.errors import EdgekitError
from edgekit.stages.search import Trial

T = TypeVar("T")


class SearchNotes:
    """Trials, and whatever else took long, kept in `folder` (None: kept nowhere).

    A file that cannot be read counts as none: then everything is found again.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / "search.json"
        self._known: dict[str, Any] = {"trials": [], "paces": {}, "sensitivities": {}}
        if self._file is not None and self._file.is_file():
            try:
                found = json.loads(self._file.read_text(encoding="utf-8"))
                if all(isinstance(found.get(key), type(self._known[key])) for key in self._known):
                    self._known = found
            except (ValueError, AttributeError):
                pass

    def trials(self) -> tuple[Trial, ...]:
        try:
            return tuple(from_json(Trial, record) for record in self._known["trials"])
        except (ValueError, TypeError, EdgekitError):
            return ()

    def remember(self, trials: Sequence[Trial]) -> None:
        self._known["trials"] = to_record(tuple(trials))
        self._write()

    def recall(self, kind: str, key: Any, read: Callable[[Any], T], find: Callable[[], T]) -> T:
        """What was noted under `kind` ("paces", "sensitivities") and `key`, or what `find` finds."""
        name = json.dumps(key, sort_keys=True)
        try:
            return read(self._known[kind][name])
        except (KeyError, ValueError, TypeError, EdgekitError):
            found = find()
        self._known[kind][name] = to_record(found)
        self._write()
        return found

    def _write(self) -> None:
        if self._file is not None:
            atomic.write_json(self._file, self._known)
