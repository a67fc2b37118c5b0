"""What goes wrong ends in the right exit code, one clear message, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from edgekit.cli import run
from tests.disk import small_disk
from tests.graphs import GraphMaker


def _model(path: Path, nan: bool = False) -> Path:
    """A small classifier 3x32x32."""
    maker = GraphMaker()
    maker.conv("x", "c1", (16, 3))
    maker.node("Relu", ["c1"], "r1")
    maker.conv("r1", "c2", (16, 16), strides=[2, 2])
    maker.node("Relu", ["c2"], "r2")
    maker.node("GlobalAveragePool", ["r2"], "g")
    maker.node("Flatten", ["g"], "f")
    weight = maker.rng.normal(size=(16, 4)).astype(np.float32)
    if nan:
        weight[3, 1] = np.nan
    maker.node("Gemm", ["f", maker.weight("fc", weight)], "y")
    onnx.save(maker.model({"x": [1, 3, 32, 32]}, {"y": [1, 4]}), path)
    return path


def _images(folder: Path, count: int = 12, size: int = 40) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        small = rng.integers(0, 256, (5, 5, 3), np.uint8)
        picture = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:03}.jpg"), picture)
    return folder


def _leftovers(folder: Path) -> list[str]:
    """Temporary files and folders that a writer left behind."""
    return [str(p) for p in folder.rglob(".*") if ".tmp" in p.name or ".old" in p.name]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    _model(tmp_path / "net.onnx")
    _images(tmp_path / "images")
    return tmp_path


def _fails(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["export", *arguments, "-o", "out"]) == code
    captured = capsys.readouterr()
    assert words.lower() in captured.err.lower()
    assert captured.err.count("Error:") == 1
    assert "Traceback" not in captured.err
    assert not Path("out").exists()
    assert not _leftovers(Path.cwd())


GOOD = ["net.onnx", "-t", "x86-int8", "--images", "images"]


def test_a_missing_checkpoint(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fails(["nowhere.onnx", *GOOD[1:]], 8, "does not exist", capsys)


def test_an_empty_image_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "empty").mkdir()
    _fails([*GOOD[:-1], "empty"], 8, "no image", capsys)


def test_no_images_for_an_int8_target(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fails(GOOD[:3], 2, "--images", capsys)


def test_an_unknown_target_names_the_nearest(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fails(["net.onnx", "-t", "x86-itn8", "--images", "images"], 2, "x86-int8", capsys)


def test_another_size_than_the_fixed_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fails([*GOOD, "--imgsz", "64"], 8, "fixed", capsys)


def test_a_nan_in_the_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _model(place / "nan.onnx", nan=True)
    _fails(["nan.onnx", *GOOD[1:]], 8, "fc", capsys)


def test_a_file_that_is_no_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "junk.onnx").write_bytes(b"\x08\x07junk" * 50)
    (place / "empty.onnx").write_bytes(b"")
    _fails(["junk.onnx", *GOOD[1:]], 8, "junk.onnx", capsys)
    _fails(["empty.onnx", *GOOD[1:]], 8, "empty", capsys)


def test_a_pickle_that_would_run_code(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch exploded",)

    torch.save({"model": Bomb()}, "bomb.pt")
    _fails(["bomb.pt", *GOOD[1:], "--imgsz", "32"], 8, "--trust-checkpoint", capsys)
    assert not Path("exploded").exists()


def test_one_truncated_image_is_skipped_and_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = place / "images" / "005.jpg"
    victim.write_bytes(victim.read_bytes()[:-200])
    assert run(["export", "--json", *GOOD, "-o", "out"]) == 0
    answer = json.loads(capsys.readouterr().out)
    calibrate = next(stage for stage in answer["stages"] if stage["name"] == "calibrate")
    assert "1 images skipped" in " ".join(calibrate["notes"])
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert len(manifest["calibration"]["image_sha256"]) == 11


def test_too_many_truncated_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(4):
        victim = place / "images" / f"{index:03}.jpg"
        victim.write_bytes(victim.read_bytes()[:-200])
    _fails(GOOD, 8, "--max-bad-images", capsys)


def test_budgets_gate_and_leave_the_last_bundle_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fails([*GOOD, "--max-p99-ms", "0.00001"], 7, "budget", capsys)
    assert run(["export", *GOOD, "-o", "out"]) == 0
    before = (place / "out" / "manifest.json").read_bytes()
    assert run(["export", *GOOD, "-o", "out", "--max-p50-ms", "0.00001"]) == 7
    assert (place / "out" / "manifest.json").read_bytes() == before
    capsys.readouterr()
    assert run(["export", "--json", *GOOD, "-o", "out", "--max-p99-ms", "0.00001"]) == 7
    assert json.loads(capsys.readouterr().out)["exit_code"] == 7


def test_a_folder_of_the_users_is_never_replaced(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("years of work")
    assert run(["export", *GOOD, "-o", "mine"]) == 8
    assert (place / "mine" / "thesis.txt").read_text() == "years of work"


def test_fresh_really_makes_everything_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", *GOOD, "-o", "out"]) == 0
    entries = place / "edgekit-cache" / "entries"

    def made() -> dict[str, float]:
        """When the newest entry of each stage was made. A search that times may choose another
        model the second time: then what was built of the first one lies there as before."""
        newest: dict[str, float] = {}
        for path in entries.iterdir():
            stage = path.name.rpartition("-")[0]
            created = json.loads((path / "entry.json").read_text())["created_s"]
            newest[stage] = max(created, newest.get(stage, created))
        return newest

    before = made()
    capsys.readouterr()
    assert run(["export", "--json", *GOOD, "-o", "out", "--fresh"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not any(stage["cached"] for stage in answer["stages"])
    after = made()
    assert {"export", "prepare", "calibrate", "quantize", "build"} <= before.keys() == after.keys()
    assert all(before[stage] < after[stage] for stage in before)
    assert run(["verify", "out"]) == 0


def test_a_project_file_says_it_all(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "edgekit.toml").write_text(
        '[checkpoint]\npath = "net.onnx"\n[export]\ntarget = "x86-int8"\nimages = "images"\nout = "b"\n'
        '[preprocess]\nresize = "stretch"\nmean = [0.5, 0.5, 0.5]\n[budget]\nmax_p99_ms = 10000.0\n'
    )
    assert run(["export"]) == 0
    contract = json.loads((place / "b" / "preprocess.json").read_text())
    assert contract["resize"] == "stretch" and contract["mean"] == [0.5, 0.5, 0.5]
    assert run(["verify", "b"]) == 0
    (place / "edgekit.toml").write_text('[exprot]\ntarget = "x86-int8"\n')
    capsys.readouterr()
    assert run(["export"]) == 2
    assert "export" in capsys.readouterr().err


def _start(arguments: list[str], place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", *arguments],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def _wait_for(process: subprocess.Popen[str], word: str) -> None:
    """Read stderr until a line holds `word`."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    raise AssertionError(f"the process ended without saying {word!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_in_the_middle_of_calibrate(
    place: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    # enough work that the signal arrives while images run
    big = GraphMaker()
    big.conv("x", "c0", (16, 3))
    for index in range(12):
        big.conv(f"c{index}", f"c{index + 1}", (16, 16))
    onnx.save(big.model({"x": [1, 3, 160, 160]}, {"c12": [1, 16, 160, 160]}), "big.onnx")
    _images(place / "many", 150, 160)
    arguments = ["export", "big.onnx", "-t", "x86-int8", "--images", "many", "-o", "out"]
    process = _start(arguments, place)
    try:
        _wait_for(process, "calibrate")
        time.sleep(1.0)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (
        process.returncode
        == {
            signal.SIGINT: 130,
            signal.SIGTERM: 143,
            signal.SIGKILL: -9,
        }[number]
    )
    assert "Traceback" not in err
    assert not (place / "out").exists()
    if number != signal.SIGKILL:
        assert not _leftovers(place)
    assert run(["export", "--json", *arguments[1:]]) == 0
    answer = json.loads(capsys.readouterr().out)
    cached = {stage["name"]: stage["cached"] for stage in answer["stages"]}
    assert cached["export"] and cached["simplify"] and cached["prepare"]
    assert not cached["calibrate"]
    assert run(["verify", "out"]) == 0
    assert not _leftovers(place)


@pytest.mark.parametrize("full", ["cache", "output"])
def test_a_full_disk(
    place: Path, full: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(place / "small", 1 << 20) as disk:
        filler = disk.folder / "filler"
        if full == "cache":
            monkeypatch.setenv("EDGEKIT_CACHE", str(disk.folder / "cache"))
        out = disk.folder / "out" if full == "output" else place / "out"
        if disk.mounted:
            filler.write_bytes(b"\0" * ((1 << 20) - 12_000))
        with disk.full():
            capsys.readouterr()
            code = run(["export", *GOOD, "-o", str(out)])
        captured = capsys.readouterr()
        if not disk.mounted and code == 0:
            pytest.skip("needs a mount: the file-size limit is above what this export writes")
        assert code == 11
        assert "space" in captured.err.lower() and "Traceback" not in captured.err
        assert not out.exists()
        assert not _leftovers(place)
        # with room again, the same command succeeds
        filler.unlink(missing_ok=True)
        assert run(["export", *GOOD, "-o", str(out)]) == 0
        assert run(["verify", str(out)]) == 0


def test_a_quantized_file_is_compared_with_its_float_twin(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simplify", "net.onnx", "--prepare", "-o", "p.onnx"]) == 0
    assert run(["calibrate", "p.onnx", "--images", "images", "--out", "c.npz"]) == 0
    assert run(["quantize", "p.onnx", "--calibration", "c.npz", "-o", "q.onnx"]) == 0
    capsys.readouterr()
    assert run(["export", "--json", "q.onnx", *GOOD[1:], "-o", "out"]) == 0
    names = [stage["name"] for stage in json.loads(capsys.readouterr().out)["stages"]]
    assert "float twin" in names
    assert run(["verify", "out"]) == 0
    (twin,) = (place / "edgekit-cache" / "entries").glob("float_twin-*/model.onnx")
    kinds = {node.op_type for node in onnx.load(twin).graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}
    capsys.readouterr()
    assert run(["export", "--json", *GOOD, "-o", "plain"]) == 0
    assert "float twin" not in capsys.readouterr().out
