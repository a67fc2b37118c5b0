"""Advisory locks between processes (flock), which end with the process however it ends."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path


def lock(descriptor: int, *, exclusive: bool, wait: bool) -> bool | None:
    """Take an advisory lock (flock) on an open file or folder; closing the descriptor ends it.

    Returns True when the lock was taken, False when another process holds it (`wait` False), None
    where the system or the file system has no such locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
            return None
        raise
    return True


class NamedLock:
    """A lock on a name that many processes know: the file at `path`, removed by its last holder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, *, exclusive: bool, wait: bool = True) -> bool:
        """Take the lock; False when another process has it. Without flock it is always taken."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                taken = lock(descriptor, exclusive=exclusive, wait=wait)
                if taken is False:
                    os.close(descriptor)
                    return False
                # the holder before may have removed the file between our open and our lock
                same = os.path.samestat(self._path.stat(), os.fstat(descriptor))
            except FileNotFoundError:
                same = False
            except BaseException:
                os.close(descriptor)
                raise
            if same:
                self._descriptor = descriptor
                return True
            os.close(descriptor)

    def _is_ours(self) -> bool:
        try:
            return self._descriptor is not None and os.path.samestat(
                self._path.stat(), os.fstat(self._descriptor)
            )
        except FileNotFoundError:
            return False

    def acquire_soon(self) -> bool:
        """Take the lock exclusively, within a tenth of a second: long enough to outlast a look."""
        for _ in range(10):
            if self.acquire(exclusive=True, wait=False):
                return True
            time.sleep(0.01)
        return False

    def release(self) -> None:
        """Let the lock go; without one this does nothing."""
        if self._descriptor is None:
            return
        # when nobody else holds it the file is litter; who waits for it will see that it is gone.
        # Turning a shared lock into an exclusive one lets it go for a moment, so the name may
        # belong to another file by now
        if lock(self._descriptor, exclusive=True, wait=False) and self._is_ours():
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
