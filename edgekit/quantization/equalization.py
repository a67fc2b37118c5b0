"""Cross-layer equalization: channels of very different size are evened out between two convolutions.

Where f(s x) = s f(x) for s > 0 (nothing, Relu, LeakyRelu, PRelu), dividing output channel i of one
convolution by s_i and multiplying input channel i of the next by s_i changes nothing:

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1),   s_i = sqrt(r1_i r2_i) / r2_i

with r1_i = max |W1[i]| over output channel i and r2_i = max |W2[:, i]| over input channel i. Both
channels then have the range sqrt(r1_i r2_i). What all channels of a pair have in common does not matter
to quantization, so s is taken relative to its median. Chains (Conv, depthwise, Conv) are gone over until
nothing moves.

Only uneven pairs are touched: those where a channel is much larger than the others on one side and
lies far from the median of s. A channel that is merely dead, tiny on one side, does no harm. Evening out
healthy pairs brings nothing that can be measured (ResNet-20 on CIFAR-10: 30.7 dB before, 30.6 after),
while a depthwise chain whose channels differ by 2^12 goes from 6 to 44 dB.

Through Clip(0, m), ReLU6's form, the bound is divided as well, and becomes one for each channel:

    clip(S^-1 x, 0, S^-1 m) = min(relu(S^-1 x), S^-1 m)

so the Clip of an uneven pair turns into Relu and Min with a constant [1, C, 1, 1]. That costs a float
operator between two integer ones, where the uneven channels would cost the accuracy.

A second convolution with ternary weights would lose its few levels, and is left out. SiLU is not
scale-invariant; convolutions around it are left alone.
Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction,
arXiv:1906.04721, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantization.rules import is_constant
from edgekit.quantization.ternary import find_levels

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INVARIANT = frozenset({"Relu", "LeakyRelu", "PRelu"})
_SWEEPS = 20
# factors are powers of two: the products are exact, so that only sums round differently
_MAX_POWER = 20
# an uneven pair has a channel with s at least 2^3 from the median, and 4 times the median's size
_UNEVEN_POWER = 3
_UNEVEN_SIZE = 4.0


@dataclass(eq=False)
class Pair:
    """Two convolutions (onnx_ir nodes) between which channels can be scaled.

    `clip` is a Clip(0, m) between them; once channels were scaled it is gone, and `bound` holds the
    constant [1, C, 1, …] of the Min in its place.
    """

    first: Any
    second: Any
    clip: Any = None
    bound: Any = None


def find_pairs(graph: Any) -> list[Pair]:
    """Pairs with nothing but a scale-invariant activation between them, and no other reader."""
    pairs = []
    for node in graph:
        if not _is_plain(node):
            continue
        value = node.outputs[0]
        reader = _only_reader(value)
        clip = None
        if reader is not None and reader.op_type in _INVARIANT and _scales(reader):
            reader = _only_reader(reader.outputs[0]) if reader.inputs[0] is value else None
        elif reader is not None and reader.inputs[0] is value and _upper_bound(reader) is not None:
            clip = reader
            reader = _only_reader(clip.outputs[0])
        if reader is None or not _is_plain(reader) or reader.inputs[0].producer() is None:
            continue
        if find_levels(_array(reader.inputs[1])) is None:
            pairs.append(Pair(node, reader, clip))
    return pairs


def _only_reader(value: Any) -> Any:
    uses = value.uses()
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _is_plain(node: Any) -> bool:
    """A Conv whose constants belong to it alone: scaling them must not reach another layer."""
    if node.op_type != "Conv":
        return False
    constants = [value for value in node.inputs[1:] if value is not None]
    return all(
        is_constant(value) and len(value.uses()) == 1 and not value.is_graph_output()
        for value in constants
    )


def _scales(activation: Any) -> bool:
    """Whether f(s x) = s f(x) for s > 0: a PRelu's slopes must be constants (any number of them)."""
    return activation.op_type != "PRelu" or is_constant(activation.inputs[1])


def _upper_bound(node: Any) -> float | None:
    """m of a Clip(0, m) with constant ends, None for everything else."""
    if node.op_type != "Clip" or len(node.inputs) < 3:
        return None
    ends = [value for value in node.inputs[1:3] if is_constant(value)]
    if len(ends) != 2:
        return None
    low, high = (float(_array(value).reshape(-1)[0]) for value in ends)
    return high if low == 0.0 and 0.0 < high < float("inf") else None


def _array(value: Any) -> NDArray[np.floating]:
    return np.asarray(value.const_value.numpy())


def _groups(node: Any) -> int:
    attribute = node.attributes.get("group")
    return 1 if attribute is None else int(attribute.as_int())


def _by_input(weight: NDArray[np.floating], groups: int) -> NDArray[np.floating]:
    """[C_out, C_in / groups, k...] → [C_in, C_out / groups * prod(k)]: what reads each channel."""
    made, taken = weight.shape[:2]
    split = weight.reshape(groups, made // groups, taken, -1).transpose(0, 2, 1, 3)
    result: NDArray[np.floating] = split.reshape(groups * taken, -1)
    return result


def _sizes(pair: Pair) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """r1 and r2 [C]: largest weights that make each channel, and that read it."""
    first, second = _array(pair.first.inputs[1]), _array(pair.second.inputs[1])
    made = np.abs(first.astype(np.float64)).reshape(first.shape[0], -1).max(axis=1)
    read = np.abs(_by_input(second, _groups(pair.second)).astype(np.float64)).max(axis=1)
    return made, read


def factors(pair: Pair) -> NDArray[np.float64]:
    """s [C]: powers of two nearest to sqrt(r1 / r2) over its median.

    1 for channels that are zero on either side.
    """
    made, read = _sizes(pair)
    alive = (made > 0) & (read > 0)
    ratio = np.where(alive, made, 1.0) / np.where(alive, read, 1.0)
    power = 0.5 * np.log2(ratio)
    if alive.any():
        power -= np.median(power[alive])
    power = np.clip(np.rint(power), -_MAX_POWER, _MAX_POWER)
    power[~alive] = 0
    result: NDArray[np.float64] = np.exp2(power)
    return result


def is_uneven(pair: Pair) -> bool:
    """Whether some channel is large enough to cost the others their levels."""
    made, read = _sizes(pair)
    large = (made >= _UNEVEN_SIZE * np.median(made)) | (read >= _UNEVEN_SIZE * np.median(read))
    far = np.abs(np.log2(factors(pair))) >= _UNEVEN_POWER
    return bool((large & far).any())


def apply(pair: Pair, scale: NDArray[np.float64]) -> None:
    """Divide the first convolution's output channels by `scale` [C], multiply the second's inputs."""
    first, second = pair.first, pair.second
    _scale_bound(pair, scale)
    weight = _array(first.inputs[1])
    spread = scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    _replace(first, 1, weight / spread)
    if len(first.inputs) > 2 and first.inputs[2] is not None:
        _replace(first, 2, _array(first.inputs[2]) / scale)
    weight = _array(second.inputs[1])
    groups = _groups(second)
    made, taken = weight.shape[:2]
    rows = scale.reshape(groups, 1, taken).repeat(made // groups, axis=1).reshape(made, taken)
    _replace(second, 1, weight * rows.reshape(made, taken, *([1] * (weight.ndim - 2))))


def _scale_bound(pair: Pair, scale: NDArray[np.float64]) -> None:
    """Divide the upper bound between the two by `scale`; the first time a Clip becomes Relu and Min."""
    import onnx_ir as ir

    if pair.clip is not None:
        clip, pair.clip = pair.clip, None
        high = _upper_bound(clip)
        assert high is not None
        weight = _array(pair.first.inputs[1])
        shape = (1, scale.size, *([1] * (weight.ndim - 2)))
        name = f"{clip.name}.bound"
        pair.bound = ir.Value(
            name=name, const_value=ir.tensor(np.full(shape, high, weight.dtype), name=name)
        )
        pair.bound.shape = pair.bound.const_value.shape
        pair.bound.type = ir.TensorType(pair.bound.const_value.dtype)
        graph = clip.graph
        graph.initializers[name] = pair.bound
        result = clip.outputs[0]
        relu = ir.Node("", "Relu", inputs=[clip.inputs[0]], name=f"{clip.name}.relu")
        relu.outputs[0].name = f"{result.name}.relu"
        relu.outputs[0].shape, relu.outputs[0].type = result.shape, result.type
        least = ir.Node("", "Min", inputs=[relu.outputs[0], pair.bound], name=f"{clip.name}.min")
        graph.insert_after(clip, [relu, least])
        kept = result.name
        for use in list(result.uses()):
            use.node.replace_input_with(use.idx, least.outputs[0])
        result.name = f"{kept}.clip"
        least.outputs[0].name = kept
        least.outputs[0].shape, least.outputs[0].type = result.shape, result.type
        graph.remove(clip, safe=True)
    if pair.bound is not None:
        bound = _array(pair.bound)
        divided = (bound / scale.reshape(bound.shape)).astype(bound.dtype)
        pair.bound.const_value = ir.tensor(divided, name=pair.bound.name)


def _replace(node: Any, index: int, array: NDArray[np.floating]) -> None:
    import onnx_ir as ir

    value = node.inputs[index]
    dtype = value.const_value.numpy().dtype
    value.const_value = ir.tensor(array.astype(dtype), name=value.name)


def equalize(model: Any) -> int:
    """Equalize every uneven pair of `model` (onnx_ir.Model, changed in place); return how many changed.

    The function stays exactly the same but for sums that underflow: all factors are powers of two.
    """
    pairs = find_pairs(model.graph)
    changed: set[int] = set()
    for _ in range(_SWEEPS):
        moved = False
        for number, pair in enumerate(pairs):
            if number not in changed and not is_uneven(pair):
                continue
            scale = factors(pair)
            if (scale != 1.0).any():
                apply(pair, scale)
                changed.add(number)
                moved = True
        if not moved:
            break
    return len(changed)
