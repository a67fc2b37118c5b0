"""Results over time: a local SQLite file that every measurement of a bundle is appended to.

It lies where EDGEKIT_HISTORY says (`off`: nowhere), else in the user's data folder. Several programs may
write at once. A file that is damaged is kept aside under another name, and nothing in it is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput, EdgekitError, UsageError, nearest

SCHEMA = 1
_WAIT_S = 30.0

METRICS = {
    "p50_ms": "ms",
    "p90_ms": "ms",
    "p95_ms": "ms",
    "p99_ms": "ms",
    "mean_ms": "ms",
    "throughput_fps": "images/s",
    "peak_rss_mb": "MB",
    "joules": "J",
    "size_mb": "MB",
}
"""What can be followed over time, and its unit."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measurement. `utc` is ISO 8601 to the second; a value that was not measured is None."""

    utc: str
    model: str
    bundle_sha256: str
    target: str
    runtime: str
    precision: str
    device: str
    host: str
    machine: str
    threads: int | None = None
    runs: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    throughput_fps: float | None = None
    peak_rss_mb: float | None = None
    joules: float | None = None
    size_mb: float | None = None
    load: float | None = None
    answer: str = "{}"


_COLUMNS = tuple(field.name for field in fields(Result))
_TEXTS = ("utc", "model", "bundle_sha256", "target", "runtime", "precision", "device", "host",
          "machine", "answer")  # fmt: skip


def history_path() -> Path | None:
    """Where the history lies; None when EDGEKIT_HISTORY is "off"."""
    chosen = os.environ.get("EDGEKIT_HISTORY", "")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        named = os.environ.get("XDG_DATA_HOME", "")
        base = Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "share"
    return base / "edgekit" / "history.sqlite"


def now_utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def append(path: Path, results: Sequence[Result]) -> None:
    """Add `results` to the file, all or none of them.

    Raises BadInput when the file cannot be written, or is damaged: then it has been put aside, and
    the next call begins a new one.
    """
    marks = ", ".join("?" * len(_COLUMNS))
    with _opened(path, create=True) as database:
        database.executemany(
            f"INSERT INTO results ({', '.join(_COLUMNS)}) VALUES ({marks})",
            [tuple(getattr(result, name) for name in _COLUMNS) for result in results],
        )


def read(
    path: Path, *, model: str | None = None, device: str | None = None, limit: int | None = None
) -> list[Result]:
    """The results, the oldest first; `limit` keeps the newest. An absent file has none."""
    if not path.exists():
        return []
    where, values = [], []
    for column, value in (("model", model), ("device", device)):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    query = f"SELECT {', '.join(_COLUMNS)} FROM results"
    if where:
        query += " WHERE " + " AND ".join(where)
    query += " ORDER BY utc DESC, id DESC"
    if limit is not None:
        query += f" LIMIT {int(limit)}"
    with _opened(path, create=False) as database:
        rows = database.execute(query, values).fetchall()
    return [Result(**dict(zip(_COLUMNS, row, strict=True))) for row in reversed(rows)]


def names(path: Path, column: str) -> list[str]:
    """The models or devices that there are results of."""
    assert column in ("model", "device")
    if not path.exists():
        return []
    with _opened(path, create=False) as database:
        rows = database.execute(f"SELECT DISTINCT {column} FROM results ORDER BY 1").fetchall()
    return [str(row[0]) for row in rows]


def check_metric(name: str) -> str:
    """`name` when it is one of METRICS. UsageError with the nearest one else."""
    if name not in METRICS:
        raise UsageError(f"There is no metric {name!r}.", hint=nearest(name, list(METRICS)))
    return name


@contextlib.contextmanager
def _opened(path: Path, *, create: bool) -> Iterator[sqlite3.Connection]:
    """The database in one transaction, of the right schema."""
    database: sqlite3.Connection | None = None
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        # the lock is taken before anything is read, so that two writers cannot wait for each other
        database.execute("BEGIN IMMEDIATE" if create else "BEGIN")
        _prepare(database, path, create)
        yield database
        database.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise BadInput(
            f"The history {path} cannot be used: {error}.",
            hint="Name another file with EDGEKIT_HISTORY, or switch it off: EDGEKIT_HISTORY=off.",
        ) from error
    except sqlite3.DatabaseError as error:
        raise _put_aside(path, database, error) from error
    except OSError as error:
        raise BadInput(
            f"The history {path} cannot be used: {error.strerror}.",
            hint="Name another file with EDGEKIT_HISTORY, or switch it off: EDGEKIT_HISTORY=off.",
        ) from error
    finally:
        if database is not None:
            # closing without COMMIT rolls back
            database.close()


def _prepare(database: sqlite3.Connection, path: Path, create: bool) -> None:
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA:
        raise BadInput(
            f"The history {path} was written by a newer edgekit (schema {version}).",
            hint="Update edgekit, or name another file with EDGEKIT_HISTORY.",
        )
    if version == SCHEMA:
        return
    if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise BadInput(
            f"{path} is a database of another program; it is left alone.",
            hint="Name another file with EDGEKIT_HISTORY.",
        )
    types = ", ".join(
        f"{name} {'TEXT NOT NULL' if name in _TEXTS else 'REAL'}" for name in _COLUMNS
    )
    if create:
        database.execute(f"CREATE TABLE results (id INTEGER PRIMARY KEY, {types})")
        database.execute("CREATE INDEX by_time ON results (model, device, utc)")
        database.execute(f"PRAGMA user_version = {SCHEMA}")
    else:
        database.execute(f"CREATE TEMP TABLE results (id INTEGER PRIMARY KEY, {types})")


def _put_aside(
    path: Path, database: sqlite3.Connection | None, error: sqlite3.DatabaseError
) -> EdgekitError:
    """Rename the damaged file; returns the error that says where it is now."""
    if database is not None:
        database.close()
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    try:
        path.rename(aside)
        for ending in ("-journal", "-wal"):
            companion = path.with_name(path.name + ending)
            if companion.exists():
                companion.rename(aside.with_name(aside.name + ending))
    except OSError as problem:
        return BadInput(f"The history {path} is damaged ({error}): {problem.strerror}.")
    return BadInput(
        f"The history {path} is damaged ({error}). It is kept as {aside.name}.",
        hint="A new one begins with the next measurement; `sqlite3 FILE .recover` may save the old.",
    )


def as_row(result: Result) -> dict[str, Any]:
    """The result as plain values, its answer as an object."""
    row: dict[str, Any] = {name: getattr(result, name) for name in _COLUMNS}
    try:
        row["answer"] = json.loads(result.answer)
    except ValueError:
        row["answer"] = None
    return row


def series(results: Sequence[Result]) -> Mapping[tuple[str, str], list[Result]]:
    """The results by (model, device), in the order of their first one."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result.model, result.device), []).append(result)
    return found
