"""libncnn for the native runner: built once per architecture and compiler, kept in the native cache.

A static library without Vulkan. Its answers and its speed are to be those of ncnn's own wheel, so
the kernels are the wheel's but for three that no CPU of a target has (see `_OPTIONS`).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from edgekit.atomic import sha256_json, write_json
from edgekit.errors import BuildFailed
from edgekit.stages.native_build import configure_and_build, only_one, put_in_place
from edgekit.stages.ncnn_source import NCNN_SHA256, native_cache, ncnn_date, source
from edgekit.stages.toolchain import Toolchain, toolchain
from edgekit.types import Progress, no_progress

_OPTIONS = (
    f"-DNCNN_VERSION={ncnn_date()}",
    # images are read and drawn on without OpenCV
    "-DNCNN_SIMPLEOCV=ON",
    "-DNCNN_VULKAN=OFF",
    "-DNCNN_BUILD_TOOLS=OFF",
    "-DNCNN_BUILD_EXAMPLES=OFF",
    "-DNCNN_BUILD_BENCHMARK=OFF",
    # the runner's own code uses both; ncnn's default differs when it is cross-compiled
    "-DNCNN_DISABLE_RTTI=OFF",
    "-DNCNN_DISABLE_EXCEPTION=OFF",
    # the compiler's libgomp as in the wheel, so that threads behave alike; libgomp.a serves a static
    # program as well
    "-DNCNN_OPENMP=ON",
    "-DNCNN_SIMPLEOMP=OFF",
    # AMD's Bulldozer (2011-2015) alone has FMA4 and XOP, and every layer would be compiled once more
    # for it: an eighth of the x86 build. INT16 products are used by no kernel of an INT8 model
    "-DNCNN_FMA4=OFF",
    "-DNCNN_XOP=OFF",
    "-DNCNN_AVXVNNIINT16=OFF",
)
_SCHEMA = 1


def library_key(tools: Toolchain) -> str:
    """Twelve hex digits that stand for everything libncnn depends on."""
    text = tools.file.read_text() if tools.file else ""
    if tools.file:
        text += (tools.file.parent / "linux-gnu.cmake").read_text()
    return sha256_json(
        {
            "schema": _SCHEMA,
            "source": NCNN_SHA256,
            "options": list(_OPTIONS),
            "compiler": tools.identity,
            "toolchain": hashlib.sha256(text.encode()).hexdigest(),
        }
    )[:12]


def library(arch: str, progress: Progress = no_progress) -> Path:
    """The install prefix of libncnn for `arch`, built unless it is there (minutes).

    CMake finds it with `-Dncnn_DIR=PREFIX/lib/cmake/ncnn`. Raises MissingDependency without a
    compiler or CMake, BuildFailed, NoSpace.
    """
    tools = toolchain(arch)
    folder = native_cache() / f"libncnn-{ncnn_date()}-{tools.arch}-{library_key(tools)}"
    if is_whole(folder):
        return folder
    what = f"libncnn {ncnn_date()} for {tools.arch}"
    with only_one(folder, what, progress) as held:
        if is_whole(folder):  # the process before us built it
            return folder
        sources = source(progress)
        work, installed = _beside(folder, "build"), _beside(folder, "install")
        start_s = time.monotonic()
        configure_and_build(
            sources,
            work,
            tools,
            [*_OPTIONS, "-DCMAKE_INSTALL_LIBDIR=lib"],
            target="ncnn",
            what=what,
            held=held,
            progress=progress,
        )
        shutil.rmtree(installed, ignore_errors=True)
        done = subprocess.run(
            ["cmake", "--install", str(work), "--prefix", str(installed)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BuildFailed(f"Installing {what} failed: {done.stderr.strip()[-300:]}")
        write_json(
            installed / "edgekit-build.json",
            {
                "compiler": tools.identity,
                "options": list(_OPTIONS),
                "source": NCNN_SHA256,
                # of the last run alone where an earlier one was interrupted
                "seconds": round(time.monotonic() - start_s, 1),
            },
        )
        put_in_place(installed, folder)
        shutil.rmtree(work, ignore_errors=True)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a library lies at the prefix `folder` (it appears there with one rename)."""
    return (folder / "lib" / "libncnn.a").is_file() and (folder / "include" / "ncnn").is_dir()


def cmake_folder(prefix: Path) -> Path:
    """What `-Dncnn_DIR` takes."""
    return prefix / "lib" / "cmake" / "ncnn"


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")
