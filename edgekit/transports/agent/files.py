"""Refusals, names, hashes and locks on the board."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from typing import Any

SHA256 = re.compile(r"[0-9a-f]{64}\Z")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\Z")


class Refused(Exception):
    """A request that cannot be met; `kind` tells the host which error it is."""

    def __init__(self, kind: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.answer = dict(facts, error=kind, message=message)


def no_space(error: OSError) -> bool:
    # EFBIG: the file system's or the user's limit for one file
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def digest_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def write_file(path: str, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def safe(name: Any, pattern: Any = NAME) -> str:
    if not isinstance(name, str) or not pattern.match(name):
        raise Refused("bad_request", f"{name!r} is not a name that can be used here")
    return name


def take(descriptor: int, wait_s: float = 0.0) -> bool:
    """Take the exclusive lock on an open file within `wait_s`; closing it lets the lock go."""
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
