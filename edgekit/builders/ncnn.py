"""Prepared ONNX → ncnn: graph rewrites, the pnnx program, and the files that ncnn loads.

What comes out is a proposal until it was run: pnnx writes graphs that compute something else without
a word. The stage edgekit.stages.convert_ncnn tries the proposals and holds each against ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.atomic import sha256_file
from edgekit.builders import pnnx
from edgekit.builders.pnnx import NcnnModel
from edgekit.errors import BadInput, BuildFailed, NotPossible
from edgekit.formats import ncnn_bin, ncnn_json, ncnn_param
from edgekit.formats.ncnn_json import Sidecar, Tensor
from edgekit.require import versions_of
from edgekit.target import TargetProfile
from edgekit.types import Engine, OnnxModel, TensorSpec

VERSION = 1

PAIR = {"ncnn": "1.0.20261020", "pnnx": "20261020"}
"""The versions of the two that are tested together; others are noted."""

_FLOAT32 = {
    "use_fp16_packed": False,
    "use_fp16_storage": False,
    "use_fp16_arithmetic": False,
    "use_bf16_packed": False,
    "use_bf16_storage": False,
}
_FP16 = dict.fromkeys(("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"), True)
_BF16 = dict.fromkeys(("use_bf16_packed", "use_bf16_storage"), True)
OPTIONS: dict[str, dict[str, bool]] = {
    "fp32": _FLOAT32,
    "fp16": {**_FLOAT32, **_FP16},
    "bf16": {**_FLOAT32, **_BF16},
    # what is not INT8 computes in float32: the float layers between decide how codes are rounded
    "int8": {**_FLOAT32, "use_int8_inference": True},
}
"""ncnn::Option by precision: ncnn's own defaults use float16 wherever the CPU has it."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """An ncnn model that may compute what the ONNX model does, and how it was come by."""

    model: NcnnModel
    note: str = ""


def static_inputs(model: OnnxModel) -> tuple[TensorSpec, ...]:
    """The model's inputs with a batch of 1, as ncnn takes them.

    Raises NotPossible for other free dimensions, other batches, and inputs that are not float32.
    """
    specs = []
    for spec in model.inputs:
        batch, *rest = spec.shape or ("",)
        if spec.dtype != "float32":
            raise NotPossible(
                f"The input '{spec.name}' is {spec.dtype}; ncnn takes float32.",
                hint="Export the model with a float input: the preprocessing does the rest.",
            )
        if isinstance(batch, int) and batch != 1:
            raise NotPossible(
                f"The input '{spec.name}' has a fixed batch of {batch}; ncnn runs one image.",
                hint="Export the model with a batch of 1.",
            )
        free = [size for size in rest if not isinstance(size, int)]
        if free or not rest:
            raise NotPossible(
                f"The input '{spec.name}' is {list(spec.shape)}; ncnn models have one fixed size.",
                hint="Give the size: --imgsz.",
            )
        specs.append(dataclasses.replace(spec, shape=(1, *rest)))
    return tuple(specs)


def proposals(model: Path, inputs: tuple[TensorSpec, ...]) -> Iterator[Proposal]:
    """What to try for the single-file ONNX model, the most faithful first.

    Raises BuildFailed when pnnx gives nothing at all.
    """
    shapes = [[int(size) for size in spec.shape] for spec in inputs]
    converted = pnnx.convert(model, shapes)
    yield Proposal(model=converted)
    mended = without_batch_axes(converted)
    if mended is not converted:
        yield Proposal(model=mended, note="batch axes taken out of Reshape layers")


def without_batch_axes(model: NcnnModel) -> NcnnModel:
    """`model` with its Reshape layers free of batch axes (12=, 13=); itself where there are none.

    With one image they say nothing, but ncnn 20261020 moves the numbers about for them: attention
    whose batch axis is in the middle comes out wrong.
    """
    changes = {
        place: layer.with_params({12: None, 13: None})
        for place, layer in enumerate(model.graph.layers)
        if layer.type == "Reshape" and (12 in layer.params or 13 in layer.params)
    }
    if not changes:
        return model
    return dataclasses.replace(model, graph=model.graph.replaced(changes))


def input_tensors(model: NcnnModel, inputs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    """ncnn's inputs with the ONNX model's names; pnnx calls them in0, in1, … in its order."""
    blobs = model.graph.inputs
    if len(blobs) != len(inputs):
        raise BuildFailed(f"The ncnn graph has {len(blobs)} inputs, the model {len(inputs)}.")
    ordered = sorted(blobs, key=lambda blob: (len(blob), blob))
    return tuple(
        Tensor(blob=blob, name=spec.name, shape=tuple(int(size) for size in spec.shape))
        for blob, spec in zip(ordered, inputs, strict=True)
    )


def output_tensors(model: NcnnModel, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Tensor, ...]:
    """ncnn's outputs with the names and shapes of the ONNX model's, which `shapes` has in order."""
    try:
        blobs = ncnn_param.sorted_outputs(model.graph.outputs)
    except BadInput as error:
        raise BuildFailed(f"The ncnn graph's outputs are unclear: {error.message}") from error
    if len(blobs) != len(shapes):
        raise BuildFailed(
            f"The ncnn graph has {len(blobs)} outputs, the model {len(shapes)} "
            f"({', '.join(shapes)}).",
            hint="An output that is also used inside, or is an input or a constant, gets lost.",
        )
    return tuple(
        Tensor(blob=blob, name=name, shape=shape)
        for blob, (name, shape) in zip(blobs, shapes.items(), strict=True)
    )


def with_storage(model: NcnnModel, precision: str) -> NcnnModel:
    """`model` with its float32 weights stored as `precision` ("fp16", "bf16", "fp32") says.

    Raises NotPossible, naming the layer, for a weight that float16 cannot hold.
    """
    tag = ncnn_bin.STORAGE[precision]
    if tag == ncnn_bin.FP32:
        return model
    weights = []
    for layer, arrays in zip(model.graph.layers, model.weights, strict=True):
        try:
            weights.append(
                {
                    name: ncnn_bin.stored(array.floats(), tag)
                    if array.tag == ncnn_bin.FP32
                    else array
                    for name, array in arrays.items()
                }
            )
        except NotPossible as error:
            raise NotPossible(f"Layer '{layer.name}': {error.message}", hint=error.hint) from error
    return dataclasses.replace(model, weights=weights)


def write(
    model: NcnnModel,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    precision: str,
    out: Path,
) -> Engine:
    """Write model.json, model.param and model.bin into the folder `out`.

    The json names the other two by hash, so its own hash stands for the whole model.
    """
    param, weights, sidecar = (out / f"model.{suffix}" for suffix in ("param", "bin", "json"))
    ncnn_param.write(model.graph, param)
    ncnn_bin.write(model.graph, model.weights, weights)
    ncnn_json.write(
        Sidecar(
            param=ncnn_json.describe(param),
            bin=ncnn_json.describe(weights),
            inputs=inputs,
            outputs=outputs,
            precision=precision,
            options=OPTIONS[precision],
            versions=versions_of("ncnn", "pnnx"),
        ),
        sidecar,
    )
    return Engine(
        runtime="ncnn",
        files=(sidecar, param, weights),
        precision=precision,
        sha256=sha256_file(sidecar),
    )


def pair_notes() -> tuple[str, ...]:
    """The versions of pnnx and ncnn, and a word where they are not the pair that is tested."""
    found = versions_of("ncnn", "pnnx")
    notes: tuple[str, ...] = (f"pnnx {found['pnnx']}, ncnn {found['ncnn']}",)
    if found != PAIR:
        notes += (f"tested together are pnnx {PAIR['pnnx']} and ncnn {PAIR['ncnn']}",)
    return notes


def build(model: OnnxModel, profile: TargetProfile, out: Path) -> Engine:
    """Convert the prepared `model` under `out`: pnnx's first proposal, neither rewritten nor proved.

    An export goes through edgekit.stages.convert_ncnn instead. The shapes of the outputs must be
    known. Raises BuildFailed when pnnx gives nothing, NotPossible for inputs and outputs that ncnn
    cannot have.
    """
    inputs = static_inputs(model)
    proposal = next(proposals(model.path, inputs))
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in model.outputs:
        sizes = (1, *spec.shape[1:])
        if spec.dtype != "float32" or not all(isinstance(size, int) for size in sizes):
            raise NotPossible(
                f"The output '{spec.name}' is {spec.dtype} {list(spec.shape)}; "
                "ncnn gives float32 of a fixed shape."
            )
        shapes[spec.name] = tuple(int(size) for size in sizes)
    precision = profile.build.precision
    stored = proposal.model
    if precision != "int8":
        stored = with_storage(stored, precision)
    return write(
        stored,
        input_tensors(stored, inputs),
        output_tensors(stored, shapes),
        precision if precision != "int8" else "fp32",
        out,
    )
