"""The device program on real bundles: what it verifies, measures and runs, and what it refuses.

It runs as on a board: `python3 edgekit-device.pyz …` in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit import bundle
from edgekit.board.built import add
from edgekit.board.manifest import read_manifest as read_on_board
from edgekit.board.program import PROGRAM, program_bytes
from edgekit.cli import run as edgekit
from edgekit.golden import npy_bytes, read_npy
from edgekit.pipeline.device_files import DeviceFiles
from edgekit.stages.verify import verify_bundle
from tests.bundles import CONTRACT, contents, edit_manifest, fix_hashes, set_contract

ROOT = Path(__file__).resolve().parents[2]
_TIMES = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "std_ms", "min_ms", "max_ms")
BENCH_KEYS = (*_TIMES, "runs", "threads", "batch", "throughput_fps", "peak_rss_mb")


def _device(
    *arguments: str | Path,
    program: Path | None = None,
    expect: int = 0,
    **environment: str,
) -> dict[str, Any]:
    """The answer of the device program; its own bundle's by default."""
    place = program or Path(arguments[1]) / PROGRAM
    done = subprocess.run(
        [sys.executable, str(place), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == expect, (done.stdout[-2000:], done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout)
    assert (answer["format"], answer["schema"]) == ("edgekit-device", 1)
    assert answer["command"] == arguments[0]
    if expect:
        assert answer["exit_code"] == expect
        assert answer["error"]
        assert "Traceback" not in done.stderr
    return answer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a small real model for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("small")
    made = contents(folder / "parts")
    files = DeviceFiles(program=program_bytes()).write(folder / "parts")
    made = dataclasses.replace(made, extra=(*made.extra, *files))
    bundle.write(folder / "small", made)
    return folder / "small"


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    shutil.copytree(small, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The example's pruned detector, exported for a target."""
    folder = tmp_path_factory.mktemp("cells")

    def export(target: str) -> Path:
        out = folder / target
        if not out.exists():
            flags = "--color rgb --resize letterbox --scale 1/255 --mean 0,0,0 --std 1,1,1"
            example = ROOT / "examples/cells"
            arguments = ["export", str(example / "cells_pruned.pt"), "--arch", "model:detector"]
            arguments += ["--code", str(example), "--imgsz", "192", "--target", target]
            arguments += ["--images", str(ROOT / "calib"), "--out", str(out), *flags.split()]
            previous = os.environ.get("EDGEKIT_CACHE")
            os.environ["EDGEKIT_CACHE"] = str(folder / "cache")
            try:
                assert edgekit(arguments) == 0
            finally:
                if previous is not None:
                    os.environ["EDGEKIT_CACHE"] = previous
        return out

    return export


# --- whole bundles ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("target", "runtime"), [("x86-fp32", "onnxruntime"), ("arm-fp32", "ncnn")])
def test_an_exported_bundle_proves_itself(
    cells: Callable[[str], Path], target: str, runtime: str, tmp_path: Path
) -> None:
    folder = cells(target)
    answer = _device("verify", folder)
    assert answer["ok"] is True
    assert (answer["unchecked"], answer["runtime"]) == ([], runtime)
    names = {check["name"]: check for check in answer["checks"]}
    assert f"golden outputs ({runtime})" in names
    assert "same CPU kind" in names[f"golden outputs ({runtime})"]["detail"]
    assert "gives it" in names["golden input 000"]["detail"], "the contract is proved here, too"
    assert _device("build", folder)["nothing_to_build"] is True
    info = _device("info", folder)["bundle"]["models"][0]
    assert (info["runtime"], info["runs_with"]) == (runtime, [runtime])
    ran = _device("run", folder, "--golden", "1", "--out", tmp_path / "out", "--values")
    manifest = bundle.read_manifest(folder)
    for output, (name, file) in zip(
        ran["outputs"], manifest.golden.samples[1].outputs, strict=True
    ):
        golden = read_npy(manifest.path(file))
        assert output["name"] == name
        found = read_npy(Path(output["file"]))
        assert np.allclose(found, golden, rtol=1e-5, atol=1e-5)
        assert np.array_equal(np.float32(output["values"]), found.ravel())
    assert all(check.ok for check in verify_bundle(folder)), "nothing was left in the bundle"


@pytest.mark.slow
def test_an_exported_bundle_is_measured(cells: Callable[[str], Path]) -> None:
    folder = cells("x86-fp32")
    answer = _device("bench", folder, "--runs", "30", "--warmup", "3", "--samples")
    assert all(answer[key] is not None for key in BENCH_KEYS)
    assert "load" in answer
    assert (answer["runs"], len(answer["samples_ms"])) == (30, 30)
    assert answer["min_ms"] <= answer["p50_ms"] <= answer["p90_ms"] <= answer["max_ms"]
    assert answer["against"] is None
    assert answer["warmup"] >= 3
    assert answer["inputs"].endswith("golden/000/input.npy")
    assert answer["precision"]["asked"] == 0.02
    conditions = answer["conditions"]
    for key, reason in (
        ("power", "power"),
        ("temperature_c", "temperature"),
        ("cpufreq", "governor"),
        ("throttled", "throttling"),
    ):
        assert (conditions[key] is None) == (reason in conditions["not_available"]), key
    assert any(item["kind"] == "runs" for item in answer["caveats"])


@pytest.mark.slow
def test_the_keys_are_those_of_edgekit_bench(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgekit(["bench", str(small), "--runs", "12", "--against", str(small), "--json"]) == 0
    host = json.loads(capsys.readouterr().out)
    found = _device("bench", small, "--runs", "12", "--against", small)
    assert set(host) <= set(found)
    assert set(host["against"]) <= set(found["against"])
    assert set(host["against"]["other"]) <= set(found["against"]["other"])
    for key, value in host.items():
        if key not in ("affinity", "against", "load"):
            assert isinstance(found[key], type(value)), key


@pytest.mark.slow
def test_two_bundles_take_turns(small: Path, cells: Callable[[str], Path]) -> None:
    slow = cells("x86-fp32")
    answer = _device("bench", small, "--against", slow, "--seconds", "1.5", "--tolerance", "5%")
    against = answer["against"]
    assert against["ratio"] > 5, "the small model is many times as fast"
    assert against["low"] <= against["ratio"] <= against["high"]
    assert against["blocks"] % 2 == 0
    assert against["other"]["bundle"] == slow.name
    assert against["other"]["runs"] == answer["runs"]
    assert against["regression"]["decision"] == "within"
    assert against["regression"]["tolerance"] == 0.05
    turned = _device("bench", slow, "--against", small, "--seconds", "1.5")["against"]
    assert turned["ratio"] < 0.2
    assert turned["regression"]["regressed"] is True
    assert turned["regression"]["slower"]["low"] > 5


def test_a_precision_that_cannot_be_had_is_said(small: Path) -> None:
    answer = _device("bench", small, "--precision", "0.0001%", "--max-seconds", "1")
    assert answer["precision"]["ok"] is False
    assert "precision" in {item["kind"] for item in answer["caveats"]}


def test_too_few_runs_give_no_interval_rather_than_a_wide_one(small: Path) -> None:
    answer = _device("bench", small, "--runs", "3")
    assert answer["p50_interval_ms"] is None
    assert answer["precision"] == {"of": "p50", "asked": 0.02, "reached": None, "ok": False}
    texts = {item["kind"]: item["text"] for item in answer["caveats"]}
    assert texts["precision"] == "Too few runs to give an interval of p50."


def test_answers_go_to_a_file_too(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "a folder" / "answer.json"
    answer = _device("info", small, "--answer", file)
    assert json.loads(file.read_text()) == answer
    refused = _device("run", small, "--golden", "7", "--answer", file, expect=2)
    assert json.loads(file.read_text()) == refused
    assert [path.name for path in file.parent.iterdir()] == ["answer.json"]


# --- damage: the same verdict as `edgekit verify` -----------------------------------------------


def _both(folder: Path) -> dict[str, str]:
    """The checks that fail here, which must be those that fail for `edgekit verify`."""
    host = {check.name for check in verify_bundle(folder) if not check.ok}
    answer = _device("verify", folder, program=PROGRAM_FILE[0], expect=9 if host else 0)
    found = {check["name"]: check["detail"] for check in answer["checks"] if not check["ok"]}
    assert set(found) == host
    assert answer["ok"] == (not host)
    return found


PROGRAM_FILE: list[Path] = []


@pytest.fixture(autouse=True)
def _program(small: Path) -> None:
    """The intact program: the one in the bundle may be what is damaged."""
    PROGRAM_FILE[:] = [small / PROGRAM]


@pytest.mark.slow
def test_a_flipped_bit_in_any_file(small: Path, tmp_path: Path) -> None:
    names = sorted(p.relative_to(small).as_posix() for p in small.rglob("*") if p.is_file())
    assert PROGRAM in names
    for number, name in enumerate(names):
        spoilt = tmp_path / f"spoilt{number}"
        shutil.copytree(small, spoilt)
        data = bytearray((spoilt / name).read_bytes())
        data[len(data) // 2] ^= 4
        (spoilt / name).write_bytes(data)
        failed = _both(spoilt)
        assert any(name in f"{check} {detail}" for check, detail in failed.items()), (name, failed)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return change


def _link(name: str, to: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return change


def _edit(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest.update(values))


def _escape(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"tables/conv.txt"', '"../../conv.txt"'))


def _truncated_tensor(folder: Path) -> None:
    path = folder / "golden/001/input.npy"
    path.write_bytes(path.read_bytes()[:-8])
    fix_hashes(folder)


def _truncated_image(folder: Path) -> None:
    path = folder / "golden/001/image.png"
    path.write_bytes(path.read_bytes()[:-40])
    fix_hashes(folder)


def _changed_tensor(folder: Path) -> None:
    path = folder / "golden/001/input.npy"
    array = read_npy(path).copy()
    array[0, 1, 2, 3] = np.nextafter(array[0, 1, 2, 3], np.float32(9))
    path.write_bytes(npy_bytes(array))
    fix_hashes(folder)


def _nan_model(folder: Path) -> None:
    path = folder / "onnxruntime/model.onnx"
    model = onnx.load(path)
    weight = next(item for item in model.graph.initializer if item.name == "w_score")
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(array, "w_score"))
    onnx.save(model, path)
    fix_hashes(folder)


def _another_model(folder: Path) -> None:
    path = folder / "onnxruntime/model.onnx"
    model = onnx.load(path)
    weight = next(item for item in model.graph.initializer if item.name == "w_box")
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] *= 1.001
    weight.CopyFrom(numpy_helper.from_array(array, "w_box"))
    onnx.save(model, path)
    fix_hashes(folder)


def _built(folder: Path, **more: Any) -> None:
    add(
        read_on_board(folder),
        "model.engine",
        b"an engine",
        made_from=["onnxruntime/model.onnx"],
        device={"gpu": "none"},
        versions={"edgekit": "0"},
        **more,
    )


def _built_changed(folder: Path) -> None:
    _built(folder)
    (folder / "built/model.engine").write_bytes(b"an Engine")


def _built_stale(folder: Path) -> None:
    _built(folder)
    path = folder / "built/model.engine.json"
    value = json.loads(path.read_text())
    value["from"]["onnxruntime/model.onnx"] = "0" * 64
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda folder: None, set()),
        (fix_hashes, set()),
        (_remove("README.txt"), {"file README.txt"}),
        (_remove("SHA256SUMS"), {"SHA256SUMS"}),
        (_remove(PROGRAM), {f"file {PROGRAM}"}),
        (_write("virus.sh", b""), {"unlisted files"}),
        (_write("onnxruntime/.hidden", b"x"), {"unlisted files"}),
        (_link("further", "README.txt"), {"unlisted files"}),
        (_link("README.txt", "/etc/passwd"), {"file README.txt"}),
        (_link("outside", "/etc"), {"unlisted files"}),
        (_edit(schema=2), {"manifest"}),
        (_edit(preprocess={"height": 4}), {"manifest"}),
        (_write("manifest.json", b"{"), {"manifest"}),
        (_escape, {"manifest"}),
        (_truncated_tensor, {"golden input 001", "golden outputs (onnxruntime)"}),
        (_truncated_image, {"golden input 001"}),
        (_changed_tensor, {"golden input 001"}),
        (_nan_model, {"chain", "golden outputs (onnxruntime)"}),
        (_another_model, {"chain", "golden outputs (onnxruntime)"}),
        (lambda folder: set_contract(folder, CONTRACT.replace(mean=(0.5, 0.5, 0.5))), None),
        (_edit(chain=[]), {"chain"}),
        (_built, set()),
        (_built_changed, {"built/"}),
        (_built_stale, {"built/"}),
        (_write("built/engine", b"x"), {"built/", "unlisted files"}),
        (_write("built/x/engine", b"x"), {"built/", "unlisted files"}),
        (_write("built/engine.json", b"{}"), {"built/", "unlisted files"}),
    ],
)
def test_damage_of_every_kind_gets_the_same_verdict(
    copy: Path, change: Callable[[Path], object], failing: set[str] | None
) -> None:
    change(copy)
    found = _both(copy)
    if failing is not None:
        assert set(found) == failing
    else:
        assert found


def test_a_damaged_model_is_not_measured_or_run(copy: Path) -> None:
    path = copy / "onnxruntime/model.onnx"
    path.write_bytes(path.read_bytes()[::-1])
    assert "not run" in _both(copy)["golden outputs (onnxruntime)"]
    for arguments in (("bench", copy), ("run", copy, "--golden", "0")):
        answer = _device(*arguments, expect=9)
        assert "model.onnx has changed" in answer["error"]


def test_a_model_that_kills_its_runtime_is_an_answer(copy: Path) -> None:
    """A crash of the runtime costs the worker process alone."""
    answer = _device("bench", copy, "--runs", "5", PYTHONDONTWRITEBYTECODE="1", expect=0)
    assert answer["runs"] == 5
    (copy / "onnxruntime/model.onnx").write_bytes(b"\x08\x08:\x02\x0a\x00")
    fix_hashes(copy)
    answer = _device("bench", copy, expect=8)
    assert "cannot load" in answer["error"]


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["verify", "{missing}"], 8, "is not a bundle"),
        (["bench", "{missing}"], 8, "is not a bundle"),
        (["bench", "{small}", "--runtime", "ncnn"], 4, "no model for ncnn"),
        (["bench", "{small}", "--runtime", "tenso"], 2, "no runtime 'tenso'"),
        (["bench", "{small}", "--affinity", "999"], 2, "CPU 999"),
        (["bench", "{small}", "--affinity", "x"], 2, "not a list of CPUs"),
        (["bench", "{small}", "--precision", "200%"], 2, "between 0 and 100"),
        (["run", "{small}", "--golden", "9"], 2, "no golden sample 9"),
        (["run", "{small}", "--input", "{missing}"], 8, "cannot be read"),
        (["run", "{small}", "--input", "{small}/README.txt"], 8, "not a .npy file"),
        (["run", "{small}", "--golden", "0", "--out", "{small}/out"], 2, "lies in the bundle"),
        (["info", "{small}", "--answer", "/proc/x/answer"], 8, "Cannot write"),
    ],
)
def test_what_cannot_be_done_is_said(
    small: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    given = [
        text.replace("{missing}", str(tmp_path / "missing")).replace("{small}", str(small))
        for text in arguments
    ]
    answer = _device(*given, program=small / PROGRAM, expect=code)
    assert words in answer["error"]
    assert answer["exit_code"] == code


def test_another_input_size_is_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy_bytes(np.zeros((1, 3, 24, 31), np.float32)))
    answer = _device("run", small, "--input", tmp_path / "x.npy", expect=8)
    assert "[1, 3, 24, 31]" in answer["error"]
    (tmp_path / "x.npy").write_bytes(npy_bytes(np.zeros((1, 3, 24, 32), np.float64)))
    assert "float64" in _device("run", small, "--input", tmp_path / "x.npy", expect=8)["error"]


def test_a_runtime_that_does_not_answer_is_given_up(small: Path) -> None:
    answer = _device("bench", small, "--timeout", "0.001", expect=10)
    assert "did not answer within" in answer["error"]
    assert not _workers(small)


@pytest.mark.parametrize(
    "name",
    ["-rf", "a b", "$(touch pwned)", "`id`", "x;y", "a'b\"c", "new\nline", "ü", "%s{0}"],
)
def test_names_mean_nothing_but_themselves(small: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(small, folder)
    edit_manifest(folder, lambda manifest: manifest.update(name=name))
    done = subprocess.run(
        [sys.executable, str(small / PROGRAM), "bench", "--runs", "3", "--quiet", "--", name],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=120,
    )
    answer = json.loads(done.stdout)
    assert done.returncode == 0, answer
    assert answer["bundle"] == name
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "edgekit-cache") == [name]


def test_a_path_that_is_not_utf_8_is_an_answer_too(small: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff"
    shutil.copytree(os.fsencode(small), folder)
    for command, code in ((b"verify", 9), (b"bench", 8)):
        done = subprocess.run(
            [os.fsencode(sys.executable), os.fsencode(small / PROGRAM), command, folder],
            capture_output=True,
            check=False,
        )
        assert done.returncode == code
        assert "not valid UTF-8" in json.loads(done.stdout)["error"]


# --- interruption -------------------------------------------------------------------------------


def _workers(folder: Path) -> list[int]:
    """Processes that have to do with the program in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder / PROGRAM).encode() in line:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["bench", "against"])
def test_an_interruption_leaves_nothing(
    copy: Path, tmp_path: Path, number: signal.Signals, command: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = ["bench", str(copy), "--seconds", "60"]
    arguments += ["--against", str(copy)] if command == "against" else []
    process = subprocess.Popen(
        [sys.executable, str(copy / PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"timing"):
            break
    time.sleep(0.2)
    assert len(_workers(copy)) > 1
    os.kill(process.pid, number)
    out, errors = process.communicate(timeout=60)
    answer = json.loads(out)
    assert (process.returncode, answer["exit_code"]) == (130, 130)
    assert b"Traceback" not in errors
    assert list(temporary.iterdir()) == []
    assert _workers(copy) == []
    assert all(check.ok for check in verify_bundle(copy))


def test_a_kill_of_the_program_ends_its_worker(copy: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(copy / PROGRAM), "bench", str(copy), "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"timing"):
            break
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while _workers(copy) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _workers(copy) == []
