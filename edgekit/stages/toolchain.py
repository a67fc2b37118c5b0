"""Compilers of the native runner: which one builds for an architecture, and how to get it.

On a machine of the architecture itself the usual compiler serves (CXX names another one); for any
other it is Debian's cross compiler, described by `cpp/toolchains/ARCH.cmake`.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import MissingDependency, NotPossible, UsageError, nearest

_ALIASES = {"arm64": "aarch64", "armv8l": "armhf", "armv7l": "armhf", "armv7": "armhf"}
_ALIASES["amd64"] = "x86_64"
_TRIPLES = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "armhf": "arm-linux-gnueabihf",
}
ARCHITECTURES: tuple[str, ...] = tuple(_TRIPLES)
"""Architectures that a runner can be built for."""

# program → Debian's package
_PACKAGES = {"cmake": "cmake", "ninja": "ninja-build", "make": "make", "g++": "g++", "c++": "g++"}
_PACKAGES |= {
    "x86_64-linux-gnu-g++": "g++-x86-64-linux-gnu",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "arm-linux-gnueabihf-g++": "g++-arm-linux-gnueabihf",
}


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """What builds C++ for `arch`.

    `file` is the CMake toolchain file, None for the machine's own architecture. `identity` names
    the compiler and its version: two that differ may not share what they built.
    """

    arch: str
    cxx: tuple[str, ...]
    file: Path | None
    generator: str
    identity: str

    @property
    def cmake_options(self) -> list[str]:
        """The arguments that choose this toolchain when CMake configures."""
        chosen = ["-G", self.generator, "-DCMAKE_BUILD_TYPE=Release"]
        if self.file is not None:
            return [*chosen, f"-DCMAKE_TOOLCHAIN_FILE={self.file}"]
        # CMake reads CXX itself, with what may stand before the compiler ("ccache g++")
        return chosen if os.environ.get("CXX") else [*chosen, f"-DCMAKE_CXX_COMPILER={self.cxx[0]}"]

    def strip(self) -> str:
        """The `strip` that belongs to the compiler."""
        return _line(self.cxx, "-print-prog-name=strip")


def known_arch(name: str) -> str:
    """The architecture that `name` or an alias ("arm64", "armv7l") means; UsageError otherwise."""
    arch = _ALIASES.get(name.lower(), name.lower())
    if arch not in _TRIPLES:
        raise UsageError(f"No runner can be built for '{name}'.", hint=nearest(name, ARCHITECTURES))
    return arch


def host_arch() -> str:
    """This machine's architecture, in the names of `ARCHITECTURES` where it is one of them."""
    machine = platform.machine().lower()
    return _ALIASES.get(machine, machine)


def cpp_folder() -> Path:
    """The C++ sources: `cpp/` of the checkout, or the copy in the installed package."""
    inside = Path(__file__).resolve().parent.parent / "cpp"
    return inside if inside.is_dir() else inside.parent.parent / "cpp"


def toolchain(arch: str) -> Toolchain:
    """Find the compiler, CMake and Ninja (or make) for `arch`.

    Raises MissingDependency with the package to install, NotPossible on a system other than Linux.
    """
    arch = known_arch(arch)
    if sys.platform != "linux":
        raise NotPossible(
            "The runner is built on Linux.", hint="docker/ has images that build it elsewhere."
        )
    native = arch == host_arch()
    cxx = shlex.split(os.environ.get("CXX", "")) if native else []
    cxx = cxx or ["g++" if native else f"{_TRIPLES[arch]}-g++"]
    for program in (cxx[0], "cmake"):
        _find(program, f"A runner for {arch}")
    generator = "Ninja" if shutil.which("ninja") else "Unix Makefiles"
    if generator != "Ninja":
        _find("make", f"A runner for {arch}")
    return Toolchain(
        arch=arch,
        cxx=tuple(cxx),
        file=None if native else cpp_folder() / "toolchains" / f"{arch}.cmake",
        generator=generator,
        identity=" ".join(
            [_line(cxx, "-dumpmachine"), _line(cxx, "--version"), *_flags_of_the_environment()]
        ),
    )


def _find(program: str, purpose: str) -> str:
    found = shutil.which(program)
    if found is None:
        package = _PACKAGES.get(program)
        raise MissingDependency(
            f"{purpose} needs {program}, which is not installed.",
            hint=f"On Debian and Ubuntu: apt-get install {package}"
            if package
            else f"Install {program}, or unset CXX.",
        )
    return found


def _flags_of_the_environment() -> list[str]:
    # CMake takes these into what it builds
    names = ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")
    return [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]


def _line(compiler: Sequence[str], option: str) -> str:
    program = compiler[-1]
    done = subprocess.run([*compiler, option], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        raise MissingDependency(
            f"{program} does not work: `{program} {option}` ended with {done.returncode}.",
            hint="Install the compiler again.",
        )
    return done.stdout.splitlines()[0].strip()
