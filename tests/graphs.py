"""Small ONNX graphs that tests build node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class GraphMaker:
    """Collects nodes and weights; `model()` gives a checked ModelProto."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(
            helper.make_node(op_type, list(inputs), [output], name=f"n_{output}", **attributes)
        )
        return output

    def conv(
        self,
        source: str,
        output: str,
        channels: tuple[int, int],
        kernel: int = 3,
        groups: int = 1,
        bias: bool = True,
        spread: float = 1.0,
        **attributes: Any,
    ) -> str:
        """A convolution with random weights; `spread` > 1 makes channels of very different size."""
        made, taken = channels
        shape = (made, taken // groups, kernel, kernel)
        weight = self.rng.normal(0, 1 / np.sqrt(taken * kernel * kernel), shape)
        weight *= spread ** self.rng.uniform(-1, 1, (made, 1, 1, 1))
        inputs = [source, self.weight(f"{output}.w", weight.astype(np.float32))]
        if bias:
            values = self.rng.normal(0, 0.3, made).astype(np.float32)
            inputs.append(self.weight(f"{output}.b", values))
        pads = attributes.pop("pads", [kernel // 2] * 4)
        return self.node("Conv", inputs, output, pads=pads, group=groups, **attributes)

    def model(
        self,
        inputs: dict[str, Sequence[int | str]],
        outputs: dict[str, Sequence[int | str]],
        opset: int = 17,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [
                helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
                for n, s in inputs.items()
            ],
            [
                helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
                for n, s in outputs.items()
            ],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model, full_check=True)
        return model


def run(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], optimize: bool = True
) -> list[np.ndarray]:
    """Outputs of `model` in ONNX Runtime, one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, feeds)


def ranges_of(
    model: onnx.ModelProto, names: Sequence[str], feeds: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Min-max ranges of `names` on one input."""
    from edgekit.types import Range

    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    have = {value.name for value in (*wide.graph.output, *wide.graph.input)}
    for name in names:
        if name not in have:
            wide.graph.output.append(
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    values = dict(zip([v.name for v in wide.graph.output], run(wide, feeds), strict=True))
    values.update(feeds)
    return {n: Range(low=float(values[n].min()), high=float(values[n].max())) for n in names}


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    error = float(((reference.astype(np.float64) - other) ** 2).sum())
    return (
        float("inf")
        if error == 0
        else 10 * np.log10(float((reference.astype(np.float64) ** 2).sum()) / error)
    )
