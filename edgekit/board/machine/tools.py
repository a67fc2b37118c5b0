"""Running the board's own programs (nvpmodel, vcgencmd): found on PATH, with a time limit, no shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Sequence

# /usr/sbin and the Pi's old place are not on every user's PATH
_MORE = ("/usr/local/bin", "/usr/bin", "/usr/sbin", "/opt/vc/bin")
_TIMEOUT_S = 5.0


def find(name: str) -> str | None:
    """The program's path; None where it is not installed."""
    place = os.pathsep.join((os.environ.get("PATH", ""), *_MORE))
    return shutil.which(name, path=place)


def said(name: str, arguments: Sequence[str] = ()) -> str | None:
    """What the program writes to stdout; None when it is not there, fails, or takes too long."""
    program = find(name)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
