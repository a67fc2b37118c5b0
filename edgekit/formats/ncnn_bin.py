"""ncnn's `.bin`: the weights, layer after layer in the order of the `.param`, without names or sizes.

How many numbers follow is known from the layer's parameters alone. A *tagged* array (a weight)
begins with four bytes that say how it is stored; a plain one (a bias, a scale) is float32:

    0x00000000  float32
    0x01306B47  float16, padded to 4 bytes
    0x01348B83  bfloat16, padded to 4 bytes
    0x000D4B38  int8, padded to 4 bytes
    0x0002C056  float32 (an old mark of quantized models)

All is little-endian. Source: ncnn 1.0.20261020, src/modelbin.cpp (ModelBinFromDataReader::load) and
load_model of each layer under src/layer.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.atomic import write_bytes
from edgekit.errors import BadInput, NotPossible
from edgekit.formats.ncnn_param import NcnnGraph, NcnnLayer

MAX_FILE_BYTES = 4 << 30
_MAX_ELEMENTS = 2**31 - 1

FP32, FP16, BF16, INT8 = 0x00000000, 0x01306B47, 0x01348B83, 0x000D4B38
_FP32_MARKED = 0x0002C056

_DTYPES: dict[int, Any] = {FP32: "<f4", _FP32_MARKED: "<f4", FP16: "<f2", BF16: "<u2", INT8: "i1"}
STORAGE = {"fp32": FP32, "fp16": FP16, "bf16": BF16, "int8": INT8}
"""Name of a storage → its tag."""


@dataclass(frozen=True, eq=False)
class Array:
    """One array of a layer: flat `values` as they are stored, `tag` None for a plain float32 one.

    bfloat16 is held as its upper 16 bits, uint16. `padding` are the bytes that fill up to 4.
    """

    values: NDArray[Any]
    tag: int | None = None
    padding: bytes = b""

    def floats(self) -> NDArray[np.float32]:
        """The values as float32; int8 as whole numbers."""
        if self.tag == BF16:
            wide: NDArray[np.float32] = (self.values.astype(np.uint32) << 16).view(np.float32)
            return wide
        return self.values.astype(np.float32)

    def to_bytes(self) -> bytes:
        """The array as it lies in the file, its tag in front."""
        head = b"" if self.tag is None else struct.pack("<I", self.tag)
        return head + self.values.tobytes() + self.padding


def plain(values: NDArray[Any] | Sequence[float]) -> Array:
    """A plain float32 array: a bias or scales."""
    return Array(np.ascontiguousarray(values, dtype="<f4").reshape(-1))


def stored(values: NDArray[Any], tag: int) -> Array:
    """A tagged array in the storage of `tag`; float32 is rounded to nearest, ties to even.

    Raises NotPossible when a value is too large for float16.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if tag == BF16:
        bits = flat.astype("<f4").view(np.uint32)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        flat = (bits >> 16).astype("<u2")
    elif tag == FP16:
        with np.errstate(over="ignore"):
            half = flat.astype("<f2")
        if not np.isfinite(half).all():
            raise NotPossible(
                f"A weight of {float(np.abs(flat).max()):g} does not fit float16.",
                hint="Use an fp32 or bf16 target for this model.",
            )
        flat = half
    else:
        flat = flat.astype(_DTYPES[tag])
    return Array(flat, tag, b"\0" * (-flat.nbytes % 4))


@dataclass(frozen=True)
class Slot:
    """What the file holds next: an array of `size` values, tagged or plain."""

    name: str
    size: int
    tagged: bool = False


Slots = Iterator[Slot]


def _convolution(layer: NcnnLayer) -> Slots:
    if layer.integer(28 if "Deconvolution" in layer.type else 19):
        return  # its weight is an input
    outputs = layer.integer(0)
    yield Slot("weight", layer.integer(6), tagged=True)
    if layer.integer(5):
        yield Slot("bias", outputs)
    term = layer.integer(8)
    if term and layer.type == "Convolution":
        yield from (Slot("weight_scales", outputs), Slot("input_scale", 1))
    elif term and layer.type == "ConvolutionDepthWise":
        groups = layer.integer(7, 1) if term in (1, 101) else 1
        yield from (Slot("weight_scales", groups), Slot("input_scale", 1))
    if term > 100:
        yield Slot("output_scale", 1)


def _inner_product(layer: NcnnLayer) -> Slots:
    outputs = layer.integer(0)
    yield Slot("weight", layer.integer(2), tagged=True)
    if layer.integer(1):
        yield Slot("bias", outputs)
    if layer.integer(8):
        yield from (Slot("weight_scales", outputs), Slot("input_scale", 1))


def _gemm(layer: NcnnLayer) -> Slots:
    rows, columns, inner = layer.integer(7), layer.integer(8), layer.integer(9)
    term = layer.integer(18)
    if term >= 400:
        raise NotPossible(f"ncnn layer '{layer.name}': Gemm with block-quantized weights.")
    if layer.integer(4) == 1:
        yield Slot("a", rows * inner, tagged=True)
    if layer.integer(5) == 1:
        yield Slot("b", columns * inner, tagged=True)
    shape = layer.integer(10)
    if layer.integer(6) == 1 and shape != -1:
        sizes = {0: 1, 1: rows, 2: rows, 3: rows * columns, 4: columns}
        if shape not in sizes:
            raise BadInput(f"ncnn layer '{layer.name}': 10={shape} is not a shape of C.")
        yield Slot("c", sizes[shape], tagged=True)
    if term and layer.integer(4) == 1:
        yield Slot("a_scales", rows)
    if term and layer.integer(5) == 1:
        yield Slot("b_scale", 1)


def _attention(layer: NcnnLayer) -> Slots:
    width, size = layer.integer(0), layer.integer(2)
    if layer.integer(18) >= 400:
        raise NotPossible(f"ncnn layer '{layer.name}': attention with block-quantized weights.")
    if width <= 0:
        raise BadInput(f"ncnn layer '{layer.name}': an embedding of {width}.")
    query = size // width
    for name, count in (
        ("q", width * query),
        ("k", width * layer.integer(3, width)),
        ("v", width * layer.integer(4, width)),
        ("out", query * width),
    ):
        yield Slot(name, count, tagged=True)
        yield Slot(f"{name}_bias", query if name == "out" else width)
    if layer.integer(18):
        yield from (Slot(f"{name}_scales", width) for name in "qkv")
        yield Slot("out_scale", 1)


def _recurrent(layer: NcnnLayer) -> Slots:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[layer.type]
    outputs, size = layer.integer(0), layer.integer(1)
    hidden = layer.integer(3, outputs) if layer.type == "LSTM" else outputs
    directions = 2 if layer.integer(2) == 2 else 1
    biases = {"LSTM": 4, "GRU": 4, "RNN": 1}[layer.type]
    yield Slot("weight_xc", size, tagged=True)
    yield Slot("bias_c", hidden * biases * directions, tagged=True)
    yield Slot("weight_hc", outputs * hidden * gates * directions, tagged=True)
    if hidden != outputs:
        yield Slot("weight_hr", hidden * outputs * directions, tagged=True)
    if layer.integer(8):
        yield Slot("weight_xc_scales", hidden * gates * directions)
        yield Slot("weight_hc_scales", hidden * gates * directions)


def _memory(layer: NcnnLayer) -> Slots:
    width, height, channels, depth = (layer.integer(key) for key in (0, 1, 2, 11))
    size = width
    for more, wanted in ((height, height or channels or depth), (channels, channels or depth)):
        size *= more if wanted else 1
    size *= depth or 1
    if size:
        yield Slot("data", size, tagged=layer.integer(21, 1) == 0)


def _embed(layer: NcnnLayer) -> Slots:
    yield Slot("weight", layer.integer(3), tagged=True)
    if layer.integer(2):
        yield Slot("bias", layer.integer(0))
    if layer.integer(18):
        yield Slot("weight_scale", 1)


def _norm(layer: NcnnLayer) -> Slots:
    channels, affine = (1, 3) if layer.type == "GroupNorm" else (0, 2)
    if layer.integer(affine, 1):
        yield Slot("gamma", layer.integer(channels))
        if layer.type != "RMSNorm":
            yield Slot("beta", layer.integer(channels))


def _scale(layer: NcnnLayer) -> Slots:
    size = layer.integer(0)
    if size != -233:  # the scale is an input
        yield Slot("scale", size)
        if layer.integer(1):
            yield Slot("bias", size)


def _vectors(*slots: tuple[str, int, int]) -> Callable[[NcnnLayer], Slots]:
    """Plain arrays, given as (name, id of the size, default size); those of size 0 are not there."""

    def read(layer: NcnnLayer) -> Slots:
        for name, key, default in slots:
            size = layer.integer(key, default)
            if size:
                yield Slot(name, size)

    return read


LAYERS: dict[str, Callable[[NcnnLayer], Slots]] = {
    **{
        f"{kind}{rank}": _convolution
        for kind in (
            "Convolution",
            "ConvolutionDepthWise",
            "Deconvolution",
            "DeconvolutionDepthWise",
        )
        for rank in ("", "1D", "3D")
    },
    "DeformableConv2D": _convolution,
    "InnerProduct": _inner_product,
    "Gemm": _gemm,
    "MultiHeadAttention": _attention,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "MemoryData": _memory,
    "Embed": _embed,
    **dict.fromkeys(("GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"), _norm),
    "Scale": _scale,
    "BatchNorm": _vectors(("slope", 0, 0), ("mean", 0, 0), ("variance", 0, 0), ("bias", 0, 0)),
    "Bias": _vectors(("bias", 0, 0)),
    "PReLU": _vectors(("slope", 0, 0)),
    "Normalize": _vectors(("scale", 3, 0)),
    "Padding": _vectors(("values", 6, 0)),
    "Quantize": _vectors(("scale", 0, 1)),
    "Dequantize": _vectors(("scale", 0, 1), ("bias", 1, 0)),
    "Requantize": _vectors(("scale_in", 0, 1), ("scale_out", 1, 1), ("bias", 2, 0)),
}
"""Layer types with weights → the arrays that their parameters announce. All others have none."""

Buffer = bytes | mmap.mmap
"""What a `.bin` can be parsed from."""

Weights = Sequence[Mapping[str, Array]]
"""For each layer of the graph, in its order, its arrays by name; most layers have none."""


def slots_of(layer: NcnnLayer) -> list[Slot]:
    """The arrays of a layer, in the order of the file. Raises BadInput for sizes that cannot be."""
    reader = LAYERS.get(layer.type)
    slots = [] if reader is None else list(reader(layer))
    for slot in slots:
        if not 0 < slot.size <= _MAX_ELEMENTS:
            raise BadInput(f"ncnn layer '{layer.name}': a {slot.name} of {slot.size} values.")
    return slots


def parse(data: Buffer, graph: NcnnGraph, where: str = "bin") -> list[dict[str, Array]]:
    """The arrays of every layer, as views into `data`.

    Raises BadInput, naming the layer, when the bytes do not fit the graph: cut off, too many, an
    unknown storage, another model's weights.
    """
    weights: list[dict[str, Array]] = []
    view = memoryview(data)
    at = 0

    def take(size: int, layer: NcnnLayer, slot: Slot) -> memoryview:
        nonlocal at
        if size > len(view) - at:
            raise _refused(
                where, f"it ends within the {slot.name} of layer '{layer.name}' ({layer.type})"
            )
        at += size
        return view[at - size : at]

    for layer in graph.layers:
        arrays: dict[str, Array] = {}
        for slot in slots_of(layer):
            tag: int | None = None
            if slot.tagged:
                (tag,) = struct.unpack("<I", take(4, layer, slot))
                if tag not in _DTYPES:
                    raise _refused(
                        where,
                        f"the {slot.name} of layer '{layer.name}' ({layer.type}) begins with the "
                        f"unknown mark {tag:#010x}",
                    )
            dtype = np.dtype("<f4" if tag is None else _DTYPES[tag])
            values = np.frombuffer(take(slot.size * dtype.itemsize, layer, slot), dtype)
            padding = bytes(take(-values.nbytes % 4, layer, slot))
            arrays[slot.name] = Array(values, tag, padding)
        weights.append(arrays)
    if at != len(view):
        raise _refused(where, f"{len(view) - at} bytes are left over behind the last layer")
    return weights


def _refused(where: str, problem: str) -> BadInput:
    return BadInput(
        f"{where} does not fit its .param: {problem}.",
        hint="The file is damaged, or belongs to another model: export it again.",
    )


def to_bytes(graph: NcnnGraph, weights: Weights) -> bytes:
    """The `.bin` of `graph`. Raises ValueError when an array is missing, odd, or of another size."""
    parts: list[bytes] = []
    for layer, arrays in zip(graph.layers, weights, strict=True):
        slots = slots_of(layer)
        if [slot.name for slot in slots] != list(arrays):
            raise ValueError(
                f"layer '{layer.name}' has {list(arrays)}, not {[s.name for s in slots]}"
            )
        for slot in slots:
            array = arrays[slot.name]
            if array.values.size != slot.size or (array.tag is not None) != slot.tagged:
                raise ValueError(f"the {slot.name} of layer '{layer.name}' does not fit")
            parts.append(array.to_bytes())
    return b"".join(parts)


def read(path: Path, graph: NcnnGraph) -> list[dict[str, Array]]:
    """Read a `.bin` file; the arrays are views of the mapped file, loaded as they are used.

    Raises BadInput as `parse`, and when it cannot be read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size > MAX_FILE_BYTES:
                raise _refused(str(path), f"it is larger than {MAX_FILE_BYTES >> 30} GiB")
            # a file without a byte cannot be mapped
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError as error:
        raise BadInput(f"The model's weights {path} do not exist.") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse(data, graph, str(path))


def write(graph: NcnnGraph, weights: Weights, path: Path) -> None:
    """Write the `.bin` of `graph` to `path`, atomically."""
    write_bytes(path, to_bytes(graph, weights))
