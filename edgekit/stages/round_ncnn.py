"""Rounding the weights of an ncnn model with what enters its layers in view (edgekit.quantization.gptq).

The tensors come from the ONNX graph that the model was converted from, on a few calibration images;
of each convolution, patches at some positions of each image are enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.builders.ncnn_int8 import WEIGHT_LIMITS, groups_of, weight_scales
from edgekit.builders.pnnx import NcnnModel
from edgekit.formats.ncnn_param import NcnnLayer
from edgekit.quantization.gptq import round_weights
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.observe import ObservedModel
from edgekit.stages.ncnn_layers import NcnnLayerInfo
from edgekit.types import OnnxModel, Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 1
IMAGES = 16
_PATCHES = 256
# second moments that exist at the same time, bytes; more layers take another pass over the images
_MOST_BYTES = 256 << 20


def run(
    model: NcnnModel,
    onnx_model: OnnxModel,
    layers: Sequence[NcnnLayerInfo],
    bits: Mapping[int, int],
    feeds: Sequence[NDArray[Any]],
    progress: Progress = no_progress,
) -> dict[int, NDArray[np.int8]]:
    """Levels of the weights by place in the graph, int8 [O, K]; for layers without groups.

    `bits` gives each place its weight bits; `feeds` are input tensors of real images. Layers that are
    not matched to a node, and those whose padding is left to ncnn, are not among the result.
    """
    chosen = [x for x in layers if x.matched and _plain(model.graph.layers[x.place])]
    levels: dict[int, NDArray[np.int8]] = {}
    for part in _parts(model, chosen):
        progress(len(levels), len(chosen), "round weights")
        for place, moments in _moments(model, onnx_model, part, feeds).items():
            layer = model.graph.layers[place]
            weight = model.weights[place]["weight"]
            scale = weight_scales(layer, weight, bits[place])
            values = weight.floats().reshape(groups_of(layer), -1)
            levels[place] = round_weights(values, scale, WEIGHT_LIMITS[bits[place]], moments)
    return levels


def _plain(layer: NcnnLayer) -> bool:
    """Whether the layer is one matrix over patches whose place is known."""
    if layer.type == "InnerProduct":
        return True
    return layer.type == "Convolution" and all(layer.integer(key) >= 0 for key in (4, 14, 15, 16))


def _parts(model: NcnnModel, layers: Sequence[NcnnLayerInfo]) -> Iterator[list[NcnnLayerInfo]]:
    """The layers in groups whose second moments fit into memory together."""
    part: list[NcnnLayerInfo] = []
    used = 0
    for layer in layers:
        inputs = layer.values // groups_of(model.graph.layers[layer.place])
        size = 4 * inputs * inputs
        if part and used + size > _MOST_BYTES:
            yield part
            part, used = [], 0
        part.append(layer)
        used += size
    if part:
        yield part


def _moments(
    model: NcnnModel,
    onnx_model: OnnxModel,
    layers: Sequence[NcnnLayerInfo],
    feeds: Sequence[NDArray[Any]],
) -> dict[int, NDArray[np.float32]]:
    """Sum of x x^T over patches of all images, by place: float32 [K, K]."""
    import numpy as np

    name = onnx_file.main_input(onnx_model).name
    tensors = tuple(dict.fromkeys(layer.tensor for layer in layers))
    random = np.random.default_rng(0)
    found: dict[int, NDArray[np.float32]] = {}
    with ObservedModel(onnx_model.path, tensors, SessionOptions()) as observed:
        for feed in feeds:
            values = observed.run({name: feed})
            for layer in layers:
                patches = _patches(model.graph.layers[layer.place], values[layer.tensor], random)
                product = patches.T @ patches
                found[layer.place] = found.get(layer.place, np.float32(0)) + product
    return found


def _patches(layer: NcnnLayer, tensor: NDArray[Any], random: Any) -> NDArray[np.float32]:
    """Some of the rows that the layer's weights are multiplied with: float32 [N, K]."""
    import numpy as np

    if layer.type == "InnerProduct":
        rows = tensor.reshape(-1, layer.integer(2) // layer.integer(0))
        chosen = random.permutation(len(rows))[:_PATCHES]
        taken: NDArray[np.float32] = rows[chosen].astype(np.float32)
        return taken
    width, left, stride_x, dilation_x = (
        layer.integer(key, d) for key, d in ((1, 0), (4, 0), (3, 1), (2, 1))
    )
    height, stride_y, dilation_y = (
        layer.integer(key, default)
        for key, default in ((11, width), (13, stride_x), (12, dilation_x))
    )
    top, right = layer.integer(14, left), layer.integer(15, left)
    bottom = layer.integer(16, top)
    padded = np.pad(tensor[0], ((0, 0), (top, bottom), (left, right)))
    rows_out = (padded.shape[1] - dilation_y * (height - 1) - 1) // stride_y + 1
    columns_out = (padded.shape[2] - dilation_x * (width - 1) - 1) // stride_x + 1
    chosen = random.permutation(rows_out * columns_out)[:_PATCHES]
    y, x = chosen // columns_out * stride_y, chosen % columns_out * stride_x
    taps = [
        padded[:, y + row * dilation_y, x + column * dilation_x]
        for row in range(height)
        for column in range(width)
    ]
    # [C, N, taps] → [N, C * taps], the order of ncnn's weights
    stacked: NDArray[np.float32] = np.stack(taps, axis=-1).transpose(1, 0, 2)
    return stacked.reshape(len(chosen), -1)
