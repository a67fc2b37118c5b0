"""Whatever a user names is recognized, or refused with a way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.errors import BadInput, NotPossible, UsageError
from edgekit.runtimes.base import SessionOptions
from edgekit.stages import opening
from edgekit.stages.opening import describe, onnx_precision
from tests.bundles import CONTRACT, small_model
from tests.graphs import GraphMaker


def test_an_onnx_file_says_what_it_carries(tmp_path: Path) -> None:
    small_model(tmp_path / "m.onnx")
    named = describe(tmp_path / "m.onnx")
    assert (named.runtime, named.precision, named.name) == ("onnxruntime", "fp32", "m.onnx")
    assert named.checkpoint.names == ("a", "b", "c")
    resolved = named.contract()
    assert resolved.contract == CONTRACT and not resolved.warning
    with named.open(resolved.contract) as session:
        shape = session.run({"images": np.zeros(CONTRACT.input_shape, np.float32)})["output"].shape
    assert shape == (1, 7, 192)


def test_flags_go_over_the_models_own_contract(tmp_path: Path) -> None:
    small_model(tmp_path / "m.onnx")
    contract = describe(tmp_path / "m.onnx").contract({"color": "bgr"}).contract
    assert contract.color == "bgr" and contract.height == CONTRACT.height


def test_a_checkpoint_runs_in_torch_with_a_free_batch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    traced = torch.jit.trace(module.eval(), torch.zeros(1, 3, 8, 8))
    torch.jit.save(traced, str(tmp_path / "m.pt"))
    named = describe(tmp_path / "m.pt")
    assert (named.runtime, named.precision) == ("torch", "fp32")
    contract = named.contract(
        {"color": "rgb", "resize": "none", "scale": 1.0, "mean": (0,) * 3, "std": (1,) * 3}, (8, 8)
    ).contract
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    with named.open(contract, SessionOptions(threads=1)) as session:
        assert session.inputs[0].shape == ("batch", 3, 8, 8)
        (found,) = session.run({session.inputs[0].name: images}).values()
    expected = module(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # the same through the function that the timing process uses
    with opening.open_session(
        "torch", [tmp_path / "m.pt"], SessionOptions(), contract=contract
    ) as session:
        (again,) = session.run({session.inputs[0].name: images}).values()
    np.testing.assert_array_equal(found, again)


def test_an_unknown_size_is_asked_for(tmp_path: Path) -> None:
    make = GraphMaker()
    make.conv("x", "y", (2, 3))
    model = make.model({"x": [1, 3, "h", "w"]}, {"y": [1, 2, "h", "w"]})
    onnx.save(model, str(tmp_path / "m.onnx"))
    named = describe(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="size of its input") as caught:
        named.contract()
    assert "--imgsz" in caught.value.hint
    assert named.contract(size=(32, 48)).contract.width == 48


def test_an_assumed_contract_comes_with_a_warning(tmp_path: Path) -> None:
    make = GraphMaker()
    make.conv("x", "y", (2, 3))
    onnx.save(make.model({"x": [1, 3, 8, 8]}, {"y": [1, 2, 8, 8]}), str(tmp_path / "m.onnx"))
    assert "--mean" in describe(tmp_path / "m.onnx").contract().warning


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("nothing.pt", BadInput, "does not exist"),
        ("folder", BadInput, "not a bundle"),
        ("text.pt", BadInput, "of no known kind"),
        ("m.engine", NotPossible, "TensorRT engine, which needs the board"),
    ],
)
def test_what_cannot_be_opened_says_why(
    tmp_path: Path, name: str, kind: type[Exception], words: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.pt").write_text("hello, this is no checkpoint")
    (tmp_path / "m.engine").write_bytes(b"\0" * 100)
    with pytest.raises(kind, match=words):
        describe(tmp_path / name)


def test_precision_is_read_from_the_graph(tmp_path: Path) -> None:
    make = GraphMaker()
    scale, zero = make.weight("s", np.float32(0.1)), make.weight("z", np.uint8(0))
    make.node("QuantizeLinear", ["x", scale, zero], "q")
    make.node("DequantizeLinear", ["q", scale, zero], "y")
    onnx.save(make.model({"x": [1, 4]}, {"y": [1, 4]}), str(tmp_path / "q.onnx"))
    assert onnx_precision(tmp_path / "q.onnx") == "int8"
    half = GraphMaker()
    half.node("Cast", ["x"], "h", to=onnx.TensorProto.FLOAT16)
    half.node("MatMul", ["h", half.weight("w", np.ones((4, 4), np.float16))], "m")
    half.node("Cast", ["m"], "y", to=onnx.TensorProto.FLOAT)
    onnx.save(half.model({"x": [1, 4]}, {"y": [1, 4]}), str(tmp_path / "h.onnx"))
    assert onnx_precision(tmp_path / "h.onnx") == "fp16"
