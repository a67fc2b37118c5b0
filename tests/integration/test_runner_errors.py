"""What the native runner refuses, with the exit code and the words for it, and never a crash."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgekit.golden import npy_bytes
from edgekit.preprocess import Preprocess
from tests.bundles import edit_manifest, fix_hashes
from tests.ncnn_bundles import front, identity, run_program, write_bundle

pytest.importorskip("ncnn")

CONTRACT = Preprocess(height=64, width=64)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "bundle"
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (50, 90, 3), dtype=np.uint8)]
    graph = front(CONTRACT, (1, 7, 84))
    return write_bundle(
        folder, CONTRACT, graph, images=images, task="detect", head="yolov8", names=tuple("abc")
    )


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    cv2.imwrite(str(path), np.full((64, 64, 3), 90, dtype=np.uint8))
    return path


def _refused(program: Path, code: int, words: str, *arguments: str | Path) -> dict[str, Any]:
    found, answer, log = run_program(program, *arguments)
    assert found == code, answer
    assert words in answer["error"], answer
    assert "edgekit-ncnn:" in log
    return answer


def _edit_sidecar(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change model.json, then set sizes and hashes right everywhere."""
    path = bundle / "ncnn" / "model.json"
    value = json.loads(path.read_text())
    edit(value)
    for kind in ("param", "bin"):
        data = (path.parent / value[kind]["file"]).read_bytes()
        value[kind].update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    path.write_text(json.dumps(value))
    fix_hashes(bundle)


def test_self_test_of_sound_bundles(
    original: Path, cells_ncnn: dict[str, Path], runner: Path
) -> None:
    for bundle in (original, *cells_ncnn.values()):
        code, answer, _ = run_program(runner, bundle, "--self-test")
        assert code == 0 and answer["ok"] is True, answer
        names = [check["name"] for check in answer["checks"]]
        assert {"manifest", "SHA256SUMS", "files", "unlisted files"} <= set(names)
        assert "golden outputs (ncnn)" in names and "golden input of golden/000/image.png" in names
        assert not any(check.get("skipped") for check in answer["checks"])


def _change_output(bundle: Path) -> None:
    path = bundle / "golden" / "000" / "output_0.npy"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(900).tobytes()
    path.write_bytes(bytes(data))


def _change_input(bundle: Path) -> None:
    path = bundle / "golden" / "000" / "input.npy"
    data = np.load(path)
    data[0, 1, 30, 30] += 0.004
    path.write_bytes(npy_bytes(data))


def _change_contract(bundle: Path) -> None:
    value = json.loads((bundle / "preprocess.json").read_text())
    (bundle / "preprocess.json").write_text(json.dumps({**value, "color": "bgr"}))


def test_self_test_finds_what_is_wrong(copy: Path, tmp_path: Path, runner: Path) -> None:
    def failed(words: str, change: Callable[[Path], Any], hashes: bool) -> None:
        bundle = Path(shutil.copytree(copy, tmp_path / "changed"))
        change(bundle)
        if hashes:
            fix_hashes(bundle)
        code, answer, _ = run_program(runner, bundle, "--self-test")
        assert code == 9 and answer["ok"] is False, answer
        details = [f"{c['name']}: {c['detail']}" for c in answer["checks"] if not c["ok"]]
        assert any(words in detail for detail in details), details
        shutil.rmtree(bundle)

    failed("has changed: sha256", _change_output, False)
    failed("max_rel_error", _change_output, True)
    failed("is not its image preprocessed", _change_input, True)
    failed("differs from the manifest", _change_contract, True)
    failed("is missing", lambda b: (b / "README.txt").unlink(), False)
    failed("not in the manifest: ncnn/extra.bin", lambda b: (b / "ncnn/extra.bin").touch(), False)
    failed("bytes, not", lambda b: (b / "ncnn/model.param").write_text("7767517\n"), False)
    failed("SHA256SUMS", lambda b: (b / "SHA256SUMS").write_text(""), False)
    failed("not valid JSON", lambda b: (b / "manifest.json").write_text('{"format": '), False)

    def link(bundle: Path) -> None:
        outside = tmp_path / "outside.txt"
        (bundle / "README.txt").rename(outside)
        (bundle / "README.txt").symlink_to(outside)

    failed("leads out of the bundle", link, False)


def test_changed_model_files_are_not_run(copy: Path, photo: Path, runner: Path) -> None:
    data = (copy / "ncnn" / "model.param").read_text()
    (copy / "ncnn" / "model.param").write_text(data.replace("84", "48"))
    _refused(runner, 9, "has changed: sha256", copy, photo)
    fix_hashes(copy)  # the sidecar still names the old one
    _refused(runner, 9, "name different files", copy, photo)


def test_corrupt_models_are_refused(copy: Path, photo: Path, tmp_path: Path, runner: Path) -> None:
    def refused(
        words: str, param: Callable[[str], str], code: int = 8, weights: bytes = b""
    ) -> None:
        bundle = Path(shutil.copytree(copy, tmp_path / "corrupt"))
        path = bundle / "ncnn" / "model.param"
        path.write_text(param(path.read_text()))
        (bundle / "ncnn" / "model.bin").write_bytes(weights)
        _edit_sidecar(bundle, lambda value: None)
        _refused(runner, code, words, bundle, photo)
        shutil.rmtree(bundle)

    refused("a layer needs", lambda t: t[: len(t) // 2 - 8])
    refused("another number of layers", lambda t: t[: t.rindex("Reshape")])
    refused("first line", lambda t: "x" + t)
    refused("no layer 'Magic'", lambda t: t.replace("Flatten ", "Magic "))
    refused("cuts more than there is", lambda t: t.replace("588", "99999"))
    refused("becomes [84, 6]", lambda t: t.replace("588", "504").replace("0=84 1=7", "0=6 1=84"))
    refused("which nothing has made", lambda t: t.replace("1 1 head", "1 1 body"))
    refused("left over", lambda t: t, weights=b"abcd")


def test_manifests_that_lie_are_refused(
    copy: Path, photo: Path, tmp_path: Path, runner: Path
) -> None:
    def refused(words: str, edit: Callable[[dict[str, Any]], Any], code: int = 8) -> None:
        bundle = Path(shutil.copytree(copy, tmp_path / "lying"))
        edit_manifest(bundle, edit)
        _refused(runner, code, words, bundle, photo)
        shutil.rmtree(bundle)

    refused("another schema", lambda m: m.update(schema=2))
    refused("not the manifest", lambda m: m.update(format="other"))
    refused("'names'", lambda m: m.update(names=[1]))
    refused("5 names", lambda m: m.update(names=list("abcde")))
    refused("unknown key", lambda m: m["preprocess"].update(gamma=2))
    refused("the preprocessing gives", lambda m: m["preprocess"].update(height=32))
    refused("outputs of the model", lambda m: m["models"][0]["outputs"][0].update(name="other"))
    refused("no model for ncnn", lambda m: m["models"][0].update(runtime="onnxruntime"), 4)
    refused("resizes by 'bicubic'", lambda m: m["preprocess"].update(interpolation="bicubic"), 4)
    refused("do not have the layout", lambda m: m.update(head="yolo26"))
    refused("79 classes", lambda m: m.update(head="yolov5"))


def test_the_sidecar_decides_about_int8(copy: Path, photo: Path, runner: Path) -> None:
    _edit_sidecar(copy, lambda value: value["options"].update(use_magic=True))
    _refused(runner, 4, "no ncnn option 'use_magic'", copy, photo)


def test_bad_images(copy: Path, photo: Path, tmp_path: Path, runner: Path) -> None:
    jpeg = tmp_path / "whole.jpg"
    cv2.imwrite(str(jpeg), np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(jpeg.read_bytes()[:1500])
    text = tmp_path / "text.png"
    text.write_text("not an image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    huge = tmp_path / "huge.png"
    data = bytearray(photo.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    huge.write_bytes(bytes(data))
    for path, words in (
        (cut, "is truncated"), (text, "does not read"), (empty, "is empty"), (huge, "unusable size"),
    ):  # fmt: skip
        answer = _refused(runner, 8, words, copy, path)
        assert answer["images"][0]["image"] == str(path)
    _refused(runner, 8, "does not exist", copy, tmp_path / "none.jpg")
    (tmp_path / "folder").mkdir()
    _refused(runner, 8, "No image in", copy, tmp_path / "folder")
    # one bad image takes the others with it in no case
    answer = _refused(runner, 8, "1 of 3 inputs", copy, photo, cut, photo)
    assert [("error" in item) for item in answer["images"]] == [False, True, False]


def test_bad_tensors(copy: Path, tmp_path: Path, runner: Path) -> None:
    def tensor(data: bytes) -> Path:
        path = tmp_path / "tensor.npy"
        path.write_bytes(data)
        return path

    zeros = np.zeros(CONTRACT.input_shape, dtype=np.float32)
    _refused(runner, 8, "has 100 bytes", copy, "--tensor", tensor(bytes(100)))
    other = np.zeros((1, 3, 64, 65), dtype=np.float32)
    _refused(runner, 8, "made for one size", copy, "--tensor", tensor(npy_bytes(other)))
    _refused(runner, 8, "not a .npy", copy, "--tensor", tensor(npy_bytes(zeros)[:50]))
    complex_values = npy_bytes(zeros).replace(b"<f4", b"<c8")
    _refused(runner, 8, "'<c8'", copy, "--tensor", tensor(complex_values))
    zeros[0, 0, 0, 3] = np.nan
    answer = _refused(runner, 8, "not finite", copy, "--tensor", tensor(npy_bytes(zeros)))
    assert "first at element 3" in answer["error"]
    zeros[0, 0, 0, 3] = 0
    zeros.reshape(-1)[4 * 84] = 7.0  # a score
    _refused(runner, 8, "instead of 0 to 1", copy, "--tensor", tensor(npy_bytes(zeros)))


def test_usage(copy: Path, photo: Path, tmp_path: Path, runner: Path) -> None:
    _refused(runner, 2, "A bundle is missing", *[])
    _refused(runner, 2, "no image was given", copy)
    answer = _refused(runner, 2, "Unknown option '--sefl-test'", copy, "--sefl-test")
    assert answer["hint"] == "Did you mean '--self-test'?"
    _refused(runner, 2, "from 1 to 256", copy, photo, "--threads", "0")
    _refused(runner, 8, "is not a folder", tmp_path / "none", photo)
    _refused(runner, 8, "is not a bundle", tmp_path, photo)
    _refused(runner, 4, "Vulkan is not compiled", copy, photo, "--vulkan")
    _refused(runner, 4, "no float16 on this CPU", copy, photo, "--fp16")
    file = tmp_path / "file"
    file.touch()
    _refused(runner, 8, "cannot be made", copy, photo, "--draw", file / "folder")
    done = subprocess.run([runner, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Examples:" in done.stdout
    done = subprocess.run([runner, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ncnn 1.0." in done.stdout


def test_bench(cells_ncnn: dict[str, Path], runner: Path) -> None:
    bundle = cells_ncnn["fp32"]
    code, answer, _ = run_program(
        runner, bundle, "--bench", "--warmup", "2", "--runs", "11", "--threads", "2",
        "--powersave", "0", "--cooldown-s", "0.1",
    )  # fmt: skip
    assert code == 0
    order = [answer[f"{key}_ms"] for key in ("min", "p50", "p90", "p95", "p99", "max")]
    assert order == sorted(order) and order[0] > 0
    assert answer["runs"] == 11 and answer["threads"] == 2 and answer["batch"] == 1
    assert answer["throughput_fps"] == pytest.approx(1e3 / answer["mean_ms"])
    assert 5 < answer["peak_rss_mb"] < 500 and answer["std_ms"] >= 0
    assert answer["cpu"]["cores"] >= 1 and 0 <= answer["load"] <= 1
    assert len(answer["load_average"]) == 3
    for name, key in (("temperature", "temperatures"), ("CPU frequency", "cores")):
        assert (name in answer["not_available"]) == (not answer[key])
    code, answer, log = run_program(
        runner, bundle, "--bench", "--warmup", "0", "--runs", "3", "--max-p99-ms", "0.0001"
    )
    assert code == 7 and "above the budget" in answer["error"] and answer["p99_ms"] > 0
    assert "above the budget" in log


def test_precisions_and_drawing(cells_ncnn: dict[str, Path], tmp_path: Path, runner: Path) -> None:
    bundle = cells_ncnn["fp32"]
    photo = sorted((Path(__file__).parent.parent.parent / "calib").glob("*.jpg"))[0]
    code, plain, _ = run_program(runner, bundle, photo, "--draw", tmp_path / "drawn")
    assert code == 0 and plain["precision"] == "fp32"
    item = plain["images"][0]
    drawn, image = cv2.imread(item["drawing"]), cv2.imread(str(photo))
    assert drawn is not None and image is not None and drawn.shape == image.shape
    changed = np.abs(drawn.astype(int) - image).max(axis=2) > 40
    x1, y1, x2, y2 = (round(v) for v in item["detections"][0]["box"])
    assert changed[min(y2, 190), x1:x2].mean() > 0.5 or changed[y1, x1:x2].mean() > 0.5
    assert 0.001 < changed.mean() < 0.5
    code, half, _ = run_program(runner, bundle, photo, "--bf16", "--no-light-mode")
    assert code == 0 and half["precision"] == "bf16"
    scores = [[d["score"] for d in answer["images"][0]["detections"]] for answer in (plain, half)]
    assert scores[0] != scores[1]
    assert abs(scores[0][0] - scores[1][0]) < 0.05


def test_a_graph_without_weights_needs_no_head(tmp_path: Path, runner: Path, photo: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", CONTRACT, identity(CONTRACT))
    _refused(runner, 8, "fit no head", bundle, photo)
    code, answer, _ = run_program(runner, bundle, photo, "--raw")
    assert code == 0 and "detections" not in answer["images"][0]
