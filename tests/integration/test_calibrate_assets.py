"""Calibration of a real detector on real photos: the same bits however it was collected, nothing
lost by a kill, nothing half-written by Ctrl-C, bad files counted."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekit import onnx_file
from edgekit.calibration import store
from edgekit.errors import BadInput
from edgekit.preprocess import Preprocess
from edgekit.stages import calibrate
from edgekit.types import Calibration, OnnxModel

CONTRACT = Preprocess(height=640, width=640)
COUNT = 8
# enough of the graph to be real, few enough to be quick
TENSORS = (
    "images",
    "/m/model.0/conv/Conv_output_0",
    "/m/model.0/act/Mul_output_0",
    "/m/model.9/cv2/act/Mul_output_0",
    "/m/model.23/cv3/act/Mul_output_0",
    "output",
)
CHANNELS = {"/m/model.0/act/Mul_output_0": 1, "/m/model.9/cv2/act/Mul_output_0": 1}
OPTIONS = calibrate.CalibrateOptions(
    tensors=TENSORS,
    channels=CHANNELS,
    time_inference=False,
)


@pytest.fixture(scope="module")
def model(assets: Path) -> OnnxModel:
    return onnx_file.describe(assets / "models" / "yolov5n.onnx")


@pytest.fixture(scope="module")
def photos(assets: Path) -> list[Path]:
    return sorted((assets / "coco" / "calib").iterdir())[:COUNT]


@pytest.fixture(scope="module")
def reference(
    model: OnnxModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Calibration:
    out = tmp_path_factory.mktemp("reference") / "calibration.npz"
    return calibrate.run(model, photos, CONTRACT, out, OPTIONS)


@pytest.fixture
def folder(photos: list[Path], tmp_path: Path) -> Path:
    """The photos in a folder of their own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in photos:
        shutil.copy(photo, folder)
    return folder


# --- the same bits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"workers": 3}, {"threads": 2}, {"workers": 2, "threads": 4}], ids=str
)
def test_workers_and_threads_do_not_change_a_bit(
    model: OnnxModel,
    photos: list[Path],
    reference: Calibration,
    tmp_path: Path,
    change: dict[str, Any],
) -> None:
    options = dataclasses.replace(OPTIONS, **change)
    made = calibrate.run(model, photos, CONTRACT, tmp_path / "a.npz", options)
    assert made.sha256 == reference.sha256
    assert made.ranges == reference.ranges
    assert (tmp_path / "a.npz").read_bytes() == reference.path.read_bytes()


def test_order_does_not_change_a_bit(
    model: OnnxModel, photos: list[Path], reference: Calibration, tmp_path: Path
) -> None:
    shuffled = photos[:]
    random.Random(0).shuffle(shuffled)
    made = calibrate.run(model, shuffled, CONTRACT, tmp_path / "a.npz", OPTIONS)
    assert made.sha256 == reference.sha256


def test_merged_parts_equal_the_whole(
    model: OnnxModel, photos: list[Path], reference: Calibration, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    calibrate.run(model, photos[:3], CONTRACT, one, OPTIONS)
    calibrate.run(model, photos[3:], CONTRACT, two, OPTIONS)
    merged = calibrate.merge([two, one], tmp_path / "both.npz", OPTIONS)
    assert merged.sha256 == reference.sha256
    assert merged.ranges == reference.ranges
    assert merged.images == COUNT


def test_figures_are_measured(model: OnnxModel, photos: list[Path], tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, time_inference=True)
    made = calibrate.run(model, photos[:2], CONTRACT, tmp_path / "a.npz", options)
    assert made.inference_seconds > 0
    assert made.seconds > 0
    assert made.peak_rss_mb > 50


def test_fixed_size_and_contract_must_agree(
    model: OnnxModel, photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="is fixed at"):
        small = CONTRACT.replace(height=320, width=320)
        calibrate.run(model, photos, small, tmp_path / "a.npz", OPTIONS)
    assert not (tmp_path / "a.npz").exists()


# --- interruptions ----------------------------------------------------------------------------

_STAGE = """
import json, sys
from pathlib import Path
from edgekit import onnx_file
from edgekit.preprocess import Preprocess
from edgekit.stages import calibrate
from edgekit.errors import BadInput

if __name__ == "__main__":
    model, out, partial, workers, tensors, channels, *photos = sys.argv[1:]
    calibrate.run(
        onnx_file.describe(Path(model)), [Path(p) for p in photos],
        Preprocess(height=640, width=640), Path(out),
        calibrate.CalibrateOptions(
            tensors=tuple(json.loads(tensors)), channels=json.loads(channels),
            workers=int(workers), partial=Path(partial),
            save_every_s=0.0, time_inference=False,
        ),
        lambda done, total, what: print(what, done, flush=True),
    )
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_where_it_stopped(
    model: OnnxModel, photos: list[Path], reference: Calibration, tmp_path: Path, workers: int
) -> None:
    script = tmp_path / "stage.py"
    script.write_text(_STAGE)
    out, partial = tmp_path / "a.npz", tmp_path / "partial"
    command = [sys.executable, str(script), str(model.path), str(out), str(partial)]
    command += [str(workers), json.dumps(TENSORS), json.dumps(CHANNELS), *map(str, photos)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        what, done = line.rsplit(" ", 1)
        if what == "calibrate" and int(done) >= 3:
            break
    process.kill()
    process.wait()
    # workers notice that their parent is gone; each closes the pipe when it ends
    process.stdout.read()
    process.stdout.close()
    assert not out.exists()

    heard: list[tuple[int, str]] = []
    options = dataclasses.replace(OPTIONS, partial=partial)
    made = calibrate.run(
        model,
        photos,
        CONTRACT,
        out,
        options,
        lambda done, total, what: heard.append((done, what)),
    )
    resumed = next(done for done, what in heard if what == "calibrate")
    assert 2 <= resumed < COUNT
    assert made.sha256 == reference.sha256
    assert list(partial.iterdir()) == []


def test_damaged_and_foreign_leftovers_are_passed_over(
    model: OnnxModel, photos: list[Path], reference: Calibration, tmp_path: Path
) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    part = tmp_path / "part.npz"
    calibrate.run(model, photos[:4], CONTRACT, part, OPTIONS)
    shutil.copy(part, partial / "partial-1-0.npz")
    # a killed worker may have left the same images again
    calibrate.run(model, photos[2:5], CONTRACT, partial / "partial-1-1.npz", OPTIONS)
    (partial / "partial-1-2.npz").write_bytes(part.read_bytes()[:1000])
    (partial / ".partial-1-3.xyz.tmp.npz").write_bytes(b"half")
    other = dataclasses.replace(OPTIONS, tensors=("output",))
    calibrate.run(model, photos[6:7], CONTRACT, partial / "partial-1-4.npz", other)
    heard: list[int] = []
    options = dataclasses.replace(OPTIONS, partial=partial)
    made = calibrate.run(
        model,
        photos,
        CONTRACT,
        tmp_path / "a.npz",
        options,
        lambda done, total, what: heard.append(done) if what == "calibrate" else None,
    )
    assert heard[0] == 4
    assert made.sha256 == reference.sha256
    assert list(partial.iterdir()) == []


def edgekit(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing_half_and_the_next_run_succeeds(
    model: OnnxModel, folder: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out" / "a.npz"
    arguments = ["calibrate", model.path, "--images", folder, "--out", out, "--threads", "1"]
    arguments += ["--target", "x86-int8", "--workers", workers, "--resize", "letterbox"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    heard = []
    for line in process.stderr:
        heard.append(line)
        if "calibrate (" in line:
            break
    time.sleep(0.2 if workers == 1 else 1.2)
    # a terminal sends it to the whole process group
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(heard) + stderr
    assert stderr.count("Interrupted") == 1
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not out.parent.exists() or list(out.parent.iterdir()) == []

    again = edgekit(*arguments, "--json")
    assert again.returncode == 0, again.stderr
    answer = json.loads(again.stdout)
    assert (answer["images"], answer["cached"]) == (COUNT, False)
    statistics, digest = store.read(out)
    assert digest == answer["sha256"]
    assert len(statistics.images) == COUNT
    # what was interrupted and resumed equals what was not
    fresh = calibrate.run(
        model,
        folder,
        CONTRACT,
        tmp_path / "fresh.npz",
        dataclasses.replace(
            OPTIONS, tensors=statistics.origin.tensors, channels=statistics.origin.channels
        ),
    )
    assert fresh.sha256 == digest


# --- bad files and the command ----------------------------------------------------------------


def truncate(paths: Sequence[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_photo_is_skipped_and_counted(
    model: OnnxModel, photos: list[Path], folder: Path, tmp_path: Path
) -> None:
    bad = sorted(folder.iterdir())[3]
    truncate([bad])
    options = dataclasses.replace(OPTIONS, max_bad_share=0.2)
    good = [photo for photo in photos if photo.name != bad.name]
    expected = calibrate.run(model, good, CONTRACT, tmp_path / "good.npz", OPTIONS)
    for workers in (1, 2):
        made = calibrate.run(
            model,
            folder,
            CONTRACT,
            tmp_path / "a.npz",
            dataclasses.replace(options, workers=workers),
        )
        assert made.images == COUNT - 1
        assert len(made.skipped) == 1
        assert bad.name in made.skipped[0] and "truncated" in made.skipped[0]
        assert made.ranges == expected.ranges
        one, two = store.read(made.path)[0], store.read(expected.path)[0]
        assert all(one.histogram(name).same_as(two.histogram(name)) for name in TENSORS)


def test_too_many_bad_photos_are_an_error(model: OnnxModel, folder: Path, tmp_path: Path) -> None:
    truncate(sorted(folder.iterdir()))
    out = tmp_path / "a.npz"
    found = edgekit("calibrate", model.path, "--images", folder, "--out", out, "--json")
    assert found.returncode == 8
    answer = json.loads(found.stdout)
    assert "images cannot be used" in answer["error"]
    assert answer["exit_code"] == 8
    assert not out.exists()
    for workers in (1, 2):
        with pytest.raises(BadInput, match="None of the 8 images can be used"):
            options = dataclasses.replace(OPTIONS, max_bad_share=1.0, workers=workers)
            calibrate.run(model, folder, CONTRACT, out, options)
    assert not out.exists()


def test_the_command_from_collecting_to_merging(
    model: OnnxModel, folder: Path, tmp_path: Path
) -> None:
    parts = [tmp_path / "photos-0", tmp_path / "photos-1"]
    for number, photo in enumerate(sorted(folder.iterdir())):
        parts[number % 2].mkdir(exist_ok=True)
        shutil.copy(photo, parts[number % 2])
    common = ["calibrate", model.path, "--target", "x86-int8", "--threads", "1"]
    first = edgekit(*common, "--images", folder, "--out", tmp_path / "all.npz", "--method", "all")
    assert first.returncode == 0, first.stderr
    assert "assumed" in first.stderr
    header, *rows = first.stdout.splitlines()
    assert header.split() == ["tensor", "minmax", "entropy", "percentile", "mse"]
    assert rows[0].split()[0] == "images"

    second = edgekit(*common, "--images", folder, "--out", tmp_path / "again.npz", "--json")
    answer = json.loads(second.stdout)
    assert answer["cached"] is True
    assert answer["tensors"] == len(rows)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "all.npz").read_bytes()
    assert answer["inference_seconds"] > 0
    assert answer["ranges"]["images"]["minmax"][0] == 0.0

    for part in parts:
        found = edgekit(*common, "--images", part, "--out", f"{part}.npz")
        assert found.returncode == 0, found.stderr
        # the nearest earlier run had other images
        assert "Not in the cache: images: " in found.stderr
    files = [f"{part}.npz" for part in parts]
    merged = edgekit("calibrate", "--merge", *files, "--out", tmp_path / "m.npz", "--json")
    assert json.loads(merged.stdout)["sha256"] == answer["sha256"]
    twice = edgekit("calibrate", "--merge", files[0], files[0], "--out", tmp_path / "t.npz")
    assert twice.returncode == 8
    assert "4 images are in both" in twice.stderr
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["MODEL", "--images", "PHOTOS"], 2, "No output file"),
        (["MODEL", "--out", "a.npz"], 2, "A model and images are needed"),
        (["MODEL", "--images", "none", "--out", "a.npz"], 8, "does not exist"),
        (["none.onnx", "--images", "PHOTOS", "--out", "a.npz"], 8, "none.onnx"),
        (["MODEL", "--images", "PHOTOS", "--out", "a.npz", "--method", "msee"], 2, "'mse'"),
        (["MODEL", "--images", "PHOTOS", "--out", "a.npz", "--imgsz", "320"], 8, "is fixed at"),
        (["MODEL", "--images", "PHOTOS", "--out", "a.npz", "-t", "x86-fp32"], 4, "x86-fp32"),
        (["--merge", "one.npz", "--out", "a.npz"], 2, "two or more"),
    ],
)
def test_mistakes_are_told(
    model: OnnxModel,
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": str(model.path), "PHOTOS": str(folder)}
    found = edgekit("calibrate", *(names.get(item, item) for item in arguments))
    assert found.returncode == code, found.stderr
    assert words in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "a.npz").exists()
