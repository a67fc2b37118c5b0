"""How busy the machine was with other work while something was measured, and with what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable

from edgekit.board.machine.files import ROOT, text

# /proc/stat's columns: user nice system idle iowait irq softirq steal (guest time is in user already)
_IDLE = (3, 4)
_STEAL = 7
_COLUMNS = 8


class LoadMeter:
    """Measures from its creation until `share` is asked for, by the kernel's ticks (proc(5))."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._start = self._read()
        self._processes = self._times()

    def share(self, own_cpu_s: float) -> float | None:
        """Share (0 to 1) of all CPU time since the start that went to others.

        `own_cpu_s` is the CPU time that the measurement itself used. None where the system does not
        tell, or when less than a tick has passed.
        """
        end = self._read()
        if self._start is None or end is None or end[1] <= self._start[1]:
            return None
        busy, total = end[0] - self._start[0], end[1] - self._start[1]
        own_ticks = own_cpu_s * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (busy - own_ticks) / total))

    def stolen(self) -> float | None:
        """Share of all CPU time that the hypervisor gave to other machines."""
        end = self._read()
        if self._start is None or end is None or end[1] <= self._start[1]:
            return None
        return (end[2] - self._start[2]) / (end[1] - self._start[1])

    def busiest(self, own: Iterable[int], most: int = 3) -> list[dict[str, object]]:
        """The other processes that used most CPU time since the start: `name`, `cpu_s`."""
        mine = set(own)
        found = []
        ticks = os.sysconf("SC_CLK_TCK")
        for pid, (name, began, used) in self._times().items():
            before = self._processes.get(pid)
            # a number may have gone to a new process meanwhile
            spent = used - (before[2] if before is not None and before[1] == began else 0)
            if pid not in mine and spent > 0:
                found.append((spent / ticks, name))
        return [
            {"name": name, "cpu_s": seconds}
            for seconds, name in sorted(found, reverse=True)[:most]
            if seconds >= 0.05
        ]

    def _read(self) -> tuple[int, int, int] | None:
        """Busy, total and stolen ticks of all CPUs together since boot."""
        first = (text(self._root / "proc/stat") or "").split("\n", 1)[0].split()
        if not first or first[0] != "cpu":
            return None
        ticks = [int(word) for word in first[1 : 1 + _COLUMNS]]
        total = sum(ticks)
        stolen = ticks[_STEAL] if len(ticks) > _STEAL else 0
        return total - sum(ticks[column] for column in _IDLE), total, stolen

    def _times(self) -> dict[int, tuple[str, str, int]]:
        """Process → its name, when it began, and the ticks it has used (proc(5))."""
        found = {}
        try:
            pids = [
                int(entry.name) for entry in (self._root / "proc").iterdir() if entry.name.isdigit()
            ]
        except OSError:
            return {}
        for pid in pids:
            line = text(self._root / f"proc/{pid}/stat")
            if line is None or ")" not in line:
                continue
            name = line[line.index("(") + 1 : line.rindex(")")]
            rest = line[line.rindex(")") + 2 :].split()
            if len(rest) > 19:
                found[pid] = (name, rest[19], int(rest[11]) + int(rest[12]))
        return found


def load_average(root: Path = ROOT) -> float | None:
    """Processes that ran or waited for a CPU in the last minute."""
    words = (text(root / "proc/loadavg") or "").split()
    return float(words[0]) if words else None
