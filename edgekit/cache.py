"""The stage cache: what a stage gave for the same content is not worked out twice.

Content-addressed: the key of an entry is the hash of everything the stage's answer depends on
(bytes of the model and of every image, preprocessing, options, versions), so an entry is never out
of date. Layout under the cache folder (`EDGEKIT_CACHE`, else the user's cache folder):

    entries/KEY/   result.json, the stage's files, entry.json (their hashes, the fields of the key)
    partial/KEY/   what an interrupted stage had reached
    temporary/     entries being written
    locks/         one lock file for each of the above that is in use
    hashes.json    hashes of files already read (edgekit.filehash)

Processes may share the folder: an entry appears with one rename, and locks (flock) keep one that is
in use from being evicted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edgekit.cacheentry import DAMAGE, ENTRY, CacheEntry, EntryInfo, checked, describe
from edgekit.cachekey import cache_key, differences, plain
from edgekit.errors import BadInput, NoSpace, UsageError
from edgekit.filelock import NamedLock

DEFAULT_MAX_MB = 4096.0
"""Size cap of the cache without EDGEKIT_CACHE_MAX_MB, megabytes (10^6 bytes)."""


def cache_folder() -> Path:
    """Where the cache lives: EDGEKIT_CACHE, else edgekit/ in the user's cache folder (XDG)."""
    if chosen := os.environ.get("EDGEKIT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG base directory specification has relative paths ignored
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "edgekit"


def max_mb() -> float:
    """The size cap in MB from EDGEKIT_CACHE_MAX_MB; UsageError when it is not a positive number."""
    text = os.environ.get("EDGEKIT_CACHE_MAX_MB", "")
    if not text:
        return DEFAULT_MAX_MB
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise UsageError(
            f"EDGEKIT_CACHE_MAX_MB is {text!r}.", hint="Give a number of megabytes, e.g. 4096."
        )
    return value


class StageCache:
    """The cache at `folder` (default `cache_folder()`), for one run.

    Entries this object gave out or wrote stay locked against eviction until `close` (or the end of
    the process). `note` hears about entries that had to be thrown away.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        max_size_mb: float | None = None,
        note: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.folder = (Path(folder) if folder is not None else cache_folder()).absolute()
        self.max_size_mb = max_mb() if max_size_mb is None else max_size_mb
        self._note = note
        self._fields: dict[str, tuple[str, dict[str, Any]]] = {}
        self._held: dict[str, NamedLock] = {}
        self._partials: dict[str, tuple[Path, NamedLock]] = {}

    # --- keys -------------------------------------------------------------------------------

    def key(self, stage: str, fields: Mapping[str, Any]) -> str:
        """The key of `stage` for `fields`: "STAGE-" and 40 hex digits of a sha256.

        `fields` holds plain JSON values: everything the answer depends on. Raises TypeError for
        anything else (a path, say, is not content), ValueError for nan and inf.
        """
        key = cache_key(stage, fields)
        self._fields[key] = (stage, plain(fields))
        return key

    def why_missed(self, stage: str, fields: Mapping[str, Any]) -> str:
        """What differs from the nearest earlier entry of `stage`, for the log.

        The nearest is the one with the fewest different fields; of two, the one used last.
        """
        wanted = plain(fields)
        nearest = min(
            (
                (len(lines), -info.used_s, lines)
                for info, stored in self._entries()
                if info.stage == stage and not info.partial
                for lines in [differences(stored.get("fields") or {}, wanted)]
            ),
            default=None,
        )
        if nearest is None:
            return f"nothing of {stage} is in the cache"
        lines = nearest[2]
        if not lines:
            return "an equal entry is there, but could not be used"
        return "; ".join(lines[:4]) + (" …" if len(lines) > 4 else "")

    # --- reading and writing ----------------------------------------------------------------

    def get(self, key: str) -> CacheEntry | None:
        """The entry of `key` with every file checked against its sha256; None when there is none.

        An entry that does not check out is removed with a note and counts as missing.
        """
        folder = self._entry_folder(key)
        if not folder.is_dir():
            return None
        with self._errors():
            lock = self._held.pop(key, None)
            if lock is None:
                lock = self._lock(key)
                lock.acquire(exclusive=False)
        try:
            result, stage = checked(folder, key)
        except DAMAGE as error:
            lock.release()
            if folder.is_dir():  # else evicted before it was locked
                self._note(f"cache: {key} is damaged ({error}); it is not used and made again.")
                self._discard(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder / ENTRY)
        self._held[key] = lock
        return CacheEntry(key=key, stage=stage, folder=folder, result=result)

    @contextlib.contextmanager
    def put(self, key: str) -> Iterator[Path]:
        """Yield an empty folder for a stage's files and its result.json; it becomes the entry.

        When the block fails nothing is kept. When another process was faster with the same key, its
        entry stays and this one is dropped: both hold the same content. The partial work of `key`
        is removed at the end, and old entries are evicted when the cache exceeds its cap.
        """
        stage, fields = self._fields.get(key, (key.rpartition("-")[0], {}))
        with self._errors():
            temporary, lock = self._claimed("temporary", key)
            try:
                yield temporary
                describe(temporary, key, stage, fields)
                self._adopt(temporary, key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                lock.release()
            self._drop_partial(key)
            self.evict()

    def partial(self, key: str) -> Path:
        """A folder for resumable work on `key` that survives a kill and is found again.

        The work of another live process is never shared: it gets a folder of its own. `put` of the
        same key removes it.
        """
        if key in self._partials:
            return self._partials[key][0]
        with self._errors():
            for number in range(1000):
                name = key if number == 0 else f"{key}.{number}"
                lock = self._lock(f"partial-{name}")
                if lock.acquire_soon():
                    folder = self._room("partial") / name
                    folder.mkdir(mode=0o700, exist_ok=True)
                    os.utime(folder)
                    self._partials[key] = (folder, lock)
                    return folder
        raise BadInput(f"The cache {self.folder} has 1000 unfinished runs of {key}.")

    def discard(self, key: str) -> bool:
        """Remove the entry of `key`, so that `put` can write another; False when it is in use."""
        held = self._held.pop(key, None)
        if held is not None:
            held.release()
        with self._errors():
            return self._discard(key)

    def evict(self) -> int:
        """Remove the least recently used entries until the cap holds; returns how many went.

        What any process has in use stays, and so may exceed the cap.
        """
        infos = sorted((info for info, _ in self._entries()), key=lambda info: info.used_s)
        total, removed = sum(info.size_mb for info in infos), 0
        for info in infos:
            if total <= self.max_size_mb:
                break
            if self._remove(info):
                total -= info.size_mb
                removed += 1
        self._sweep()
        return removed

    # --- looking and clearing ---------------------------------------------------------------

    def show(self) -> list[EntryInfo]:
        """Every entry and every piece of partial work, the last used first."""
        return sorted((info for info, _ in self._entries()), key=lambda info: -info.used_s)

    def clear(self) -> tuple[int, float, int]:
        """Remove everything that no process uses: (entries removed, MB freed, entries in use)."""
        removed, freed, kept = 0, 0.0, 0
        for info, _ in list(self._entries()):
            if self._remove(info):
                removed, freed = removed + 1, freed + info.size_mb
            else:
                kept += 1
        self._sweep()
        (self.folder / "hashes.json").unlink(missing_ok=True)
        return removed, freed, kept

    def close(self) -> None:
        """Release every entry this object gave out; partial work stays for the next run."""
        for lock in self._held.values():
            lock.release()
        for _, lock in self._partials.values():
            lock.release()
        self._held.clear()
        self._partials.clear()

    def __enter__(self) -> StageCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- inside -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """A cache folder that cannot be written, or a full disk, as an error a user can act on."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace(
                    f"No space left in the cache {self.folder}.",
                    hint="Free some space (`edgekit cache clear` empties it), or name another "
                    "place with EDGEKIT_CACHE; finished stages are not repeated.",
                ) from error
            named = Path(error.filename) if isinstance(error.filename, str) else self.folder
            ours = named.is_relative_to(self.folder) or self.folder.is_relative_to(named)
            if ours and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise BadInput(
                    f"The cache folder {self.folder} cannot be written: {error.strerror}.",
                    hint="Name a folder of yours with EDGEKIT_CACHE.",
                ) from error
            raise

    def _room(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def _lock(self, name: str) -> NamedLock:
        return NamedLock(self._room("locks") / name)

    def _entry_folder(self, key: str) -> Path:
        if not key or "/" in key or key.startswith("."):
            raise ValueError(f"not a cache key: {key!r}")
        return self.folder / "entries" / key

    def _claimed(self, room: str, key: str) -> tuple[Path, NamedLock]:
        """A new locked folder in `room`."""
        for number in range(1_000_000):
            name = f"{key}.{os.getpid()}.{number}"
            lock = self._lock(f"{room}-{name}")
            if not lock.acquire(exclusive=True, wait=False):
                continue
            folder = self._room(room) / name
            if folder.exists():  # left by a killed process that had our number
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            return folder, lock
        raise AssertionError("a million unfinished entries")

    def _adopt(self, temporary: Path, key: str) -> None:
        """Make the finished `temporary` the entry of `key`, or keep the one that is there."""
        lock = self._held.pop(key, None)
        if lock is None:
            lock = self._lock(key)
            lock.acquire(exclusive=False)
        self._held[key] = lock
        self._room("entries")
        try:
            temporary.rename(self._entry_folder(key))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            try:
                checked(self._entry_folder(key), key)
            except DAMAGE:
                self._bury(key)
                temporary.rename(self._entry_folder(key))

    def _discard(self, key: str) -> bool:
        """Remove the entry of `key` unless another process has it in use."""
        lock = self._lock(key)
        if not lock.acquire(exclusive=True, wait=False):
            return False
        try:
            self._bury(key)
        finally:
            lock.release()
        return True

    def _bury(self, key: str) -> None:
        """Remove the entry of `key`; never to be found half-removed, it is renamed first."""
        grave, lock = self._claimed("temporary", key)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._entry_folder(key).rename(grave / "entry")
        finally:
            shutil.rmtree(grave, ignore_errors=True)
            lock.release()

    def _drop_partial(self, key: str) -> None:
        folder, lock = self._partials.pop(key, (None, None))
        if folder is not None and lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()

    def _remove(self, info: EntryInfo) -> bool:
        if not info.partial:
            return info.key not in self._held and self._discard(info.key)
        lock = self._lock(f"partial-{info.key}")
        if not lock.acquire(exclusive=True, wait=False):
            return False
        shutil.rmtree(self.folder / "partial" / info.key, ignore_errors=True)
        lock.release()
        return True

    def _sweep(self) -> None:
        """Remove what killed processes left in temporary/, and lock files that nobody holds."""
        for folder in _listed(self.folder / "temporary"):
            lock = self._lock(f"temporary-{folder.name}")
            if lock.acquire(exclusive=True, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()
        for file in _listed(self.folder / "locks"):
            lock = NamedLock(file)
            if lock.acquire(exclusive=True, wait=False):
                lock.release()

    def _is_locked(self, name: str) -> bool:
        if not (self.folder / "locks" / name).exists():
            return False
        lock = self._lock(name)
        if not lock.acquire(exclusive=True, wait=False):
            return True
        lock.release()
        return False

    def _entries(self) -> Iterator[tuple[EntryInfo, dict[str, Any]]]:
        """Every entry with its entry.json ({} when unreadable), then the partial work."""
        for partial, room in ((False, "entries"), (True, "partial")):
            for folder in _listed(self.folder / room):
                stored: dict[str, Any] = {}
                with contextlib.suppress(OSError, ValueError):
                    read = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
                    stored = read if isinstance(read, dict) else {}
                try:
                    mark = folder if partial or not stored else folder / ENTRY
                    used = mark.stat().st_mtime
                    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                except OSError:  # removed meanwhile by another process
                    continue
                stage = str(stored.get("stage") or folder.name.rpartition("-")[0])
                info = EntryInfo(
                    key=folder.name,
                    stage=stage,
                    size_mb=size / 1e6,
                    created_s=float(stored.get("created_s") or used),
                    used_s=used,
                    in_use=folder.name in self._held
                    or self._is_locked(f"partial-{folder.name}" if partial else folder.name),
                    partial=partial,
                )
                yield info, stored


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
