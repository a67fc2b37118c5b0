"""Running one stage: from the stage cache when its content is known, else for real and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgekit import atomic
from edgekit.cache import StageCache
from edgekit.codec import from_json, to_record
from edgekit.pipeline.records import relocate
from edgekit.types import ParityReport, Progress, StageReport

T = TypeVar("T")

Notes = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[T]):
    """A stage's record, its cache key, and whether it was there already.

    `seconds` is what the stage took when it ran for real, now or in the run that filled the cache.
    """

    value: T
    key: str
    cached: bool
    seconds: float


class StageRunner:
    """Runs stages in order and remembers a `StageReport` for each."""

    def __init__(self, cache: StageCache, progress: Progress, note: Notes, *, fresh: bool) -> None:
        self.cache = cache
        self.progress = progress
        self.note = note
        self.reports: list[StageReport] = []
        self._fresh = fresh

    def run(
        self,
        name: str,
        fields: Mapping[str, Any],
        kind: type[T],
        work: Callable[[Path], T],
        *,
        tell: bool = False,
    ) -> Outcome[T]:
        """The record of stage `name` for `fields`.

        `work(folder)` does it for real: it writes its files into `folder` and returns the record.
        `tell` notes which fields differ from the nearest earlier run, for stages that take long.
        """
        key = self.cache.key(name, fields)
        entry = None if self._fresh else self.cache.get(key)
        if entry is None:
            if self._fresh:
                # what is there under the same key would otherwise win over what is made anew
                self.cache.discard(key)
            elif tell:
                self.note(f"{name} runs anew: {self.cache.why_missed(name, fields)}.")
            self.progress(0, 0, name)
            started = time.perf_counter()
            with self.cache.put(key) as folder:
                value = work(folder)
                record = to_record(relocate(value, folder, None))
                seconds = time.perf_counter() - started
                atomic.write_json(folder / "result.json", {"record": record, "seconds": seconds})
            entry = self.cache.get(key)
            if entry is None:
                raise RuntimeError(f"the stage cache lost {key} right after it was written")
            return self._outcome(kind, entry, cached=False)
        return self._outcome(kind, entry, cached=True)

    def _outcome(self, kind: type[T], entry: Any, *, cached: bool) -> Outcome[T]:
        value = relocate(from_json(kind, entry.result["record"]), None, entry.folder)
        return Outcome(
            value=value, key=entry.key, cached=cached, seconds=float(entry.result["seconds"])
        )

    def report(
        self,
        name: str,
        outcome: Outcome[Any],
        *,
        size_bytes: int | None = None,
        parity: ParityReport | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Add a line to the table."""
        self.reports.append(
            StageReport(
                name=name,
                seconds=outcome.seconds,
                cached=outcome.cached,
                size_mb=None if size_bytes is None else size_bytes / 1e6,
                parity=parity,
                notes=notes,
            )
        )
