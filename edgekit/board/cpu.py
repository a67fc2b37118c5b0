"""What the CPU can do: its architecture and instruction sets, as golden outputs depend on them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_X86 = {
    "sse4_2": "sse4.2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
}
_ARM = {
    "asimd": "neon",
    "neon": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}
_ARCH = {"amd64": "x86_64", "arm64": "aarch64", "armv8l": "armhf", "armv7l": "armhf"}


@dataclass(frozen=True)
class Cpu:
    """Architecture ("x86_64", "aarch64", "armhf"), model, instruction sets, usable cores."""

    arch: str
    model: str
    isa: tuple[str, ...]
    cores: int

    @property
    def text(self) -> str:
        """As `golden.cpu` of a manifest has it: architecture and sorted instruction sets."""
        return " ".join((self.arch, *sorted(self.isa)))


def detect(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """Read the CPU at hand; `isa` is empty where the system does not tell."""
    machine = platform.machine().lower()
    arch = _ARCH.get(machine, machine)
    words: set[str] = set()
    model = platform.processor() or machine
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        key = key.strip().lower()
        if key in ("flags", "features") and not words:
            words = set(value.split())
        elif key == "model name":
            model = value.strip()
    known = _X86 if arch == "x86_64" else _ARM
    isa = tuple(dict.fromkeys(name for word, name in known.items() if word in words))
    return Cpu(arch, model, isa, available_cores())


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
