"""model.json: what it must hold, and that nothing in it is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import BadInput
from edgekit.formats import ncnn_json
from edgekit.formats.ncnn_json import File, Sidecar, Tensor

SIDECAR = Sidecar(
    param=File(file="model.param", size=10, sha256="0" * 64),
    bin=File(file="model.bin", size=20, sha256="a" * 64),
    inputs=(Tensor(blob="in0", name="images", shape=(1, 3, 64, 48)),),
    outputs=(
        Tensor(blob="out0", name="boxes", shape=(1, 84, 100)),
        Tensor(blob="out1", name="n", shape=(1,)),
    ),
    precision="int8",
    options={"use_int8_inference": True, "use_fp16_storage": False},
    versions={"ncnn": "1", "pnnx": "2"},
)


def test_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    ncnn_json.write(SIDECAR, path)
    assert ncnn_json.read(path) == SIDECAR
    assert SIDECAR.inputs[0].inner == (3, 64, 48)
    assert SIDECAR.outputs[1].inner == (1,)
    first = path.read_bytes()
    ncnn_json.write(SIDECAR, path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "does not describe"),
        ({"schema": 2}, "schema 2"),
        ({"schema": True}, "schema True"),
        ({"precision": "int4"}, "int4"),
        ({"param": None}, "'param'"),
        ({"bin": {"file": "../model.bin", "size": 1, "sha256": "a" * 64}}, "no plain file"),
        ({"bin": {"file": "/etc/passwd", "size": 1, "sha256": "a" * 64}}, "no plain file"),
        ({"bin": {"file": "model.bin", "size": -1, "sha256": "a" * 64}}, "size"),
        ({"bin": {"file": "model.bin", "size": 1, "sha256": "xyz"}}, "sha256"),
        ({"inputs": []}, "'inputs'"),
        ({"inputs": [{"name": "x", "shape": [1]}]}, "without blob"),
        ({"inputs": [{"blob": "b", "name": "x", "shape": [1, 0]}]}, "shape"),
        ({"inputs": [{"blob": "b", "name": "x", "shape": "1x3"}]}, "shape"),
        ({"inputs": [{"blob": "b", "name": "x", "shape": [1, 2, 3, 4, 5, 6]}]}, "shape"),
        ({"options": {"use_int8_inference": 1}}, "option"),
        ({"options": {"num_threads": True}}, "option"),
        ({"versions": {"ncnn": 3}}, "no text"),
    ],
)
def test_a_wrong_one_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "model.json"
    ncnn_json.write(SIDECAR, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput, match=words):
        ncnn_json.read(path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    with pytest.raises(BadInput, match="does not exist"):
        ncnn_json.read(path)
    for text in ("", "{", "[]", "null", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(BadInput):
            ncnn_json.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput):
        ncnn_json.read(path)
    path.write_text(" " * (ncnn_json.MAX_FILE_BYTES + 1))
    with pytest.raises(BadInput, match="too large"):
        ncnn_json.read(path)
