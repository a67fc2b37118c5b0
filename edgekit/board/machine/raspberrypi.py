"""Raspberry Pi: throttling, undervoltage and, on the Pi 5, power.

Raspberry Pi documentation, "vcgencmd": the bits of get_throttled; pmic_read_adc gives current and
voltage of the Pi 5's rails.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgekit.board.machine import tools
from edgekit.board.machine.files import ROOT, text
from edgekit.board.machine.system import board

_NOW = {
    0: "undervoltage",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
}
_SINCE_BOOT = 16
_RAIL = re.compile(r"\b([A-Z0-9_]+)_([AV]) (?:current|volt)\([0-9]+\)=([0-9.]+)[AV]")


def is_raspberry_pi(root: Path = ROOT) -> bool:
    """Whether this is a Raspberry Pi."""
    return (board(root) or "").startswith("Raspberry Pi")


def parse_throttled(answer: str) -> dict[str, Any] | None:
    """`throttled=0x50005` as `raw`, `now` and `since_boot` (lists of words); None for anything else."""
    found = re.fullmatch(r"\s*(?:throttled=)?(0x)?([0-9a-fA-F]+)\s*", answer)
    if found is None:
        return None
    bits = int(found[2], 16)
    return {
        "raw": f"0x{bits:x}",
        "now": [word for bit, word in _NOW.items() if bits >> bit & 1],
        "since_boot": [word for bit, word in _NOW.items() if bits >> (bit + _SINCE_BOOT) & 1],
    }


def throttled(root: Path = ROOT) -> dict[str, Any] | None:
    """What get_throttled says, by vcgencmd or by the kernel's file; None where neither is there."""
    answer = tools.said("vcgencmd", ["get_throttled"])
    if answer is None:
        answer = text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    return None if answer is None else parse_throttled(answer)


def parse_pmic(answer: str) -> float | None:
    """Watts of all rails of `vcgencmd pmic_read_adc` whose current and voltage are both given."""
    amperes: dict[str, float] = {}
    volts: dict[str, float] = {}
    for name, unit, value in _RAIL.findall(answer):
        (amperes if unit == "A" else volts)[name] = float(value)
    both = amperes.keys() & volts.keys()
    return sum(amperes[name] * volts[name] for name in both) if both else None


def power_w() -> float | None:
    """What the rails draw now (Pi 5); None on other models."""
    answer = tools.said("vcgencmd", ["pmic_read_adc"])
    return None if answer is None else parse_pmic(answer)
