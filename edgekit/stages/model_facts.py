"""What a graph says of itself without being run: operations, zeros, ternary weights, structure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.atomic import sha256_json
from edgekit.quantization.ternary import find_levels
from edgekit.stages.layer_macs import LAYERS, count_macs

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """macs: multiply-accumulates of one image, None when no layer's shapes are known.

    weights: elements of all layer weights (Conv, Gemm, MatMul with a constant); `zero_share` and
    `ternary_share` are fractions of these: exact zeros, and those in layers that know only the values
    -Wn, 0, Wp (for the layer, or for each output channel). `channels`: output channels of all dense layers.
    `structure` hashes the sequence of layers with kernels and strides but without widths, so that a
    network and what structured pruning made of it have the same one.
    """

    macs: int | None
    weights: int
    zero_share: float
    ternary_share: float
    channels: int
    structure: str


def read(path: Path, input_shape: tuple[int, ...] | None = None) -> ModelFacts:
    """Look at the ONNX file `path`; `input_shape` fixes an image input's free dimensions.

    Raises BadInput when the file is not an ONNX model.
    """
    model = onnx_file.load(path)
    constants = {item.name: item for item in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    weights = zeros = ternary = channels = 0
    structure: list[Any] = []
    for node in model.graph.node:
        if node.op_type not in LAYERS:
            continue
        place, kind = LAYERS[node.op_type]
        weight = _weight(node, place, constants, producers)
        attributes = {item.name: item for item in node.attribute}
        groups = attributes["group"].i if "group" in attributes else 1
        if weight is None:
            structure.append([kind, "computed"])
            continue
        structure.append(
            [
                kind,
                list(weight.shape[2:]),
                list(attributes["strides"].ints) if "strides" in attributes else [],
                groups > 1,
            ]
        )
        weights += weight.size
        zeros += int(weight.size - _nonzero(weight))
        ternary += weight.size if _is_ternary(weight, kind) else 0
        if groups == 1:
            channels += weight.shape[0] if kind == "Conv" else weight.shape[-1]
    return ModelFacts(
        macs=_macs(model, input_shape),
        weights=weights,
        zero_share=zeros / weights if weights else 0.0,
        ternary_share=ternary / weights if weights else 0.0,
        channels=channels,
        structure=sha256_json(structure)[:16],
    )


def _nonzero(weight: NDArray[Any]) -> int:
    import numpy as np

    return int(np.count_nonzero(weight))


def _weight(
    node: onnx.NodeProto,
    place: int,
    constants: dict[str, onnx.TensorProto],
    producers: dict[str, onnx.NodeProto],
) -> NDArray[Any] | None:
    """The constant weight of a layer, with its zero point taken off; None when it is computed.

    A weight behind QuantizeLinear, DequantizeLinear, Transpose or Cast is found through them (the
    shape is then the stored one).
    """
    import numpy as np
    import onnx

    if place >= len(node.input):
        return None
    name = node.input[place]
    zero_point: NDArray[Any] | None = None
    while name not in constants:
        maker = producers.get(name)
        if maker is None or maker.op_type not in (
            "DequantizeLinear",
            "QuantizeLinear",
            "Transpose",
            "Cast",
            "Identity",
        ):
            return None
        if (
            maker.op_type == "DequantizeLinear"
            and len(maker.input) > 2
            and maker.input[0] in constants
        ):
            zero = constants.get(maker.input[2])
            zero_point = None if zero is None else onnx.numpy_helper.to_array(zero)
        name = maker.input[0]
    array: NDArray[Any] = onnx.numpy_helper.to_array(constants[name])
    if array.ndim < 2:
        return None
    if zero_point is not None and zero_point.any():
        wide = zero_point.astype(np.int32)
        array = array.astype(np.int32) - (
            wide if wide.ndim == 0 else wide.reshape(-1, *([1] * (array.ndim - 1)))
        )
    return array


def _is_ternary(weight: NDArray[Any], kind: str) -> bool:
    """Whether the layer, or each of its output channels, knows only the values -Wn, 0, Wp."""
    return find_levels(weight, 0 if kind == "Conv" else weight.ndim - 1) is not None


def _macs(model: onnx.ModelProto, input_shape: tuple[int, ...] | None) -> int | None:
    counted = count_macs(model, input_shape)
    return sum(counted.values()) if counted else None
