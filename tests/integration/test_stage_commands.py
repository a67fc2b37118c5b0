"""The stages as commands: plain ONNX in, plain ONNX out, one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgekit.cli import run


def _answer(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_simplify_calibrate_quantize_verify(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((assets / "coco" / "calib").iterdir())[:5]:
        (images / path.name).symlink_to(path)
    source = str(assets / "models" / "yolov5n.onnx")
    prepared, store, int8 = (str(tmp_path / n) for n in ("p.onnx", "c.npz", "q.onnx"))

    simple = _answer(
        ["simplify", source, "--prepare", "-o", prepared, "--images", str(images)], capsys
    )
    assert simple["parity"]["blocks"]
    assert len(onnx.load(prepared).graph.node) < len(onnx.load(source).graph.node)
    kinds = {node.op_type for node in onnx.load(prepared).graph.node}
    assert "Constant" not in kinds and "Identity" not in kinds

    collected = _answer(["calibrate", prepared, "--images", str(images), "--out", store], capsys)
    assert collected["images"] == 5

    made = _answer(
        ["quantize", prepared, "--calibration", store, "-o", int8, "--images", str(images)], capsys
    )
    assert made["int8_mac_share"] > 0.85
    assert min(block["cosine"] for block in made["parity"]["blocks"]) > 0.9
    graph = onnx.load(int8).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) > 50

    per_tensor = str(tmp_path / "t.onnx")
    coarse = _answer(
        ["quantize", prepared, "--calibration", store, "-o", per_tensor, "--per-tensor",
         "--images", str(images)],
        capsys,
    )  # fmt: skip
    assert min(b["sqnr_db"] for b in coarse["parity"]["blocks"]) < min(
        b["sqnr_db"] for b in made["parity"]["blocks"]
    )

    other = _answer(["quantize", source, "--calibration", store, "-o", int8], capsys, code=8)
    assert "another graph" in other["error"]
    wrong = _answer(
        ["quantize", prepared, "--calibration", store, "-t", "x86-fp32", "-o", int8], capsys, code=4
    )
    assert "not an INT8 target" in wrong["error"]
