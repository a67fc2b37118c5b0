"""Which ncnn layer is which ONNX node: pnnx loses the names, but keeps the weights.

A layer and a node belong together when their weights are equal, bit for bit. Nodes that share their
weights are told apart by their order, which is only a guess: the stage that uses the match compares
the tensors that enter both on a real image (edgekit.stages.quantize_ncnn).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import onnx_file
from edgekit.builders.ncnn_int8 import quantizable
from edgekit.builders.pnnx import NcnnModel


@dataclass(frozen=True, kw_only=True)
class Match:
    """The ONNX node of an ncnn layer, and the tensor that enters it."""

    node: str
    tensor: str


def match_layers(model: NcnnModel, onnx_model: Path) -> dict[int, Match]:
    """Place of each quantizable layer → its node, for those whose weights are found."""
    nodes = _nodes_by_weight(onnx_model)
    places: dict[str, list[int]] = {}
    for place in quantizable(model):
        key = _key(model.weights[place]["weight"].floats())
        places.setdefault(key, []).append(place)
    found: dict[int, Match] = {}
    for key, group in places.items():
        candidates = nodes.get(key, [])
        # more of the one than of the other: which of them is missing cannot be told
        if len(candidates) == len(group):
            found.update(zip(group, candidates, strict=True))
    return found


def _key(values: NDArray[np.float32]) -> str:
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    # adding 0 makes -0 and 0 one
    return f"{flat.size}:{hashlib.sha256((flat + np.float32(0)).tobytes()).hexdigest()}"


def _nodes_by_weight(path: Path) -> Mapping[str, list[Match]]:
    """Conv, Gemm and MatMul nodes with constant weights, in graph order, by their weights' hash.

    A matrix is hashed as ncnn's InnerProduct lies in memory: [outputs, inputs].
    """
    import onnx

    graph = onnx_file.load(path).graph
    constants = {item.name: item for item in graph.initializer}
    nodes: dict[str, list[Match]] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
            continue
        weight = onnx.numpy_helper.to_array(constants[node.input[1]])
        if weight.dtype != np.float32:
            continue
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not transposed):
            weight = np.swapaxes(weight, -1, -2)
        match = Match(node=node.name, tensor=node.input[0])
        nodes.setdefault(_key(weight), []).append(match)
    return nodes
