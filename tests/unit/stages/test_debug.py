"""`debug` finds the layer that was made to fail, says why, and its remedy mends it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from edgekit.calibration.histogram import Histogram
from edgekit.cli import run as edgekit
from edgekit.quantization.scheme import Scheme, activation_params
from edgekit.stages import debug_advice
from edgekit.types import Range
from tests.graphs import GraphMaker

CONTRACT = ["--scale", "1/255", "--color", "rgb", "--resize", "none"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(coarse, (24, 24)))
    # noise of full contrast on smooth pictures' ranges: the odd one out
    cv2.imwrite(str(folder / "odd.png"), rng.integers(0, 2, (24, 24, 3), dtype=np.uint8) * 255)
    return folder


def _model(path: Path, spoil: str = "") -> Path:
    maker = GraphMaker(9)
    source = maker.node("Relu", [maker.conv("x", "c0", (16, 3))], "r0")
    for number in (1, 2, 3):
        name = f"c{number}"
        maker.conv(source, name, (16, 16), spread=60.0 if spoil == f"weights of {name}" else 1.0)
        source = maker.node("Relu", [name], f"r{number}")
    maker.conv(source, "y", (8, 16), kernel=1)
    model = maker.model({"x": [1, 3, 24, 24]}, {"y": [1, 8, 24, 24]})
    for item in model.graph.initializer:
        array = onnx.numpy_helper.to_array(item).copy()
        if spoil == "range of c2" and item.name == "c2.w":
            # one channel a hundred times the others: they share the few lowest levels
            array[5] *= 100
        elif spoil == "range of c2" and item.name == "c3.w":
            array[:, 5] *= 0.001
        else:
            continue
        item.CopyFrom(onnx.numpy_helper.from_array(array, item.name))
    onnx.save(model, path)
    return path


def _debug(capsys: pytest.CaptureFixture[str], model: Path, images: Path, *more: str):  # type: ignore[no-untyped-def]
    arguments = ["debug", str(model), "-t", "x86-int8", "--images", str(images), "--json"]
    assert edgekit([*arguments, *CONTRACT, *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_weights_of_uneven_channels_want_a_scale_per_channel(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "m.onnx", "weights of c2")
    options = ("--weight-bits", "6", "--method", "minmax")
    answer = _debug(capsys, model, images, "--per-tensor", *options)
    layer = next(item for item in answer["layers"] if item["name"] == "n_c2")
    assert layer["suggestion"].startswith("--per-channel: its weights")
    assert layer["weight_db"] == min(item["weight_db"] for item in answer["layers"])
    mended = _debug(capsys, model, images, "--per-channel", *options)
    better = next(item for item in mended["layers"] if item["name"] == "n_c2")
    assert better["weight_db"] > layer["weight_db"] + 2
    assert "--per-channel" not in better["suggestion"]


def test_few_weight_bits_are_named(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "m.onnx")
    answer = _debug(capsys, model, images, "--weight-bits", "4")
    assert answer["layers"][0]["suggestion"].startswith("--weight-bits 8")
    mended = _debug(capsys, model, images, "--weight-bits", "8")
    assert mended["sqnr_db"] > answer["sqnr_db"] + 10


def test_the_ranking_is_by_what_a_layer_does_alone(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = _debug(capsys, _model(tmp_path / "m.onnx"), images, "--weight-bits", "7")
    alone = [item["alone_db"] for item in answer["layers"]]
    assert alone == sorted(alone)
    # together they cannot do less harm than the worst one alone, a rounding's luck aside
    assert answer["sqnr_db"] < alone[0] + 1
    assert {"r1", "r2", "r3"} <= set(answer["nodes"])
    assert sum(item["mac_share"] for item in answer["layers"]) == pytest.approx(1, abs=0.2)
    assert [item["sqnr_db"] for item in answer["images"]] == sorted(
        item["sqnr_db"] for item in answer["images"]
    )
    assert {item["name"] for item in answer["images"]} == {
        *(f"{n}.png" for n in range(6)),
        "odd.png",
    }


def test_a_layer_left_float_is_no_longer_listed(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "m.onnx", "range of c2")
    answer = _debug(capsys, model, images, "--keep-float", "n_c2")
    assert "n_c2" not in {item["name"] for item in answer["layers"]}
    assert answer["floats"]["n_c2"] == "asked to stay float"


def test_the_table_names_the_remedies(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "m.onnx")
    arguments = ["debug", str(model), "-t", "x86-int8", "--images", str(images), *CONTRACT]
    assert edgekit([*arguments, "--weight-bits", "4"]) == 0
    text = capsys.readouterr().out
    assert "--weight-bits 8" in text
    assert "Images that suffer most" in text
    assert ".png" in text


def test_a_calibration_serves_quantize_and_debug_with_corrected_biases(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, statistics = _model(tmp_path / "m.onnx"), tmp_path / "c.npz"
    given = ["--images", str(images), *CONTRACT, "--json"]
    assert edgekit(["calibrate", str(model), "-t", "x86-int8", "-o", str(statistics), *given]) == 0
    capsys.readouterr()
    sqnr = {}
    for option in ((), ("--bias-correction",)):
        bits = ["--weight-bits", "4", "--calibration", str(statistics)]
        assert edgekit(["quantize", str(model), *bits, *option, *given]) == 0
        sqnr[option] = json.loads(capsys.readouterr().out)["parity"]["blocks"][0]["sqnr_db"]
        answer = _debug(capsys, model, images, *bits, *option)
        assert answer["sqnr_db"] == pytest.approx(sqnr[option], abs=3)
    assert sqnr["--bias-correction",] > sqnr[()]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["m.onnx", "-t", "x86-fp32"], 4, "not an INT8 target"),
        (["folder", "-t", "x86-int8"], 2, "not an ONNX file"),
        (["missing.onnx", "-t", "x86-int8"], 8, "missing.onnx"),
        (["int8.onnx", "-t", "x86-int8"], 8, "quantized already"),
    ],
)
def test_what_cannot_be_debugged_is_refused(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _model(tmp_path / "m.onnx")
    (tmp_path / "folder").mkdir()
    maker = GraphMaker(1)
    scale = maker.weight("s", np.array(0.1, np.float32))
    zero = maker.weight("z", np.array(0, np.uint8))
    maker.node("QuantizeLinear", ["x", scale, zero], "q")
    maker.node("DequantizeLinear", ["q", scale, zero], "y")
    made = maker.model({"x": [1, 3, 24, 24]}, {"y": [1, 3, 24, 24]})
    onnx.save(made, tmp_path / "int8.onnx")
    monkeypatch.chdir(tmp_path)
    assert edgekit(["debug", *arguments, "--images", str(images), "--json", *CONTRACT]) == code
    assert words in json.loads(capsys.readouterr().out)["error"]


def test_clipping_and_rounding_are_told_apart() -> None:
    histogram = Histogram()
    values = np.random.default_rng(2).normal(size=200_000).astype(np.float32)
    histogram.add(values)
    for limit in (1.0, 6.0):
        params = activation_params(Range(low=-limit, high=limit), Scheme())
        error = debug_advice.tensor_error(histogram, params)
        scale, zero = float(params.scale), int(params.zero_point)
        levels = np.clip(np.rint(values / scale) + zero, 0, 255)
        noise = (values - (levels - zero) * scale) ** 2
        exact = 10 * math.log10(float((values.astype(np.float64) ** 2).sum() / noise.sum()))
        assert error.sqnr_db == pytest.approx(exact, abs=0.3)
        assert (error.clipping_db < error.rounding_db) == (limit == 1.0)
        share = float((np.abs(values) > limit + scale / 2).mean())
        assert error.clipped_share == pytest.approx(share, abs=0.005)


def test_the_method_that_keeps_a_tensor_is_suggested() -> None:
    from edgekit.calibration.statistics import Origin, Statistics

    values = np.random.default_rng(2).normal(size=400_000).astype(np.float32)
    values[0] = 20.0
    statistics = Statistics(Origin(graph_sha256="", preprocess="", versions={}, tensors=("t", "u")))
    statistics.add("ab" * 32, "image", {"t": values, "u": values[1:]})
    methods = debug_advice.Methods(statistics, Scheme())
    spoiled = activation_params(Range(low=-5.0, high=500.0), Scheme())
    clean = activation_params(Range(low=-5.0, high=5.0), Scheme())
    knobs = debug_advice.Knobs(
        node="n",
        alone_db=10.0,
        weight_db={debug_advice.AS_IT_IS: 40.0},
        input=debug_advice.tensor_error(statistics.histogram("t"), spoiled),
        output=debug_advice.tensor_error(statistics.histogram("u"), clean),
        input_name="t",
        output_name="u",
    )
    best, best_db = methods.best("t")
    assert best != "minmax" and best_db > knobs.input.sqnr_db
    assert debug_advice.suggest(knobs, methods, "minmax").startswith(f"--method {best}")
    assert debug_advice.suggest(knobs, methods, best).startswith("--keep-float n")
