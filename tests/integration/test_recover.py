"""Recovery without training, on real sessions: what a layer gives back, and what it does not break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit import onnx_file
from edgekit.cli import run as edgekit
from edgekit.errors import UsageError
from edgekit.preprocess import Preprocess
from edgekit.quantization import retouch
from edgekit.stages import calibrate, correct_biases, quantize, recover
from edgekit.stages.recover import RecoverOptions
from edgekit.target import TargetProfile
from edgekit.target_files import load_target
from edgekit.types import Calibration, OnnxModel
from tests.graphs import GraphMaker, run, sqnr_db

SIZE = 24
COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recover")


@pytest.fixture(scope="module")
def model(folder: Path) -> OnnxModel:
    """Inverted bottlenecks with depthwise layers, and a Gemm behind them; some have no bias."""
    maker = GraphMaker(11)
    maker.conv("x", "a", (16, 3), strides=[2, 2], spread=3)
    maker.node("Relu", ["a"], "ar")
    maker.conv("ar", "b", (16, 16), 3, groups=16, spread=3)
    maker.node("Relu", ["b"], "br")
    maker.conv("br", "c", (24, 16), 1, bias=False)
    maker.node("Relu", ["c"], "cr")
    maker.conv("cr", "d", (24, 24), 3, groups=24, bias=False)
    maker.node("Relu", ["d"], "dr")
    maker.conv("dr", "e", (16, 24), 1)
    maker.node("GlobalAveragePool", ["e"], "p")
    maker.node("Flatten", ["p"], "f")
    weight = maker.rng.normal(0, 0.3, (16, 32)).astype(np.float32)
    bias = maker.rng.normal(0, 0.1, 32).astype(np.float32)
    maker.node("Gemm", ["f", maker.weight("gw", weight), maker.weight("gb", bias)], "y")
    path = folder / "m.onnx"
    onnx.save(maker.model({"x": [1, 3, SIZE, SIZE]}, {"y": [1, 32]}), str(path))
    return onnx_file.describe(path)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def feeds(pixels: np.ndarray) -> list[Any]:
    return [(p.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32) for p in pixels]


@pytest.fixture(scope="module")
def calibration(model: OnnxModel, folder: Path, pixels: np.ndarray) -> Calibration:
    np.savez(folder / "i.npz", images=pixels)
    profile = load_target("x86-int8-vnni")
    options = calibrate.CalibrateOptions(
        method="minmax",
        tensors=quantize.observed_tensors(model, profile),
        channels=quantize.observed_channels(model, profile),
        time_inference=False,
    )
    contract = Preprocess(height=SIZE, width=SIZE)
    return calibrate.run(model, folder / "i.npz", contract, folder / "c.npz", options)


def made(
    model: OnnxModel,
    calibration: Calibration,
    feeds: list[Any],
    out: Path,
    profile: TargetProfile | None = None,
    **options: Any,
) -> onnx.ModelProto:
    chosen = quantize.QuantizeOptions(**options)
    target = profile or load_target("x86-int8-vnni")
    quantize.run(model, calibration, target, [], out, chosen, recovery_feeds=feeds, limits=None)
    return onnx.load(str(out))


def outputs(model: onnx.ModelProto, feeds: list[Any]) -> np.ndarray:
    return np.concatenate([run(model, {"x": feed})[0] for feed in feeds])


def test_full_bias_correction_brings_the_means_back(
    model: OnnxModel, calibration: Calibration, feeds: list[Any], tmp_path: Path
) -> None:
    floats = outputs(onnx.load(str(model.path)), feeds)
    plain = outputs(made(model, calibration, feeds, tmp_path / "p.onnx", weight_bits=4), feeds)
    options = RecoverOptions(full_bias=True)
    proto = made(model, calibration, feeds, tmp_path / "f.onnx", weight_bits=4, recover=options)
    full = outputs(proto, feeds)
    # of the means over the images that were looked at, nearly nothing is left
    seen = slice(0, recover.IMAGES)
    before = np.abs(plain[seen].mean(axis=0) - floats[seen].mean(axis=0)).max()
    after = np.abs(full[seen].mean(axis=0) - floats[seen].mean(axis=0)).max()
    assert after < 0.05 * before
    # and the others gain by it
    rest = slice(recover.IMAGES, None)
    assert sqnr_db(floats[rest], full[rest]) > sqnr_db(floats[rest], plain[rest]) + 3
    # layers that had no bias have an int32 one now; the structure is the same else
    names = {item.name for item in proto.graph.initializer}
    assert {"n_c.bias.int32", "n_d.bias.int32"} <= names
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("method", ["adaround", "gptq"])
def test_rounding_by_outputs_loses_less(
    model: OnnxModel, calibration: Calibration, feeds: list[Any], tmp_path: Path, method: str
) -> None:
    floats = outputs(onnx.load(str(model.path)), feeds)
    plain = made(model, calibration, feeds, tmp_path / "p.onnx", weight_bits=4)
    rounded = made(
        model, calibration, feeds, tmp_path / "r.onnx", weight_bits=4,
        recover=RecoverOptions(rounding=method),
    )  # fmt: skip
    rest = slice(recover.IMAGES, None)
    gain = sqnr_db(floats[rest], outputs(rounded, feeds)[rest]) - sqnr_db(
        floats[rest], outputs(plain, feeds)[rest]
    )
    assert gain > 1
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in plain.graph.initializer}
    for item in rounded.graph.initializer:
        if item.data_type == onnx.TensorProto.INT8 and item.name.endswith(".int8"):
            levels, nearest = onnx.numpy_helper.to_array(item), weights[item.name]
            assert np.abs(levels).max() <= 7
            if method == "adaround":
                # up or down: never further than the other neighbour
                assert np.abs(levels.astype(int) - nearest).max() <= 1
            assert levels.any()


def test_explicit_weights_get_the_same_levels(
    model: OnnxModel, calibration: Calibration, feeds: list[Any]
) -> None:
    import dataclasses

    from edgekit.quantization.placement import place
    from edgekit.quantization.qdq import insert

    profile = load_target("x86-int8-vnni")
    scheme = quantize.scheme_of(profile, quantize.QuantizeOptions(weight_bits=4))
    found = []
    for explicit in (False, True):
        graph = ir.load(str(model.path))
        placement = place(graph, quantize.rules_of(profile), calibration.ranges, ())
        own = dataclasses.replace(scheme, explicit_weights=explicit, integer_bias=not explicit)
        insert(graph, placement, calibration.ranges, own)
        done = recover.round_weights(model, graph, feeds[:8])
        assert set(done) == set(retouch.layers(graph.graph))
        corrected = correct_biases.run(model, graph, feeds[:8])
        assert set(corrected) == set(done)
        found.append(outputs(ir.to_proto(graph), feeds[:4]))
    assert sqnr_db(found[0], found[1]) > 40


def test_fast_correction_follows_the_new_rounding(
    model: OnnxModel, calibration: Calibration, feeds: list[Any], tmp_path: Path
) -> None:
    floats = outputs(onnx.load(str(model.path)), feeds)
    options = RecoverOptions(rounding="adaround")
    plain = outputs(
        made(model, calibration, feeds, tmp_path / "a.onnx", weight_bits=4, recover=options), feeds
    )
    both = outputs(
        made(
            model, calibration, feeds, tmp_path / "b.onnx", weight_bits=4, recover=options,
            bias_correction=True,
        ),
        feeds,
    )  # fmt: skip
    shift = np.abs(plain.mean(axis=0) - floats.mean(axis=0)).mean()
    assert np.abs(both.mean(axis=0) - floats.mean(axis=0)).mean() < 0.8 * shift


def test_the_command_takes_them_and_asks_for_images(
    model: OnnxModel, calibration: Calibration, folder: Path, tmp_path: Path,
    pixels: np.ndarray, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import cv2

    images = tmp_path / "images"
    images.mkdir()
    for number, picture in enumerate(pixels[:8]):
        cv2.imwrite(str(images / f"{number}.png"), picture[:, :, ::-1])
    common = ["quantize", str(model.path), "--calibration", str(calibration.path), "--method", "minmax",
              "-t", "x86-int8-vnni", "--weight-bits", "4", "-o"]  # fmt: skip
    losses = {}
    for name, flags in {
        "plain": [],
        "all": ["--rounding", "adaround", "--full-bias-correction", "--weight-range", "mse"],
    }.items():
        out = str(tmp_path / f"{name}.onnx")
        capsys.readouterr()
        assert edgekit([*common, out, "--images", str(images), *flags, "--json"]) == 0
        losses[name] = json.loads(capsys.readouterr().out)["parity"]["blocks"][0]["sqnr_db"]
    assert losses["all"] > losses["plain"] + 2
    assert edgekit([*common, str(tmp_path / "n.onnx"), "--rounding", "gptq"]) == 2
    assert "--images DIR" in capsys.readouterr().err
    dynamic = ["quantize", str(model.path), "--mode", "dynamic", "--rounding", "gptq"]
    assert edgekit(dynamic) == 2
    with pytest.raises(UsageError, match="Unknown rounding 'adaroun'"):
        RecoverOptions(rounding="adaroun")
