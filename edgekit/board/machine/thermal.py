"""Temperatures, and what the kernel does against them.

Linux kernel documentation, driver-api/thermal/sysfs-api.rst and hwmon/sysfs-interface.rst:
temperatures are in thousandths of a degree; a cooling device's state is 0 when it does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.board.machine.files import ROOT, matches, number, text

# a sensor that is switched off reads far below what any board runs at
_LEAST_C, _MOST_C = -40.0, 150.0


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Sensor → degrees Celsius; empty where there is none."""
    found: dict[str, float] = {}
    for zone in matches(root, "sys/class/thermal/thermal_zone*"):
        _add(found, text(zone / "type") or zone.name, number(zone / "temp"))
    for sensor in matches(root, "sys/class/hwmon/hwmon*/temp*_input"):
        label = text(sensor.with_name(sensor.name.replace("_input", "_label")))
        chip = text(sensor.parent / "name") or sensor.parent.name
        name = f"{chip} {label or sensor.name.replace('_input', '')}"
        _add(found, name, number(sensor))
    return found


def _add(found: dict[str, float], name: str, thousandths: float | None) -> None:
    if thousandths is None or not _LEAST_C < thousandths / 1e3 < _MOST_C:
        return
    unique, copies = name, 2
    while unique in found:
        unique, copies = f"{name} {copies}", copies + 1
    found[unique] = thousandths / 1e3


def cooling(root: Path = ROOT) -> dict[str, int]:
    """Cooling devices that slow the processor down → their state now; 0 does nothing."""
    found = {}
    for device in matches(root, "sys/class/thermal/cooling_device*"):
        kind, state = text(device / "type") or "", number(device / "cur_state")
        slows = any(word in kind.lower() for word in ("cpu", "processor", "gpu", "throttle"))
        if slows and state is not None:
            found[f"{kind} ({device.name})"] = int(state)
    return found


def throttle_counts(root: Path = ROOT) -> dict[str, int] | None:
    """How often each core and package has been throttled since boot (x86); None where not counted."""
    found: dict[str, int] = {}
    for kind in ("core", "package"):
        pattern = f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{kind}_throttle_count"
        counts = [number(path) for path in matches(root, pattern)]
        known = [count for count in counts if count is not None]
        if known:
            found[kind] = int(sum(known))
    return found or None


def hottest(temperatures: dict[str, Any]) -> float | None:
    """The highest of `temperatures_c`; None where there is none."""
    return max(temperatures.values()) if temperatures else None
