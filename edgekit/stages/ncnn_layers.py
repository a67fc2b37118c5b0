"""The layers of a converted model that can be INT8: their ONNX nodes, their work, their size.

pnnx loses the names. Layers are matched to nodes by their weights (edgekit.builders.ncnn_match), and
each match is proved on one image: the tensor that enters the layer in ncnn must be the one that
enters the node in ONNX Runtime. A layer without a proved match is known by its ncnn name, and its
input by its blob.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.builders.ncnn_int8 import quantizable
from edgekit.builders.ncnn_match import match_layers
from edgekit.builders.pnnx import NcnnModel
from edgekit.formats import ncnn_bin, ncnn_json, ncnn_param
from edgekit.quantization.macs import graph_macs
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.ncnn import NcnnSession
from edgekit.runtimes.observe import ObservedModel
from edgekit.types import Engine, OnnxModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

# of the largest value: what ncnn's and ONNX Runtime's float kernels may differ by in mid-graph
_SAME = 1e-3


@dataclass(frozen=True, kw_only=True)
class NcnnLayerInfo:
    """One layer: `place` in the graph; `name` the ONNX node's where it is `matched`, else ncnn's own.

    `tensor` names what enters it: the ONNX tensor, or ncnn's blob where there is no match. `values`
    is the number of its weights.
    """

    place: int
    name: str
    tensor: str
    matched: bool
    macs: int
    values: int


@dataclass(frozen=True, kw_only=True)
class NcnnLayers:
    """All layers of a model that can be INT8, and the MACs of the whole model."""

    layers: tuple[NcnnLayerInfo, ...]
    total_macs: int

    def share_without(self, keep: frozenset[str]) -> float:
        """Share of the MACs that INT8 computes when the layers named in `keep` stay float."""
        macs = sum(layer.macs for layer in self.layers if layer.name not in keep)
        return macs / self.total_macs if self.total_macs else 0.0


def load(engine: Engine) -> NcnnModel:
    """The graph and weights of an ncnn engine. Raises BadInput for damaged files."""
    _, param, weights = engine.files[:3]
    graph = ncnn_param.read(param)
    return NcnnModel(graph=graph, weights=ncnn_bin.read(weights, graph))


def survey(
    engine: Engine, model: NcnnModel, onnx_model: OnnxModel, feed: NDArray[Any]
) -> NcnnLayers:
    """Look at the float ncnn model `engine` that was made of `onnx_model`, on the tensor `feed`."""
    import onnx_ir as ir

    graph = model.graph
    places = quantizable(model)
    matches = match_layers(model, onnx_model.path)
    blobs = [graph.layers[place].inputs[0] for place in places]
    results = [graph.layers[place].outputs[0] for place in places]
    sidecar = ncnn_json.read(engine.files[0])
    wanted = tuple(dict.fromkeys((*blobs, *results)))
    with NcnnSession(engine.files[0], SessionOptions(), observe=wanted) as session:
        found = session.run_blobs({sidecar.inputs[0].name: feed}, wanted)
    tensors = tuple(dict.fromkeys(match.tensor for match in matches.values()))
    name = onnx_file.main_input(onnx_model).name
    with ObservedModel(onnx_model.path, tensors, SessionOptions()) as observed:
        expected = observed.run({name: feed})
    total = sum(graph_macs(ir.load(str(onnx_model.path)).graph).values())
    layers = []
    names: set[str] = set()
    for place, blob, result in zip(places, blobs, results, strict=True):
        match = matches.get(place)
        if match is not None and (
            match.node in names or not _same(expected.get(match.tensor), found[blob])
        ):
            match = None
        layer = graph.layers[place]
        values = model.weights[place]["weight"].values.size
        own = match.node if match else f"{layer.name} (ncnn)"
        names.add(own)
        layers.append(
            NcnnLayerInfo(
                place=place,
                name=own,
                tensor=match.tensor if match else blob,
                matched=match is not None,
                macs=found[result].size * values // max(1, layer.integer(0)),
                values=values,
            )
        )
    return NcnnLayers(layers=tuple(layers), total_macs=max(total, sum(x.macs for x in layers)))


def _same(expected: NDArray[Any] | None, found: NDArray[Any]) -> bool:
    import numpy as np

    if expected is None or expected.size != found.size:
        return False
    largest = float(np.abs(expected).max(initial=0.0))
    difference = np.abs(expected.reshape(-1) - found.reshape(-1)).max(initial=0.0)
    return bool(difference <= _SAME * max(largest, 1e-6))
