"""Watching the machine while something is measured: what a reader must know to believe the number."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Iterable

from edgekit.board.machine import frequency, jetson, power, raspberrypi, thermal
from edgekit.board.machine.files import ROOT, Missing
from edgekit.board.machine.load import LoadMeter, load_average

_INTERVAL_S = 0.25
_CLOCK_FELL = 0.05
_BUSY = 0.1
_STOLEN = 0.02


class Watch:
    """Samples clock, temperature and power from `rest` or `start` until `close`.

    A thread of the parent process reads a few small files four times a second; the model computes in
    another process.
    """

    def __init__(self, root: Path = ROOT, interval_s: float = _INTERVAL_S) -> None:
        self._root, self._interval_s = root, interval_s
        self.missing = Missing()
        self._settings = frequency.settings(self.missing, root)
        self._jetson = jetson.state(self.missing, root) if jetson.is_jetson(root) else None
        self._is_pi = raspberrypi.is_raspberry_pi(root)
        self._meter = power.open_meter(self.missing, root)
        self._idle_w: list[float] = []
        self._watts: list[float] = []
        self._clocks: list[float] = []
        self._temperatures: list[float] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: dict[str, Any] = {}
        self._load: LoadMeter | None = None
        self._started_s = 0.0

    def rest(self, seconds: float) -> None:
        """Wait, and learn what the machine draws when it rests."""
        end = time.monotonic() + seconds
        if self._meter is not None:
            self._meter.watts(0.0)
        while time.monotonic() < end:
            began = time.monotonic()
            time.sleep(max(0.0, min(self._interval_s, end - began)))
            watts = self._watts_since(began)
            if watts is not None:
                self._idle_w.append(watts)

    def start(self) -> None:
        """The measurement begins."""
        self._before = self._snapshot()
        self._load = LoadMeter(self._root)
        self._started_s = time.monotonic()
        if self._meter is not None:
            self._meter.watts(0.0)
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(
        self, *, own_cpu_s: float, own_pids: Iterable[int], inferences: int | None
    ) -> dict[str, Any]:
        """The measurement has ended: the answer's `conditions`.

        `inferences` made since `start` are what the energy is divided by; None where they are not
        all the same.
        """
        assert self._load is not None
        elapsed_s = time.monotonic() - self._started_s
        load, stolen = self._load.share(own_cpu_s), self._load.stolen()
        busiest = self._load.busiest(own_pids)
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        after = self._snapshot()
        joules = None
        if self._watts and inferences:
            joules = sum(self._watts) / len(self._watts) * elapsed_s / inferences
        if not self._clocks:
            self.missing.note("frequency", "neither cpufreq nor /proc/cpuinfo gives a clock")
        if not self._temperatures:
            self.missing.note("temperature", "no thermal zone and no hwmon sensor")
        if load is None:
            self.missing.note("load", "no /proc/stat")
        if self._meter is not None and not self._watts:
            self.missing.note("power", f"{self._meter.source} gave no value")
        evidence = self._throttling(after)
        return {
            "seconds": elapsed_s,
            "before": self._before,
            "after": after,
            "clock_mhz": _range(self._clocks),
            "temperature_c": _range(self._temperatures),
            "cpufreq": self._settings,
            "power": power.describe(self._meter, self._watts, self._idle_w, joules),
            "throttled": bool(evidence) if self._can_tell(after) else None,
            "throttling": evidence,
            "other_load": load,
            "stolen": stolen,
            "busiest_others": busiest,
            "jetson": self._jetson,
            "not_available": dict(self.missing.reasons),
        }

    def close(self) -> None:
        """End what was started; also after an interruption."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._meter is not None:
            self._meter.close()

    def _watts_since(self, began_s: float) -> float | None:
        if self._meter is None:
            return None
        return self._meter.watts(time.monotonic() - began_s)

    def _sample(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(self._interval_s):
            clock = frequency.highest_mhz(self._root)
            if clock is not None:
                self._clocks.append(clock)
            hottest = thermal.hottest(thermal.temperatures_c(self._root))
            if hottest is not None:
                self._temperatures.append(hottest)
            watts = self._watts_since(began)
            began = time.monotonic()
            if watts is not None:
                self._watts.append(watts)

    def _snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "temperatures_c": thermal.temperatures_c(self._root) or None,
            "clock_mhz": frequency.highest_mhz(self._root),
            "load_average": load_average(self._root),
            "cooling": thermal.cooling(self._root) or None,
            "throttle_counts": thermal.throttle_counts(self._root),
        }
        if self._is_pi:
            found["get_throttled"] = raspberrypi.throttled(self._root)
            if found["get_throttled"] is None:
                self.missing.note(
                    "get_throttled", "neither vcgencmd nor the kernel's file is there"
                )
        return found

    def _can_tell(self, after: dict[str, Any]) -> bool:
        """Whether any source of this machine would show throttling."""
        sources = ("cooling", "throttle_counts", "get_throttled")
        seen = any(after.get(source) is not None for source in sources)
        if not seen and not (self._settings and self._clocks):
            self.missing.note(
                "throttling", "no cooling device, no throttle counter, no cpufreq clock to watch"
            )
            return False
        return True

    def _throttling(self, after: dict[str, Any]) -> list[str]:
        """What shows that the machine slowed down; one sentence each."""
        found = []
        counts, before = after["throttle_counts"] or {}, self._before["throttle_counts"] or {}
        for kind, count in counts.items():
            if count > before.get(kind, 0):
                found.append(f"the kernel counted {count - before.get(kind, 0)} {kind} throttlings")
        for device, state in (after["cooling"] or {}).items():
            if state > (self._before["cooling"] or {}).get(device, 0):
                found.append(f"{device} went to state {state}")
        pi = after.get("get_throttled")
        if pi and pi["now"]:
            found.append(f"get_throttled says {', '.join(pi['now'])}")
        # /proc/cpuinfo's clock wobbles by itself; cpufreq's under load falls for a reason
        if self._settings and len(self._clocks) >= 8:
            quarter = len(self._clocks) // 4
            first = sorted(self._clocks[:quarter])[quarter // 2]
            last = sorted(self._clocks[-quarter:])[quarter // 2]
            if last < first * (1.0 - _CLOCK_FELL):
                found.append(f"the clock fell from {first:.0f} to {last:.0f} MHz")
        return found


def _range(values: list[float]) -> dict[str, float] | None:
    """Least, mean and most of the samples taken while it ran."""
    if not values:
        return None
    return {"min": min(values), "mean": sum(values) / len(values), "max": max(values)}


def caveats(conditions: dict[str, Any]) -> list[dict[str, str]]:
    """What of `conditions` makes the figures doubtful: `kind` and `text` each."""
    found = [{"kind": "throttled", "text": f"{text}."} for text in conditions["throttling"]]
    pi = conditions["after"].get("get_throttled")
    if pi and set(pi["since_boot"]) - set(pi["now"]):
        words = ", ".join(pi["since_boot"])
        found.append({"kind": "since_boot", "text": f"Since boot this board has seen: {words}."})
    load = conditions["other_load"]
    if load is not None and load > _BUSY:
        others = ", ".join(str(item["name"]) for item in conditions["busiest_others"])
        text = f"Other work used {100 * load:.0f} % of the machine" + (
            f" ({others})" * bool(others)
        )
        found.append({"kind": "busy", "text": f"{text}."})
    if conditions["stolen"] is not None and conditions["stolen"] > _STOLEN:
        text = f"The hypervisor gave {100 * conditions['stolen']:.0f} % of the CPU time to others."
        found.append({"kind": "stolen", "text": text})
    for policy in conditions["cpufreq"] or []:
        governor, cpus = policy["governor"], policy["cpus"]
        if governor not in (None, "performance"):
            text = f"CPUs {cpus} run under the governor '{governor}': the clock follows the load."
            found.append({"kind": "governor", "text": text})
        limit, most = policy["max_mhz"], policy["hardware_max_mhz"]
        if limit is not None and most is not None and limit < most:
            text = f"CPUs {cpus} are limited to {limit:.0f} of {most:.0f} MHz."
            found.append({"kind": "limited", "text": text})
    state = conditions["jetson"]
    if state is not None and state["clocks_locked"] is False:
        found.append({"kind": "clocks", "text": "The clocks are not locked (jetson_clocks)."})
    return found
