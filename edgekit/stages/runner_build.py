"""`edgekit-ncnn`, the native runner, for a board: built from `cpp/`, stripped, kept in the native cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgekit import __version__
from edgekit.atomic import disk_errors, replacing, sha256_file, sha256_json
from edgekit.errors import BuildFailed
from edgekit.filelock import lock
from edgekit.stages.native_build import configure_and_build, only_one, put_in_place
from edgekit.stages.ncnn_library import cmake_folder, library, library_key
from edgekit.stages.ncnn_source import native_cache
from edgekit.stages.toolchain import Toolchain, cpp_folder, toolchain
from edgekit.types import Progress, no_progress

PROGRAM = "edgekit-ncnn"
"""File name of the native runner."""

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class BuiltRunner:
    """A runner in the cache. `size_mb` is of the stripped program, in 10^6 bytes."""

    arch: str
    static: bool
    path: Path
    sha256: str
    size_mb: float


def build(
    arch: str,
    *,
    static: bool = True,
    out: Path | None = None,
    progress: Progress = no_progress,
) -> Path:
    """The runner for `arch` ("aarch64", "armhf", "x86_64"), built unless it is there.

    `static` gives a program that needs nothing on the board but the kernel. Returns the stripped
    program in the native cache, or `out`, where a copy was put.

    Raises UsageError for another architecture, MissingDependency with the package to install when
    a compiler or CMake is not there, BuildFailed with the compiler's first error, NoSpace.
    """
    tools = toolchain(arch)
    folder = _folder(tools, static)
    program = folder / PROGRAM
    if not program.is_file():
        prefix = library(arch, progress)
        what = f"{PROGRAM} for {tools.arch}"
        with only_one(folder, what, progress) as held:
            if not program.is_file():
                _build(tools, static, prefix, folder, what, held, progress)
    if out is None:
        return program
    with replacing(out) as temporary:
        shutil.copyfile(program, temporary)
        temporary.chmod(0o755)
    return out


def ready(arch: str, *, static: bool = True) -> Path | None:
    """The runner that `build` would give, when it is in the native cache already.

    Raises UsageError for another architecture, MissingDependency when the compiler that decides which
    one it is is not there.
    """
    program = _folder(toolchain(arch), static) / PROGRAM
    return program if program.is_file() else None


def describe(path: Path, arch: str, static: bool) -> BuiltRunner:
    """Hash and size of a built runner."""
    size_mb = path.stat().st_size / 1e6
    return BuiltRunner(
        arch=arch, static=static, path=path, sha256=sha256_file(path), size_mb=size_mb
    )


def built() -> list[BuiltRunner]:
    """The runners in the native cache, whatever source they were built from, newest first."""
    found = sorted(
        native_cache().glob(f"runner-*/{PROGRAM}"), key=lambda p: p.stat().st_mtime, reverse=True
    )
    runners = []
    for path in found:
        _, arch, kind, _ = path.parent.name.split("-")
        runners.append(describe(path, arch, kind == "static"))
    return runners


def clear() -> tuple[int, float]:
    """Empty the native cache, but for what another process builds at this moment.

    Returns how many entries went, and their size in MB (10^6 bytes).
    """
    removed, freed_mb = 0, 0.0
    folder = native_cache()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix == ".lock":
            continue
        # the work folders are `.NAME.build` and the like of the lock `NAME.lock`
        name = path.name[1:].rpartition(".")[0] if path.name.startswith(".") else path.name
        with contextlib.ExitStack() as stack:
            guard = folder / f"{name}.lock"
            if guard.exists():
                file = stack.enter_context(open(guard, "ab"))
                if lock(file.fileno(), exclusive=True, wait=False) is False:
                    continue
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
            freed_mb += sum(p.stat().st_size for p in files) / 1e6
            removed += 1
            path.unlink() if path.is_file() else shutil.rmtree(path)
    return removed, freed_mb


def sources_hash(folder: Path) -> str:
    """Hex sha256 of what a runner is built from in `cpp/`: CMakeLists.txt, src/ and toolchains/.

    Names and contents; hidden files are left out.
    """
    paths = [folder / "CMakeLists.txt"]
    paths += [path for part in ("src", "toolchains") for path in sorted((folder / part).rglob("*"))]
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }
    return sha256_json(found)


def _folder(tools: Toolchain, static: bool) -> Path:
    key = sha256_json(
        {
            "schema": _SCHEMA,
            "sources": sources_hash(cpp_folder()),
            "library": library_key(tools),
            "static": static,
            "version": __version__,
        }
    )[:12]
    return native_cache() / f"runner-{tools.arch}-{'static' if static else 'dynamic'}-{key}"


def _build(
    tools: Toolchain,
    static: bool,
    prefix: Path,
    folder: Path,
    what: str,
    held: int,
    progress: Progress,
) -> None:
    work, finished = (folder.with_name(f".{folder.name}.{kind}") for kind in ("build", "finished"))
    options = [
        f"-Dncnn_DIR={cmake_folder(prefix)}",
        f"-DEDGEKIT_STATIC={'ON' if static else 'OFF'}",
        # in an installed package the sources do not lie beside the one file that says it
        f"-DEDGEKIT_VERSION={__version__}",
    ]
    configure_and_build(
        cpp_folder(),
        work,
        tools,
        options,
        target=PROGRAM,
        what=what,
        held=held,
        progress=progress,
    )
    made = [path for path in (work / PROGRAM, work / "src" / PROGRAM) if path.is_file()]
    if not made:
        raise BuildFailed(f"The build of {what} ended well but left no program in {work}.")
    with disk_errors(folder):
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        program = finished / PROGRAM
        done = subprocess.run(
            [tools.strip(), "-o", os.fspath(program), os.fspath(made[0])],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BuildFailed(f"Stripping {what} failed: {done.stderr.strip()[-300:]}")
        program.chmod(0o755)
        put_in_place(finished, folder)
        shutil.rmtree(work, ignore_errors=True)
