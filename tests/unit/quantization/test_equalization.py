"""Cross-layer equalization: the same function, and far less loss where channels are uneven."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit import onnx_file
from edgekit.quantization import equalization
from edgekit.quantization.equalization import equalize, find_pairs
from edgekit.quantization.placement import observed, place
from edgekit.quantization.qdq import insert
from edgekit.quantization.rules import Rules
from edgekit.quantization.scheme import Scheme
from edgekit.stages import prepare
from tests.graphs import GraphMaker, ranges_of, run, sqnr_db

RULES = Rules(operators=("Conv",), follow=("Relu", "LeakyRelu", "Add"), keep_float=())
X = {"x": np.random.default_rng(7).normal(size=(1, 8, 16, 16)).astype(np.float32)}


def _chain(activation: str = "Relu") -> onnx.ModelProto:
    """Two inverted bottlenecks: 1x1, depthwise, 1x1, with `activation` between."""
    maker = GraphMaker(1)
    source, channels = "x", 8

    def activated(name: str) -> str:
        if not activation:
            return name
        if activation == "PRelu":
            slope = maker.weight(f"{name}.slope", np.full((1, 1, 1), 0.2, np.float32))
            return maker.node("PRelu", [name, slope], f"{name}.act")
        if activation == "Relu6":
            low = maker.weight(f"{name}.low", np.array(0, np.float32))
            high = maker.weight(f"{name}.high", np.array(6, np.float32))
            return maker.node("Clip", [name, low, high], f"{name}.act")
        return maker.node(activation, [name], f"{name}.act")

    for stage in range(2):
        maker.conv(source, f"e{stage}", (32, channels), kernel=1)
        maker.conv(activated(f"e{stage}"), f"d{stage}", (32, 32), groups=32)
        source = maker.conv(activated(f"d{stage}"), f"p{stage}", (16, 32), kernel=1)
        channels = 16
    return maker.model({"x": [1, 8, 16, 16]}, {source: [1, 16, 16, 16]})


def _uneven(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with channels that differ by up to 2^12 between one layer and the next."""
    graph = ir.from_proto(model)
    rng = np.random.default_rng(3)
    for pair in find_pairs(graph.graph):
        made = pair.first.inputs[1].const_value.numpy().shape[0]
        equalization.apply(pair, np.exp2(rng.integers(-6, 7, made).astype(np.float64)))
    return ir.to_proto(graph)


def _equalized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    graph = ir.from_proto(model)
    count = equalize(graph)
    return ir.to_proto(graph), count


def _int8_db(model: onnx.ModelProto, scheme: Scheme) -> float:
    graph = ir.from_proto(model)
    ranges = ranges_of(model, observed(graph, RULES), X)
    insert(graph, place(graph, RULES, ranges), ranges, scheme)
    return sqnr_db(run(model, X)[0], run(ir.to_proto(graph), X)[0])


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "PRelu", ""])
@pytest.mark.parametrize("per_channel", [True, False])
def test_uneven_channels_lose_little_after_it(activation: str, per_channel: bool) -> None:
    scheme = Scheme(per_channel=per_channel)
    even = _chain(activation)
    uneven = _uneven(even)
    better, count = _equalized(uneven)
    assert count == 5
    reference = run(uneven, X)[0]
    np.testing.assert_allclose(
        run(better, X)[0], reference, rtol=0, atol=1e-5 * float(np.abs(reference).max())
    )
    before, after, best = (_int8_db(model, scheme) for model in (uneven, better, even))
    assert before < 15
    assert after > before + 15
    assert after > best - 4


def test_even_channels_stay_as_they_are_once_equalized() -> None:
    once, _ = _equalized(_uneven(_chain()))
    twice, changed = _equalized(once)
    assert changed == 0
    assert [i.raw_data for i in twice.graph.initializer] == [
        i.raw_data for i in once.graph.initializer
    ]


def test_activations_that_do_not_scale_are_left_alone() -> None:
    pairs = find_pairs(ir.from_proto(_chain("Sigmoid")).graph)
    # the one place without an activation
    assert [(pair.first.name, pair.second.name) for pair in pairs] == [("n_p0", "n_e1")]


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_bound_of_a_clip_becomes_one_of_each_channel(low: float) -> None:
    proto = _chain("Relu6")
    # half of the channels are tiny before the depthwise layer and made up for by it
    factors = np.where(np.arange(32) % 2, np.exp2(-8.0), 2.0).astype(np.float32)
    for item in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(item).copy()
        spread = factors.reshape(-1, *([1] * (array.ndim - 1)))
        if item.name.endswith(".low"):
            array = np.array(low, np.float32)
        elif item.name in ("e0.w", "e0.b", "e1.w", "e1.b"):
            array = array * spread
        elif item.name in ("d0.w", "d1.w"):
            array = array / spread
        item.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), item.name))
    better, count = _equalized(proto)
    kinds = [node.op_type for node in better.graph.node]
    if low < 0:
        assert "Min" not in kinds  # no ReLU6
        return
    assert count >= 1 and "Min" in kinds
    # the ends are reached, and the function is the same
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    wide.graph.output.append(onnx.ValueInfoProto(name="e0.act"))
    values = run(wide, X)[1]
    assert (values == 6).any() and (values == 0).any()
    assert sqnr_db(run(proto, X)[0], run(better, X)[0]) > 100
    onnx.checker.check_model(better, full_check=True)
    scheme = Scheme(per_channel=True)
    assert _int8_db(better, scheme) > _int8_db(proto, scheme) + 3


def test_grouped_convolutions_and_dead_channels() -> None:
    maker = GraphMaker(2)
    maker.conv("x", "a", (16, 8), spread=50.0)
    maker.node("Relu", ["a"], "r")
    maker.conv("r", "y", (24, 16), groups=4)
    proto = maker.model({"x": [1, 8, 16, 16]}, {"y": [1, 24, 16, 16]})
    for item in proto.graph.initializer:
        if item.name == "a.w":
            array = onnx.numpy_helper.to_array(item).copy()
            array[3] = 0
            item.CopyFrom(onnx.numpy_helper.from_array(array, "a.w"))
    better, count = _equalized(proto)
    assert count == 1
    reference = run(proto, X)[0]
    np.testing.assert_allclose(
        run(better, X)[0], reference, rtol=0, atol=1e-5 * float(np.abs(reference).max())
    )


def _branching(kind: str) -> onnx.ModelProto:
    maker = GraphMaker(2)
    outputs: dict[str, Sequence[int | str]] = {"y": [1, 8, 16, 16]}
    maker.conv("x", "a", (8, 8), spread=50.0)
    maker.node("Relu", ["a"], "r")
    if kind == "two readers":
        maker.conv("r", "b", (8, 8))
        maker.node("Add", ["b", "r"], "y")
    elif kind == "an output":
        maker.conv("r", "y", (8, 8))
        outputs["r"] = [1, 8, 16, 16]
    else:
        maker.node("Conv", ["r", "a.w"], "y", pads=[1, 1, 1, 1])
    return maker.model({"x": [1, 8, 16, 16]}, outputs)


@pytest.mark.parametrize("kind", ["two readers", "an output", "a shared weight"])
def test_what_others_read_is_left_alone(kind: str) -> None:
    assert find_pairs(ir.from_proto(_branching(kind)).graph) == []


def test_ternary_weights_keep_their_levels() -> None:
    maker = GraphMaker(2)
    maker.conv("x", "a", (8, 8), spread=50.0)
    levels = maker.rng.choice([-0.1, 0.0, 0.1], size=(8, 8, 3, 3)).astype(np.float32)
    maker.node("Conv", ["a", maker.weight("w", levels)], "y", pads=[1, 1, 1, 1])
    proto = maker.model({"x": [1, 8, 16, 16]}, {"y": [1, 8, 16, 16]})
    assert find_pairs(ir.from_proto(proto).graph) == []


def test_healthy_channels_stay_as_they_are() -> None:
    assert _equalized(_chain())[1] == 0


def test_a_channel_that_is_nearly_dead_is_no_reason() -> None:
    proto = _chain()
    for item in proto.graph.initializer:
        if item.name in ("e0.w", "p1.w"):
            array = onnx.numpy_helper.to_array(item).copy()
            array[3] *= 1e-9
            item.CopyFrom(onnx.numpy_helper.from_array(array, item.name))
    assert _equalized(proto)[1] == 0


def test_prepare_equalizes_uneven_convolutions(tmp_path: Path) -> None:
    onnx.save(_uneven(_chain()), tmp_path / "m.onnx")
    model = onnx_file.describe(tmp_path / "m.onnx")
    done = prepare.run(model, [X["x"]], tmp_path / "even.onnx")
    assert done.notes == ("channels of 5 pairs of convolutions equalized",)
    assert done.parity is not None and done.parity.max_rel_error < 1e-5
    options = prepare.PrepareOptions(equalize=False)
    assert prepare.run(model, [X["x"]], tmp_path / "plain.onnx", options).notes == ()
