"""ONNX checkpoints are checked where they lie, without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.checkpoint import load
from edgekit.errors import BadInput
from edgekit.preprocess import METADATA_KEY, Preprocess


def model(
    weight: Any = None,
    shape: tuple[Any, ...] = (1, 3, 8, 8),
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """Conv and ReLU; `weight` [4, 3, 3, 3]."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(4, 3, 3, 3)).astype(np.float32) if weight is None else weight
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "w", "b"], ["y"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["y"], ["out"], name="relu"),
        ],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [shape[0], 4, *shape[2:]])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.zeros(4, np.float32), "b"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in (metadata or {}).items():
        entry = made.metadata_props.add()
        entry.key, entry.value = key, value
    return made


def write(tmp_path: Path, made: onnx.ModelProto, name: str = "model.onnx") -> Path:
    onnx.save(made, str(tmp_path / name))
    return tmp_path / name


@pytest.mark.parametrize("name", ["model.onnx", "model.bin"])
def test_a_plain_model(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, model(), name)
    loaded = load(path)
    assert loaded.kind == "onnx"
    assert loaded.onnx == path
    assert loaded.module is None
    assert loaded.input_shape == (1, 3, 8, 8)
    assert loaded.parameters == 4 * 27 + 4
    assert (loaded.preprocess, loaded.task, loaded.head, loaded.names) == (None, None, None, ())


def test_our_own_metadata(tmp_path: Path) -> None:
    contract = Preprocess(height=8, width=8, mean=(0.5, 0.5, 0.5))
    metadata = {
        METADATA_KEY: contract.to_json(),
        "edgekit.task": "detect",
        "edgekit.head": "yolov8",
        "edgekit.names": '["a", "b"]',
    }
    loaded = load(write(tmp_path, model(metadata=metadata)))
    assert loaded.preprocess == contract
    assert (loaded.task, loaded.head, loaded.names) == ("detect", "yolov8", ("a", "b"))


def test_ultralytics_metadata_and_free_sides(tmp_path: Path) -> None:
    metadata = {
        "task": "detect",
        "stride": "32",
        "imgsz": "[64, 96]",
        "names": "{0: 'cell', 1: 'it\\'s'}",
    }
    loaded = load(write(tmp_path, model(shape=("batch", 3, "h", "w"), metadata=metadata)))
    assert loaded.input_shape == (1, 3, 64, 96)
    assert loaded.preprocess == Preprocess(height=64, width=96)
    assert loaded.names == ("cell", "it's")
    assert load(write(tmp_path, model(shape=("batch", 3, "h", "w")))).input_shape is None


def test_metadata_is_read_not_evaluated(tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    metadata = {
        "task": "detect",
        "stride": "32",
        "imgsz": f"open({str(trace)!r}, 'w')",
        "names": "1+",
    }
    loaded = load(write(tmp_path, model(metadata=metadata)))
    assert not trace.exists()
    assert loaded.names == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("external", [False, True])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, value: float, external: bool
) -> None:
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[1, 2, 0, 0] = value
    made = model(weight)
    path = tmp_path / "model.onnx"
    onnx.save(made, str(path), save_as_external_data=external, size_threshold=0)
    with pytest.raises(BadInput, match="'w' holds 1 values"):
        load(path)


def test_infinities_that_mean_something_are_kept(tmp_path: Path) -> None:
    made = model()
    made.graph.node.append(helper.make_node("Min", ["out", "limit"], ["last"]))
    made.graph.initializer.append(numpy_helper.from_array(np.full(8, np.inf, np.float32), "limit"))
    made.graph.output[0].name = "last"
    assert load(write(tmp_path, made)).parameters == 4 * 27 + 4 + 8
    made.graph.initializer[2].CopyFrom(
        numpy_helper.from_array(np.full(8, np.nan, np.float32), "limit")
    )
    with pytest.raises(BadInput, match="'limit' holds 8 values"):
        load(write(tmp_path, made))


def _external(made: onnx.ModelProto, **entries: str) -> onnx.ModelProto:
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return made


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "", "..\\secret.bin", "link.bin"],
)
def test_external_data_outside_of_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = folder / "model.onnx"
    path.write_bytes(_external(model(), location=location).SerializeToString())
    with pytest.raises(BadInput, match="outside of the model's folder"):
        load(path)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "none.bin"}, "missing"),
        ({"location": "short.bin"}, "shorter"),
        ({"location": "short.bin", "offset": "4", "length": "4"}, "shorter"),
        ({"location": "short.bin", "offset": "-4"}, "shorter"),
        ({"location": "short.bin", "offset": "x"}, "unreadable place"),
    ],
)
def test_external_data_that_is_not_there(
    tmp_path: Path, entries: dict[str, str], text: str
) -> None:
    (tmp_path / "short.bin").write_bytes(bytes(6))
    path = tmp_path / "model.onnx"
    path.write_bytes(_external(model(), **entries).SerializeToString())
    with pytest.raises(BadInput, match=text):
        load(path)


def test_external_data_in_the_folder_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert load(path).parameters == 112


def _without(part: str) -> Callable[[onnx.ModelProto], None]:
    return lambda made: made.graph.ClearField(part)


@pytest.mark.parametrize(
    "spoil",
    [
        _without("node"),
        _without("initializer"),
        _without("output"),
        lambda made: made.ClearField("opset_import"),
        lambda made: setattr(made.graph.node[0], "op_type", "Convolve"),
        lambda made: made.graph.initializer[0].dims.__setitem__(0, 400),
        lambda made: setattr(made.graph.initializer[0], "data_type", 99),
        lambda made: made.graph.node[1].input.__setitem__(0, "nothing"),
    ],
    ids=["no nodes", "no weights", "no output", "no opset", "op", "dims", "type", "dangling"],
)
def test_invalid_graphs(tmp_path: Path, spoil: Callable[[onnx.ModelProto], None]) -> None:
    made = model()
    spoil(made)
    with pytest.raises(BadInput):
        load(write(tmp_path, made))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = write(tmp_path, model())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput):
        load(path)


def test_two_inputs(tmp_path: Path) -> None:
    made = model()
    made.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1]))
    with pytest.raises(BadInput, match="2 inputs"):
        load(write(tmp_path, made))


def test_quantized_graphs_are_noted(tmp_path: Path) -> None:
    made = model()
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
    ]
    made.graph.node.insert(0, nodes[1])
    made.graph.node.insert(0, nodes[0])
    made.graph.node[2].input[0] = "dq"
    made.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    made.graph.initializer.append(numpy_helper.from_array(np.uint8(3), "z"))
    loaded = load(write(tmp_path, made))
    assert "already quantized: 1 QuantizeLinear, 1 DequantizeLinear (QDQ)" in loaded.notes


def test_no_torch_is_imported(tmp_path: Path) -> None:
    path = write(tmp_path, model())
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgekit.checkpoint import load\n"
        f"load(Path({str(path)!r}))\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
