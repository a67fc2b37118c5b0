"""Quantization that a graph carries stays as it is; only what has none is filled in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import onnx_file
from edgekit.quantization import existing
from edgekit.quantization.placement import observed, place
from edgekit.quantization.qdq import insert
from edgekit.quantization.rules import Rules
from edgekit.quantization.scheme import Scheme, activation_params
from edgekit.stages import prepare, simplify
from edgekit.types import Range
from tests.graphs import GraphMaker, run, sqnr_db

RULES = Rules(operators=("Conv", "Gemm"), follow=("MaxPool", "Add"), keep_float=())
INPUT = np.float32(0.0171)


class QdqMaker(GraphMaker):
    def qdq(
        self, source: str, output: str, scale: np.float32, zero: int, dtype: type = np.uint8
    ) -> str:
        s = self.weight(f"{output}.s", np.array(scale, np.float32))
        z = self.weight(f"{output}.z", np.array(zero, dtype))
        q = self.node("QuantizeLinear", [source, s, z], f"{output}.q")
        return self.node("DequantizeLinear", [q, s, z], output)

    def quantized_conv(
        self,
        source: str,
        output: str,
        channels: tuple[int, int],
        bits: int = 8,
        stored: bool = False,
    ) -> str:
        """A convolution whose weight has a scale per channel, in the graph or stored as int8."""
        made, taken = channels
        limit = 2 ** (bits - 1) - 1
        weight = self.rng.normal(0, 1 / np.sqrt(taken * 9), (made, taken, 3, 3)).astype(np.float32)
        scale = (np.abs(weight).max((1, 2, 3)) / limit).astype(np.float32)
        integers = np.clip(np.rint(weight / scale.reshape(-1, 1, 1, 1)), -limit, limit)
        s = self.weight(f"{output}.ws", scale)
        z = self.weight(f"{output}.wz", np.zeros(made, np.int8))
        if stored:
            q = self.weight(f"{output}.wq", integers.astype(np.int8))
        else:
            w = self.weight(
                f"{output}.w", (integers * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
            )
            q = self.node("QuantizeLinear", [w, s, z], f"{output}.wq", axis=0)
        d = self.node("DequantizeLinear", [q, s, z], f"{output}.wd", axis=0)
        b = self.weight(f"{output}.b", self.rng.normal(0, 0.3, made).astype(np.float32))
        return self.node("Conv", [source, d, b], output, pads=[1, 1, 1, 1])


def half_quantized(bits: int = 8, stored: bool = False) -> onnx.ModelProto:
    """images → QDQ → Conv (int8) → Relu → QDQ → MaxPool → Conv (float) → Relu → Conv (float)."""
    maker = QdqMaker()
    x = maker.qdq("images", "x", INPUT, 120)
    y = maker.node("Relu", [maker.quantized_conv(x, "a", (8, 3), bits, stored)], "ar")
    y = maker.qdq(y, "ad", np.float32(0.0123), 0)
    y = maker.node("MaxPool", [y], "pool", kernel_shape=[2, 2], strides=[2, 2])
    y = maker.node("Relu", [maker.conv(y, "b", (8, 8))], "br")
    maker.conv(y, "c", (4, 8))
    return maker.model({"images": (1, 3, 16, 16)}, {"c": (1, 4, 8, 8)})


def feed(seed: int = 0) -> dict[str, np.ndarray]:
    return {"images": np.random.default_rng(seed).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)}


def quantized(model: onnx.ModelProto, ranges: dict[str, Range]) -> tuple[onnx.ModelProto, dict]:
    import onnx_ir as ir

    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    placement = place(graph, RULES, ranges)
    params = insert(graph, placement, ranges, Scheme())
    existing.store_integers(graph.graph)
    done = ir.to_proto(graph)
    onnx.checker.check_model(done)
    return done, {"placement": placement, "params": params}


def ranges_for(model: onnx.ModelProto) -> dict[str, Range]:
    import onnx_ir as ir

    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    names = observed(graph, RULES)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in made)
    values = run(copy, feed(), optimize=False)
    by_name = dict(zip([value.name for value in copy.graph.output], values, strict=True))
    return {n: Range(low=float(by_name[n].min()), high=float(by_name[n].max())) for n in names}


@pytest.mark.parametrize("stored", [False, True], ids=["weights in the graph", "stored int8"])
@pytest.mark.parametrize("bits", [8, 4])
def test_scales_stay_bit_for_bit_and_the_rest_is_filled(bits: int, stored: bool) -> None:
    model = half_quantized(bits, stored)
    before = existing.signature(model)
    assert len(before) == 3  # the input, the first weight, behind the Relu
    ranges = ranges_for(model)
    assert "ar" not in ranges and "images" not in ranges and "br" in ranges
    done, made = quantized(model, ranges)
    placement = made["placement"]
    assert set(placement.compute) == {"n_a", "n_b", "n_c"}
    assert before <= existing.signature(done)
    # the pooled tensor takes the scale of what it selects from
    assert made["params"]["pool"].scale == np.float32(0.0123)
    assert made["params"]["br"].scale == activation_params(ranges["br"], Scheme()).scale
    assert not any(
        node.op_type == "QuantizeLinear" and node.input[0] == "a.w" for node in done.graph.node
    )
    stored_weight = next(
        onnx.numpy_helper.to_array(item) for item in done.graph.initializer if "a.wq" in item.name
    )
    assert stored_weight.dtype == np.int8
    assert not any(item.name == "a.w" for item in done.graph.initializer)
    assert np.abs(stored_weight).max() == 2 ** (bits - 1) - 1
    assert sqnr_db(run(model, feed(), optimize=False)[0], run(done, feed(), optimize=False)[0]) > 25


def test_layers_that_are_quantized_get_an_integer_bias() -> None:
    model = half_quantized()
    done, _ = quantized(model, ranges_for(model))
    conv = next(node for node in done.graph.node if node.name == "n_a")
    maker = next(node for node in done.graph.node if conv.input[2] in node.output)
    assert maker.op_type == "DequantizeLinear"
    values = {item.name: onnx.numpy_helper.to_array(item) for item in done.graph.initializer}
    assert values[maker.input[0]].dtype == np.int32
    expected = (np.float64(INPUT) * values["a.ws"].astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(values[maker.input[1]], expected)


def test_the_reader_of_a_quantized_tensor_reads_it_quantized() -> None:
    import onnx_ir as ir

    maker = QdqMaker()
    x = maker.qdq("images", "x", INPUT, 120)
    first = maker.quantized_conv(x, "a", (4, 3))
    second = maker.conv("images", "b", (4, 3))
    maker.node("Add", [first, second], "y")
    model = maker.model({"images": (1, 3, 16, 16)}, {"y": (1, 4, 16, 16)})
    graph = ir.from_proto(model)
    assert existing.share(graph.graph, ("Conv",)) == 1
    node = next(node for node in graph.graph if node.name == "n_b")
    assert node.inputs[0].name == "x"


def test_a_graph_that_is_quantized_already_needs_no_ranges() -> None:
    maker = QdqMaker()
    x = maker.qdq("images", "x", INPUT, 120)
    maker.qdq(maker.quantized_conv(x, "a", (4, 3)), "y", np.float32(0.02), 128)
    model = maker.model({"images": (1, 3, 16, 16)}, {"y": (1, 4, 16, 16)})
    done, made = quantized(model, {})
    assert made["placement"].compute == ("n_a",)
    assert existing.signature(model) <= existing.signature(done)
    assert len([n for n in done.graph.node if n.op_type == "QuantizeLinear"]) == 2


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim"])
def test_simplifying_keeps_the_scales(tmp_path: Path, tool: str) -> None:
    model = onnx_file.save(half_quantized(), tmp_path / "m.onnx")
    options = simplify.SimplifyOptions(ladder=(tool,))
    feeds = [feed(seed)["images"] for seed in range(3)]
    done = simplify.run(model, feeds, tmp_path / "s.onnx", options)
    wanted = existing.signature(onnx.load(model.path))
    assert existing.signature(onnx.load(done.model.path)) == wanted
    prepared = prepare.run(done.model, feeds, tmp_path / "p.onnx")
    assert existing.signature(onnx.load(prepared.model.path)) == wanted


def test_a_simplifier_that_folds_weights_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx_file.save(half_quantized(stored=True), tmp_path / "m.onnx")

    def folding(tool: str, source: Path, out: Path, limit: float) -> str:
        parsed = onnx.load(source)
        values = {i.name: onnx.numpy_helper.to_array(i) for i in parsed.graph.initializer}
        for node in list(parsed.graph.node):
            if node.op_type == "DequantizeLinear" and node.input[0] in values:
                q, s = values[node.input[0]], values[node.input[1]]
                weight = (q * s.reshape(-1, 1, 1, 1)).astype(np.float32)
                parsed.graph.initializer.append(
                    onnx.numpy_helper.from_array(weight, node.output[0])
                )
                parsed.graph.node.remove(node)
        onnx.save(parsed, out)
        return ""

    monkeypatch.setattr(simplify, "_in_child", folding)
    done = simplify.run(model, [feed()["images"]], tmp_path / "s.onnx", simplify.SimplifyOptions())
    assert any("scales" in note for note in done.notes)
    assert existing.signature(onnx.load(done.model.path)) == existing.signature(
        onnx.load(model.path)
    )


def test_rounding_graphs_are_told_from_graphs_with_rounded_weights() -> None:
    maker = QdqMaker()
    maker.quantized_conv("images", "a", (4, 3))
    only_weights = maker.model({"images": (1, 3, 8, 8)}, {"a": (1, 4, 8, 8)})
    assert not existing.rounds(only_weights)
    assert existing.rounds(half_quantized())
    maker = GraphMaker()
    maker.node("Round", ["images"], "y")
    assert existing.rounds(maker.model({"images": (1, 3)}, {"y": (1, 3)}))


def test_integers_are_those_of_quantize_linear() -> None:
    import onnx_ir as ir

    rng = np.random.default_rng(0)
    maker = GraphMaker()
    weight = rng.normal(0, 1, (8, 5)).astype(np.float32)
    scale = (np.abs(weight).max(1) / 100).astype(np.float32)
    zero = rng.integers(-20, 20, 8).astype(np.int8)
    names = [maker.weight(n, a) for n, a in (("w", weight), ("s", scale), ("z", zero))]
    q = maker.node("QuantizeLinear", names, "q", axis=0)
    d = maker.node("DequantizeLinear", [q, *names[1:]], "d", axis=0)
    maker.node("MatMul", ["x", d], "y")
    model = maker.model({"x": (1, 8)}, {"y": (1, 5)})
    graph = ir.from_proto(model)
    assert existing.store_integers(graph.graph) == 1
    done = ir.to_proto(graph)
    feeds = {"x": rng.normal(0, 1, (1, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run(model, feeds, False)[0], run(done, feeds, False)[0])


@pytest.mark.parametrize("stored", [False, True])
def test_the_float_network_of_a_quantized_one(stored: bool) -> None:
    import onnx_ir as ir

    model = half_quantized(stored=stored)
    graph = ir.from_proto(model)
    assert existing.to_float(graph) == 3
    done = ir.to_proto(graph)
    onnx.checker.check_model(done, full_check=True)
    assert not {node.op_type for node in done.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    small = {"images": feed()["images"] / 4}  # within what the integers span
    first, second = run(model, small, optimize=False)[0], run(done, small, optimize=False)[0]
    assert 25 < sqnr_db(first, second) < 80


def test_an_output_that_was_quantized_keeps_its_name() -> None:
    import onnx_ir as ir

    maker = QdqMaker()
    x = maker.qdq("images", "x", INPUT, 120)
    maker.qdq(maker.quantized_conv(x, "a", (4, 3)), "y", np.float32(0.02), 128)
    graph = ir.from_proto(maker.model({"images": (1, 3, 16, 16)}, {"y": (1, 4, 16, 16)}))
    existing.to_float(graph)
    done = ir.to_proto(graph)
    onnx.checker.check_model(done, full_check=True)
    assert [node.op_type for node in done.graph.node] == ["Conv"]
    assert [value.name for value in done.graph.output] == ["y"]
