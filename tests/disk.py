"""A disk that is full: a small tmpfs where mounting is allowed, else a limit on the file size."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SIZE = 4 << 20


@dataclass(frozen=True)
class SmallDisk:
    """`folder` takes SIZE bytes; `full()` is the time in which `too_much` bytes do not fit."""

    folder: Path
    mounted: bool
    too_much: int = 2 * SIZE

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        if self.mounted:
            yield
            return
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def small_disk(folder: Path, size: int = SIZE) -> Iterator[SmallDisk]:
    """Mount a tmpfs of `size` bytes at `folder`, or fall back to the limit."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = False
    if sys.platform == "linux" and os.geteuid() == 0:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        mounted = done.returncode == 0
    try:
        yield SmallDisk(folder=folder, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
