"""Nothing is written half: temporary file or folder beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput, NoSpace
from edgekit.filelock import lock


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a read-only folder into the error a user can act on.

    A refused permission counts only when it is about `path`: what the block does elsewhere (reading
    an image, say) keeps its own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"No space left while writing {path}.",
                hint="Free some space (`edgekit cache show` lists what edgekit keeps) and run the "
                "same command again: finished stages are not repeated.",
            ) from error
        if error.errno == errno.EFBIG:
            raise NoSpace(
                f"A file at {path} grew beyond what the file system or the process's limit allows.",
                hint="Write to another file system, or raise the limit (`ulimit -f`).",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and _concerns(error, path):
            raise BadInput(
                f"Cannot write {path}: {error.strerror}.",
                hint="Choose another place with --out, or correct the folder's permissions.",
            ) from error
        raise


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the file that `error` names lies beside `path`, below it, or is a folder above."""
    if not isinstance(error.filename, str):
        return True
    named, folder = Path(error.filename).absolute(), path.absolute().parent
    return named.is_relative_to(folder) or folder.is_relative_to(named)


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
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step (renameat2 with RENAME_EXCHANGE, Linux 3.15).

    Returns False, with nothing changed, where the C library, the kernel or the file system cannot.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    renameat2.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    ]
    if renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _claimed_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a temporary folder and lock it; returns it with the descriptor that holds the lock.

    A sweeper may take a folder in the moment before it is locked; then another one is made.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        lock(descriptor, exclusive=True, wait=True)
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)


def _sweep(parent: Path, prefix: str) -> None:
    """Remove the temporary folders of processes that were killed: those that nobody has locked."""
    for folder in parent.glob(glob.escape(prefix) + "*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        except OSError:
            continue
        try:
            if lock(descriptor, exclusive=True, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Bring every file and folder under `folder` to the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(root, name)
            if not file.is_symlink():
                _fsync(file)
        _fsync(Path(root))


def _hidden(path: Path, kind: str) -> str:
    """Prefix of the hidden names beside `path`; a very long name is stood for by its hash."""
    name = path.name
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}.{kind}."


def _step_aside_and_rename(temporary: Path, path: Path) -> None:
    """Put `temporary` in the place of the folder `path` with two renames."""
    aside, descriptor = _claimed_folder(path.parent, _hidden(path, "old"))
    try:
        path.rename(aside / "folder")
        try:
            temporary.rename(path)
        except BaseException:
            (aside / "folder").rename(path)
            raise
        _fsync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(descriptor)


def _put_back(path: Path) -> None:
    """Undo what a kill between the two renames of `_step_aside_and_rename` left behind."""
    for aside in sorted(path.parent.glob(glob.escape(_hidden(path, "old")) + "*")):
        try:
            descriptor = os.open(aside, os.O_RDONLY)
        except OSError:
            continue
        try:
            if lock(descriptor, exclusive=True, wait=False) is False:
                continue
            if (aside / "folder").is_dir() and not path.exists():
                (aside / "folder").rename(path)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well, it takes the place of the folder `path`.

    Everything in it is fsynced first. Where the system can exchange two folders in one step (Linux,
    on the usual file systems) a reader finds the old folder or the new one at every moment, also
    when the process is killed. Elsewhere the old folder steps aside for the time of two renames;
    a kill between them is undone by the next call for the same path.

    A symbolic link to a folder stays: what it points at is replaced. Temporary folders of killed
    processes are removed. Raises BadInput when `path` is a file, NoSpace when the disk is full; the
    old folder is untouched in every case of failure.
    """
    path = Path(path)
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise BadInput(
            f"{path} is a file; a folder is to be written there.", hint="Choose another place."
        )
    if path.is_mount():
        raise BadInput(
            f"{path} is a mount point, which cannot be replaced.",
            hint=f"Choose a folder inside it, for example {path / 'bundle'}.",
        )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = _hidden(path, "tmp")
        _put_back(path)
        _sweep(path.parent, prefix)
        temporary, descriptor = _claimed_folder(path.parent, prefix)
        try:
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o777 & ~umask)
            yield temporary
            fsync_tree(temporary)
            if not path.exists():
                temporary.rename(path)
            elif not _exchange(temporary, path):
                _step_aside_and_rename(temporary, path)
            _fsync(path.parent)
        finally:
            # after the exchange this name holds the old folder
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(descriptor)


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
