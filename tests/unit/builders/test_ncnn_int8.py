"""ncnn's INT8 layers: scales, rounding, bits, which outputs stay int8, and tables."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.builders import ncnn_int8
from edgekit.builders.ncnn_int8 import LayerScale
from edgekit.builders.pnnx import NcnnModel
from edgekit.errors import BadInput, NotPossible
from edgekit.formats import ncnn_bin
from edgekit.formats.ncnn_param import NcnnGraph, NcnnLayer
from edgekit.formats.ncnn_table import Table, of_layers


def _conv(
    name: str, source: str, result: str, kernel: int = 3, stride: int = 1, kind: str = "Convolution"
) -> NcnnLayer:
    params = {0: "4", 1: f"{kernel}", 3: f"{stride}", 5: "1", 6: f"{4 * 4 * kernel * kernel}"}
    if kind == "ConvolutionDepthWise":
        params.update({6: f"{4 * kernel * kernel}", 7: "4"})
    return NcnnLayer(type=kind, name=name, inputs=(source,), outputs=(result,), params=params)


def _model(*layers: NcnnLayer) -> NcnnModel:
    rng = np.random.default_rng(0)
    graph = NcnnGraph(layers=(NcnnLayer(type="Input", name="in0", outputs=("in0",)), *layers))
    weights = []
    for layer in graph.layers:
        arrays = {}
        for slot in ncnn_bin.slots_of(layer):
            values = rng.normal(size=slot.size).astype(np.float32)
            made = ncnn_bin.stored(values, ncnn_bin.FP32) if slot.tagged else ncnn_bin.plain(values)
            arrays[slot.name] = made
        weights.append(arrays)
    return NcnnModel(graph=graph, weights=weights)


def test_rounding_is_ncnns() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 200.0, -200.0, 0.49999997], np.float32)
    levels = ncnn_int8.rounded(values, 1.0)
    # half away from zero, and never -128
    assert levels.tolist() == [1, 2, 3, -1, -2, 127, 127, -127, 0]


def test_weights_have_a_scale_for_each_channel() -> None:
    model = _model(_conv("c", "in0", "1", kernel=1))
    made = ncnn_int8.quantize(model, {1: LayerScale.of_range(2.0, 8)})
    arrays = made.weights[1]
    weight = model.weights[1]["weight"].floats().reshape(4, -1)
    scales = arrays["weight_scales"].values
    assert np.allclose(scales, 127 / np.abs(weight).max(axis=1))
    levels = arrays["weight"].values.reshape(4, -1)
    assert np.abs(levels).max(axis=1).tolist() == [127] * 4
    assert np.abs(levels / scales[:, None] - weight).max() <= (0.5001 / scales).max()
    assert arrays["input_scale"].values.tolist() == [np.float32(63.5)]
    assert np.array_equal(arrays["bias"].values, model.weights[1]["bias"].values)
    assert made.graph.layers[1].integer(8) == 2
    assert list(arrays) == ["weight", "bias", "weight_scales", "input_scale"]


def test_grouped_convolutions_have_a_scale_for_each_group() -> None:
    model = _model(_conv("d", "in0", "1", kind="ConvolutionDepthWise"))
    made = ncnn_int8.quantize(model, {1: LayerScale.of_range(1.0, 8)})
    assert made.graph.layers[1].integer(8) == 1
    assert made.weights[1]["weight_scales"].values.size == 4


def test_channels_and_inputs_of_zeros_get_the_scale_one() -> None:
    model = _model(_conv("c", "in0", "1", kernel=1))
    weight = model.weights[1]["weight"].floats().copy()
    weight[:4] = 0
    model.weights[1]["weight"] = ncnn_bin.stored(weight, ncnn_bin.FP32)  # type: ignore[index]
    arrays = ncnn_int8.quantize(model, {1: LayerScale.of_range(0.0, 8)}).weights[1]
    assert arrays["weight_scales"].values[0] == 1.0
    assert not arrays["weight"].values[:4].any()
    assert arrays["input_scale"].values.tolist() == [1.0]
    assert np.isfinite(ncnn_int8.input_scale(1e-40))


def test_eight_bits_turn_winograd_off_for_the_layer() -> None:
    model = _model(
        _conv("three", "in0", "1"),
        _conv("strided", "1", "2", stride=2),
        _conv("one", "2", "3", kernel=1),
    )
    for bits, limit, mask in ((6, 31, 0), (8, 127, 64)):
        made = ncnn_int8.quantize(model, {n: LayerScale.of_range(1.0, bits) for n in (1, 2, 3)})
        assert [made.graph.layers[n].integer(31) for n in (1, 2, 3)] == [mask, 0, 0]
        assert np.abs(made.weights[1]["weight"].values).max() == limit
    kept = _model(_conv("three", "in0", "1").with_params({31: 2}))
    made = ncnn_int8.quantize(kept, {1: LayerScale.of_range(1.0, 8)})
    assert made.graph.layers[1].integer(31) == 66


def test_outputs_that_only_int8_layers_read_stay_int8() -> None:
    split = NcnnLayer(type="Split", name="s", inputs=("2",), outputs=("2a", "2b"))
    relu = NcnnLayer(type="Swish", name="w", inputs=("4",), outputs=("5",))
    model = _model(
        _conv("a", "in0", "1"),
        _conv("b", "1", "2"),
        split,
        _conv("c", "2a", "3"),
        _conv("d", "2b", "4"),
        relu,
    )
    places = (1, 2, 4, 5)
    plan = {place: LayerScale(input_scale=10.0 * place) for place in places}
    plan[5] = plan[4]
    # a is read by b; b by c and d through the Split, with one scale; c and d leave the graph
    assert ncnn_int8.requantized(model.graph, plan) == {1: 20.0, 2: 40.0}
    made = ncnn_int8.quantize(model, plan)
    assert [made.graph.layers[n].integer(8) for n in places] == [102, 102, 2, 2]
    assert made.weights[2]["output_scale"].values.tolist() == [40.0]
    assert ncnn_int8.quantizable(made) == ()
    # two scales behind one tensor, or a float reader: it goes on in float
    assert ncnn_int8.requantized(model.graph, {**plan, 5: LayerScale(input_scale=7.0)}) == {1: 20.0}
    without = {place: scale for place, scale in plan.items() if place != 5}
    assert ncnn_int8.requantized(model.graph, without) == {1: 20.0}


def test_what_cannot_be_int8_is_named() -> None:
    model = _model(
        NcnnLayer(type="PReLU", name="slope", inputs=("in0",), outputs=("1",), params={0: "4"})
    )
    with pytest.raises(NotPossible, match="'slope'"):
        ncnn_int8.quantize(model, {1: LayerScale(input_scale=1.0)})


def test_a_table_gives_the_scales() -> None:
    model = _model(_conv("a", "in0", "1"), _conv("b", "1", "2"))
    table = Table(weights={"a": (10.0, 20.0, 30.0, 40.0)}, activations={"a": 25.0})
    plan = ncnn_int8.plan_of_table(model, table)
    assert list(plan) == [1]
    made = ncnn_int8.quantize(model, plan)
    assert made.weights[1]["weight_scales"].values.tolist() == [10.0, 20.0, 30.0, 40.0]
    assert made.weights[1]["input_scale"].values.tolist() == [25.0]
    assert "weight_scales" not in made.weights[2]
    assert of_layers(made.graph, made.weights) == table
    with pytest.raises(BadInput, match="4"):
        ncnn_int8.plan_of_table(model, Table(weights={"a": (1.0,)}, activations={"a": 1.0}))
    with pytest.raises(BadInput, match="'z'"):
        ncnn_int8.plan_of_table(model, Table(weights={"z": (1.0,)}, activations={"z": 1.0}))


def test_levels_of_ones_own_are_taken() -> None:
    model = _model(_conv("c", "in0", "1", kernel=1))
    own = np.arange(16, dtype=np.int8).reshape(4, 4)
    made = ncnn_int8.quantize(model, {1: LayerScale.of_range(1.0, 8)}, {1: own})
    assert np.array_equal(made.weights[1]["weight"].values, own.reshape(-1))
