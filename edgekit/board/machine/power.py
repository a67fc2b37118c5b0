"""Power: energy counters and meters of the system, one after the other until one is there.

A meter's `scope` says what it measures: a figure of the processor's package is not one of the board.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Protocol

from edgekit.board.machine import jetson, raspberrypi, tools
from edgekit.board.machine.files import ROOT, Missing, matches, number, text
from edgekit.board.machine.stream import LineStream


class Meter(Protocol):
    """Gives watts now and then; `close` ends what it started."""

    source: str
    scope: str

    def watts(self, elapsed_s: float) -> float | None:
        """Mean or present watts since the last call, which was `elapsed_s` ago; None at first."""
        ...

    def close(self) -> None: ...


class Counter:
    """Energy counters of the kernel's powercap, in microjoules (power/powercap/powercap.rst)."""

    def __init__(self, zones: list[Path], source: str, scope: str) -> None:
        self.source, self.scope = source, scope
        self._zones = [(zone, number(zone / "max_energy_range_uj") or 0.0) for zone in zones]
        self._last = self._read()

    def _read(self) -> list[float | None]:
        return [number(zone / "energy_uj") for zone, _ in self._zones]

    def watts(self, elapsed_s: float) -> float | None:
        now, before = self._read(), self._last
        self._last = now
        total = 0.0
        for (_, wraps_at), end, start in zip(self._zones, now, before):
            if end is None or start is None:
                return None
            # the counter begins again at its range
            total += end - start if end >= start else end + wraps_at - start
        return total / 1e6 / elapsed_s if elapsed_s > 0 else None

    def close(self) -> None:
        pass


class Sensors:
    """hwmon's meters: watts of each, or volts times amperes (INA chips); summed."""

    def __init__(self, products: list[tuple[Path, ...]], source: str, scope: str) -> None:
        self.source, self.scope = source, scope
        self._products = products

    def watts(self, elapsed_s: float) -> float | None:
        total = 0.0
        for paths in self._products:
            values = [number(path) for path in paths]
            if any(value is None for value in values):
                return None
            if len(paths) == 1:
                total += (values[0] or 0.0) / 1e6  # microwatts
            else:
                total += (values[0] or 0.0) * (values[1] or 0.0) / 1e6  # mV times mA
        return total

    def close(self) -> None:
        pass


class Tegrastats:
    """The Jetson's own program, which writes a line every interval."""

    scope = "module"

    def __init__(self, program: str) -> None:
        self.source = "tegrastats"
        self._lock = threading.Lock()
        self._watts: list[float] = []
        self._stream = LineStream([program, "--interval", "200"], self._take)

    def _take(self, line: str) -> None:
        stats = jetson.parse_tegrastats(line)
        total = stats.total if stats is not None else None
        if total is not None:
            with self._lock:
                self.source = f"tegrastats, {total[0]}"
                self._watts.append(total[1])

    def watts(self, elapsed_s: float) -> float | None:
        with self._lock:
            values, self._watts = self._watts, []
        return sum(values) / len(values) if values else None

    def close(self) -> None:
        self._stream.close()


class Pmic:
    """The Raspberry Pi 5's rails."""

    source = "vcgencmd pmic_read_adc"
    scope = "the rails of the board's power chip, without USB"

    def watts(self, elapsed_s: float) -> float | None:
        return raspberrypi.power_w()

    def close(self) -> None:
        pass


def open_meter(missing: Missing, root: Path = ROOT) -> Meter | None:
    """The first meter that is there; None, with the reason in `missing`, where there is none."""
    program = tools.find("tegrastats")
    if program is not None:
        return Tegrastats(program)
    if raspberrypi.is_raspberry_pi(root) and raspberrypi.power_w() is not None:
        return Pmic()
    board = _rails(root)
    if board is not None:
        return board
    zones = matches(root, "sys/class/powercap/intel-rapl:[0-9]*")
    top = [zone for zone in zones if zone.name.count(":") == 1]
    whole = [zone for zone in top if text(zone / "name") == "psys"]
    packages = [zone for zone in top if (text(zone / "name") or "").startswith("package")]
    for chosen, scope in ((whole, "platform"), (packages, "CPU package")):
        if chosen and all(number(zone / "energy_uj") is not None for zone in chosen):
            return Counter(chosen, "powercap (RAPL)", scope)
    if packages:
        missing.note("power", "the RAPL counters are readable by root alone")
    else:
        missing.note("power", "no tegrastats, no vcgencmd power rails, no hwmon meter, no powercap")
    return None


def _rails(root: Path) -> Sensors | None:
    """hwmon's power meters, and INA chips that give volts and amperes of labelled rails."""
    inputs = matches(root, "sys/class/hwmon/hwmon*/power*_input")
    averages = matches(root, "sys/class/hwmon/hwmon*/power*_average")
    meters = inputs or averages
    readable = [path for path in meters if number(path) is not None]
    if readable:
        chips = sorted({text(path.parent / "name") or path.parent.name for path in readable})
        return Sensors([(path,) for path in readable], f"hwmon {', '.join(chips)}", "its rails")
    for chip in matches(root, "sys/class/hwmon/hwmon*"):
        if not (text(chip / "name") or "").startswith("ina"):
            continue
        pairs = []
        for volts in matches(chip, "in[0-9]*_input"):
            amperes = volts.with_name(volts.name.replace("in", "curr", 1))
            label = text(volts.with_name(volts.name.replace("_input", "_label"))) or ""
            if number(amperes) is not None and not label.lower().startswith("sum"):
                pairs.append((label, volts, amperes))
        whole = [pair for pair in pairs if pair[0] == "VDD_IN"] or pairs
        if whole:
            names = ", ".join(label or volts.name for label, volts, _ in whole)
            return Sensors([(v, a) for _, v, a in whole], f"hwmon {text(chip / 'name')}", names)
    return None


def describe(
    meter: Meter | None, samples_w: list[float], idle_w: list[float], joules: float | None
) -> dict[str, Any] | None:
    """The answer's `power`; None where nothing was measured."""
    if meter is None or not samples_w:
        return None
    return {
        "source": meter.source,
        "scope": meter.scope,
        "mean_w": sum(samples_w) / len(samples_w),
        "max_w": max(samples_w),
        "idle_w": sum(idle_w) / len(idle_w) if idle_w else None,
        "joules_per_inference": joules,
    }
