"""Jetson: the power mode, whether the clocks are locked, and tegrastats.

"Jetson Linux Developer Guide": Platform Power and Performance; tegrastats Utility. tegrastats writes
a line such as

    RAM 2448/7764MB (lfb 1x4MB) CPU [2%@1190,off] GR3D_FREQ 0%@305 CPU@48.5C tj@49C VDD_IN 4830mW/4750mW

with the rails as instant/average, in mW with or without the unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.board.machine import tools
from edgekit.board.machine.files import ROOT, Missing, matches, number

_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?[0-9.]+)C\b")
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) ([0-9]+)(?:mW)?/([0-9]+)(?:mW)?(?= |$)")
_NOT_RAILS = {"RAM", "SWAP", "IRAM"}
_GPU = re.compile(r"\bGR3D_FREQ ([0-9]+)%(?:@\[?([0-9]+))?")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
# what the whole module draws: one rail where it is measured, else these together (AGX Orin, AGX Xavier)
_TOTALS = (
    ("VDD_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)


@dataclass(frozen=True)
class Stats:
    """One line of tegrastats: watts of each rail, degrees of each sensor, clocks in MHz."""

    rails_w: dict[str, float] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    cpu_mhz: tuple[int, ...] = ()
    gpu_mhz: int | None = None

    @property
    def total(self) -> tuple[str, float] | None:
        """Which rails are the module's whole draw, and their watts; None where no known set is there."""
        for names in _TOTALS:
            if all(name in self.rails_w for name in names):
                return " + ".join(names), sum(self.rails_w[name] for name in names)
        return None


def parse_tegrastats(line: str) -> Stats | None:
    """The line's values; None for a line that is none of tegrastats'."""
    if "RAM " not in line or "CPU [" not in line:
        return None
    rails = {
        name: int(instant) / 1e3
        for name, instant, _ in _RAIL.findall(line)
        if name not in _NOT_RAILS
    }
    temperatures = {
        name: float(value) for name, value in _TEMPERATURE.findall(line) if float(value) > -40.0
    }
    cpus = _CPU.search(line)
    clocks = re.findall(r"@([0-9]+)", cpus[1]) if cpus else []
    gpu = _GPU.search(line)
    return Stats(
        rails_w=rails,
        temperatures_c=temperatures,
        cpu_mhz=tuple(int(clock) for clock in clocks),
        gpu_mhz=int(gpu[2]) if gpu and gpu[2] else None,
    )


def is_jetson(root: Path = ROOT) -> bool:
    """Whether this is a Jetson."""
    return (root / "etc/nv_tegra_release").exists() or tools.find("tegrastats") is not None


def parse_nvpmodel(text: str) -> dict[str, Any] | None:
    """`nvpmodel -q`: "NV Power Mode: MAXN" and the mode's number on the next line."""
    name = re.search(r"NV Power Mode: *(\S.*)", text)
    number_ = re.search(r"^\s*([0-9]+)\s*$", text, re.MULTILINE)
    if name is None:
        return None
    return {"mode": name[1].strip(), "id": int(number_[1]) if number_ else None}


def state(missing: Missing, root: Path = ROOT) -> dict[str, Any]:
    """`nvpmodel` (mode, id) and `clocks_locked`, as jetson_clocks does it; None where not to be seen.

    Locked is read off the clocks themselves, because `jetson_clocks --show` needs root: the lowest
    and the highest allowed frequency are the same on every CPU.
    """
    text = tools.said("nvpmodel", ["-q"])
    mode = parse_nvpmodel(text) if text is not None else None
    if mode is None:
        missing.note("nvpmodel", "`nvpmodel -q` gives no answer")
    limits = [
        (number(policy / "scaling_min_freq"), number(policy / "scaling_max_freq"))
        for policy in matches(root, "sys/devices/system/cpu/cpufreq/policy*")
    ]
    known = [(low, high) for low, high in limits if low and high]
    if not known:
        missing.note("jetson_clocks", "the clocks' limits are not to be seen")
    locked = all(low == high for low, high in known) if known else None
    return {"nvpmodel": mode, "clocks_locked": locked}
