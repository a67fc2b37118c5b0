"""How busy the machine was with other work while something was measured."""

from __future__ import annotations

import math
import os
from pathlib import Path

_STAT = Path("/proc/stat")
# /proc/stat's columns: user nice system idle iowait irq softirq steal (guest time is in user already)
_IDLE = (3, 4)
_COLUMNS = 8


class LoadMeter:
    """Measures from its creation until `share` is asked for.

    Busy time is what the kernel counts as user, nice, system, interrupts and steal (time that the
    hypervisor gave to somebody else) over all CPUs of the machine, in ticks of about 10 ms.
    """

    def __init__(self, stat: Path = _STAT) -> None:
        self._stat = stat
        self._start = self._read()

    def share(self, own_cpu_s: float) -> float:
        """Share (0 to 1) of all CPU time since the start that went to others.

        `own_cpu_s` is the CPU time that the measurement itself used, in seconds; it is taken off.
        NaN where the system has no /proc/stat, or when less than a tick has passed.
        """
        end = self._read()
        if self._start is None or end is None:
            return math.nan
        busy, total = (after - before for after, before in zip(end, self._start, strict=True))
        if total <= 0:
            return math.nan
        own_ticks = own_cpu_s * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (busy - own_ticks) / total))

    def _read(self) -> tuple[int, int] | None:
        """Busy and total ticks of all CPUs together since boot."""
        try:
            first = self._stat.read_text().split("\n", 1)[0].split()
        except OSError:
            return None
        if not first or first[0] != "cpu":
            return None
        ticks = [int(word) for word in first[1 : 1 + _COLUMNS]]
        total = sum(ticks)
        return total - sum(ticks[column] for column in _IDLE), total
