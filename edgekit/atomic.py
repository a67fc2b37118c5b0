"""Nothing is written half: temporary file or folder beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput, NoSpace


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a read-only folder under `path` into the error a user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"No space left while writing {path}.",
                hint="Free some space (`edgekit cache show` lists what edgekit keeps) and run the "
                "same command again: finished stages are not repeated.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise BadInput(
                f"Cannot write {path}: {error.strerror}.",
                hint="Choose another place with --out, or correct the folder's permissions.",
            ) from error
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, its file is fsynced and renamed to `path`.

    When the block fails, or is interrupted, the temporary file is removed and `path` is left as it
    was. The temporary keeps the suffix of `path`, because writers choose the format by it.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}", dir=path.parent
        )
        os.close(descriptor)
        temporary = Path(name)
        try:
            # mkstemp makes files private; what a user asked for gets the usual mode
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well, it takes the place of `path`.

    A folder cannot be renamed over a full one, so the old one steps aside first and is put back if
    the second rename fails: a reader sees the old folder or the new one, never a mixture.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp.", dir=path.parent))
        aside: Path | None = None
        try:
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o777 & ~umask)
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _fsync(file)
            if path.exists():
                aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                os.replace(path, aside / path.name)
            try:
                os.replace(temporary, path)
            except OSError:
                if aside is not None:
                    os.replace(aside / path.name, path)
                raise
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256_file(path: Path, on_chunk: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of the file's bytes, read in chunks; `on_chunk` hears each chunk's size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            if on_chunk is not None:
                on_chunk(len(chunk))
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of `value` in canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
