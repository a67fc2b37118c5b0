"""`debug INT8 --float FLOAT` takes a file apart as it is, whoever quantized it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from edgekit.cli import run as edgekit
from tests.graphs import GraphMaker
from tests.unit.stages.test_debug import CONTRACT, _debug, _model, images

__all__ = ["images"]


def quantized(model: Path, images: Path, *more: str) -> Path:
    statistics, out = model.with_suffix(".npz"), model.with_suffix(".int8.onnx")
    common = ["--images", str(images), *CONTRACT]
    assert edgekit(["calibrate", str(model), *common, "-o", str(statistics), "-t", "x86-int8"]) == 0
    made = ["quantize", str(model), "--calibration", str(statistics), "-t", "x86-int8"]
    assert edgekit([*made, *common, "-o", str(out), *more]) == 0
    return out


def taken_apart(capsys: pytest.CaptureFixture[str], int8: Path, model: Path, images: Path) -> Any:
    capsys.readouterr()
    arguments = ["debug", str(int8), "--float", str(model), "--images", str(images), "--json"]
    code = edgekit([*arguments, *CONTRACT])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0, answer
    return answer


def test_the_file_says_what_the_quantizer_said(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "m.onnx", "weights of c2")
    int8 = quantized(model, images, "--per-tensor", "--weight-bits", "6")
    found = taken_apart(capsys, int8, model, images)
    # with a calibration nothing is prepared: the same graph
    planned = _debug(
        capsys, model, images, "--per-tensor", "--weight-bits", "6",
        "--calibration", str(model.with_suffix(".npz")),
    )  # fmt: skip
    assert found["sqnr_db"] == pytest.approx(planned["sqnr_db"], abs=1.5)
    assert found["block"] == planned["block"]
    ours = {layer["name"]: layer for layer in found["layers"]}
    theirs = {layer["name"]: layer for layer in planned["layers"]}
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        assert layer["weight_db"] == pytest.approx(theirs[name]["weight_db"], abs=0.1)
        assert layer["alone_db"] == pytest.approx(theirs[name]["alone_db"], abs=3)
        assert layer["mac_share"] == pytest.approx(theirs[name]["mac_share"])
        assert layer["input"]["rounding_db"] == pytest.approx(
            theirs[name]["input"]["rounding_db"], abs=1.5
        )
    # the spoiled layer comes first, and the knob that mends it is named
    assert found["layers"][0]["name"] == "n_c2"
    assert found["layers"][0]["suggestion"].startswith("--per-channel")
    assert found["images"][0]["name"] == planned["images"][0]["name"]
    assert found["compared_images"] == 7


def test_a_range_that_clips_is_found(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "m.onnx")
    int8 = quantized(model, images, "--override", "r2=0,0.3")
    worst = taken_apart(capsys, int8, model, images)["layers"][:2]
    # the layer that makes the tensor, or the one that reads it
    assert {layer["name"] for layer in worst} <= {"n_c2", "n_c3"}
    assert any(
        "--method" in layer["suggestion"] and "'r2'" in layer["suggestion"] for layer in worst
    )
    clipped = [layer["output"]["clipped_share"] for layer in worst if layer["name"] == "n_c2"]
    assert clipped and clipped[0] > 0.1


def test_another_tools_file(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    model = _model(tmp_path / "m.onnx")
    feeds = [
        cv2.imread(str(path))[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
        for path in sorted(images.iterdir())
    ]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self._left, None)
            return None if feed is None else {"x": feed}

    out = tmp_path / "ort.onnx"
    quantize_static(str(model), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    found = taken_apart(capsys, out, model, images)
    assert len(found["layers"]) == 5
    assert all(20 < layer["alone_db"] < 80 for layer in found["layers"])
    assert all(30 < layer["weight_db"] < 60 for layer in found["layers"])
    # alone a layer costs less than all together
    assert found["sqnr_db"] < min(layer["alone_db"] for layer in found["layers"]) + 1


def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "m.onnx")
    int8 = quantized(model, images)
    other = GraphMaker(1)
    other.node("Relu", [other.conv("x", "k", (8, 3))], "y")
    onnx.save(other.model({"x": [1, 3, 24, 24]}, {"y": [1, 8, 24, 24]}), tmp_path / "o.onnx")
    common = ["--images", str(images), "--json", *CONTRACT]
    for arguments, code, words in (
        ([str(int8), "--float", str(tmp_path / "o.onnx")], 8, "that o.onnx has too"),
        ([str(model), "--float", str(model)], 8, "is not quantized"),
        ([str(int8), "--float", str(int8)], 8, "quantized already"),
        ([str(model)], 2, "No target"),
        ([str(int8), "-t", "x86-int8"], 8, "quantized already"),
    ):
        capsys.readouterr()
        assert edgekit(["debug", *arguments, *common]) == code
        assert words in json.loads(capsys.readouterr().out)["error"]
