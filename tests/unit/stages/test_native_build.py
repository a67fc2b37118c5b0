"""Native builds: compilers found or named, one builder at a time, a killed build gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli import run
from edgekit.errors import BuildFailed, MissingDependency, UsageError
from edgekit.stages import native_build, runner_build, toolchain
from edgekit.stages.native_build import configure_and_build, only_one
from edgekit.types import no_progress

# a C++ "compiler" would do, but this is about CMake: the real one, on files of one line
LISTS = """cmake_minimum_required(VERSION 3.16)
project(tiny LANGUAGES CXX)
add_executable(tiny main.cpp one.cpp two.cpp)
"""


def _project(folder: Path, main: str = "int main() { return 0; }\n") -> Path:
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(LISTS)
    (folder / "main.cpp").write_text(main)
    (folder / "one.cpp").write_text("int one() { return 1; }\n")
    (folder / "two.cpp").write_text("int two() { return 2; }\n")
    return folder


def _build(source: Path, work: Path, seen: list[tuple[int, int, str]] | None = None) -> None:
    def heard(done: int, total: int, what: str) -> None:
        if seen is not None:
            seen.append((done, total, what))

    with only_one(work, "tiny", heard) as held:
        tools = toolchain.toolchain(toolchain.host_arch())
        configure_and_build(
            source, work, tools, [], target="tiny", what="tiny", held=held, progress=heard
        )


@pytest.mark.parametrize("program", ["ninja", "make"])
def test_a_build_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    if program == "make":
        real = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name: None if name == "ninja" else real(name))
    else:
        assert shutil.which("ninja"), "ninja-build is part of what the tests need"
    seen: list[tuple[int, int, str]] = []
    _build(_project(tmp_path / "source"), tmp_path / "work", seen)
    assert (tmp_path / "work" / "tiny").is_file()
    steps = [(done, total) for done, total, what in seen if what == "build tiny"]
    assert len(steps) >= 3
    assert all(0 < done <= total for done, total in steps)


def test_a_failed_build_shows_the_first_error_and_names_the_log(tmp_path: Path) -> None:
    source = _project(tmp_path / "source", "int main() { return nothing_of_that_name; }\n")
    with pytest.raises(BuildFailed, match="nothing_of_that_name") as caught:
        _build(source, tmp_path / "work")
    log = tmp_path / "work" / "build.log"
    assert str(log) in caught.value.hint
    assert "nothing_of_that_name" in log.read_text()


def test_a_killed_build_keeps_its_lock_until_the_compilers_end_and_is_gone_on_with(
    tmp_path: Path,
) -> None:
    source, work = _project(tmp_path / "source"), tmp_path / "work"
    slow = tmp_path / "slow-g++"
    # compiles main.cpp only when told to, so that the kill meets a build in the middle
    slow.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *-c*main.cpp*) touch "{tmp_path}/started"\n'
        f'  while [ ! -e "{tmp_path}/go" ]; do sleep 0.05; done;; esac\n'
        'exec g++ "$@"\n'
    )
    slow.chmod(0o755)
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.stages.test_native_build import _build\n"
        f"_build(Path({str(source)!r}), Path({str(work)!r}))\n"
    )
    environment = {**os.environ, "CXX": str(slow), "CMAKE_BUILD_PARALLEL_LEVEL": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    _until(lambda: (tmp_path / "started").exists())
    process.send_signal(signal.SIGKILL)
    process.wait()

    second = subprocess.Popen([sys.executable, "-c", code], env=environment)
    time.sleep(0.5)
    # the orphaned compiler still holds the lock, so the second build only waits
    assert second.poll() is None
    log = (work / "build.log").read_text()
    assert "[3/3]" not in log and "[4/4]" not in log
    (tmp_path / "go").touch()
    assert second.wait(timeout=60) == 0
    assert subprocess.run([work / "tiny"], check=False).returncode == 0


def _until(true: object) -> None:
    assert callable(true)
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("waited for a minute")


def test_what_is_not_installed_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    host = toolchain.host_arch()
    foreign = "aarch64" if host != "aarch64" else "x86_64"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency) as caught:
        toolchain.toolchain(foreign)
    assert f"{foreign}-linux-gnu-g++" in caught.value.message
    package = f"g++-{foreign.replace('_', '-')}-linux-gnu"
    assert caught.value.hint.endswith(f"apt-get install {package}")
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho stand-in\n")
    compiler.chmod(0o755)
    with pytest.raises(MissingDependency) as caught:
        toolchain.toolchain(host)
    assert caught.value.hint.endswith("apt-get install cmake")
    with pytest.raises(UsageError, match="riscv"):
        toolchain.toolchain("riscv64")
    assert toolchain.known_arch("ARM64") == "aarch64"


def test_a_compiler_in_cxx_and_its_flags_make_another_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    plain = toolchain.toolchain(toolchain.host_arch())
    monkeypatch.setenv("CXXFLAGS", "-g3")
    assert toolchain.toolchain(toolchain.host_arch()).identity != plain.identity
    monkeypatch.delenv("CXXFLAGS")
    monkeypatch.setenv("CXX", "env g++")
    assert toolchain.toolchain(toolchain.host_arch()).cxx == ("env", "g++")


def test_compilers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMAKE_BUILD_PARALLEL_LEVEL", raising=False)
    assert 1 <= native_build.jobs() <= (os.cpu_count() or 1)
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "7")
    assert native_build.jobs() == 7


def test_the_sources_are_known_by_content(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.cpp").write_text("1")
    first = runner_build.sources_hash(tmp_path)
    (tmp_path / "src" / ".hidden").write_text("an editor's")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test.cpp").write_text("not in the program")
    assert runner_build.sources_hash(tmp_path) == first
    (tmp_path / "src" / "a.cpp").write_text("2")
    assert runner_build.sources_hash(tmp_path) != first


def test_the_sources_lie_where_the_build_looks() -> None:
    for arch in toolchain.ARCHITECTURES:
        assert (toolchain.cpp_folder() / "toolchains" / f"{arch}.cmake").is_file()


def test_clearing_spares_what_is_being_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_NATIVE_CACHE", str(tmp_path))
    assert runner_build.clear() == (0, 0.0)
    finished = tmp_path / "runner-aarch64-static-0123456789ab"
    finished.mkdir()
    (finished / "edgekit-ncnn").write_bytes(b"x" * 1000)
    (tmp_path / "ncnn.tar.gz").write_bytes(b"x" * 1000)
    (runner,) = runner_build.built()
    assert (runner.arch, runner.static, runner.size_mb) == ("aarch64", True, 0.001)
    with only_one(tmp_path / "libncnn", "libncnn", no_progress):
        (tmp_path / ".libncnn.build").mkdir()
        assert runner_build.clear() == (2, 0.002)
        assert (tmp_path / ".libncnn.build").is_dir()
    assert runner_build.clear()[0] == 1
    assert runner_build.built() == []


def test_two_builders_of_one_folder_take_turns(tmp_path: Path) -> None:
    words: list[str] = []
    with only_one(tmp_path / "x", "it", no_progress):
        child = subprocess.run(
            [
                sys.executable,
                "-c",
                "import fcntl, sys\n"
                f"file = open({str(tmp_path / 'x.lock')!r})\n"
                "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        words.append(child.stderr)
    assert "BlockingIOError" in words[0]


def test_the_command_answers_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(code: int, *arguments: str) -> Any:
        assert run(["runner", *arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    monkeypatch.setenv("EDGEKIT_NATIVE_CACHE", str(tmp_path))
    assert "riscv" in asked(2, "build", "--arch", "riscv")["error"]
    assert asked(0, "list") == {"runners": []}
    folder = tmp_path / "runner-armhf-dynamic-0123456789ab"
    folder.mkdir()
    (folder / "edgekit-ncnn").write_bytes(b"program")
    (listed,) = asked(0, "list")["runners"]
    assert (listed["arch"], listed["static"]) == ("armhf", False)
    assert listed["path"] == str(folder / "edgekit-ncnn")
    assert asked(0, "clear")["removed"] == 1
    assert not folder.exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install" in asked(3, "library", "--arch", "armhf")["hint"]
