"""One CMake build in the native cache: locked, resumable, with progress and errors worth reading."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.atomic import disk_errors, fsync_tree
from edgekit.errors import BuildFailed, NoSpace
from edgekit.filelock import lock
from edgekit.stages.toolchain import Toolchain
from edgekit.types import Progress

_NINJA = re.compile(r"^\[(\d+)/(\d+)\] ")
_MAKE = re.compile(r"^\[ *(\d+)%\] ")
# what one compiler process needs at most with ncnn's sources (cc1plus, 640 MB seen)
_JOB_MB = 700


@contextlib.contextmanager
def only_one(folder: Path, what: str, progress: Progress) -> Iterator[int]:
    """Hold the lock of `folder` (FOLDER.lock beside it); waits while another process has it.

    Yields the descriptor of the lock, for compilers to inherit: should this process be killed, the
    lock lasts until they have ended as well, so that nobody builds in the same folder meanwhile.
    """
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if lock(descriptor, exclusive=True, wait=False) is False:
            progress(0, 0, f"wait for another process that builds {what}")
            lock(descriptor, exclusive=True, wait=True)
        yield descriptor
    finally:
        os.close(descriptor)


def jobs() -> int:
    """Compilers to run at once: CMAKE_BUILD_PARALLEL_LEVEL, else as many as cores and memory allow."""
    chosen = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(
            line
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable:")
        )
        cores = min(cores or 1, int(line.split()[1]) // (1024 * _JOB_MB))
    return max(1, cores or 1)


def configure_and_build(
    source: Path,
    work: Path,
    toolchain: Toolchain,
    options: list[str],
    *,
    target: str,
    what: str,
    held: int,
    progress: Progress,
) -> None:
    """Configure `source` in the folder `work` and build `target` there.

    What a killed build left in `work` is gone on with under Ninja, which knows what is whole; make
    does not, so there the build starts over. `held` is the descriptor of the lock (`only_one`).
    Raises BuildFailed with the compiler's first error, NoSpace on a full disk. The whole log stays
    in `work`/build.log after a failure.
    """
    if toolchain.generator != "Ninja":
        shutil.rmtree(work, ignore_errors=True)
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        log = work / "build.log"
        log.write_text("")
    progress(0, 0, f"configure {what}")
    configure = ["cmake", "-S", str(source), "-B", str(work), *toolchain.cmake_options, *options]
    _run(configure, log, what, held, None)
    build = ["cmake", "--build", str(work), "--target", target, "--parallel", str(jobs())]

    def heard(line: str) -> None:
        if match := _NINJA.match(line):
            progress(int(match[1]), int(match[2]), f"build {what}")
        elif match := _MAKE.match(line):
            progress(int(match[1]), 100, f"build {what}")

    _run(build, log, what, held, heard)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Make the finished folder `temporary` appear as `folder`, whole or not at all."""
    with disk_errors(folder):
        fsync_tree(temporary)
        if folder.exists():  # damaged, or it would have been used
            shutil.rmtree(folder)
        temporary.rename(folder)


def _run(
    command: list[str],
    log: Path,
    what: str,
    held: int,
    heard: Callable[[str], None] | None,
) -> None:
    environment = {**os.environ, "LC_ALL": "C", "NINJA_STATUS": "[%f/%t] "}
    # a caller's make would hand its job server to ours
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    with open(log, "a", encoding="utf-8", errors="replace") as file:
        file.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            pass_fds=(held,),
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                if heard is not None:
                    heard(line)
            code = process.wait()
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()
            raise
        finally:
            process.stdout.close()
    if code == 0:
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if any("No space left on device" in line for line in lines):
        raise NoSpace(
            f"No space left while building {what} in {log.parent}.",
            hint="Free some space, or choose another folder with EDGEKIT_NATIVE_CACHE; "
            "what is compiled is kept.",
        )
    marks = ("error:", "CMake Error", "fatal error", "undefined reference", "Killed")
    first = next((i for i, line in enumerate(lines) if any(mark in line for mark in marks)), -8)
    shown = "\n  ".join(lines[first:][:8])
    raise BuildFailed(f"Building {what} failed:\n  {shown}", hint=f"The whole log: {log}")
