"""`inspect`: figures that can be worked out by hand, on graphs of every precision."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edgekit.cli import group
from edgekit.stages import inspect
from edgekit.stages.inspect import Inspection, inspect_graph
from tests.graphs import GraphMaker

SHAPE = (1, 3, 8, 8)


def look(model: onnx.ModelProto) -> Inspection:
    return inspect_graph(model, name="m", kind="onnx", input_shape=SHAPE, size_bytes=0)


def ternary(rng: np.random.Generator, shape: tuple[int, ...], p: float, n: float) -> np.ndarray:
    codes = rng.integers(-1, 2, shape)
    return np.where(codes > 0, p, np.where(codes < 0, -n, 0)).astype(np.float32)


def mixed() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Float, sparse, ternary, ternary per channel, QDQ int8 and float16-free: one layer of each."""
    maker = GraphMaker(1)
    rng = maker.rng
    weights = {
        "sparse": np.where(rng.random((8, 3, 3, 3)) < 0.75, 0, rng.normal(size=(8, 3, 3, 3))),
        "ternary": ternary(rng, (8, 8, 3, 3), 0.3, 0.2),
        "channels": ternary(rng, (8, 8, 3, 3), 0.3, 0.2) * rng.uniform(0.5, 2, (8, 1, 1, 1)),
        "deep": rng.normal(size=(8, 1, 3, 3)),
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    x = "images"
    for name, array in weights.items():
        groups = 8 if name == "deep" else 1
        x = maker.node(
            "Conv", [x, maker.weight(f"{name}.w", array)], name, pads=[1] * 4, group=groups
        )
    s = maker.weight("xs", np.array(0.05, np.float32))
    z = maker.weight("xz", np.array(128, np.uint8))
    x = maker.node("DequantizeLinear", [maker.node("QuantizeLinear", [x, s, z], "xq"), s, z], "xd")
    integers = rng.integers(-127, 128, (4, 8, 1, 1)).astype(np.int8)
    scale = np.linspace(0.01, 0.02, 4, dtype=np.float32)
    names = [
        maker.weight("q.w", integers),
        maker.weight("q.s", scale),
        maker.weight("q.z", np.zeros(4, np.int8)),
    ]
    w = maker.node("DequantizeLinear", names, "q.d", axis=0)
    maker.node("Conv", [x, w, maker.weight("q.b", np.ones(4, np.float32))], "q")
    weights["q"] = integers
    return maker.model({"images": SHAPE}, {"q": (1, 4, 8, 8)}), weights


def test_every_layer_is_what_it_is() -> None:
    model, weights = mixed()
    found = look(model)
    by_name = {layer.name.removeprefix("n_"): layer for layer in found.layers}
    assert list(by_name) == list(weights)
    assert [name for name, layer in by_name.items() if layer.ternary] == ["ternary", "channels"]
    for name, layer in by_name.items():
        assert layer.shape == weights[name].shape
        assert layer.levels == len(np.unique(weights[name]))
        assert layer.sparsity == pytest.approx(np.mean(weights[name] == 0))
        assert layer.macs == 64 * weights[name].size
    assert by_name["ternary"].wp == pytest.approx((0.3,)) and by_name[
        "ternary"
    ].wn == pytest.approx((0.2,))
    assert not by_name["ternary"].per_channel and by_name["channels"].per_channel
    assert len(by_name["channels"].wp) == 2
    assert by_name["deep"].type == "Conv depthwise"
    assert by_name["q"].precision == "int8" and by_name["deep"].precision == "float32"
    assert by_name["q"].weight_scale == (pytest.approx(0.01), pytest.approx(0.02))
    assert by_name["q"].input_scale == pytest.approx(0.05)
    assert by_name["q"].parameters == 32 + 4


def test_totals_follow_the_formula() -> None:
    model, weights = mixed()
    found = look(model)
    sizes = {name: array.size for name, array in weights.items()}
    count = sum(sizes.values()) + 4
    assert found.parameters == count
    assert found.macs == 64 * sum(sizes.values()) and found.flops == 2 * found.macs
    assert found.ternary_share == pytest.approx((sizes["ternary"] + sizes["channels"]) / count)
    assert found.int8_share == pytest.approx(sizes["q"] / count)
    assert found.ternary_share + found.int8_share + found.float_share == pytest.approx(1)
    bits = 32 * (sizes["sparse"] + sizes["deep"] + 4)
    bits += 2 * sizes["ternary"] + 2 * 32
    bits += 2 * sizes["channels"] + 8 * 2 * 32
    bits += 8 * sizes["q"] + 4 * 32
    assert found.bits == bits
    assert found.theoretical_compression == pytest.approx(32 * count / bits)
    zeros = sum(np.sum(array == 0) for array in weights.values())
    assert found.sparsity == pytest.approx(zeros / (count - 4))


def test_beside_a_baseline() -> None:
    maker = GraphMaker()
    maker.conv("images", "y", (16, 3))
    wide = look(maker.model({"images": SHAPE}, {"y": (1, 16, 8, 8)}))
    maker = GraphMaker()
    maker.conv("images", "y", (4, 3))
    narrow = inspect.against(look(maker.model({"images": SHAPE}, {"y": (1, 4, 8, 8)})), wide)
    assert narrow.against is not None
    assert narrow.against.parameters_removed == pytest.approx(0.75)
    assert narrow.against.flops_reduction == pytest.approx(0.75)
    assert narrow.theoretical_compression == pytest.approx(4)


def test_float16_takes_16_bits() -> None:
    maker = GraphMaker()
    weight = maker.rng.normal(size=(4, 3, 3, 3)).astype(np.float16)
    maker.node("Conv", ["images", maker.node("Cast", [maker.weight("w", weight)], "wf", to=1)], "y")
    found = look(maker.model({"images": SHAPE}, {"y": (1, 4, 6, 6)}))
    assert found.layers[0].precision == "float16"
    assert found.theoretical_compression == pytest.approx(2)


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_what_onnxruntime_quantizes(tmp_path: Path, form: str) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        quantize_dynamic,
        quantize_static,
    )

    maker = GraphMaker()
    maker.node("Relu", [maker.conv("images", "a", (8, 3))], "r")
    maker.conv("r", "b", (4, 8))
    onnx.save(maker.model({"images": SHAPE}, {"b": (1, 4, 8, 8)}), tmp_path / "f.onnx")

    class Reader(CalibrationDataReader):
        left = 3

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            if self.left < 0:
                return None
            image = np.random.default_rng(self.left).normal(size=SHAPE).astype(np.float32)
            return {"images": image}

    out = tmp_path / "q.onnx"
    if form == "dynamic":
        quantize_dynamic(tmp_path / "f.onnx", out)
    else:
        quantize_static(
            tmp_path / "f.onnx",
            out,
            Reader(),
            quant_format=QuantFormat[form],
            per_channel=form == "QDQ",
        )
    before, after = look(onnx.load(tmp_path / "f.onnx")), look(onnx.load(out))
    assert [layer.precision for layer in after.layers] == ["int8", "int8"]
    assert [layer.shape for layer in after.layers] == [layer.shape for layer in before.layers]
    assert after.macs == before.macs
    assert 3 < after.theoretical_compression < 4
    for ours, theirs in zip(after.layers, before.layers, strict=True):
        assert ours.levels <= 256 < theirs.levels or ours.levels < theirs.levels
    if form != "dynamic":
        assert all(layer.input_scale for layer in after.layers)


class Shapes(nn.Module):
    """Shapes that no inference follows: a view by computed sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x[:, : x.shape[1] // 2].repeat(1, 2, 1, 1)
        attention = x.flatten(2).transpose(1, 2) @ x.flatten(2)
        return self.head(x.mean((2, 3))) + attention.mean()


def factory() -> nn.Module:
    return Shapes()


def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(Shapes().eval().state_dict(), tmp_path / "m.pt")
    return tmp_path / "m.pt"


ARCH = ["--arch", "tests.unit.stages.test_inspect:factory"]


def test_a_checkpoint_is_counted_as_it_was_trained(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        group,
        ["inspect", str(saved(tmp_path)), *ARCH, "--imgsz", "8", "--json"],
        catch_exceptions=False,
    )
    answer = json.loads(done.stdout)
    assert {
        *(
            "params",
            "macs",
            "size_mb",
            "sparsity",
            "ternary_share",
            "theoretical_compression",
            "layers",
        )
    } <= set(answer)
    assert answer["params"] == 8 * 27 + 16 + 45
    # the convolution, the classifier, and the product of activations [64 x 8] @ [8 x 64]
    assert answer["macs"] == 64 * 8 * 27 + 40 + 64 * 8 * 64
    assert [layer["name"] for layer in answer["layers"]] == ["first", "head"]
    assert answer["layers"][0]["shape"] == [8, 3, 3, 3]
    assert answer["baseline"] is None


def test_the_table_and_the_csv(tmp_path: Path) -> None:
    path = saved(tmp_path)
    done = CliRunner().invoke(
        group,
        [
            *("inspect", str(path), *ARCH, "--imgsz", "8"),
            *("--csv", str(tmp_path / "l.csv"), "--baseline", str(path)),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert "8x3x3x3" in done.stdout and "1.00x against the baseline" in done.stdout
    with open(tmp_path / "l.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["first", "head"]
    assert rows[0]["macs"] == str(64 * 8 * 27) and rows[0]["ternary"] == "no"


def test_a_ternary_checkpoint_with_latent_weights(tmp_path: Path) -> None:
    # what the network computes with counts, not what the file stores
    from tests import bitlinear

    torch.manual_seed(0)
    torch.save(bitlinear.learned().state_dict(), tmp_path / "m.pt")
    done = CliRunner().invoke(
        group,
        [
            *("inspect", str(tmp_path / "m.pt"), "--arch", "tests.bitlinear:learned"),
            *("--imgsz", "32", "--json"),
        ],
        catch_exceptions=False,
    )
    layers = json.loads(done.stdout)["layers"]
    assert [layer["name"] for layer in layers if layer["ternary"]] == ["body.0", "body.1", "body.2"]


class Gray(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_a_network_for_gray_images(tmp_path: Path) -> None:
    torch.save(Gray().state_dict(), tmp_path / "m.pt")
    arch = ["--arch", "tests.unit.stages.test_inspect:Gray"]
    done = CliRunner().invoke(
        group,
        ["inspect", str(tmp_path / "m.pt"), *arch, "--imgsz", "28", "--json"],
        catch_exceptions=False,
    )
    answer = json.loads(done.stdout)
    assert answer["input_shape"] == [1, 1, 28, 28]
    assert answer["macs"] == 24 * 24 * 4 * 25


def test_what_cannot_be_inspected(tmp_path: Path) -> None:
    from edgekit.errors import BadInput, UsageError

    runner = CliRunner()
    with pytest.raises(UsageError, match="size of its input"):
        runner.invoke(group, ["inspect", str(saved(tmp_path)), *ARCH], catch_exceptions=False)
    with pytest.raises(BadInput, match="does not exist"):
        runner.invoke(group, ["inspect", str(tmp_path / "no.pt")], catch_exceptions=False)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(BadInput, match="0 bytes"):
        runner.invoke(group, ["inspect", str(tmp_path / "empty.onnx")], catch_exceptions=False)
