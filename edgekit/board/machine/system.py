"""What the machine is: board, CPU, memory, system."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from edgekit.board.cpu import detect
from edgekit.board.machine.files import ROOT, text


def describe(root: Path = ROOT) -> dict[str, Any]:
    """Facts that stay: `board`, `cpu`, `cores`, `memory_mb`, `system`, `kernel`, `python`, …"""
    cpu = detect(root / "proc/cpuinfo")
    return {
        "board": board(root),
        "arch": cpu.arch,
        "cpu": cpu.model,
        "isa": list(cpu.isa),
        "cores": os.cpu_count(),
        "usable_cores": cpu.cores,
        "memory_mb": memory_mb(root),
        "system": _system(root),
        "kernel": platform.release(),
        "userland_bits": 64 if sys.maxsize > 2**32 else 32,
        "python": platform.python_version(),
        "container": _container(root),
    }


def board(root: Path = ROOT) -> str | None:
    """The board's own name: from the device tree, or from the BIOS."""
    model = text(root / "proc/device-tree/model") or text(
        root / "sys/firmware/devicetree/base/model"
    )
    if model:
        return model
    parts = [text(root / f"sys/class/dmi/id/{key}") for key in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or None


def memory_mb(root: Path = ROOT) -> float | None:
    """All memory of the machine, in 10^6 bytes."""
    for line in (text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def _system(root: Path) -> str:
    for line in (text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _container(root: Path) -> str | None:
    """The kind of container or virtual machine this runs in, where that can be seen; else None."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    words = (text(root / "proc/cpuinfo") or "").split("flags", 1)[-1].split("\n", 1)[0].split()
    return "virtual machine" if "hypervisor" in words else None
