"""INT8 in ncnn: the written files are what ncnn makes itself, and one Calibration serves them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit import onnx_file
from edgekit.builders import ncnn as builder
from edgekit.builders import ncnn_int8
from edgekit.builders.ncnn_int8 import LayerScale
from edgekit.builders.ncnn_match import Match
from edgekit.builders.pnnx import NcnnModel
from edgekit.errors import BadInput, NotPossible
from edgekit.formats import ncnn_bin, ncnn_json, ncnn_param, ncnn_table
from edgekit.preprocess import Preprocess, apply
from edgekit.quantization.ternary import best_integers
from edgekit.runtimes import open_session
from edgekit.stages import (
    calibrate,
    collect_ncnn,
    convert_ncnn,
    ncnn_layers,
    noise,
    quantize_ncnn,
    search_ncnn,
)
from edgekit.stages.quantize import observed_channels, observed_tensors
from edgekit.stages.quantize_ncnn import NcnnQuantizer
from edgekit.stages.search import SearchOptions
from edgekit.target import TargetProfile
from edgekit.target_files import load_target
from edgekit.types import Calibration, Engine, OnnxModel
from tests.graphs import GraphMaker, sqnr_db

pytest.importorskip("ncnn")

SIZE = (32, 40)
CONTRACT = Preprocess(height=SIZE[0], width=SIZE[1], resize="none")


def _pictures(count: int) -> np.ndarray:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 8, 10, 3), dtype=np.uint8)
    return np.stack(
        [cv2.resize(picture, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for picture in small]
    )


def _ternary(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`weight` with the levels -Wn, 0, Wp only."""
    limit = 0.7 * np.abs(weight).mean()
    positive, negative = rng.uniform(0.05, 0.25, 2)
    levels = np.where(weight > limit, positive, np.where(weight < -limit, -negative, 0))
    return levels.astype(np.float32)


class Net:
    """A small network with every layer that can be INT8, converted and calibrated."""

    def __init__(self, folder: Path, activation: str = "Relu", ternary: bool = False) -> None:
        self.folder = folder
        maker = GraphMaker(seed=3)
        maker.conv("x", "c1", (16, 3), strides=[2, 2])
        maker.node(activation, ["c1"], "a1")
        maker.conv("a1", "c2", (32, 16))
        maker.node(activation, ["c2"], "a2")
        maker.conv("a2", "c3", (32, 32), groups=32)
        maker.node(activation, ["c3"], "a3")
        maker.conv("a3", "c4", (32, 32), kernel=1, spread=4.0)
        maker.node("Add", ["c4", "a2"], "sum")
        maker.node(activation, ["sum"], "a4")
        maker.conv("a4", "c5", (24, 32), groups=4)
        maker.node("GlobalAveragePool", ["c5"], "pooled")
        maker.node("Flatten", ["pooled"], "flat")
        weight = maker.rng.normal(0, 0.2, (10, 24)).astype(np.float32)
        bias = maker.rng.normal(0, 0.1, 10).astype(np.float32)
        inputs = ["flat", maker.weight("fc.w", weight), maker.weight("fc.b", bias)]
        maker.node("Gemm", inputs, "logits", transB=1)
        proto = maker.model(
            {"x": [1, 3, *SIZE]}, {"logits": [1, 10], "c5": [1, 24, SIZE[0] // 2, SIZE[1] // 2]}
        )
        for item in proto.graph.initializer if ternary else ():
            if item.name.startswith("c") and item.name.endswith(".w"):
                values = _ternary(onnx.numpy_helper.to_array(item), maker.rng)
                item.CopyFrom(onnx.numpy_helper.from_array(values, item.name))
        self.model: OnnxModel = onnx_file.save(proto, folder / "model.onnx")
        np.savez(folder / "images.npz", images=_pictures(12))
        self.images = folder / "images.npz"
        self.feeds = [apply(picture, CONTRACT)[0] for picture in _pictures(12)[:4]]
        self.profile: TargetProfile = load_target("arm-int8")
        options = calibrate.CalibrateOptions(
            tensors=observed_tensors(self.model, self.profile),
            channels=observed_channels(self.model, self.profile),
            symmetric=True,
            time_inference=False,
        )
        self.calibration: Calibration = calibrate.run(
            self.model, self.images, CONTRACT, folder / "calibration.npz", options
        )
        self.converted = convert_ncnn.run(self.model, self.feeds, "fp32", folder / "float")

    def quantizer(self, **rules: Any) -> NcnnQuantizer:
        assert self.profile.quantize is not None
        own = dataclasses.replace(self.profile.quantize, **rules)
        return NcnnQuantizer(
            self.converted.engine, self.model, self.calibration, own, self.feeds[0]
        )

    def outputs(self, engine: Engine) -> list[dict[str, np.ndarray]]:
        with open_session(engine.runtime, engine.files) as session:
            return [session.run({"x": feed}) for feed in self.feeds]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return Net(tmp_path_factory.mktemp("net"))


def _sqnr(reference: list[dict[str, np.ndarray]], found: list[dict[str, np.ndarray]]) -> float:
    return min(
        sqnr_db(np.stack([r[name] for r in reference]), np.stack([f[name] for f in found]))
        for name in reference[0]
    )


def _written(net: Net, model: NcnnModel, folder: Path) -> Engine:
    sidecar = ncnn_json.read(net.converted.engine.files[0])
    return builder.write(model, sidecar.inputs, sidecar.outputs, "int8", folder)


def test_every_layer_is_found_again_by_its_weights(net: Net) -> None:
    quantizer = net.quantizer()
    found = {layer.name: layer.tensor for layer in quantizer.known.layers}
    assert found == {
        "n_c1": "x", "n_c2": "a1", "n_c3": "a2", "n_c4": "a3", "n_c5": "a4", "n_logits": "flat",
    }  # fmt: skip
    assert quantizer.unmatched == ()
    macs = {layer.name: layer.macs for layer in quantizer.known.layers}
    assert macs["n_c2"] == 16 * 20 * 32 * 16 * 9
    assert macs["n_c3"] == 16 * 20 * 32 * 9
    assert macs["n_logits"] == 240
    assert quantizer.known.share_without(frozenset()) == 1.0
    assert quantizer.known.share_without(frozenset(["n_c2"])) < 0.6


def test_the_files_are_what_ncnn_quantizes_itself(net: Net, tmp_path: Path) -> None:
    """Float weights with scales are quantized when ncnn loads them: the same numbers come out."""
    quantizer = net.quantizer()
    plan = quantizer.plan("minmax", ())
    ours = ncnn_int8.quantize(quantizer.float_model, plan)
    weights = []
    for arrays, exact in zip(ours.weights, quantizer.float_model.weights, strict=True):
        left_to_ncnn = "weight_scales" in arrays
        weights.append({**arrays, "weight": exact["weight"]} if left_to_ncnn else arrays)
    theirs = dataclasses.replace(ours, weights=weights)
    one = net.outputs(_written(net, ours, tmp_path / "ours"))
    two = net.outputs(_written(net, theirs, tmp_path / "theirs"))
    for first, second in zip(one, two, strict=True):
        for name, array in first.items():
            assert np.array_equal(array, second[name])
    assert (tmp_path / "ours" / "model.bin").stat().st_size < 0.5 * (
        tmp_path / "theirs" / "model.bin"
    ).stat().st_size


def test_a_tensor_kept_in_int8_is_the_same_tensor(net: Net, tmp_path: Path) -> None:
    """Requantizing inside a layer gives the codes that the next layer would make of its floats."""
    quantizer = net.quantizer()
    plan = quantizer.plan("minmax", ())
    assert len(ncnn_int8.requantized(quantizer.float_model.graph, plan)) >= 2
    fused = ncnn_int8.quantize(quantizer.float_model, plan)
    changes = {}
    weights = list(fused.weights)
    for place, layer in enumerate(fused.graph.layers):
        if layer.integer(8) > 100:
            changes[place] = layer.with_params({8: layer.integer(8) - 100})
            weights[place] = {n: a for n, a in weights[place].items() if n != "output_scale"}
    apart = dataclasses.replace(fused, graph=fused.graph.replaced(changes), weights=weights)
    one = net.outputs(_written(net, fused, tmp_path / "fused"))
    two = net.outputs(_written(net, apart, tmp_path / "apart"))
    assert _sqnr(two, one) > 50  # a value on the border may round to the other side


@pytest.mark.parametrize(("winograd", "bits"), [(True, 6), (False, 8)])
def test_int8_is_near_float(net: Net, tmp_path: Path, winograd: bool, bits: int) -> None:
    quantizer = net.quantizer(winograd=winograd)
    nearest = quantize_ncnn.run(quantizer, "minmax", {}, net.feeds, tmp_path / "nearest")
    assert nearest.weight_bits == bits
    assert nearest.int8_mac_share == 1.0
    assert nearest.compute == quantizer.names
    assert nearest.parity is not None
    quantizer.round_weights(net.feeds)
    better = quantize_ncnn.run(quantizer, "minmax", {}, net.feeds, tmp_path / "better")
    expected = net.outputs(net.converted.engine)
    sqnr = [_sqnr(expected, net.outputs(done.engine)) for done in (nearest, better)]
    assert sqnr[0] > 20
    assert sqnr[1] > sqnr[0] + (1.0 if bits == 6 else -1.0)
    masks = {layer.integer(31) for layer in ncnn_param.read(better.engine.files[1]).layers}
    assert masks == ({0} if winograd else {0, 64})


def test_eight_bits_do_not_overflow_where_winograd_is_off(tmp_path: Path) -> None:
    """64 channels of weights and inputs all at their ends: Winograd's 32 bits would not hold them."""
    maker = GraphMaker()
    weight = np.where(maker.rng.random((64, 64, 3, 3)) < 0.9, 1.0, -1.0).astype(np.float32)
    maker.node("Conv", ["x", maker.weight("w", weight)], "y", pads=[1, 1, 1, 1])
    model = onnx_file.save(
        maker.model({"x": [1, 64, 16, 16]}, {"y": [1, 64, 16, 16]}), tmp_path / "m.onnx"
    )
    feed = np.where(np.random.default_rng(0).random((1, 64, 16, 16)) < 0.9, 1.0, -1.0).astype(
        np.float32
    )
    done = convert_ncnn.run(model, [feed], "fp32", tmp_path / "float")
    loaded = ncnn_layers.load(done.engine)
    (place,) = ncnn_int8.quantizable(loaded)
    made = ncnn_int8.quantize(loaded, {place: LayerScale.of_range(1.0, 8)})
    sidecar = ncnn_json.read(done.engine.files[0])
    engine = builder.write(made, sidecar.inputs, sidecar.outputs, "int8", tmp_path / "int8")
    with (
        open_session("ncnn", engine.files) as int8,
        open_session("ncnn", done.engine.files) as plain,
    ):
        found, expected = int8.run({"x": feed})["y"], plain.run({"x": feed})["y"]
    assert sqnr_db(expected, found) > 60


def test_layers_that_match_nothing_are_calibrated_on_the_ncnn_graph(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matched = net.quantizer()
    monkeypatch.setattr(ncnn_layers, "match_layers", lambda model, path: {})
    alone = net.quantizer()
    assert len(alone.unmatched) == 6
    assert all(name.endswith("(ncnn)") for name in alone.names)
    with pytest.raises(NotPossible, match="no calibrated range"):
        quantize_ncnn.run(alone, "minmax", {}, [], tmp_path / "none")
    partial = tmp_path / "partial"
    path = collect_ncnn.run(
        net.converted.engine,
        alone.unmatched,
        net.images,
        CONTRACT,
        tmp_path / "x.npz",
        partial=partial,
    )
    assert not list(partial.glob("partial-*"))
    alone.add_statistics(path)
    for one, other in zip(matched.known.layers, alone.known.layers, strict=True):
        for method in ("minmax", "mse", "percentile"):
            ours = alone.ranges(method)[other.tensor].amax
            assert ours == pytest.approx(matched.ranges(method)[one.tensor].amax, rel=2e-3)
    done = quantize_ncnn.run(alone, "minmax", {}, net.feeds, tmp_path / "q")
    assert "6 layers calibrated on the ncnn graph" in done.notes


def test_a_match_that_does_not_hold_on_an_image_counts_as_none(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ncnn_layers.match_layers

    def crossed(model: NcnnModel, path: Path) -> dict[int, Match]:
        found = dict(right(model, path))
        first, second = sorted(found)[1:3]
        found[first], found[second] = found[second], found[first]
        return found

    monkeypatch.setattr(ncnn_layers, "match_layers", crossed)
    assert [layer.matched for layer in net.quantizer().known.layers] == [
        True, False, False, True, True, True,
    ]  # fmt: skip


def test_a_calibration_of_another_graph_is_refused(net: Net) -> None:
    other = dataclasses.replace(net.calibration, graph_sha256="0" * 64)
    assert net.profile.quantize is not None
    with pytest.raises(BadInput, match="another graph"):
        NcnnQuantizer(net.converted.engine, net.model, other, net.profile.quantize, net.feeds[0])


def test_what_stays_float(net: Net, tmp_path: Path) -> None:
    quantizer = net.quantizer(keep_float=("depthwise", "first", "Gemm"))
    own = quantizer.float_model.graph.layers[quantizer.known.layers[1].place].name
    keep = quantizer.always_float(["n_c4", own])
    assert keep == {
        "n_c1": "the profile keeps the first layer float",
        "n_c2": "asked to stay float",
        "n_c3": "the profile keeps depthwise convolutions float",
        "n_c4": "asked to stay float",
        "n_c5": "the profile keeps depthwise convolutions float",
        "n_logits": "the profile keeps Gemm float",
    }
    with pytest.raises(BadInput, match="No node 'n_c9'"):
        quantizer.always_float(["n_c9"])
    with pytest.raises(NotPossible, match="first layer float"):
        quantize_ncnn.run(quantizer, "minmax", keep, [], tmp_path / "all")
    del keep["n_c2"]
    done = quantize_ncnn.run(quantizer, "minmax", keep, net.feeds, tmp_path / "one")
    assert done.compute == ("n_c2",)
    graph = ncnn_param.read(done.engine.files[1])
    weights = ncnn_bin.read(done.engine.files[2], graph)
    tags = [arrays["weight"].tag for arrays in weights if "weight" in arrays]
    assert tags.count(ncnn_bin.INT8) == 1
    assert tags.count(ncnn_bin.FP16) == 5
    table = ncnn_table.read(done.engine.files[3])
    assert table.layers == (own,)


def test_a_table_is_used_as_it_is(net: Net, tmp_path: Path) -> None:
    first = net.quantizer()
    done = quantize_ncnn.run(first, "mse", {"n_c5": "x"}, net.feeds, tmp_path / "first")
    table = ncnn_table.read(done.engine.files[3])
    second = net.quantizer()
    floats = second.take_table(table)
    assert floats == {"n_c5": "the table leaves it float"}
    again = quantize_ncnn.run(second, "minmax", floats, net.feeds, tmp_path / "second")
    assert again.compute == done.compute
    one = [
        ncnn_bin.read(e.files[2], ncnn_param.read(e.files[1])) for e in (done.engine, again.engine)
    ]
    for arrays, others in zip(*one, strict=True):
        for name in ("weight_scales", "input_scale"):
            if name in arrays:
                # six decimals is what the text holds
                assert np.allclose(arrays[name].values, others[name].values, rtol=1e-4)


# --- the search -----------------------------------------------------------------------------------


class _Counting(search_ncnn.NcnnSearch):
    """Counts what is really tried."""

    attempts = 0
    runs = 0

    def _attempt(self, choice: Any) -> Any:
        self.attempts += 1
        return super()._attempt(choice)

    def _alone(self, name: str, method: str) -> list[float]:
        self.runs += 1
        return super()._alone(name, method)


def _search(net: Net, quantizer: NcnnQuantizer, always: tuple[str, ...] = ()) -> _Counting:
    return _Counting(
        quantizer, CONTRACT, list(_pictures(12)), always, names=[str(n) for n in range(10)]
    )


def test_the_search_leaves_float_what_is_worth_it(net: Net, tmp_path: Path) -> None:
    quantizer = net.quantizer()
    search = _search(net, quantizer)
    options = SearchOptions(enough=1.1, within=0.0, least_share=0.5, seconds=300)
    result = search.run(options, tmp_path / "partial")
    assert [trial.choice.method for trial in result.trials[:4]] == list(search_ncnn.METHODS)
    assert result.best.agreement == max(trial.agreement for trial in result.trials)
    assert result.best.agreement >= result.trials[0].agreement
    assert all(trial.int8_mac_share >= 0.5 for trial in result.trials)
    assert any(trial.choice.keep_float for trial in result.trials)
    assert set(result.sensitivity_db) == set(quantizer.names)
    # each layer by one method, and the loud ones by two more
    assert search.runs in (6 + 2 * count for count in range(1, 6))
    assert not result.out_of_time

    # the same again is known
    again = _search(net, quantizer)
    repeated = again.run(options, tmp_path / "partial")
    assert (again.attempts, again.runs) == (0, 0)
    assert repeated.best == result.best
    # and a damaged file counts as none
    (tmp_path / "partial" / "trials.json").write_text("{")
    (tmp_path / "partial" / "noises.json").write_text('{"mse n_c1": ["a"]}')
    third = _search(net, quantizer)
    third.run(options, tmp_path / "partial")
    assert third.attempts == len(result.trials)


def test_the_loudest_layers_make_nearly_all_of_the_noise() -> None:
    assert noise.loudest({"a": 0.02, "b": 0.6, "c": 0.31, "d": 0.07}) == ["b", "c"]
    assert noise.loudest({"a": 0.5, "b": 0.5}) == ["a", "b"]
    assert noise.loudest({"a": 0.0}) == []


def test_without_time_the_default_alone_is_tried(net: Net) -> None:
    quantizer = net.quantizer()
    search = _search(net, quantizer, always=("n_c2",))
    result = search.run(SearchOptions(seconds=-1))
    assert len(result.trials) == search.attempts == 1
    assert result.out_of_time
    assert result.best.int8_mac_share == quantizer.known.share_without(frozenset(["n_c2"]))
    assert search.methods_of(result.best.choice) == {}


def test_each_layer_may_have_a_method_of_its_own(net: Net, tmp_path: Path) -> None:
    quantizer = net.quantizer()
    methods: Mapping[str, str] = {"n_c2": "percentile=90"}
    plan = quantizer.plan("minmax", (), methods)
    usual = quantizer.plan("minmax", ())
    changed = {place for place, scale in plan.items() if scale != usual[place]}
    assert changed == {quantizer.known.layers[1].place}


def test_only_sure_predictions_count_for_the_noise() -> None:
    output = np.zeros((1, 7, 9), np.float32)
    output[0, 4:, 2] = (0.01, 0.9, 0.0)
    mask = noise.sure(output, "yolov8")
    assert isinstance(mask, np.ndarray)
    assert np.broadcast_to(mask, output.shape)[0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    rows = np.zeros((1, 4, 8), np.float32)
    rows[0, 1, 4:7] = (0.5, 0.9, 0.0)
    rows[0, 3, 4:7] = (0.01, 0.9, 0.0)
    mask = noise.sure(rows, "yolov5")
    assert isinstance(mask, np.ndarray)
    assert np.broadcast_to(mask, rows.shape)[0, :, 0].tolist() == [0, 1, 0, 0]
    assert noise.sure(np.zeros((1, 7, 9)), "yolov8") == 1.0
    assert noise.sure(output, None) == 1.0


def test_a_model_whose_layers_ncnn_cannot_quantize(tmp_path: Path) -> None:
    maker = GraphMaker()
    weight = maker.rng.normal(size=(3, 4, 2, 2)).astype(np.float32)
    maker.node("ConvTranspose", ["x", maker.weight("w", weight)], "y", strides=[2, 2])
    model = onnx_file.save(
        maker.model({"x": [1, 3, 8, 8]}, {"y": [1, 4, 16, 16]}), tmp_path / "m.onnx"
    )
    feed = np.random.default_rng(0).random((1, 3, 8, 8)).astype(np.float32)
    done = convert_ncnn.run(model, [feed], "fp32", tmp_path / "float")
    assert ncnn_int8.quantizable(ncnn_layers.load(done.engine)) == ()
    with pytest.raises(NotPossible, match="nothing that arm-int8 computes in INT8"):
        observed_tensors(model, load_target("arm-int8"))


def test_ternary_weights_land_on_integers(tmp_path: Path) -> None:
    """Both levels of a ternary layer are met as exactly as the bits allow, in the runtime's files too."""
    net = Net(tmp_path, ternary=True)
    for winograd in (False, True):
        quantizer = net.quantizer(winograd=winograd)
        quantizer.round_weights(net.feeds)
        made = quantizer.quantized("minmax", ())
        plain = quantizer.float_model
        seen = 0
        for place, layer in enumerate(plain.graph.layers):
            if not layer.type.startswith("Convolution"):
                continue
            rows = plain.weights[place]["weight"].floats()
            rows = rows.reshape(ncnn_int8.groups_of(layer), -1).astype(np.float64)
            scales = made.weights[place]["weight_scales"].values.astype(np.float64)
            integers = made.weights[place]["weight"].values.reshape(rows.shape)
            bits = 6 if winograd and ncnn_int8.uses_winograd(layer) else 8
            limit = ncnn_int8.WEIGHT_LIMITS[bits]
            assert np.abs(integers).max() <= limit
            largest = np.abs(rows).max()
            error = np.abs(integers / scales[:, None] - rows).max() / largest
            positive, negative = rows.max(), -rows.min()
            _, _, step = best_integers(np.array([positive]), np.array([negative]), limit)
            best = max(
                np.abs(level / step[0] - np.rint(level / step[0])) * step[0] / largest
                for level in (positive, negative)
            )
            assert error == pytest.approx(best, abs=2e-7)
            assert all(len(np.unique(row)) <= 3 for row in integers)
            seen += 1
        assert seen == 5


def test_the_onnx_model_is_left_alone(net: Net) -> None:
    assert onnx_file.describe(net.model.path).sha256 == net.model.sha256
    onnx.checker.check_model(onnx.load(net.model.path))
