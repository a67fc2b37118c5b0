"""CPU clocks: governor, limits and the frequency at hand.

Linux kernel documentation, admin-guide/pm/cpufreq.rst: frequencies in /sys are in kHz.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.board.machine.files import ROOT, Missing, matches, number, text

_POLICIES = "sys/devices/system/cpu/cpufreq/policy*"


def settings(missing: Missing, root: Path = ROOT) -> list[dict[str, Any]] | None:
    """Of each group of CPUs that share a clock: `cpus`, `governor`, `min_mhz`, `max_mhz` (what is
    allowed now) and `hardware_max_mhz`. None where the kernel does not tell."""
    found = []
    for policy in matches(root, _POLICIES):
        found.append(
            {
                "cpus": text(policy / "related_cpus"),
                "governor": text(policy / "scaling_governor"),
                "min_mhz": _mhz(policy / "scaling_min_freq"),
                "max_mhz": _mhz(policy / "scaling_max_freq"),
                "hardware_max_mhz": _mhz(policy / "cpuinfo_max_freq"),
            }
        )
    if not found:
        missing.note("governor", f"no /{_POLICIES}: the clock is not this system's to see")
    return found or None


def highest_mhz(root: Path = ROOT) -> float | None:
    """The highest clock of any CPU now: that of the busy one."""
    clocks = [_mhz(policy / "scaling_cur_freq") for policy in matches(root, _POLICIES)]
    known = [clock for clock in clocks if clock]
    if known:
        return max(known)
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "cpu MHz":
            try:
                known.append(float(value))
            except ValueError:
                continue
    return max(known) if known else None


def _mhz(path: Path) -> float | None:
    found = number(path)
    return None if found is None else found / 1e3
