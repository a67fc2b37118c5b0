"""Accuracy recovered after quantization, without training: rounding with the outputs in view, and biases
corrected by what the quantized network itself computes.

Both change a QDQ graph and leave its structure as it is. They look at a few calibration images. Full bias
correction is in edgekit.stages.correct_biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import UsageError, nearest
from edgekit.quantization import adaround, gptq, patches, retouch
from edgekit.quantization.bias_correction import mean_shift
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.observe import ObservedModel
from edgekit.stages import correct_biases
from edgekit.types import OnnxModel, Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


VERSION = 1
NEAREST, ADAROUND, GPTQ = "nearest", "adaround", "gptq"
ROUNDINGS = (NEAREST, ADAROUND, GPTQ)
"""How weights are rounded: to the nearest level; up or down as the layer's outputs fit best
(`quantization.adaround`); one input after the other, each making up for those before
(`quantization.gptq`)."""

IMAGES = 16
"""Images that are looked at."""


@dataclass(frozen=True, kw_only=True)
class RecoverOptions:
    """`rounding`: one of ROUNDINGS; `full_bias`: correct the biases layer by layer."""

    rounding: str = NEAREST
    full_bias: bool = False

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise UsageError(
                f"Unknown rounding '{self.rounding}'.", hint=nearest(self.rounding, ROUNDINGS)
            )

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return self.full_bias or self.rounding != NEAREST


# rows of a layer's input per image, as a multiple of its inputs K, at least
_ROWS_PER_INPUT = 2.0
_LEAST_ROWS = 256
# second moments that exist at the same time, bytes; more layers take another pass over the images
_MOST_BYTES = 256 << 20


def run(
    reference: OnnxModel,
    quantized: Any,
    feeds: Sequence[NDArray[Any]],
    options: RecoverOptions,
    *,
    means: Mapping[str, NDArray[np.float64]] | None = None,
    threads: int = 1,
    progress: Progress = no_progress,
) -> tuple[str, ...]:
    """Apply `options` to the QDQ graph `quantized` (onnx_ir.Model, changed in place) of `reference`.

    `feeds` are input tensors of calibration images; up to IMAGES are looked at. `means` corrects the
    biases of layers that are rounded anew the fast way. Returns what was done, in words. Raises UsageError
    without feeds.
    """
    if not options.needed:
        return ()
    if not feeds:
        raise UsageError(
            "Rounding by the outputs and full bias correction look at images, and none were given.",
            hint="--images DIR, a few of the calibration images.",
        )
    some = feeds[:IMAGES]
    notes = []
    if options.rounding != NEAREST:
        done = round_weights(
            reference,
            quantized,
            some,
            options.rounding,
            means=means,
            threads=threads,
            progress=progress,
        )
        notes.append(f"weights of {len(done)} layers rounded by {options.rounding}")
    if options.full_bias:
        done = correct_biases.run(reference, quantized, some, threads=threads, progress=progress)
        notes.append(f"biases of {len(done)} layers corrected one after the other")
    return tuple(notes)


def round_weights(
    reference: OnnxModel,
    quantized: Any,
    feeds: Sequence[NDArray[Any]],
    method: str = ADAROUND,
    *,
    means: Mapping[str, NDArray[np.float64]] | None = None,
    threads: int = 1,
    progress: Progress = no_progress,
) -> tuple[str, ...]:
    """Round the weights of the QDQ graph `quantized` (onnx_ir.Model, changed in place) anew.

    The layers' inputs are those of the float graph `reference` on `feeds`, quantized as the layer
    reads them. `means` (channel means by tensor) corrects the biases by what the new rounding adds to
    the mean outputs. Returns the names of the rounded layers; those that were given another form
    (`quantization.forms`) and those whose rows cannot be told (automatic padding) keep the nearest
    levels.
    """
    import numpy as np
    import onnx_ir as ir

    floats = {node.name: node for node in ir.load(str(reference.path)).graph}
    chosen = {
        name: node
        for name, node in retouch.layers(quantized.graph).items()
        if name in floats and _same_weight(floats[name], node)
    }
    rounded: list[str] = []
    for part in _parts(floats, chosen):
        progress(len(rounded), len(chosen), "round weights")
        moments = _moments(reference, floats, {n: chosen[n] for n in part}, feeds, threads)
        for name, matrix in moments.items():
            node = chosen[name]
            weight = np.asarray(floats[name].inputs[1].const_value.numpy(), np.float64)
            levels = _levels(node, weight, matrix, method)
            retouch.set_levels(node, levels)
            rounded.append(name)
            source = floats[name].inputs[0].name
            if means is not None and source in means and retouch.can_shift(node):
                shift = mean_shift(floats[name], retouch.stood_for(node) - weight, means[source])
                if shift is not None:
                    retouch.shift_bias(quantized, node, shift)
    return tuple(rounded)


def _same_weight(plain: Any, node: Any) -> bool:
    """Whether the quantized node computes what the float one does, and not another form of it."""
    weight = plain.inputs[1].const_value if len(plain.inputs) > 1 else None
    return weight is not None and tuple(weight.shape) == retouch.weight_shape(node)


def _parts(floats: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[list[str]]:
    """The layers in groups whose second moments fit into memory together."""
    import numpy as np

    parts: list[list[str]] = [[]]
    used = 0
    for name in chosen:
        weight = floats[name].inputs[1].const_value.numpy()
        matrix = patches.matrix(floats[name], np.asarray(weight))
        if matrix is None:
            continue
        groups, _, inputs = matrix.shape
        size = 4 * groups * inputs * inputs
        if parts[-1] and used + size > _MOST_BYTES:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += size
    return [part for part in parts if part]


def _moments(
    reference: OnnxModel,
    floats: Mapping[str, Any],
    chosen: Mapping[str, Any],
    feeds: Sequence[NDArray[Any]],
    threads: int,
) -> dict[str, NDArray[np.float32]]:
    """Sum of x x^T over rows of all images by layer, float32 [G, K, K]; x as the layer reads it."""
    import numpy as np

    name = onnx_file.main_input(reference).name
    tensors = tuple(dict.fromkeys(floats[layer].inputs[0].name for layer in chosen))
    random = np.random.default_rng(0)
    found: dict[str, NDArray[np.float32]] = {}
    options = SessionOptions(threads=threads)
    with ObservedModel(reference.path, tensors, options) as observed:
        for feed in feeds:
            values = observed.run({name: feed})
            for layer, node in chosen.items():
                tensor = values[floats[layer].inputs[0].name]
                weight = patches.matrix(
                    floats[layer], np.asarray(floats[layer].inputs[1].const_value.numpy())
                )
                assert weight is not None
                most = max(_LEAST_ROWS, int(_ROWS_PER_INPUT * weight.shape[2] / len(feeds)) + 1)
                drawn = patches.rows(floats[layer], tensor, most, random)
                if drawn is None or drawn.shape[2] != weight.shape[2]:
                    continue
                read = _as_read(node, drawn)
                product = np.matmul(read.transpose(0, 2, 1), read)
                found[layer] = found[layer] + product if layer in found else product
    return found


def _as_read(node: Any, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows rounded and clipped as the layer's input is."""
    import numpy as np

    params = retouch.input_params(node)
    if params is None or params.scale.size != 1:
        return rows
    kind = np.iinfo(params.zero_point.dtype)
    scale, zero = np.float32(params.scale), np.float32(params.zero_point)
    levels = np.clip(np.rint(rows / scale) + zero, kind.min, kind.max)
    result: NDArray[np.float32] = ((levels - zero) * scale).astype(np.float32)
    return result


def _levels(
    node: Any, weight: NDArray[np.float64], moments: NDArray[np.float32], method: str
) -> NDArray[np.int8]:
    """Levels int8 of the weight's shape at the scale that it has in the graph."""
    import numpy as np

    matrix = patches.matrix(node, weight)
    assert matrix is not None
    groups, outputs, _ = matrix.shape
    scale = np.asarray(retouch.weight_params(node).scale, np.float64)
    steps = np.broadcast_to(scale.reshape(groups, -1) if scale.ndim else scale, (groups, outputs))
    limit = _limit(node)
    if method == GPTQ:
        levels = np.stack(
            [
                gptq.round_weights(matrix[g], 1.0 / steps[g], limit, moments[g])
                for g in range(groups)
            ]
        )
    else:
        levels = adaround.round_weights(matrix, steps, limit, moments)
    return patches.as_weight(node, levels, weight.shape)


def _limit(node: Any) -> int:
    """The largest level in use: the scheme's limit, whatever its bits."""
    import numpy as np

    largest = int(np.abs(retouch.integers_of(node)).max(initial=0))
    return next(limit for limit in (7, 31, 63, 127, 128) if largest <= limit)
