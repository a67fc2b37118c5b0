"""Full bias correction: each layer's mean output is brought back to the float network's, one after the other.

With everything before a layer quantized and corrected, the mean of each of its output channels over images
and positions becomes that of the float network,

    b' = b - (E[quantized output] - E[float output])

Source: Nagel et al. 2019, arXiv:1906.04721, appendix D (empirical bias correction). Layers of which none
depends on another are corrected together, so that a network costs as many passes over the images as it
is deep. One session serves them all: the biases are inputs of its graph, the channel means its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.quantization import retouch
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.onnxruntime import open_bytes
from edgekit.types import OnnxModel, Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.runtimes.base import Session


def run(
    reference: OnnxModel,
    quantized: Any,
    feeds: Sequence[NDArray[Any]],
    *,
    threads: int = 1,
    progress: Progress = no_progress,
) -> tuple[str, ...]:
    """Correct the biases of the QDQ graph `quantized` (onnx_ir.Model, changed in place), layer by layer.

    `reference` is the float graph, `feeds` input tensors of real images. Returns the names of the
    corrected layers: Conv and Gemm whose bias is a constant of channels, or which have none.
    """
    import numpy as np
    import onnx_ir as ir

    floats = onnx_file.load(reference.path)
    made = {node.name: node.output[0] for node in floats.graph.node}
    chosen = {
        name: node
        for name, node in retouch.layers(quantized.graph).items()
        if name in made and retouch.can_shift(node)
    }
    if not chosen:
        return ()
    name = onnx_file.main_input(reference).name
    named = [{name: feed} for feed in feeds]
    kinds = {layer: str(node.op_type) for layer, node in chosen.items()}
    options = SessionOptions(threads=threads)
    measured = _with_means(floats, {layer: made[layer] for layer in chosen}, kinds)
    with open_bytes(measured.SerializeToString(), options) as session:
        wanted = _averages(session, named, list(chosen))
    biases, shifts = {}, {}
    for layer, node in chosen.items():
        bias = retouch.bias_of(node)
        shifts[layer] = np.zeros(wanted[layer].shape)
        biases[layer] = shifts[layer] if bias is None else bias
    depths = _depths(quantized.graph, chosen)
    steps = max(depths.values()) + 1
    proto = ir.to_proto(quantized)
    tensors = {node.name: node.output[0] for node in proto.graph.node if node.name in chosen}
    trial = _with_means(_with_bias_inputs(proto, biases), tensors, kinds)
    with open_bytes(trial.SerializeToString(), options) as session:
        for depth in range(steps):
            progress(depth, steps, "correct biases")
            given = {
                _bias_input(layer): (biases[layer] - shifts[layer]).astype(np.float32)
                for layer in chosen
            }
            layers = [layer for layer in chosen if depths[layer] == depth]
            found = _averages(session, [{**feed, **given} for feed in named], layers)
            for layer in layers:
                shift = found[layer] - wanted[layer]
                shifts[layer] = np.where(np.isfinite(shift), shift, 0.0)
    for layer, node in chosen.items():
        retouch.shift_bias(quantized, node, shifts[layer])
    return tuple(chosen)


def _mean_output(layer: str) -> str:
    return f"edgekit.mean/{layer}"


def _bias_input(layer: str) -> str:
    return f"edgekit.bias/{layer}"


def _with_means(
    model: onnx.ModelProto, tensors: Mapping[str, str], kinds: Mapping[str, str]
) -> onnx.ModelProto:
    """A copy whose outputs are channel means of `tensors` (layer → what it makes).

    [1, C, 1, …] of a Conv's, the tensor itself of a Gemm's.
    """
    import onnx
    from onnx import helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for layer, tensor in tensors.items():
        mean = _mean_output(layer)
        kind = "GlobalAveragePool" if kinds[layer] == "Conv" else "Identity"
        copy.graph.node.append(helper.make_node(kind, [tensor], [mean], name=mean))
        copy.graph.output.append(onnx.ValueInfoProto(name=mean))
    return copy


def _with_bias_inputs(
    model: onnx.ModelProto, biases: Mapping[str, NDArray[np.float64]]
) -> onnx.ModelProto:
    """A copy whose layers in `biases` read their bias from an input of the graph, float32 [C_out]."""
    import onnx
    from onnx import helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.name not in biases:
            continue
        name = _bias_input(node.name)
        while len(node.input) < 3:
            node.input.append("")
        node.input[2] = name
        shape = [biases[node.name].size]
        copy.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return copy


def _averages(
    session: Session, feeds: Sequence[Mapping[str, NDArray[Any]]], layers: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Mean over `feeds` of each layer's channel means, float64 [C]."""
    import numpy as np

    sums: dict[str, NDArray[np.float64]] = {}
    for feed in feeds:
        found = session.run(feed)
        for layer in layers:
            array = found[_mean_output(layer)].astype(np.float64)
            mean = (
                array.reshape(-1, array.shape[1]).mean(axis=0)
                if array.ndim == 2
                else array.reshape(-1)
            )
            sums[layer] = sums[layer] + mean if layer in sums else mean
    return {layer: total / len(feeds) for layer, total in sums.items()}


def _depths(graph: Any, chosen: Mapping[str, Any]) -> dict[str, int]:
    """How many chosen layers lie before each one on its longest way from an input."""
    before: dict[Any, int] = {}
    found: dict[str, int] = {}
    for node in graph:
        depth = max((before.get(value, 0) for value in node.inputs if value is not None), default=0)
        if node.name in chosen:
            found[node.name] = depth
            depth += 1
        for value in node.outputs:
            before[value] = depth
    return found
