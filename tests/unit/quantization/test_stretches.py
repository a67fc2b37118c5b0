"""Stretches of layers: neighbours of one image size."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.quantization.stretches import stretches
from tests.graphs import GraphMaker


def _graph(size: int | str = 16) -> ir.Graph:
    maker = GraphMaker(0)
    maker.conv("x", "c1", (8, 3))
    maker.conv("c1", "c2", (16, 8), strides=[2, 2])
    maker.node("GlobalAveragePool", ["c2"], "g")
    maker.conv("g", "s", (16, 16), kernel=1)
    maker.node("Mul", ["c2", "s"], "m")
    maker.conv("m", "c3", (16, 16))
    maker.conv("c3", "c4", (16, 16), strides=[2, 2])
    shape = "free" if isinstance(size, str) else size // 4
    model = maker.model({"x": [1, 3, size, size]}, {"c4": [1, 16, shape, shape]})
    return ir.from_proto(model).graph


ALL = ("n_c1", "n_c2", "n_s", "n_c3", "n_c4")


def test_runs_of_one_size_with_their_squeezed_layers() -> None:
    assert stretches(_graph(), ALL) == [("n_c1",), ("n_c2", "n_s", "n_c3"), ("n_c4",)]


def test_only_the_layers_asked_for() -> None:
    assert stretches(_graph(), ("n_c1", "n_c3")) == [("n_c1",), ("n_c3",)]


def test_the_largest_ones_when_there_are_too_many() -> None:
    assert stretches(_graph(), ALL, most=2) == [("n_c1",), ("n_c2", "n_s", "n_c3")]


def test_nothing_to_choose_from() -> None:
    assert stretches(_graph(), ("n_c1",)) == []
    assert stretches(_graph("free"), ALL) == []
