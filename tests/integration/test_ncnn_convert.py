"""ONNX to ncnn with the real pnnx and ncnn: what converts is exact, what does not is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit import onnx_file
from edgekit.builders import ncnn as builder
from edgekit.builders import pnnx
from edgekit.errors import BadInput, BuildFailed, MissingDependency, NotPossible
from edgekit.formats import ncnn_bin, ncnn_json, ncnn_param
from edgekit.runtimes import open_session
from edgekit.stages import convert_ncnn
from edgekit.types import OnnxModel
from tests.graphs import GraphMaker

pytest.importorskip("ncnn")


def _images(*shape: int, count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random(shape).astype(np.float32) for _ in range(count)]


def _saved(maker: GraphMaker, tmp_path: Path, inputs: Any, outputs: Any, **more: Any) -> OnnxModel:
    return onnx_file.save(maker.model(inputs, outputs, **more), tmp_path / "model.onnx")


def _sliced(tmp_path: Path) -> OnnxModel:
    """A Focus: four strided slices, joined; then a convolution, an activation, two outputs."""
    maker = GraphMaker()
    numbers = {"two": [2, 2], "zero": [0, 0], "far": [2**31, 2**31], "axes": [2, 3]}
    numbers |= {"down": [1, 0], "right": [0, 1], "both": [1, 1]}
    for name, values in numbers.items():
        maker.weight(name, np.array(values, np.int64))
    parts = [
        maker.node("Slice", ["x", start, "far", "axes", "two"], f"part_{start}")
        for start in ("zero", "down", "right", "both")
    ]
    maker.node("Concat", parts, "joined", axis=1)
    maker.conv("joined", "a", (8, 12))
    maker.node("Relu", ["a"], "b")
    maker.conv("b", "c", (6, 8), kernel=1)
    maker.node("Sigmoid", ["c"], "scores")
    maker.conv("b", "boxes", (5, 8), kernel=1)
    # odd sizes: planes that do not end on 16 bytes
    return _saved(
        maker, tmp_path, {"x": [1, 3, 26, 18]}, {"scores": [1, 6, 13, 9], "boxes": [1, 5, 13, 9]}
    )


def test_strided_slices_names_and_order(tmp_path: Path) -> None:
    model = _sliced(tmp_path)
    feeds = _images(1, 3, 26, 18)
    done = convert_ncnn.run(model, feeds, "fp32", tmp_path / "ncnn")
    assert done.parity.max_rel_error < 1e-5
    assert any("Slice with steps" in note for note in done.notes)
    assert any("pnnx" in note and "ncnn" in note for note in done.notes)
    assert [file.name for file in done.engine.files] == ["model.json", "model.param", "model.bin"]
    sidecar = ncnn_json.read(done.engine.files[0])
    assert [tensor.name for tensor in sidecar.outputs] == ["scores", "boxes"]
    assert sidecar.options["use_fp16_arithmetic"] is False
    assert sidecar.versions == builder.versions_of("ncnn", "pnnx")
    with (
        open_session("ncnn", done.engine.files) as ncnn,
        open_session("onnxruntime", model.path) as ort,
    ):
        assert [spec.name for spec in ncnn.outputs] == ["scores", "boxes"]
        for feed in feeds:
            expected, found = ort.run({"x": feed}), ncnn.run({"x": feed})
            assert list(found) == list(expected)
            for name, array in expected.items():
                assert found[name].shape == array.shape
                assert found[name].dtype == np.float32
                assert np.abs(found[name] - array).max() <= 1e-5 * np.abs(array).max()


def test_what_pnnx_writes_is_read_and_written_byte_for_byte(tmp_path: Path) -> None:
    model = _sliced(tmp_path)
    done = convert_ncnn.run(model, _images(1, 3, 26, 18), "fp32", tmp_path)
    _, param, weights = done.engine.files
    graph = ncnn_param.read(param)
    assert ncnn_param.text_of(graph) == param.read_text()
    assert ncnn_bin.to_bytes(graph, ncnn_bin.read(weights, graph)) == weights.read_bytes()


def test_a_free_batch_becomes_one(tmp_path: Path) -> None:
    maker = GraphMaker()
    maker.conv("x", "a", (4, 3))
    maker.node("GlobalAveragePool", ["a"], "p")
    maker.node("Flatten", ["p"], "y")
    model = _saved(maker, tmp_path, {"x": ["batch", 3, 16, 16]}, {"y": ["batch", 4]})
    done = convert_ncnn.run(model, _images(1, 3, 16, 16), "fp32", tmp_path)
    with open_session("ncnn", done.engine.files) as session:
        assert session.inputs[0].shape == (1, 3, 16, 16)
        assert session.outputs[0].shape == (1, 4)


@pytest.mark.parametrize(("precision", "tag"), [("fp16", ncnn_bin.FP16), ("bf16", ncnn_bin.BF16)])
def test_sixteen_bit_storage(tmp_path: Path, precision: str, tag: int) -> None:
    model = _sliced(tmp_path)
    feeds = _images(1, 3, 26, 18)
    full = convert_ncnn.run(model, feeds, "fp32", tmp_path / "fp32")
    done = convert_ncnn.run(model, feeds, precision, tmp_path / precision)
    graph = ncnn_param.read(done.engine.files[1])
    tags = {a.tag for arrays in ncnn_bin.read(done.engine.files[2], graph) for a in arrays.values()}
    assert tags == {tag, None}
    ratio = done.engine.files[2].stat().st_size / full.engine.files[2].stat().st_size
    assert 0.5 < ratio < 0.56
    assert 1e-5 < done.parity.max_rel_error < 0.05
    sidecar = json.loads(done.engine.files[0].read_text())
    assert sidecar["precision"] == precision
    assert sidecar["options"][f"use_{precision}_storage"] is True


def test_a_weight_too_large_for_float16_names_its_layer(tmp_path: Path) -> None:
    maker = GraphMaker()
    weight = np.full((2, 3, 1, 1), 1e5, np.float32)
    maker.node("Conv", ["x", maker.weight("w", weight)], "y")
    model = _saved(maker, tmp_path, {"x": [1, 3, 4, 4]}, {"y": [1, 2, 4, 4]})
    with pytest.raises(NotPossible, match=r"conv.*100000.*float16"):
        convert_ncnn.run(model, _images(1, 3, 4, 4), "fp16", tmp_path)


@pytest.mark.parametrize(
    ("op_type", "extra", "attributes", "word"),
    [
        ("CumSum", [np.array(1, np.int64)], {}, "CumSum.*'n_y'"),
        ("Softsign", [], {}, "Softsign.*'n_y'"),
        ("ThresholdedRelu", [], {"alpha": 0.2}, "ThresholdedRelu.*'n_y'"),
    ],
)
def test_an_operator_that_ncnn_lacks_is_named_with_its_node(
    tmp_path: Path, op_type: str, extra: list[np.ndarray], attributes: dict[str, Any], word: str
) -> None:
    maker = GraphMaker()
    maker.conv("x", "a", (4, 3))
    names = [maker.weight(f"k{number}", array) for number, array in enumerate(extra)]
    maker.node(op_type, ["a", *names], "y", **attributes)
    model = _saved(maker, tmp_path, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})
    with pytest.raises(BuildFailed, match=word):
        convert_ncnn.run(model, _images(1, 3, 8, 8), "fp32", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_conversion_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """pnnx takes this Resize for another one, and says nothing."""
    maker = GraphMaker()
    maker.conv("x", "a", (4, 3))
    maker.weight("scales", np.array([1, 1, 2, 2], np.float32))
    maker.node(
        "Resize",
        ["a", "", "scales"],
        "y",
        mode="linear",
        coordinate_transformation_mode="asymmetric",
    )
    model = _saved(maker, tmp_path, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 16, 16]})
    with pytest.raises(BuildFailed, match=r"computes something else: block 'y' has max_rel_error"):
        convert_ncnn.run(model, _images(1, 3, 8, 8), "fp32", tmp_path / "out")


def test_integer_outputs_and_inputs_are_not_possible(tmp_path: Path) -> None:
    maker = GraphMaker()
    maker.conv("x", "a", (4, 3))
    maker.node("ArgMax", ["a"], "y", axis=1)
    proto = maker.model({"x": [1, 3, 8, 8]}, {"a": [1, 4, 8, 8]})
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 7, [1, 1, 8, 8]))
    model = onnx_file.save(proto, tmp_path / "model.onnx")
    with pytest.raises(NotPossible, match="'y' is int64"):
        convert_ncnn.run(model, _images(1, 3, 8, 8), "fp32", tmp_path)

    maker = GraphMaker()
    maker.conv("x", "y", (4, 3))
    fixed = _saved(maker, tmp_path, {"x": [2, 3, 8, 8]}, {"y": [2, 4, 8, 8]})
    with pytest.raises(NotPossible, match="batch of 2"):
        builder.static_inputs(fixed)
    free = _saved(maker, tmp_path, {"x": [1, 3, "h", "w"]}, {"y": [1, 4, "h", "w"]})
    with pytest.raises(NotPossible, match="one fixed size"):
        builder.static_inputs(free)


def test_attention_with_the_batch_in_the_middle(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch import nn

    class Patches(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 32, 8, 8)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
            self.encoder = nn.ModuleList(
                [layer, nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)]
            )
            self.out = nn.Linear(32, 5)

        def forward(self, x: Any) -> Any:
            x = self.embed(x).flatten(2).transpose(1, 2)
            for layer in self.encoder:
                x = layer(x)
            return self.out(x.mean(1))

    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        Patches().eval(),
        torch.randn(1, 3, 32, 32),
        path,
        opset_version=17,
        dynamo=False,
        input_names=["x"],
    )
    done = convert_ncnn.run(
        onnx_file.describe(path), _images(1, 3, 32, 32), "fp32", tmp_path / "out"
    )
    assert done.parity.max_rel_error < 1e-4


def test_pnnx_that_takes_too_long_or_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _sliced(tmp_path)
    with pytest.raises(BuildFailed, match="did not finish"):
        pnnx.convert(model.path, [[1, 3, 26, 18]], time_limit_s=0.001)
    for script, words in (
        ("kill -SEGV $$", "signal 11"),
        ("echo broken graph; exit 7", "exit code 7: broken graph"),
        ("exit 0", "wrote no model"),
    ):
        program = tmp_path / "pnnx"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(pnnx, "program", lambda: tmp_path / "pnnx")
        with pytest.raises(BuildFailed, match=words):
            pnnx.convert(model.path, [[1, 3, 26, 18]])


def test_pnnx_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="not installed") as caught:
        pnnx.program()
    assert "edgekit[ncnn]" in caught.value.hint


def test_the_program_is_found_without_its_package() -> None:
    import subprocess
    import sys

    code = "import sys; from edgekit.builders import pnnx; pnnx.program(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- the session ----------------------------------------------------------------------------------


def _converted(tmp_path: Path) -> Path:
    done = convert_ncnn.run(_sliced(tmp_path), _images(1, 3, 26, 18), "fp32", tmp_path / "ncnn")
    return done.engine.files[0]


def test_another_size_type_or_name_is_refused(tmp_path: Path) -> None:
    path = _converted(tmp_path)
    with open_session("ncnn", path) as session:
        for feeds in (
            {"x": np.zeros((1, 3, 52, 36), np.float32)},
            {"x": np.zeros((3, 26, 18), np.float32)},
            {"x": np.zeros((1, 3, 26, 18), np.float64)},
            {"images": np.zeros((1, 3, 26, 18), np.float32)},
            {},
        ):
            with pytest.raises(BadInput, match="does not take"):
                session.run(feeds)


def test_inputs_are_neither_kept_nor_written_to(tmp_path: Path) -> None:
    """A first layer that works in place must not reach the caller's array."""
    maker = GraphMaker()
    maker.node("Relu", ["x"], "a")
    maker.conv("a", "y", (4, 3))
    model = _saved(maker, tmp_path, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})
    feed = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    done = convert_ncnn.run(model, [feed], "fp32", tmp_path / "ncnn")
    before = feed.copy()
    with open_session("ncnn", done.engine.files) as session:
        first = session.run({"x": feed})["y"].copy()
        assert np.array_equal(feed, before)
        # views, strides, temporaries that nobody else holds
        wide = np.repeat(feed, 2, axis=3)
        for _ in range(20):
            assert np.array_equal(session.run({"x": wide[..., ::2]})["y"], first)
            assert np.array_equal(session.run({"x": feed * np.float32(1)})["y"], first)


def test_damaged_files_are_refused_without_a_crash(tmp_path: Path) -> None:
    path = _converted(tmp_path)
    param, weights = path.with_name("model.param"), path.with_name("model.bin")
    good = {file: file.read_bytes() for file in (path, param, weights)}

    def refused(words: str) -> None:
        with pytest.raises(BadInput, match=words):
            open_session("ncnn", path)
        for file, data in good.items():
            file.write_bytes(data)

    def described() -> None:
        """Let model.json name the files as they are: their content is what is wrong then."""
        sidecar = json.loads(path.read_text())
        for key, file in (("param", param), ("bin", weights)):
            entry = ncnn_json.describe(file)
            sidecar[key] = {"file": entry.file, "size": entry.size, "sha256": entry.sha256}
        path.write_text(json.dumps(sidecar))

    weights.write_bytes(good[weights][:-4])
    refused("not the file")
    weights.write_bytes(good[weights][:-4])
    described()
    refused("ends within")
    weights.write_bytes(b"")
    described()
    refused("ends within")
    weights.write_bytes(good[weights] + b"more")
    described()
    refused("left over")
    param.write_bytes(good[param][:-40])
    described()
    refused("not a valid ncnn graph|has no blob")
    param.write_bytes(good[param].replace(b"Convolution ", b"Convolutiom ", 1))
    described()
    refused("Convolutiom|does not fit")
    weights.unlink()
    refused("does not exist")
    path.unlink()
    refused("does not exist")
    with open_session("ncnn", path) as session:
        assert session.run({"x": _images(1, 3, 26, 18)[0]})["boxes"].shape == (1, 5, 13, 9)


def test_an_option_that_this_ncnn_does_not_have(tmp_path: Path) -> None:
    path = _converted(tmp_path)
    sidecar = json.loads(path.read_text())
    sidecar["options"]["use_quantum_tunnels"] = True
    path.write_text(json.dumps(sidecar))
    with pytest.raises(BadInput, match="use_quantum_tunnels"):
        open_session("ncnn", path)


def test_a_model_with_quantization_of_its_own_is_not_possible(tmp_path: Path) -> None:
    maker = GraphMaker()
    scale, zero = np.array(0.1, np.float32), np.array(0, np.uint8)
    names = [maker.weight("scale", scale), maker.weight("zero", zero)]
    maker.node("QuantizeLinear", ["x", *names], "q")
    maker.node("DequantizeLinear", ["q", *names], "d")
    maker.conv("d", "y", (4, 3))
    model = _saved(maker, tmp_path, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]})
    with pytest.raises(NotPossible, match="QDQ") as caught:
        convert_ncnn.run(model, _images(1, 3, 8, 8), "fp32", tmp_path)
    assert "--dequantize" in caught.value.hint
