"""The bundle: what is written can be read and verified, and nothing tampered with passes."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgekit import bundle, onnx_file
from edgekit.atomic import sha256_file
from edgekit.block import Block
from edgekit.cli import run
from edgekit.contents import BundleModel, ChainStep, ExtraFile
from edgekit.errors import BadInput, EdgekitError, NoSpace, VerificationFailed
from edgekit.golden import GoldenSample, npy_bytes, read_npy
from edgekit.manifest import path_problem, read_manifest
from edgekit.preprocess import Preprocess, apply
from edgekit.stages.diagnose import explain
from edgekit.stages.verify import Check, all_ok, demand, verify_bundle
from edgekit.types import AccuracyReport, BlockParity, Engine, LatencyReport, ParityReport, SpeedUp
from tests.bundles import CONTRACT, contents, edit_manifest, fix_hashes, set_contract, small_model
from tests.disk import SmallDisk, small_disk


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    bundle.write(folder / "small", contents(folder / "parts"))
    return folder / "small"


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A bundle that a test may spoil."""
    shutil.copytree(original, tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def _failed(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify_bundle(folder) if not check.ok}


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# --- writing and reading ------------------------------------------------------------------------


def test_what_is_written_verifies_and_reads_back(original: Path) -> None:
    checks = verify_bundle(original)
    assert all_ok(checks), checks
    assert not any(check.skipped for check in checks)
    assert {"manifest", "SHA256SUMS", "files", "unlisted files", "chain"} <= {
        check.name for check in checks
    }
    assert _files(original) == [
        "README.txt",
        "SHA256SUMS",
        "calibration.npz",
        *(f"golden/00{n}/{f}" for n in (0, 1) for f in ("image.png", "input.npy", "output_0.npy")),
        "manifest.json",
        "onnxruntime/model.onnx",
        "preprocess.json",
        "tables/conv.txt",
    ]
    manifest = read_manifest(original)
    assert manifest.preprocess == CONTRACT
    assert (manifest.name, manifest.target, manifest.task) == ("small", "x86-fp32", "detect")
    assert manifest.names == ("a", "b", "c")
    assert manifest.models[0].inputs[0].shape == (1, 3, 24, 32)
    assert manifest.calibration == "calibration.npz"
    assert manifest.golden.blocks[1].take(np.zeros((1, 7, 192))).shape == (1, 3, 192)
    assert set(manifest.files) == set(_files(original)) - {"manifest.json", "SHA256SUMS"}
    assert manifest.raw["calibration"]["image_sha256"] == ["0" * 64, "1" * 64]
    assert manifest.raw["validation"]["image_sha256"] == ["2" * 64]
    readme = (original / "README.txt").read_text()
    assert all(name in readme for name in _files(original))


def test_the_hashes_are_those_of_a_standard_tool(original: Path) -> None:
    tool = shutil.which("sha256sum")
    assert tool, "coreutils are part of every system this runs on"
    done = subprocess.run(
        [tool, "--strict", "-c", "SHA256SUMS"], cwd=original, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(_files(original)) - 1


def test_golden_arrays_can_be_read_by_a_program_without_numpy(original: Path) -> None:
    """The way a C++ program does it: magic, header length, a header, then the values."""
    data = (original / "golden/000/output_0.npy").read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00"
    (length,) = struct.unpack("<H", data[8:10])
    header = ast.literal_eval(data[10 : 10 + length].decode("latin-1"))
    assert header == {"descr": "<f4", "fortran_order": False, "shape": (1, 7, 192)}
    values = struct.unpack(f"<{math.prod(header['shape'])}f", data[10 + length :])
    with_numpy = np.load(original / "golden/000/output_0.npy")
    assert np.array_equal(np.float32(values), with_numpy.ravel())


def test_open_model_gives_the_file_and_the_contract(original: Path, copy: Path) -> None:
    runtime, files, contract = bundle.open_model(original)
    assert (runtime, contract) == ("onnxruntime", CONTRACT)
    assert files == [original / "onnxruntime/model.onnx"]
    with pytest.raises(BadInput, match="no model for ncnn"):
        bundle.open_model(original, "ncnn")
    file = copy / "onnxruntime/model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationFailed, match=r"model\.onnx has changed"):
        bundle.open_model(copy)
    assert bundle.is_bundle(copy)
    assert not bundle.is_bundle(copy / "golden")


def test_results_and_parity_are_in_the_manifest(tmp_path: Path) -> None:
    latency = LatencyReport(
        p50_ms=2.0, p90_ms=2.1, p95_ms=2.2, p99_ms=2.5, mean_ms=2.0, std_ms=0.1, min_ms=1.9,
        max_ms=3.0, runs=100, threads=1, batch=1, throughput_fps=500, peak_rss_mb=80, load=0.1,
    )  # fmt: skip
    accuracy = AccuracyReport(task="detect", images=10, map50_95=0.7, map50=0.9)
    block = BlockParity(
        name="y", cosine=1.0, sqnr_db=math.inf, max_abs_error=0.0, max_rel_error=0.0
    )
    made = contents(tmp_path / "parts")
    step = ChainStep(
        name="export",
        input_sha256=made.chain[0].input_sha256,
        output_sha256=made.chain[0].output_sha256,
        options={"opset": 17},
        versions={"torch": "2.6"},
        parity=ParityReport(blocks=(block,), samples=2),
    )
    made = contents(
        tmp_path / "parts",
        chain=(step,),
        latency_float=latency,
        latency_int8=latency,
        speedup=SpeedUp(ratio=1.5, low=1.4, high=1.6),
        accuracy_float=accuracy,
        details={"quantization": {"int8_mac_share": 0.9}},
    )
    raw = bundle.write(tmp_path / "out", made).raw
    assert raw["latency"]["speedup"] == {"ratio": 1.5, "low": 1.4, "high": 1.6}
    assert raw["latency"]["int8"]["p99_ms"] == 2.5
    assert (raw["accuracy"]["metric"], raw["accuracy"]["float"]) == ("map50_95", 0.7)
    assert raw["accuracy"]["int8"] is None
    assert raw["chain"][0]["parity"]["sqnr_db"] is None  # infinite: JSON has no word for it
    assert raw["chain"][0]["options"] == {"opset": 17}
    assert raw["versions"]["edgekit"]
    assert raw["details"]["quantization"]["int8_mac_share"] == 0.9
    assert all_ok(verify_bundle(tmp_path / "out"))


def test_equal_contents_give_equal_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = contents(tmp_path / "parts")
    for name in ("one", "two"):
        bundle.write(tmp_path / name, made)
    for name in _files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert read_manifest(tmp_path / "one").raw["created_utc"] == "2023-11-14T22:13:20Z"


def _other_input(made: Any) -> dict[str, Any]:
    sample = made.golden[0]
    return {"golden": (GoldenSample(image=sample.image, input=sample.input + 1, outputs={}),)}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (lambda made: {"golden": ()}, "golden sample"),
        (lambda made: {"models": ()}, "a model"),
        (lambda made: {"chain": ()}, "no steps"),
        (
            lambda made: {"chain": (ChainStep(name="x", input_sha256=("9",), output_sha256=()),)},
            "no earlier step gave",
        ),
        (
            lambda made: {
                "extra": (ExtraFile(path="../x", source=made.calibration, what="a file outside"),)
            },
            "leaves the folder",
        ),
        (
            lambda made: {
                "extra": (ExtraFile(path="calibration.npz", source=made.calibration, what=""),)
            },
            "two files",
        ),
        (_other_input, "not that of its image"),
    ],
)
def test_contents_that_contradict_themselves_are_refused(
    tmp_path: Path, changes: Callable[[Any], dict[str, Any]], text: str
) -> None:
    made = contents(tmp_path / "parts")
    with pytest.raises(ValueError, match=text):
        bundle.write(tmp_path / "out", contents(tmp_path / "parts", **changes(made)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]


def test_a_model_changed_since_it_was_built_is_refused(tmp_path: Path) -> None:
    made = contents(tmp_path / "parts")
    small_model(tmp_path / "parts" / "model.onnx", seed=1)
    with pytest.raises(VerificationFailed, match="has changed since"):
        bundle.write(tmp_path / "out", made)
    assert not (tmp_path / "out").exists()


def test_file_names_of_any_kind_become_plain_ones(tmp_path: Path) -> None:
    made = contents(tmp_path / "parts")
    odd = tmp_path / "parts" / "-mein modell $(x) ü.onnx"
    shutil.copy(tmp_path / "parts" / "model.onnx", odd)
    engine = made.models[0].engine
    engine = Engine(runtime=engine.runtime, files=(odd,), precision="fp32", sha256=engine.sha256)
    model = BundleModel(engine=engine, inputs=made.models[0].inputs, outputs=())
    out = tmp_path / "out put"
    bundle.write(out, contents(tmp_path / "parts", models=(model,), name='a "b" $(c)\n;'))
    assert bundle.open_model(out)[1] == [out / "onnxruntime/mein_modell___x___.onnx"]
    assert all_ok(verify_bundle(out))


# --- nothing is lost ----------------------------------------------------------------------------


def test_an_earlier_bundle_is_replaced_and_nothing_else_ever(tmp_path: Path) -> None:
    made, out = contents(tmp_path / "parts"), tmp_path / "out"
    out.mkdir()
    bundle.write(out, made)  # an empty folder may be filled
    bundle.write(out, made)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"notes\.txt"):
        bundle.write(out, made)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    (out / "manifest.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        bundle.write(out, made)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("a cat")
    with pytest.raises(BadInput, match="is not a bundle"):
        bundle.write(photos, made)
    assert _files(photos) == ["cat.jpg"]


def test_a_bundle_that_fails_its_check_does_not_take_the_place(tmp_path: Path) -> None:
    made, out = contents(tmp_path / "parts"), tmp_path / "out"
    bundle.write(out, made)
    before = (out / "manifest.json").read_bytes()
    seen = []

    def refuse(folder: Path) -> None:
        seen.append(all_ok(verify_bundle(folder)))
        raise VerificationFailed("no")

    with pytest.raises(VerificationFailed, match="no"):
        bundle.write(out, made, check=refuse)
    assert seen == [True]
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "parts"]


def test_a_kill_while_writing_leaves_the_old_bundle_whole(tmp_path: Path) -> None:
    """Killed at many moments of the writing: the bundle there verifies every time."""
    out = tmp_path / "out"
    bundle.write(out, contents(tmp_path / "parts"))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgekit import bundle\n"
        "from tests.bundles import contents\n"
        "made = contents(Path(sys.argv[2]))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    bundle.write(Path(sys.argv[1]), made)\n"
    )
    root = Path(__file__).resolve().parents[2]
    for moment in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(out), str(tmp_path / "parts2")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.003 + 0.0071 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert _failed(out) == {}
    bundle.write(out, contents(tmp_path / "parts"))
    assert _failed(out) == {}
    # a kill can leave a hidden temporary folder that the next writer cannot yet tell from one in use
    left = [path for path in tmp_path.iterdir() if path.name not in ("out", "parts", "parts2")]
    assert all(path.name.startswith(".out.") for path in left)


def test_a_full_disk_leaves_the_old_bundle_whole(tmp_path: Path, disk: SmallDisk) -> None:
    made, out = contents(tmp_path / "parts"), disk.folder / "out"
    bundle.write(out, made)
    big = tmp_path / "parts" / "big.bin"
    big.write_bytes(bytes(disk.too_much))
    extra = (ExtraFile(path="big.bin", source=big, what="more than fits"),)
    with disk.full(), pytest.raises(NoSpace) as caught:
        bundle.write(out, contents(tmp_path / "parts", extra=extra))
    assert caught.value.exit_code == 11
    assert _failed(out) == {}
    assert [path.name for path in disk.folder.iterdir()] == ["out"]


# --- damage -------------------------------------------------------------------------------------


def test_one_flipped_bit_in_any_file_is_named(original: Path, tmp_path: Path) -> None:
    position = random.Random(5)
    for name in _files(original):
        spoilt = tmp_path / "spoilt"
        shutil.copytree(original, spoilt)
        file = spoilt / name
        data = bytearray(file.read_bytes())
        data[position.randrange(len(data))] ^= 1 << position.randrange(8)
        file.write_bytes(data)
        failed = _failed(spoilt)
        assert failed, name
        assert any(name in check or name in detail for check, detail in failed.items()), failed
        shutil.rmtree(spoilt)


def test_every_byte_of_the_manifest_counts(original: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(original, spoilt)
    data = (original / "manifest.json").read_bytes()
    for place in random.Random(6).sample(range(len(data)), 60):
        changed = bytearray(data)
        changed[place] ^= 0x04
        (spoilt / "manifest.json").write_bytes(changed)
        failed = _failed(spoilt)
        assert any("manifest" in f"{check} {detail}" for check, detail in failed.items()), place


@pytest.mark.parametrize("how", ["remove", "empty", "grow", "folder"])
def test_a_file_that_is_not_there_whole_is_named(copy: Path, original: Path, how: str) -> None:
    for name in _files(original):
        if name in ("manifest.json", "SHA256SUMS"):
            continue
        file = copy / name
        data = file.read_bytes()
        if how == "grow":
            file.write_bytes(data + b"\0")
        elif how == "empty":
            file.write_bytes(b"")
        else:
            file.unlink()
            if how == "folder":
                file.mkdir()
        failed = _failed(copy)
        assert f"file {name}" in failed
        if how == "folder":
            file.rmdir()
        file.write_bytes(data)
    assert _failed(copy) == {}


def test_all_damage_is_reported_at_once(copy: Path) -> None:
    (copy / "README.txt").write_text("other")
    (copy / "calibration.npz").unlink()
    (copy / "virus.sh").write_text("")
    (copy / "golden/001/input.npy").write_bytes(b"no array")
    assert {
        "file README.txt",
        "file calibration.npz",
        "file golden/001/input.npy",
        "unlisted files",
        "golden input 001",
    } <= set(_failed(copy))
    with pytest.raises(VerificationFailed, match=r"(?s)README\.txt.*virus\.sh"):
        demand(verify_bundle(copy), copy)


def test_a_damaged_model_is_not_given_to_the_runtime(copy: Path) -> None:
    file = copy / "onnxruntime/model.onnx"
    file.write_bytes(bytes(reversed(file.read_bytes())))
    failed = _failed(copy)
    assert "not run" in failed["golden outputs (onnxruntime)"]
    assert "not an ONNX model" in failed["preprocessing in onnxruntime/model.onnx"]


# --- tampering: all hashes are set right, and it is still found ---------------------------------


def test_tampering_with_nothing_passes(copy: Path) -> None:
    fix_hashes(copy)
    set_contract(copy, CONTRACT)
    assert _failed(copy) == {}


def test_swapped_red_and_blue_are_named(copy: Path) -> None:
    set_contract(copy, CONTRACT.replace(color="bgr"))
    failed = _failed(copy)
    assert set(failed) == {"golden input 000", "golden input 001"}
    assert "red and blue are swapped" in failed["golden input 000"]


def test_a_swapped_golden_image_is_named(copy: Path) -> None:
    file = str(copy / "golden/000/image.png")
    cv2.imwrite(file, cv2.imread(file)[:, :, ::-1])
    fix_hashes(copy)
    failed = _failed(copy)
    assert set(failed) == {"golden input 000"}
    assert "red and blue are swapped" in failed["golden input 000"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "mean 0.485/0.456/0.406"),
        ({"std": (1.0, 1.0, 1.0)}, "std 0.229/0.224/0.225"),
        ({"mean": (0.485, 0.456, 0.407)}, "mean 0.485/0.456/0.406"),
        ({"color": "bgr", "mean": (0.0, 0.0, 0.0)}, "red and blue are swapped"),
        ({"resize": "stretch"}, "resize letterbox"),
        ({"pad_value": 0}, "pad_value 114"),
        ({"pad_place": "bottom_right"}, "pad_place center"),
        ({"interpolation": "nearest"}, "interpolation bilinear"),
        ({"height": 32}, "shape"),
        ({"layout": "nhwc"}, "shape"),
        ({"scale": 1 / 256}, "mean"),
    ],
)
def test_another_preprocessing_is_named(copy: Path, changes: dict[str, Any], words: str) -> None:
    set_contract(copy, CONTRACT.replace(**changes))
    failed = _failed(copy)
    assert words in failed["golden input 000"], failed


def test_contracts_that_differ_are_named(copy: Path) -> None:
    other = CONTRACT.replace(mean=(0.0, 0.0, 0.0))
    (copy / "preprocess.json").write_text(json.dumps(other.to_dict()))
    fix_hashes(copy)
    failed = _failed(copy)
    assert "mean [0.0, 0.0, 0.0], not [0.485" in failed["preprocessing in preprocess.json"]
    model = onnx_file.load(copy / "onnxruntime/model.onnx")
    onnx_file.set_metadata(model, {"edgekit.preprocess": CONTRACT.replace(color="bgr").to_json()})
    onnx_file.save(model, copy / "onnxruntime/model.onnx")
    fix_hashes(copy)
    failed = _failed(copy)
    assert "color bgr, not rgb" in failed["preprocessing in onnxruntime/model.onnx"]
    assert "no step gave the model" in failed["chain"]
    del model.metadata_props[:]
    onnx_file.save(model, copy / "onnxruntime/model.onnx")
    fix_hashes(copy)
    assert "no metadata" in _failed(copy)["preprocessing in onnxruntime/model.onnx"]


@pytest.mark.parametrize(("row", "block"), [(0, "boxes"), (5, "scores")])
def test_one_changed_golden_value_is_found(copy: Path, row: int, block: str) -> None:
    path = copy / "golden/001/output_0.npy"
    array = read_npy(path).copy()
    part = array[0, :4] if row < 4 else array[0, 4:]
    array[0, row, 17] += np.float32(3e-6 * np.abs(part).max())
    path.write_bytes(npy_bytes(array))
    assert "has changed" in _failed(copy)["file golden/001/output_0.npy"]
    fix_hashes(copy)
    failed = _failed(copy)
    assert set(failed) == {"golden outputs (onnxruntime)"}
    assert f"block '{block}'" in failed["golden outputs (onnxruntime)"]


def test_another_model_is_found(copy: Path, tmp_path: Path) -> None:
    small_model(copy / "onnxruntime/model.onnx", seed=1)
    fix_hashes(copy)
    assert {"chain", "golden outputs (onnxruntime)"} == set(_failed(copy))


def test_elsewhere_the_limits_are_wider_and_said(copy: Path) -> None:
    """Golden outputs made by another runtime version: float noise passes, a wrong value does not."""
    path = copy / "golden/000/output_0.npy"
    array = read_npy(path).copy()
    array[0, 0, 0] += 2e-5 * np.abs(array[0, :4]).max()
    path.write_bytes(npy_bytes(array))

    def older(manifest: dict[str, Any]) -> None:
        manifest["golden"]["runtime_version"] = "1.0"

    edit_manifest(copy, older)
    checks = {check.name: check for check in verify_bundle(copy)}
    assert checks["golden outputs (onnxruntime)"].ok
    assert "another CPU or runtime version" in checks["golden outputs (onnxruntime)"].detail
    array[0, 0, 0] *= 1.5
    path.write_bytes(npy_bytes(array))
    fix_hashes(copy)
    assert "onnxruntime 1.0" in _failed(copy)["golden outputs (onnxruntime)"]


def test_nan_in_a_golden_output_is_named(copy: Path) -> None:
    path = copy / "golden/000/output_0.npy"
    array = read_npy(path).copy()
    array[0, 2, 3] = np.nan
    path.write_bytes(npy_bytes(array))
    fix_hashes(copy)
    assert "nan" in _failed(copy)["golden outputs (onnxruntime)"]


def test_a_runtime_that_is_not_here_is_skipped_and_said(copy: Path) -> None:
    def other(manifest: dict[str, Any]) -> None:
        manifest["models"][0]["runtime"] = "some-accelerator"

    edit_manifest(copy, other)
    checks = verify_bundle(copy)
    assert all_ok(checks)
    skipped = [check for check in checks if check.skipped]
    assert [check.name for check in skipped] == ["golden outputs (some-accelerator)"]
    assert "not checked" in skipped[0].detail


# --- hostile manifests --------------------------------------------------------------------------


def _rename_file(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("tables/conv.txt")

    return edit


@pytest.mark.parametrize(
    "name",
    [
        "../outside.txt", "/etc/passwd", "a/../../b", "./a", "a//b", "a/", "", ".", "..", "~/x",
        "C:/x", "C:x", "a\\b", "-rf", ".hidden", "a b", "a\nb", "a;b", "$(a)", "a'b", "é", "x" * 201,
        "MANIFEST.json", "sha256sums", "Readme.TXT",
    ],
)  # fmt: skip
def test_a_path_that_could_lead_anywhere_is_refused(copy: Path, name: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    _rename_file(name)(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="path"):
        read_manifest(copy)
    assert set(_failed(copy)) == {"manifest"}


def test_paths_that_are_fine(tmp_path: Path) -> None:
    for name in ("a", "a/b.c", "A-1_2+3.onnx", "onnxruntime/model.onnx", "x" * 200):
        assert path_problem(name) is None


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (_set("schema", value=2), "schema 2"),
        (_set("schema", value=True), "schema True"),
        (_set("format", value="other"), "not the manifest"),
        (_set("files", value=[]), "files must be an object"),
        (_set("files", value={f"f{n}": {} for n in range(10_001)}), "10001 files"),
        (_set("files", "README.txt", "size", value=-1), "size"),
        (_set("files", "README.txt", "size", value=1 << 60), "size"),
        (_set("files", "README.txt", "size", value=1.5), "size"),
        (_set("files", "README.txt", "size", value="1"), "size"),
        (_set("files", "README.txt", "sha256", value="0" * 63), "64 hex"),
        (_set("files", "README.txt", "sha256", value=None), "64 hex"),
        (_set("models", value=[]), "no model"),
        (_set("models", value=[3]), "list of objects"),
        (_set("models", 0, "files", value=[]), "without files"),
        (_set("models", 0, "files", value=["other.onnx"]), "not listed"),
        (_set("models", 0, "inputs", 0, "shape", value="3"), "shape"),
        (_set("golden", "samples", 0, "image", value="/etc/passwd"), "not listed"),
        (_set("golden", "samples", 0, "outputs", 0, "file", value="x"), "not listed"),
        (_set("golden", "blocks", 0, "axes", value=[[[0, -1, 1]]]), "not an index"),
        (_set("golden", "blocks", 0, "axes", value=3), "not a block"),
        (_set("golden", "same", value=None), "limits"),
        (_set("golden", "same", "max_rel_error", value="1"), "number"),
        (_set("preprocess", value=None), "preprocess"),
        (_set("preprocess", "color", value="cmyk"), "color"),
        (_set("preprocess", "unknown", value=1), "unknown"),
        (_set("preprocess", "std", value=[0, 0, 0]), "std"),
        (_set("names", value="abc"), "names"),
        (_set("verdict", value=None), "verdict"),
        (_set("target", value={}), "name"),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(
    copy: Path, edit: Callable[[dict[str, Any]], None], text: str
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    edit(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=text):
        read_manifest(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"{", b"\xff\xfe", b'{"format": NaN}',
        b'{"format": "edgekit-bundle", "format": "edgekit-bundle"}', b"[" * 100_000,
        b'{"format": "edgekit-bundle", "schema": 1}',
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(copy: Path, data: bytes) -> None:
    (copy / "manifest.json").write_bytes(data)
    with pytest.raises(BadInput):
        read_manifest(copy)
    assert set(_failed(copy)) == {"manifest"}


def test_random_damage_to_a_manifest_is_never_a_crash(copy: Path) -> None:
    """Values of any type in any place: a clear error, or a manifest that says what it says."""
    chooser = random.Random(1)
    text = (copy / "manifest.json").read_text()
    values = [None, True, -1, 1e300, "", "../x", [], {}, [[]], {"name": 1}]

    def places(value: Any) -> list[tuple[Any, Any]]:
        found: list[tuple[Any, Any]] = []
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            found.append((value, key))
            if isinstance(item, (dict, list)):
                found += places(item)
        return found

    refused = 0
    for _ in range(400):
        manifest = json.loads(text)
        container, key = chooser.choice(places(manifest))
        container[key] = chooser.choice(values)
        (copy / "manifest.json").write_text(json.dumps(manifest))
        try:
            read_manifest(copy)
        except EdgekitError:
            refused += 1
    assert refused > 100


def test_links_that_lead_out_are_refused(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    shutil.copy(copy / "tables/conv.txt", outside)
    (copy / "tables/conv.txt").unlink()
    (copy / "tables/conv.txt").symlink_to(outside)
    assert "leads out" in _failed(copy)["file tables/conv.txt"]
    (copy / "tables/conv.txt").unlink()
    (copy / "tables").rmdir()
    (tmp_path / "tables").mkdir()
    shutil.copy(outside, tmp_path / "tables/conv.txt")
    (copy / "tables").symlink_to(tmp_path / "tables")
    assert "leads out" in _failed(copy)["file tables/conv.txt"]
    (copy / "loop").symlink_to(copy / "loop")
    assert "loop" in _failed(copy)["unlisted files"]


def test_a_named_pipe_does_not_block(copy: Path) -> None:
    (copy / "README.txt").unlink()
    os.mkfifo(copy / "README.txt")
    assert "not a plain file" in _failed(copy)["file README.txt"]


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3), ">f4"), np.asfortranarray(np.zeros((2, 3), np.float32)), np.array([{}])],
)
def test_other_kinds_of_array_files_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(BadInput):
        read_npy(tmp_path / "a.npy")


def test_array_files_are_bounded_by_their_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    data = npy_bytes(np.arange(6, dtype=np.float32).reshape(2, 3))
    path.write_bytes(data)
    assert np.array_equal(read_npy(path), np.arange(6, dtype=np.float32).reshape(2, 3))
    for changed in (data.replace(b"(2, 3)", b"(9**9,"), data[:-1], data + b"\0", data[:20], b""):
        path.write_bytes(changed)
        with pytest.raises(BadInput):
            read_npy(path)
    path.write_bytes(data.replace(b"(2, 3)", b"(9, 9)"))
    with pytest.raises(BadInput, match="does not hold"):
        read_npy(path)


# --- the pieces ---------------------------------------------------------------------------------


def test_blocks_take_what_they_say() -> None:
    array = np.arange(2 * 6 * 10).reshape(2, 6, 10)
    block = Block(name="b", output="y", axes=((), ((0, 2, 1), (4, 6, 1)), ((1, 10, 3),)))
    assert np.array_equal(block.take(array), array[:, [0, 1, 4, 5]][:, :, 1::3])
    assert np.shares_memory(Block(name="w", output="y").take(array), array)
    assert Block.from_json(json.loads(json.dumps(block.to_json()))) == block
    for axes in ((((0, 7, 1),),) * 2, (((3, 3, 1),),), ((), (), (), ())):
        with pytest.raises(ValueError, match="block x"):
            Block(name="x", output="y", axes=axes).take(array)


def test_equal_tensors_need_no_explanation() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    contract = Preprocess(height=16, width=16, dtype="uint8")
    tensor = apply(image, contract)[0]
    assert explain(image, tensor, contract) == ""
    tensor[0, 0, 3, 3] ^= 1
    assert explain(image, tensor, contract) == "1 of 768 values differ, by 1 at most"
    assert "uint8" in explain(image, tensor, contract.replace(dtype="float32"))


def test_the_command_answers_for_a_bundle(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(copy), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert all({"name", "ok", "detail"} <= set(check) for check in answer["checks"])
    (copy / "README.txt").write_text("x")
    assert run(["verify", str(copy), "--json"]) == 9
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [check["name"] for check in answer["checks"] if not check["ok"]] == ["file README.txt"]
    assert run(["verify", str(copy)]) == 9
    shown = capsys.readouterr()
    assert "FAILED" in shown.out
    assert "README.txt" in shown.err


def test_the_command_refuses_what_it_cannot_check(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(original / "onnxruntime/model.onnx")
    for arguments, code, text in (
        ([str(tmp_path / "nothing")], 8, "does not exist"),
        ([str(tmp_path)], 8, "not a bundle"),
        ([model], 2, "REFERENCE"),
        ([str(original), "--images", str(tmp_path)], 2, "golden"),
        ([model, str(tmp_path / "nothing.onnx")], 8, "does not exist"),
        ([model, model, "--images", str(tmp_path / "nothing")], 8, "does not exist"),
        ([], 2, "PATH"),
    ):
        assert run(["verify", *arguments, "--json"]) == code
        answer = json.loads(capsys.readouterr().out)
        assert text in answer["error"] + answer["hint"]
        assert answer["exit_code"] == code


def test_checks_are_plain_values(original: Path) -> None:
    check = Check(name="a", ok=False, detail="b")
    with pytest.raises(AttributeError):
        check.ok = True  # type: ignore[misc]
    demand([Check(name="a", ok=True, detail="")], original)
    assert sha256_file(original / "manifest.json")
