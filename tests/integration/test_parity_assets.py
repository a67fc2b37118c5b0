"""Parity and bundle verification on YOLOv5n: what is broken is caught, good INT8 is not."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit import onnx_file
from edgekit.cli import run
from edgekit.golden import npy_bytes, read_npy
from edgekit.images import list_images, read
from edgekit.manifest import read_manifest
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes import open_session
from edgekit.stages.blocks import find_blocks
from edgekit.stages.divergence import first_divergence
from edgekit.stages.parity import (
    FLOAT_LIMITS,
    INT8_LIMITS,
    ParityLimits,
    broken_block,
    compare_sessions,
)
from edgekit.stages.verify import all_ok, verify_bundle
from tests.bundles import edit_manifest, fix_hashes, set_contract

CONTRACT = Preprocess(height=640, width=640)
HEADS = ("/m/model.24/m.0/Conv", "/m/model.24/m.1/Conv", "/m/model.24/m.2/Conv")
Feeds = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def yolo(assets: Path) -> Path:
    return assets / "models" / "yolov5n.onnx"


@pytest.fixture(scope="module")
def feeds(assets: Path) -> Feeds:
    images = list_images(assets / "coco" / "val2017")[:3]
    return [{"images": apply(read(path), CONTRACT)[0]} for path in images]


@pytest.fixture(scope="module")
def quantized(yolo: Path, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YOLOv5n as ONNX Runtime's own quantizer makes it: convolutions only, per channel, min-max."""
    return _quantized(yolo, assets, tmp_path_factory.mktemp("int8") / "conv.onnx", ["Conv"])


def _quantized(source: Path, assets: Path, out: Path, operators: list[str] | None) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            paths = list_images(assets / "coco" / "calib")[:8]
            self.feeds: Iterator[Any] = iter(
                [{"images": apply(read(path), CONTRACT)[0]} for path in paths]
            )

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantize_static(
        str(source),
        str(out),
        Reader(),
        op_types_to_quantize=operators,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


# --- ways to break it ---------------------------------------------------------------------------


def _behind_the_output(model: onnx.ModelProto) -> str:
    """Free the output's name; returns the name of what was the output."""
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "output":
                node.output[index] = "before"
    return "before"


def _scores_zeroed(model: onnx.ModelProto) -> None:
    """Every class score of every scale."""
    mask = np.ones((1, 1, 85), np.float32)
    mask[..., 5:] = 0
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    before = _behind_the_output(model)
    model.graph.node.append(helper.make_node("Mul", [before, "mask"], ["output"], name="broken"))


def _columns(order: list[int]) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        index = np.array(order + list(range(len(order), 85)), dtype=np.int64)
        model.graph.initializer.append(numpy_helper.from_array(index, "order"))
        before = _behind_the_output(model)
        node = helper.make_node("Gather", [before, "order"], ["output"], name="broken", axis=2)
        model.graph.node.append(node)

    return edit


def _head_lost(number: int, *, bias: bool) -> Callable[[onnx.ModelProto], None]:
    """A head's last convolution gives its bias (or nothing) whatever it sees."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == HEADS[number])
        for item in model.graph.initializer:
            if item.name == node.input[1] or (item.name == node.input[2] and not bias):
                array = np.zeros_like(numpy_helper.to_array(item))
                item.CopyFrom(numpy_helper.from_array(array, item.name))

    return edit


def _one_class_lost(model: onnx.ModelProto) -> None:
    """People, at all scales."""
    mask = np.ones((1, 1, 85), np.float32)
    mask[..., 5] = 0
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    before = _behind_the_output(model)
    model.graph.node.append(helper.make_node("Mul", [before, "mask"], ["output"], name="broken"))


BROKEN: dict[str, Callable[[onnx.ModelProto], None]] = {
    "class scores zeroed": _scores_zeroed,
    "centres and sides swapped": _columns([2, 3, 0, 1]),
    "x and y swapped": _columns([1, 0, 3, 2]),
    "head 0 lost": _head_lost(0, bias=False),
    "head 1 gives its bias": _head_lost(1, bias=True),
    "head 2 lost": _head_lost(2, bias=False),
    "one class lost": _one_class_lost,
}


def _measure(reference: Path, candidate: Path, feeds: Feeds, head: str | None) -> Any:
    with (
        open_session("onnxruntime", reference) as one,
        open_session("onnxruntime", candidate) as other,
    ):
        return compare_sessions(one, other, feeds, reference, head)


@pytest.mark.parametrize("head", [None, "yolov5"])
def test_the_blocks_are_boxes_and_scores_of_each_scale(yolo: Path, head: str | None) -> None:
    covered = np.zeros((1, 25200, 85), dtype=int)
    places = set()
    for block in find_blocks(yolo, head):
        index = np.arange(covered.size).reshape(covered.shape)
        covered.ravel()[block.take(index).ravel()] += 1
        places.add((block.axes[1][0][:2], block.axes[2][0][:2]))
    assert (covered == 1).all()
    rows = ((0, 19200), (19200, 24000), (24000, 25200))
    columns = ((0, 2), (2, 4), (4, 85)) if head is None else ((0, 2), (2, 4), (4, 5), (5, 85))
    assert places == {(row, column) for row in rows for column in columns}


def test_the_quantized_graph_has_the_blocks_of_the_float_one(yolo: Path, quantized: Path) -> None:
    assert [block.axes for block in find_blocks(quantized)] == [
        block.axes for block in find_blocks(yolo)
    ]


def test_the_identical_model_is_exact(yolo: Path, feeds: Feeds) -> None:
    report = _measure(yolo, yolo, feeds, "yolov5")
    assert (report.cosine, report.max_abs_error, report.samples) == (1.0, 0.0, 3)
    assert broken_block(report, FLOAT_LIMITS) is None


def test_good_int8_keeps_its_limits(yolo: Path, quantized: Path, feeds: Feeds) -> None:
    for head in (None, "yolov5"):
        report = _measure(yolo, quantized, feeds, head)
        assert broken_block(report, INT8_LIMITS) is None
        assert report.cosine > 0.93
        assert broken_block(report, FLOAT_LIMITS) is not None


@pytest.mark.parametrize("head", [None, "yolov5"])
@pytest.mark.parametrize("how", list(BROKEN))
def test_what_is_broken_is_caught(
    yolo: Path, quantized: Path, feeds: Feeds, tmp_path: Path, how: str, head: str | None
) -> None:
    """In the float model against both limits; in the INT8 model, where noise could hide it, too."""
    for source, limits in ((yolo, FLOAT_LIMITS), (yolo, INT8_LIMITS), (quantized, INT8_LIMITS)):
        model = onnx.load(str(source))
        if source == quantized and how.startswith("head"):
            continue  # its weights are behind a QDQ pair; the float model shows it
        BROKEN[how](model)
        path = tmp_path / "broken.onnx"
        onnx.save(model, str(path))
        report = _measure(yolo, path, feeds, head)
        assert broken_block(report, limits) is not None, (how, limits)


def test_the_whole_tensor_would_not_have_shown_it(yolo: Path, feeds: Feeds, tmp_path: Path) -> None:
    """Why blocks: with every class score zeroed the output as a whole looks perfect."""
    model = onnx.load(str(yolo))
    _scores_zeroed(model)
    onnx.save(model, str(tmp_path / "broken.onnx"))
    with (
        open_session("onnxruntime", yolo) as one,
        open_session("onnxruntime", tmp_path / "broken.onnx") as other,
    ):
        a = one.run(feeds[0])["output"].ravel().astype(np.float64)
        b = other.run(feeds[0])["output"].ravel().astype(np.float64)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999999


def test_all_operators_in_int8_lose_every_score_and_are_caught(
    yolo: Path, assets: Path, feeds: Feeds, tmp_path: Path
) -> None:
    broken = _quantized(yolo, assets, tmp_path / "all.onnx", None)
    report = _measure(yolo, broken, feeds, "yolov5")
    found = broken_block(report, INT8_LIMITS)
    assert found is not None
    assert "objectness" in found[0].name or "classes" in found[0].name
    where = first_divergence(yolo, broken, feeds[0], INT8_LIMITS, "yolov5")
    assert where is not None
    assert where.tensor == "output"


@pytest.mark.parametrize("limits", [FLOAT_LIMITS, INT8_LIMITS])
def test_the_node_where_it_begins_is_named(
    yolo: Path, feeds: Feeds, tmp_path: Path, limits: ParityLimits
) -> None:
    model = onnx.load(str(yolo))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    node = convolutions[20]
    for item in model.graph.initializer:
        if item.name == node.input[1]:
            array = np.zeros_like(numpy_helper.to_array(item))
            item.CopyFrom(numpy_helper.from_array(array, item.name))
    onnx.save(model, str(tmp_path / "broken.onnx"))
    found = first_divergence(yolo, tmp_path / "broken.onnx", feeds[0], limits)
    assert found is not None
    assert (found.node, found.op_type) == (node.name, "Conv")


def test_the_command_compares_two_models(
    yolo: Path,
    quantized: Path,
    assets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = ["--images", str(assets / "coco" / "val2017"), "--limit", "2", "--json"]

    def verify(candidate: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
        code = run(["verify", str(candidate), str(yolo), *arguments])
        return code, json.loads(capsys.readouterr().out)

    for candidate in (yolo, quantized):
        code, answer = verify(candidate, *images)
        assert (code, answer["ok"]) == (0, True)
        assert sum(check["name"].startswith("block ") for check in answer["checks"]) == 9
    code, answer = verify(yolo, "--json")
    assert code == 0
    assert "random" in next(c["detail"] for c in answer["checks"] if c["name"] == "inputs")
    model = onnx.load(str(yolo))
    _scores_zeroed(model)
    onnx.save(model, str(tmp_path / "broken.onnx"))
    code, answer = verify(tmp_path / "broken.onnx", *images)
    assert (code, answer["ok"]) == (9, False)
    failed = {check["name"]: check["detail"] for check in answer["checks"] if not check["ok"]}
    assert "block output (/m/model.24/Sigmoid)" in failed
    assert "Mul node 'broken'" in failed["where"]
    model = onnx.load(str(yolo))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 100
    onnx.save(model, str(tmp_path / "other.onnx"))
    code, answer = verify(tmp_path / "other.onnx", *images)
    assert code == 9
    assert [check["name"] for check in answer["checks"] if not check["ok"]] == ["interface"]


# --- a real bundle ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(yolo: Path, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YOLOv5n as `edgekit export` packs it for x86 in INT8."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "images").mkdir()
    for path in list_images(assets / "coco" / "calib")[:6]:
        shutil.copy(path, folder / "images")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgekit", "export", str(yolo), "--target", "x86-int8"),
            *("--images", str(folder / "images"), "--out", str(folder / "bundle"), "--json"),
        ],
        env={**os.environ, "EDGEKIT_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "bundle"


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "bundle")
    return tmp_path / "bundle"


def _failed(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify_bundle(folder) if not check.ok}


def test_the_exported_bundle_verifies(exported: Path) -> None:
    checks = verify_bundle(exported)
    assert all_ok(checks), checks
    assert len(checks) >= 9
    assert not any(check.skipped for check in checks)


def test_one_flipped_byte_in_any_file_of_the_bundle_is_named(exported: Path, copy: Path) -> None:
    position = random.Random(0)
    names = sorted(p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file())
    assert "onnxruntime/model.onnx" in names
    for name in names:
        file = copy / name
        data = file.read_bytes()
        for place in (0, position.randrange(len(data))):
            changed = bytearray(data)
            changed[place] ^= 0xFF
            file.write_bytes(changed)
            failed = _failed(copy)
            assert any(name in f"{check} {text}" for check, text in failed.items()), (name, place)
        file.write_bytes(data)
    assert _failed(copy) == {}


def test_tampering_is_found_although_the_hashes_were_set_right(copy: Path) -> None:
    contract = read_manifest(copy).preprocess
    set_contract(copy, contract.replace(color="bgr"))
    assert "red and blue are swapped" in _failed(copy)["golden input 000"]
    set_contract(copy, contract.replace(mean=(0.485, 0.456, 0.406)))
    failed = _failed(copy)
    assert "it was made with mean" in failed["golden input 000"]
    assert "golden outputs (onnxruntime)" not in failed
    set_contract(copy, contract)
    assert _failed(copy) == {}


def test_one_changed_golden_value_of_two_million_is_found(copy: Path) -> None:
    sample = read_manifest(copy).golden.samples[0]
    path = copy / sample.outputs[0][1]
    original = read_npy(path)
    for column, part in ((1, slice(0, 2)), (3, slice(2, 4)), (40, slice(4, 85))):
        array = original.copy()
        array[0, 1234, column] += np.float32(1e-5) * np.abs(array[..., part]).max()
        path.write_bytes(npy_bytes(array))
        assert f"file {sample.outputs[0][1]}" in _failed(copy)
        fix_hashes(copy)
        failed = _failed(copy)
        assert set(failed) == {"golden outputs (onnxruntime)"}
        assert failed["golden outputs (onnxruntime)"].count("block '") == 1
    path.write_bytes(npy_bytes(original))
    image = copy / sample.input
    array = read_npy(image).copy()
    array[0, 1, 300, 300] += np.float32(1 / 255)
    image.write_bytes(npy_bytes(array))
    fix_hashes(copy)
    assert "1 of 1228800 values differ" in _failed(copy)["golden input 000"]


def test_a_broken_model_in_the_bundle_is_found(copy: Path, yolo: Path) -> None:
    """Somebody puts another model in, with metadata, hashes and chain that fit."""
    manifest = read_manifest(copy)
    path = copy / manifest.models[0].files[0]
    model = onnx_file.load(path)
    _scores_zeroed(model)
    onnx_file.save(model, path)

    def fit(raw: dict[str, Any]) -> None:
        raw["chain"][-1]["output_sha256"].append(onnx_file.describe(path).sha256)

    edit_manifest(copy, fit)
    failed = _failed(copy)
    assert set(failed) == {"golden outputs (onnxruntime)"}
