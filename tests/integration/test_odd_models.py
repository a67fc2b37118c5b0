"""Awkward models and images through the whole job: the right INT8 model, or a clear refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import bundle
from edgekit.cli import run
from tests.graphs import run as run_graph
from tests.graphs import sqnr_db

SHAPE: list[int | str] = [1, 3, 32, 32]
CONTRACT = ["--resize", "stretch", "--scale", "1/255", "--mean", "0,0,0", "--std", "1,1,1"]


def floats(name: str, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def weight(name: str, made: int, taken: int, seed: int) -> onnx.TensorProto:
    values = np.random.default_rng(seed).normal(0, (9 * taken) ** -0.5, (made, taken, 3, 3))
    return numpy_helper.from_array(values.astype(np.float32), name)


def conv(source: str, name: str, made: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, name], [made], name=f"n_{made}", pads=[1, 1, 1, 1])


BODY = [
    conv("x", "w1", "a"),
    helper.make_node("Relu", ["a"], ["b"], name="n_b"),
    conv("b", "w2", "c"),
    helper.make_node("Relu", ["c"], ["y"], name="n_y"),
]
WEIGHTS = [weight("w1", 16, 3, 1), weight("w2", 16, 16, 2)]


def model(
    path: Path,
    nodes: list[onnx.NodeProto] | None = None,
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    more: list[onnx.TensorProto] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    external: bool = False,
) -> None:
    graph = helper.make_graph(
        nodes or BODY,
        "odd",
        inputs or [floats("x", SHAPE)],
        outputs or [floats("y", [1, 16, 32, 32])],
        [*WEIGHTS, *(more or [])],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    onnx.checker.check_model(made)
    if external:
        onnx.save(made, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    else:
        onnx.save(made, str(path))


def dynamic_size(path: Path) -> None:
    model(
        path, inputs=[floats("x", ["n", 3, "h", "w"])], outputs=[floats("y", ["n", 16, "h", "w"])]
    )


def weights_as_inputs(path: Path) -> None:
    fed = [floats("x", SHAPE), floats("w1", [16, 3, 3, 3]), floats("w2", [16, 16, 3, 3])]
    model(path, inputs=fed, opset=9, ir_version=3)


def two_types(path: Path) -> None:
    nodes = [*BODY, helper.make_node("ArgMax", ["y"], ["index"], axis=1, name="n_index")]
    index = helper.make_tensor_value_info("index", TensorProto.INT64, [1, 1, 32, 32])
    model(path, nodes, outputs=[floats("y", [1, 16, 32, 32]), index])


def subgraphs(path: Path) -> None:
    """An If that depends on the image, and a Loop behind it."""

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        inner = helper.make_node(op_type, ["c"], [f"{name}_out"])
        return helper.make_graph([inner], name, [], [floats(f"{name}_out", [1, 16, 32, 32])])

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_out"]),
            helper.make_node("Add", ["state", "state"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            floats("state", [1, 16, 32, 32]),
        ],
        [
            helper.make_tensor_value_info("going_out", TensorProto.BOOL, []),
            floats("state_out", [1, 16, 32, 32]),
        ],
    )
    nodes = [
        *BODY[:3],
        helper.make_node("ReduceMax", ["c"], ["top"], keepdims=0, name="n_top"),
        helper.make_node("Greater", ["top", "zero"], ["positive"], name="n_positive"),
        helper.make_node(
            "If",
            ["positive"],
            ["chosen"],
            then_branch=branch("then", "Relu"),
            else_branch=branch("else", "Neg"),
            name="n_chosen",
        ),
        helper.make_node("Loop", ["three", "", "chosen"], ["y"], body=body, name="n_y"),
    ]
    more = [
        numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
        numpy_helper.from_array(np.array(3, np.int64), "three"),
    ]
    model(path, nodes, more=more)


def a_tensor_of_zeros(path: Path) -> None:
    """A convolution whose input, and so its output, is always zero."""
    nodes = [
        *BODY,
        helper.make_node("Mul", ["b", "nought"], ["nothing"], name="n_nothing"),
        conv("nothing", "w3", "still"),
        helper.make_node("Add", ["y", "still"], ["z"], name="n_z"),
    ]
    more = [numpy_helper.from_array(np.zeros(1, np.float32), "nought"), weight("w3", 16, 16, 3)]
    model(path, nodes, outputs=[floats("z", [1, 16, 32, 32])], more=more)


ODD: dict[str, Callable[[Path], None]] = {
    "opset 9": lambda path: model(path, opset=9, ir_version=4),
    "opset 21": lambda path: model(path, opset=21, ir_version=10),
    "external data": lambda path: model(path, external=True),
    "dynamic size": dynamic_size,
    "weights as inputs": weights_as_inputs,
    "two types": two_types,
    "subgraphs": subgraphs,
    "a tensor of zeros": a_tensor_of_zeros,
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(10):
        small = rng.integers(0, 256, (6, 6, 3), np.uint8)
        picture = cv2.resize(small, (32, 32), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:02}.png"), picture)
    return folder


def compare(reference: Path, candidate: Path, images: Path) -> None:
    """Every output of the INT8 model is near the float one, and of the same type."""
    feeds = [
        cv2.imread(str(path))[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
        for path in sorted(images.iterdir())[:3]
    ]
    one, two = onnx.load(str(reference)), onnx.load(str(candidate))
    types = [
        [(v.name, v.type.tensor_type.elem_type) for v in each.graph.output] for each in (one, two)
    ]
    assert types[0] == types[1]
    for feed in feeds:
        expected, found = run_graph(one, {"x": feed}), run_graph(two, {"x": feed})
        for a, b in zip(expected, found, strict=True):
            assert a.shape == b.shape
            if a.dtype == np.float32:
                assert sqnr_db(a, b) > 20
            else:
                assert np.mean(a == b) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(ODD))
def test_export_gives_the_right_int8_model(
    kind: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "m.onnx"
    ODD[kind](source)
    out = tmp_path / "bundle"
    code = run(
        ["export", str(source), "-t", "x86-int8", "--images", str(images), "--imgsz", "32", *CONTRACT,
         "--method", "minmax", "-o", str(out), "--json"]
    )  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert code == 0, answer
    stages = {stage["name"]: stage for stage in answer["stages"]}
    assert stages["quantize"]["parity"]["sqnr_db"] > 15
    _, files, _ = bundle.open_model(out)
    compare(source, files[0], images)


@pytest.mark.parametrize("kind", list(ODD))
def test_the_stages_give_the_right_int8_model(
    kind: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, prepared, statistics, int8 = (
        tmp_path / name for name in ("m.onnx", "p.onnx", "c.npz", "q.onnx")
    )
    ODD[kind](source)
    if kind == "dynamic size":
        # the size is said where nothing else says it
        contract = tmp_path / "contract.json"
        contract.write_text(json.dumps({"height": 32, "width": 32, "resize": "stretch"}))
        asked = ["--preprocess", str(contract)]
    else:
        asked = CONTRACT
    given = ["--images", str(images), *asked]
    old = kind in ("opset 9", "weights as inputs")
    assert run(["simplify", str(source), "--prepare", "-o", str(prepared), *given]) == 0
    assert run(["calibrate", str(prepared), *given, "-o", str(statistics)]) == 0
    code = run(
        ["quantize", str(prepared), "--calibration", str(statistics), *given, "-o", str(int8)]
    )
    said = capsys.readouterr()
    if old:
        # QuantizeLinear has a channel axis from opset 13 on: export raises it, quantize says so
        assert code == 8 and "opset" in said.err, said.err
        return
    assert code == 0, said.err
    compare(source, int8, images)


def test_constant_images_are_calibrated_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(tmp_path / "m.onnx")
    folder = tmp_path / "grey"
    folder.mkdir()
    for index in range(9):
        picture = np.full((32, 32, 3), 20 * index, np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    out = tmp_path / "bundle"
    code = run(
        ["export", str(tmp_path / "m.onnx"), "-t", "x86-int8", "--images", str(folder), *CONTRACT,
         "--method", "percentile", "-o", str(out), "--json"]
    )  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert code == 0, answer
    assert any("calibration set is small" in text for text in answer["warnings"])
    _, files, _ = bundle.open_model(out)
    compare(tmp_path / "m.onnx", files[0], folder)


def test_a_preprocessing_that_makes_nan_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(tmp_path / "m.onnx")
    for std in ("0,1,1", "nan,1,1"):
        asked = [*CONTRACT[:-1], std]
        for command in (["calibrate"], ["export", "-t", "x86-int8"]):
            code = run(
                [command[0], str(tmp_path / "m.onnx"), *command[1:], "--images", str(images), *asked,
                 "-o", str(tmp_path / "out"), "--json"]
            )  # fmt: skip
            answer = json.loads(capsys.readouterr().out)
            assert code in (2, 8), answer
            assert "std" in answer["error"]
            assert not (tmp_path / "out").exists()


def test_images_that_become_nan_inside_are_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        BODY[0],
        helper.make_node("Sqrt", ["a"], ["root"], name="n_root"),
        conv("root", "w2", "y"),
    ]
    model(tmp_path / "m.onnx", nodes)
    for command in (["calibrate"], ["export", "-t", "x86-int8"]):
        code = run(
            [command[0], str(tmp_path / "m.onnx"), *command[1:], "--images", str(images), *CONTRACT,
             "-o", str(tmp_path / "out"), "--json"]
        )  # fmt: skip
        answer = json.loads(capsys.readouterr().out)
        assert code in (8, 9), answer
        assert "nan" in answer["error"].lower()
        assert not (tmp_path / "out").exists()
