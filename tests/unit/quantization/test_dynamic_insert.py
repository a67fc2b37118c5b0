"""Dynamic quantization: near the float model, computed in integers, and readable as float again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.cli import run as edgekit
from edgekit.quantization import dynamic, dynamic_insert
from edgekit.quantization.rules import Rules
from edgekit.quantization.scheme import Scheme
from tests.graphs import GraphMaker, run, sqnr_db

RULES = Rules(operators=("Conv", "ConvTranspose", "Gemm", "MatMul"), follow=(), keep_float=())
# no symmetry: zero points matter, and so does the value that padding stands for
X = {"x": np.random.default_rng(7).uniform(-1, 3, (1, 8, 12, 12)).astype(np.float32)}


def _network() -> onnx.ModelProto:
    maker = GraphMaker(3)
    maker.conv("x", "c1", (16, 8), spread=6.0)
    maker.node("Relu", ["c1"], "r1")
    maker.conv("r1", "c2", (16, 16), groups=16, strides=[2, 2], dilations=[2, 2], pads=[2, 1, 0, 2])
    maker.conv("r1", "c3", (16, 16), kernel=1, bias=False)
    maker.node("GlobalAveragePool", ["c2"], "g2")
    maker.node("GlobalAveragePool", ["c3"], "g3")
    maker.node("Concat", ["g2", "g3"], "j", axis=1)
    maker.node("Flatten", ["j"], "f")
    weight = maker.rng.normal(size=(24, 32)).astype(np.float32)
    bias = maker.weight("b", maker.rng.normal(size=24).astype(np.float32))
    maker.node("Gemm", ["f", maker.weight("w", weight), bias], "h", transB=1)
    maker.node("MatMul", ["h", maker.weight("m", weight[:, :5].copy())], "y")
    return maker.model({"x": [1, 8, 12, 12]}, {"y": [1, 5], "c2": [1, 16, 5, 6]})


def _dynamic(model: onnx.ModelProto, scheme: Scheme, keep: tuple[str, ...] = ()) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    dynamic_insert.insert(graph, dynamic_insert.place(graph, RULES, keep), scheme)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [8, 7])
def test_it_stays_near_float(per_channel: bool, bits: int) -> None:
    model = _network()
    made = _dynamic(model, Scheme(per_channel=per_channel, weight_bits=bits))
    kinds = Counter(node.op_type for node in made.graph.node)
    assert (kinds["ConvInteger"], kinds["MatMulInteger"]) == (3, 2)
    assert kinds["Conv"] == kinds["Gemm"] == kinds["MatMul"] == 0
    # one for each tensor that is read: r1 is read twice
    assert kinds["DynamicQuantizeLinear"] == 4
    for expected, got in zip(run(model, X), run(made, X), strict=True):
        assert sqnr_db(expected, got) > (30 if per_channel and bits == 8 else 22)


def test_it_reads_back_as_the_float_model_with_rounded_weights() -> None:
    model = _network()
    graph = ir.from_proto(_dynamic(model, Scheme()))
    assert dynamic.to_float(graph) == 5
    back = ir.to_proto(graph)
    for expected, got in zip(run(model, X), run(back, X), strict=True):
        assert sqnr_db(expected, got) > 33


def test_layers_stay_float_when_asked_and_say_why() -> None:
    model = _network()
    made = _dynamic(model, Scheme(), keep=("n_c1",))
    assert [node.name for node in made.graph.node if node.op_type == "Conv"] == ["n_c1"]
    graph = ir.from_proto(model)
    placement = dynamic_insert.place(graph, RULES, ("n_c1",))
    assert placement.floats == {"n_c1": "asked to stay float"}
    assert 0 < placement.int8_mac_share < 1


def test_the_weights_are_a_quarter() -> None:
    maker = GraphMaker(3)
    maker.conv("x", "y", (128, 8))
    model = maker.model({"x": [1, 8, 12, 12]}, {"y": [1, 128, 12, 12]})
    sizes = [
        sum(onnx.numpy_helper.to_array(item).nbytes for item in proto.graph.initializer)
        for proto in (model, _dynamic(model, Scheme()))
    ]
    assert sizes[1] < 0.3 * sizes[0]


def _command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    code = edgekit(["quantize", *arguments, "--mode", "dynamic", "--json"])
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return code, answer


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    maker = GraphMaker(3)
    maker.conv("x", "c", (16, 3))
    maker.node("Relu", ["c"], "r")
    maker.conv("r", "y", (8, 16))
    model = maker.model({"x": [1, 3, 16, 16]}, {"y": [1, 8, 16, 16]})
    onnx.save(model, tmp_path / "m.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "0.png"), pixels)
    given = [str(tmp_path / "m.onnx"), "--images", str(tmp_path / "images"), "--resize", "none"]
    code, answer = _command(capsys, *given, "--scale", "1/255")
    assert code == 0
    assert answer["int8_layers"] == 2
    assert answer["parity"]["blocks"][0]["sqnr_db"] > 25  # type: ignore[index]
    made = onnx.load(tmp_path / "m.int8.onnx")
    assert Counter(node.op_type for node in made.graph.node)["ConvInteger"] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--calibration", "c.npz"], 2),
        (["--bias-correction"], 2),
        (["-t", "x86-fp32"], 4),
        (["--keep-float", "no_such_node"], 8),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = GraphMaker(3)
    maker.conv("x", "y", (16, 8))
    onnx.save(maker.model({"x": [1, 8, 12, 12]}, {"y": [1, 16, 12, 12]}), tmp_path / "m.onnx")
    found, answer = _command(capsys, str(tmp_path / "m.onnx"), *arguments)
    assert found == code
    assert answer["error"]
    assert not (tmp_path / "m.int8.onnx").exists()
