"""Writing ncnn's INT8 models: what ncnn2int8 does, from ranges of our own.

Per layer: int8 weights with a scale for each output channel (for each group of a grouped
convolution), and one scale for the activation that enters. ncnn multiplies by its scales:

    q = clip(round_half_away(x * scale), -127, 127),  scale = limit / amax

with limit 127 for activations and 127 or 31 for weights (8 or 6 bits). Where the output of an INT8
convolution is read by INT8 convolutions alone, it is given the scale of their input as well, and the
tensor between them stays int8 (`8=` plus 100). Source: ncnn 1.0.20261020, src/layer/quantize.cpp,
convolution.cpp, convolutiondepthwise.cpp, innerproduct.cpp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.builders.pnnx import NcnnModel
from edgekit.errors import BadInput, NotPossible, nearest
from edgekit.formats import ncnn_bin
from edgekit.formats.ncnn_bin import Array
from edgekit.formats.ncnn_param import NcnnGraph, NcnnLayer
from edgekit.formats.ncnn_table import Table

QUANTIZABLE = ("Convolution", "ConvolutionDepthWise", "InnerProduct")

# ncnn's layers of convolutions that can take int8 from the layer before
_CHAINED = ("Convolution", "ConvolutionDepthWise")
# bit 6 of a layer's feature mask (31=) turns Winograd off for it
_NO_WINOGRAD = 1 << 6
_MASK = 31
WEIGHT_LIMITS = {8: 127, 6: 31}
"""Bits of a weight → its largest level."""


@dataclass(frozen=True, kw_only=True)
class LayerScale:
    """How one layer is quantized: the scale of its input, and the bits of its weights.

    `weight_scales`, one for each output channel or group, are taken as they are; None derives them
    from the weights.
    """

    input_scale: float
    weight_bits: int = 8
    weight_scales: tuple[float, ...] | None = None

    @classmethod
    def of_range(cls, amax: float, weight_bits: int) -> LayerScale:
        """For an input whose largest magnitude is `amax`."""
        return cls(input_scale=input_scale(amax), weight_bits=weight_bits)


Plan = Mapping[int, LayerScale]
"""Place in the graph → how that layer is quantized; layers that are not in it stay float."""


def quantizable(model: NcnnModel) -> tuple[int, ...]:
    """Places of the layers that ncnn can compute in INT8: float weights, one input."""
    places = []
    for place, (layer, arrays) in enumerate(zip(model.graph.layers, model.weights, strict=True)):
        weight = arrays.get("weight")
        if (
            layer.type in QUANTIZABLE
            and len(layer.inputs) == 1
            and weight is not None
            and weight.tag != ncnn_bin.INT8
            and not layer.integer(8)
        ):
            places.append(place)
    return tuple(places)


def uses_winograd(layer: NcnnLayer) -> bool:
    """Whether ncnn computes the layer by Winograd where it may: 3x3, stride 1, no dilation, no groups.

    Source: src/layer/x86/convolution_x86.cpp and arm/convolution_arm.cpp (create_pipeline_int8).
    """
    if layer.type != "Convolution":
        return False
    kernel, dilation, stride = layer.integer(1), layer.integer(2, 1), layer.integer(3, 1)
    sizes = (layer.integer(11, kernel), layer.integer(12, dilation), layer.integer(13, stride))
    return (kernel, dilation, stride) == (3, 1, 1) and sizes == (3, 1, 1)


def groups_of(layer: NcnnLayer) -> int:
    """How many weight scales the layer has: output channels, or groups of a grouped convolution."""
    return layer.integer(7, 1) if layer.type == "ConvolutionDepthWise" else layer.integer(0)


def weight_scales(layer: NcnnLayer, weight: Array, bits: int) -> NDArray[np.float32]:
    """limit / largest magnitude for each channel, float32 [C]; 1 for a channel of zeros."""
    amax = np.abs(weight.floats().reshape(groups_of(layer), -1)).max(axis=1)
    with np.errstate(divide="ignore", over="ignore"):
        scales = np.float32(WEIGHT_LIMITS[bits]) / amax
    usable: NDArray[np.float32] = np.where(np.isfinite(scales), scales, np.float32(1))
    return usable.astype(np.float32)


def rounded(values: NDArray[Any], scale: NDArray[np.float32] | float) -> NDArray[np.int8]:
    """round_half_away(values * scale) within ±127; the product in float32, as ncnn computes it."""
    product = (values.astype(np.float32) * np.asarray(scale, np.float32)).astype(np.float64)
    levels = np.copysign(np.floor(np.abs(product) + 0.5), product)
    result: NDArray[np.int8] = np.clip(levels, -127, 127).astype(np.int8)
    return result


def input_scale(amax: float) -> float:
    """127 / amax, rounded to float32; 1 for an input that was always zero."""
    if not amax > 0:
        return 1.0
    with np.errstate(over="ignore", divide="ignore"):
        scale = float(np.float32(127.0) / np.float32(amax))
    return scale if np.isfinite(scale) else 1.0


Levels = Mapping[int, NDArray[np.int8]]
"""Place in the graph → the integers of its weights, int8 [channels or groups, weights of each]."""


def quantize(model: NcnnModel, plan: Plan, levels: Levels | None = None) -> NcnnModel:
    """`model` with the layers of `plan` in INT8; the others stay as they are.

    `levels` gives the integers of weights that were rounded otherwise than to the nearest. Raises
    NotPossible for a layer that cannot be quantized.
    """
    possible = set(quantizable(model))
    fused = requantized(model.graph, plan)
    changes: dict[int, NcnnLayer] = {}
    weights: list[dict[str, Array]] = []
    for place, (layer, arrays) in enumerate(zip(model.graph.layers, model.weights, strict=True)):
        scale = plan.get(place)
        if scale is None:
            weights.append(dict(arrays))
            continue
        if place not in possible:
            raise NotPossible(f"ncnn cannot compute layer '{layer.name}' ({layer.type}) in INT8.")
        own = None if levels is None else levels.get(place)
        changes[place], quantized = _quantized(layer, arrays, scale, own, fused.get(place))
        weights.append(quantized)
    return dataclasses.replace(model, graph=model.graph.replaced(changes), weights=weights)


def _quantized(
    layer: NcnnLayer,
    arrays: Mapping[str, Array],
    scale: LayerScale,
    levels: NDArray[np.int8] | None,
    output_scale: float | None,
) -> tuple[NcnnLayer, dict[str, Array]]:
    weight = arrays["weight"]
    if scale.weight_scales is None:
        scales = weight_scales(layer, weight, scale.weight_bits)
    else:
        scales = np.array(scale.weight_scales, np.float32)
    if levels is None:
        levels = rounded(weight.floats().reshape(groups_of(layer), -1), scales[:, None])
    result = {
        "weight": ncnn_bin.stored(levels, ncnn_bin.INT8),
        **({"bias": arrays["bias"]} if "bias" in arrays else {}),
        "weight_scales": ncnn_bin.plain(scales),
        "input_scale": ncnn_bin.plain([scale.input_scale]),
    }
    term = 1 if layer.type == "ConvolutionDepthWise" else 2
    if output_scale is not None:
        term += 100
        result["output_scale"] = ncnn_bin.plain([output_scale])
    changes: dict[int, int | float | str | None] = {8: term}
    if uses_winograd(layer) and int(np.abs(levels).max(initial=0)) > WEIGHT_LIMITS[6]:
        # its sums of 32 bits overflow with more than 6 bits
        changes[_MASK] = layer.integer(_MASK) | _NO_WINOGRAD
    return layer.with_params(changes), result


def plan_of_table(model: NcnnModel, table: Table) -> dict[int, LayerScale]:
    """The plan of a calibration table: its layers in INT8 with its scales, all others float.

    Raises BadInput for a layer that the model does not have, or that needs another number of scales.
    """
    by_name: dict[str, int] = {}
    for place in quantizable(model):
        by_name.setdefault(model.graph.layers[place].name, place)
    plan: dict[int, LayerScale] = {}
    for name in table.layers:
        if name not in by_name:
            raise BadInput(
                f"The table names the layer '{name}', which the model does not have in float.",
                hint="Use the table of this very .param: " + nearest(name, list(by_name)),
            )
        place = by_name[name]
        needed = groups_of(model.graph.layers[place])
        if len(table.weights[name]) != needed:
            raise BadInput(
                f"The table has {len(table.weights[name])} weight scales for layer '{name}', which "
                f"needs {needed}.",
                hint="It was made for another model.",
            )
        plan[place] = LayerScale(
            input_scale=table.activations[name] or 1.0, weight_scales=table.weights[name]
        )
    return plan


def requantized(graph: NcnnGraph, plan: Plan) -> dict[int, float]:
    """Layers whose output stays int8, with its scale: all that read it are in INT8 with one scale.

    A Split in between is looked through, as in ncnn2int8; a graph output is not.
    """
    readers: dict[str, list[int]] = {}
    for place, layer in enumerate(graph.layers):
        for blob in layer.inputs:
            readers.setdefault(blob, []).append(place)

    def behind(blob: str) -> list[int]:
        """Places of the layers that read the tensor; [-1] when it leaves the graph."""
        found: list[int] = []
        for place in readers.get(blob, [-1]):
            if place >= 0 and graph.layers[place].type == "Split":
                for copy in graph.layers[place].outputs:
                    found.extend(behind(copy))
            else:
                found.append(place)
        return found

    scales: dict[int, float] = {}
    for place in plan:
        layer = graph.layers[place]
        if layer.type not in _CHAINED or len(layer.outputs) != 1:
            continue
        takers = behind(layer.outputs[0])
        if any(t not in plan or graph.layers[t].type not in _CHAINED for t in takers):
            continue
        wanted = {plan[taker].input_scale for taker in takers}
        if len(wanted) == 1:
            scales[place] = wanted.pop()
    return scales
