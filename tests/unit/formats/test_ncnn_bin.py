"""ncnn's .bin: every layer type's arrays, every storage, and refusals that name the layer."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BadInput, NotPossible
from edgekit.formats import ncnn_bin
from edgekit.formats.ncnn_param import NcnnGraph, NcnnLayer

# a layer of each type with weights, and what ncnn's load_model reads for it (name: size)
LAYERS: list[tuple[str, dict[int, str], dict[str, int]]] = [
    ("Convolution", {0: "4", 5: "1", 6: "36"}, {"weight": 36, "bias": 4}),
    ("Convolution", {0: "4", 6: "36"}, {"weight": 36}),
    ("Convolution", {0: "4", 19: "1"}, {}),
    (
        "Convolution",
        {0: "4", 5: "1", 6: "36", 8: "2"},
        {"weight": 36, "bias": 4, "weight_scales": 4, "input_scale": 1},
    ),
    (
        "Convolution",
        {0: "4", 6: "36", 8: "102"},
        {"weight": 36, "weight_scales": 4, "input_scale": 1, "output_scale": 1},
    ),
    (
        "ConvolutionDepthWise",
        {0: "8", 5: "1", 6: "72", 7: "4", 8: "1"},
        {"weight": 72, "bias": 8, "weight_scales": 4, "input_scale": 1},
    ),
    (
        "ConvolutionDepthWise",
        {0: "8", 6: "72", 7: "4", 8: "102"},
        {"weight": 72, "weight_scales": 1, "input_scale": 1, "output_scale": 1},
    ),
    ("Deconvolution", {0: "4", 5: "1", 6: "36"}, {"weight": 36, "bias": 4}),
    ("Deconvolution", {0: "4", 6: "36", 19: "1"}, {"weight": 36}),  # 19 is an output pad here
    ("Convolution1D", {0: "3", 6: "7"}, {"weight": 7}),
    ("InnerProduct", {0: "5", 1: "1", 2: "40"}, {"weight": 40, "bias": 5}),
    (
        "InnerProduct",
        {0: "5", 2: "40", 8: "2"},
        {"weight": 40, "weight_scales": 5, "input_scale": 1},
    ),
    ("Gemm", {3: "1", 5: "1", 6: "1", 8: "6", 9: "4", 10: "4"}, {"b": 24, "c": 6}),
    ("Gemm", {4: "1", 7: "3", 9: "4", 18: "1"}, {"a": 12, "a_scales": 3}),
    (
        "MultiHeadAttention",
        {0: "8", 1: "2", 2: "64"},
        {
            "q": 64,
            "q_bias": 8,
            "k": 64,
            "k_bias": 8,
            "v": 64,
            "v_bias": 8,
            "out": 64,
            "out_bias": 8,
        },
    ),
    ("LSTM", {0: "4", 1: "48"}, {"weight_xc": 48, "bias_c": 16, "weight_hc": 64}),
    ("GRU", {0: "4", 1: "72", 2: "2"}, {"weight_xc": 72, "bias_c": 32, "weight_hc": 96}),
    ("RNN", {0: "4", 1: "12"}, {"weight_xc": 12, "bias_c": 4, "weight_hc": 16}),
    ("MemoryData", {0: "3", 1: "5"}, {"data": 15}),
    ("MemoryData", {0: "3", 1: "5", 2: "2", 21: "0"}, {"data": 30}),
    ("MemoryData", {}, {}),
    ("Embed", {0: "4", 1: "9", 2: "1", 3: "36"}, {"weight": 36, "bias": 4}),
    ("GroupNorm", {0: "2", 1: "8"}, {"gamma": 8, "beta": 8}),
    ("LayerNorm", {0: "8"}, {"gamma": 8, "beta": 8}),
    ("LayerNorm", {0: "8", 2: "0"}, {}),
    ("RMSNorm", {0: "8"}, {"gamma": 8}),
    ("InstanceNorm", {0: "8"}, {"gamma": 8, "beta": 8}),
    ("BatchNorm", {0: "3"}, {"slope": 3, "mean": 3, "variance": 3, "bias": 3}),
    ("Scale", {0: "3", 1: "1"}, {"scale": 3, "bias": 3}),
    ("Scale", {0: "-233"}, {}),
    ("PReLU", {0: "8"}, {"slope": 8}),
    ("Padding", {6: "4"}, {"values": 4}),
    ("Padding", {0: "1"}, {}),
    ("Requantize", {2: "4"}, {"scale_in": 1, "scale_out": 1, "bias": 4}),
    ("ReLU", {}, {}),
]


def _graph(*layers: tuple[str, dict[int, str]]) -> NcnnGraph:
    made = [NcnnLayer(type="Input", name="in0", outputs=("in0",))]
    for number, (kind, params) in enumerate(layers):
        made.append(
            NcnnLayer(
                type=kind,
                name=f"layer_{number}",
                inputs=("in0",),
                outputs=(f"{number}",),
                params=params,
            )
        )
    return NcnnGraph(layers=tuple(made))


def _filled(graph: NcnnGraph, storage: str = "fp32") -> list[dict[str, ncnn_bin.Array]]:
    rng = np.random.default_rng(0)
    weights: list[dict[str, ncnn_bin.Array]] = []
    for layer in graph.layers:
        arrays = {}
        for slot in ncnn_bin.slots_of(layer):
            values: Any = rng.normal(size=slot.size)
            if storage == "int8":
                values = rng.integers(-127, 128, slot.size)
            arrays[slot.name] = (
                ncnn_bin.stored(values.astype(np.float32), ncnn_bin.STORAGE[storage])
                if slot.tagged
                else ncnn_bin.plain(rng.normal(size=slot.size))
            )
        weights.append(arrays)
    return weights


@pytest.mark.parametrize(("kind", "params", "sizes"), LAYERS)
def test_each_layer_has_the_arrays_that_ncnn_reads(
    kind: str, params: dict[int, str], sizes: dict[str, int]
) -> None:
    layer = NcnnLayer(type=kind, name="x", params=params)
    assert {slot.name: slot.size for slot in ncnn_bin.slots_of(layer)} == sizes


@pytest.mark.parametrize("storage", ["fp32", "fp16", "bf16", "int8"])
def test_all_layers_in_one_file_come_back(storage: str, tmp_path: Path) -> None:
    graph = _graph(*((kind, params) for kind, params, _ in LAYERS))
    weights = _filled(graph, storage)
    path = tmp_path / "model.bin"
    ncnn_bin.write(graph, weights, path)
    found = ncnn_bin.read(path, graph)
    assert ncnn_bin.to_bytes(graph, found) == path.read_bytes()
    for arrays, others in zip(weights, found, strict=True):
        assert list(arrays) == list(others)
        for name, array in arrays.items():
            assert np.array_equal(array.values, others[name].values)
            assert array.tag == others[name].tag


def test_storages_round_to_nearest_even() -> None:
    values = np.array([1.0, -2.5, 3.14159274, 1e-8, 65504.0, 0.0, 1.00390625], np.float32)
    half = ncnn_bin.stored(values, ncnn_bin.FP16)
    assert np.array_equal(half.floats(), values.astype(np.float16).astype(np.float32))
    assert half.padding == b"\0\0"
    brain = ncnn_bin.stored(values, ncnn_bin.BF16)
    torch = pytest.importorskip("torch")
    wanted = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(brain.floats(), wanted)
    with pytest.raises(NotPossible, match="70000"):
        ncnn_bin.stored(np.array([70000.0]), ncnn_bin.FP16)


def test_the_marks_are_those_of_the_format() -> None:
    graph = _graph(("Convolution", {0: "1", 6: "3"}))
    for storage, mark in (
        ("fp32", 0),
        ("fp16", 0x01306B47),
        ("bf16", 0x01348B83),
        ("int8", 0x0D4B38),
    ):
        data = ncnn_bin.to_bytes(graph, _filled(graph, storage))
        assert struct.unpack("<I", data[:4]) == (mark,)
        assert len(data) == 4 + {"fp32": 12, "fp16": 8, "bf16": 8, "int8": 4}[storage]


def test_a_file_cut_off_anywhere_is_refused_with_its_layer() -> None:
    graph = _graph(("Convolution", {0: "2", 5: "1", 6: "6"}), ("PReLU", {0: "3"}))
    data = ncnn_bin.to_bytes(graph, _filled(graph))
    for size in range(len(data)):
        with pytest.raises(BadInput, match=r"layer_[01]"):
            ncnn_bin.parse(data[:size], graph)
    with pytest.raises(BadInput, match="5 bytes are left over"):
        ncnn_bin.parse(data + b"12345", graph)


def test_an_unknown_mark_is_refused() -> None:
    graph = _graph(("Convolution", {0: "2", 6: "6"}))
    data = b"\x01\x02\x03\x04" + ncnn_bin.to_bytes(graph, _filled(graph))[4:]
    with pytest.raises(BadInput, match="unknown mark 0x04030201"):
        ncnn_bin.parse(data, graph)


@pytest.mark.parametrize("size", ["0", "-4", "2147483648", "9999999999"])
def test_sizes_that_cannot_be_are_refused(size: str) -> None:
    with pytest.raises(BadInput, match="weight of"):
        ncnn_bin.parse(b"", _graph(("Convolution", {0: "2", 6: size})))


def test_a_huge_size_costs_no_memory() -> None:
    with pytest.raises(BadInput, match="ends within"):
        ncnn_bin.parse(b"\0" * 64, _graph(("Convolution", {0: "2", 6: "2000000000"})))


def test_block_quantized_layers_are_named() -> None:
    with pytest.raises(NotPossible, match="'x'"):
        ncnn_bin.slots_of(NcnnLayer(type="Gemm", name="x", params={18: "400"}))


def test_no_mutation_does_anything_but_parse_or_refuse() -> None:
    chance = random.Random(0)
    graph = _graph(*((kind, params) for kind, params, _ in LAYERS))
    data = ncnn_bin.to_bytes(graph, _filled(graph, "fp16"))
    for _ in range(500):
        wrong = bytearray(data)
        place = chance.randrange(len(wrong))
        if chance.random() < 0.5:
            wrong[place] = chance.randrange(256)
        else:
            del wrong[place : place + chance.randint(1, 50)]
        try:
            weights = ncnn_bin.parse(bytes(wrong), graph)
        except BadInput:
            continue
        assert ncnn_bin.to_bytes(graph, weights) == bytes(wrong)


def test_what_is_written_must_fit_the_graph() -> None:
    graph = _graph(("Convolution", {0: "2", 5: "1", 6: "6"}))
    weights = _filled(graph)
    with pytest.raises(ValueError, match="layer_0"):
        ncnn_bin.to_bytes(graph, [weights[0], {"weight": weights[1]["weight"]}])
    short = {**weights[1], "bias": ncnn_bin.plain([1.0])}
    with pytest.raises(ValueError, match="bias"):
        ncnn_bin.to_bytes(graph, [weights[0], short])


def test_files_that_are_not_there(tmp_path: Path) -> None:
    graph = _graph(("ReLU", {}))
    with pytest.raises(BadInput, match="do not exist"):
        ncnn_bin.read(tmp_path / "none.bin", graph)
    (tmp_path / "empty.bin").write_bytes(b"")
    assert ncnn_bin.read(tmp_path / "empty.bin", graph) == [{}, {}]
    with pytest.raises(BadInput, match="cannot be read"):
        ncnn_bin.read(tmp_path, graph)
