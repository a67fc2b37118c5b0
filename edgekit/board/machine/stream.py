"""A program whose lines are read while it runs, and that is ended when nobody needs it any more."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from typing import Callable, Sequence

_GRACE_S = 2.0


class LineStream:
    """Starts `command` and gives each line of its stdout to `take`, in a thread of its own."""

    def __init__(self, command: Sequence[str], take: Callable[[str], None]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        self._take = take
        self._thread = threading.Thread(target=self._read, daemon=True)
        if self._process is not None:
            self._thread.start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._take(line.decode(errors="replace"))

    def close(self) -> None:
        """End the program; further calls do nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._thread.join(_GRACE_S)
        assert process.stdout is not None
        process.stdout.close()
