"""The device program with the native ncnn runner that a bundle carries: no runtime is installed."""

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

import numpy as np
import pytest

from edgekit import cpu
from edgekit.board.program import PROGRAM, program_bytes
from edgekit.golden import read_npy
from edgekit.pipeline.device_files import DeviceFiles, device_files
from edgekit.pipeline.request import ExportRequest
from edgekit.preprocess import Preprocess
from edgekit.stages.verify import verify_bundle
from edgekit.target_files import load_target
from tests.bundles import fix_hashes
from tests.ncnn_bundles import identity, write_bundle

pytestmark = pytest.mark.slow

CONTRACT = Preprocess(height=64, width=96, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
ARCH = cpu.detect().arch
NAME = f"runner/{ARCH}/edgekit-ncnn"


@pytest.fixture(scope="module")
def bundle(runner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    carried = DeviceFiles(program=program_bytes(), runner=runner, arch=ARCH)
    return write_bundle(
        folder / "native", CONTRACT, identity(CONTRACT), extra=carried.write(folder)
    )


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def _device(*arguments: str | Path, expect: int = 0, **environment: str) -> dict[str, Any]:
    """The program's answer on a Python without site-packages: nothing but the library is there."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(Path(arguments[1]) / PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == expect, (done.stdout[-2000:], done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_bundle_proves_itself_with_nothing_installed(bundle: Path, tmp_path: Path) -> None:
    answer = _device("verify", bundle)
    assert (answer["ok"], answer["unchecked"]) == (True, [])
    assert (answer["runtime"], answer["runtime_facts"]["runner"]) == ("edgekit-ncnn", NAME)
    detail = answer["checks"][-1]["detail"]
    assert "another build of the runtime" in detail
    assert os.access(bundle / NAME, os.X_OK)
    info = _device("info", bundle)
    assert info["bundle"]["models"][0]["runs_with"] == ["edgekit-ncnn"]
    ran = _device("run", bundle, "--golden", "0", "--out", tmp_path / "out")
    assert np.array_equal(
        read_npy(Path(ran["outputs"][0]["file"])), read_npy(bundle / "golden/000/output_0.npy")
    )


def test_it_is_measured_in_turns(bundle: Path) -> None:
    answer = _device("bench", bundle, "--runs", "40", "--samples")
    assert (answer["runs"], len(answer["samples_ms"])) == (40, 40)
    assert answer["peak_rss_mb"] > 1
    assert answer["runtime"] == "edgekit-ncnn"
    answer = _device("bench", bundle, "--against", bundle, "--seconds", "1")
    assert answer["against"]["low"] <= answer["against"]["ratio"] <= answer["against"]["high"]
    refused = _device("bench", bundle, "--input", bundle / "golden/000/input.npy", expect=4)
    assert "golden sample 0" in refused["error"]


def test_a_stick_whose_files_cannot_be_executed(copy: Path, tmp_path: Path) -> None:
    """FAT knows no permissions: the runner is started from a copy, which is removed."""
    (copy / NAME).chmod(0o644)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    answer = _device("verify", copy, TMPDIR=str(temporary))
    assert answer["runtime"] == "edgekit-ncnn"
    _device("bench", copy, "--runs", "3", TMPDIR=str(temporary))
    assert list(temporary.iterdir()) == []
    assert (copy / NAME).stat().st_mode & 0o111 == 0


def test_another_architecture_needs_its_emulator(bundle: Path, tmp_path: Path) -> None:
    """Named by hand, a runner is started through a program; the answer says that times mean nothing."""
    starter = tmp_path / "starter"
    starter.write_text('#!/bin/sh\nexec "$@"\n')
    starter.chmod(0o755)
    answer = _device("bench", bundle, "--runs", "3", "--arch", ARCH, "--emulator", str(starter))
    assert "emulated" in {item["kind"] for item in answer["caveats"]}
    assert answer["runtime_facts"]["emulator"] == str(starter)
    refused = _device("bench", bundle, "--emulator", str(tmp_path / "none"), expect=3)
    assert "does not start here" in refused["error"]
    other = "armhf" if ARCH != "armhf" else "aarch64"
    refused = _device("bench", bundle, "--arch", other, expect=3)
    assert f"no runner for {other} (but for {ARCH})" in refused["error"]


def test_a_damaged_runner_is_not_started(copy: Path) -> None:
    data = bytearray((copy / NAME).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / NAME).write_bytes(data)
    answer = _device("verify", copy, expect=9)
    assert answer["unchecked"] == ["golden outputs"]
    assert f"{NAME} has changed" in answer["checks"][-1]["detail"]
    assert "has changed" in _device("bench", copy, expect=3)["error"]


def test_what_the_runner_refuses_is_an_answer(copy: Path) -> None:
    (copy / "ncnn/model.param").write_text("7767517\n1 1\nNoSuchLayer a 0 1 out0\n")
    fix_hashes(copy)
    answer = _device("bench", copy, expect=9)
    assert answer["error"].startswith("edgekit-ncnn: ")
    verdict = _device("verify", copy, expect=9)
    assert any(not check["ok"] and "golden" in check["name"] for check in verdict["checks"])


def test_an_interruption_leaves_no_runner(copy: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (copy / NAME).chmod(0o644)
    process = subprocess.Popen(
        [sys.executable, str(copy / PROGRAM), "bench", str(copy), "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"timing"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert json.loads(out)["exit_code"] == 130
    assert list(temporary.iterdir()) == []
    deadline = time.monotonic() + 20
    while _alive(str(temporary)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _alive(str(temporary)) == []


def _alive(words: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if words.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_which_bundles_carry_a_runner(
    runner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carried(target: str, wanted: bool | None) -> tuple[DeviceFiles, list[str]]:
        notes: list[str] = []
        request = ExportRequest(
            checkpoint=tmp_path / "x.onnx",
            target=load_target(target),
            out=tmp_path / "out",
            runner=wanted,
        )
        return device_files(request, notes.append, lambda *_: None), notes

    files, notes = carried("x86-fp32", None)
    assert (files.runner, notes) == (None, [])
    files, notes = carried("x86-ncnn-fp32", True)
    assert files.runner is not None and files.runner.name == "edgekit-ncnn"
    assert files.key != DeviceFiles(program=program_bytes()).key
    assert carried("x86-ncnn-fp32", None)[0].runner is None
    monkeypatch.setenv("EDGEKIT_NATIVE_CACHE", str(tmp_path / "empty"))
    files, notes = carried("arm-fp32", None)
    assert files.runner is None
    assert "no native runner" in notes[0]
    assert carried("arm-fp32", False)[1] == []


def test_the_host_accepts_what_it_carries(bundle: Path) -> None:
    assert all(check.ok for check in verify_bundle(bundle))
