"""Where a model's time goes, and where quantization costs: layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import images as reader
from edgekit import onnx_file
from edgekit.cache import StageCache
from edgekit.errors import BadInput, NotPossible
from edgekit.golden import read_npy
from edgekit.manifest import read_manifest
from edgekit.pipeline.float_model import find_float_model
from edgekit.preprocess import apply
from edgekit.stages import layer_loss, profile, profile_torch
from edgekit.stages.opening import TORCH, NamedModel
from edgekit.stages.profile import LayerTime, Profile
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.preprocess import Preprocess

MOST_SAMPLES = 4
"""Images that a profile runs on; more change neither times nor losses by much."""


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """One profile.

    `images`: a folder or file to run on, else a bundle's golden inputs, else noise. `float_model`:
    what an INT8 model was made of (an ONNX file, a model.json of ncnn), else it is looked for in the
    stage cache. `trace`: where the Chrome trace goes.
    """

    model: NamedModel
    images: Path | None = None
    float_model: Path | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] | None = None
    runs: int = 20
    threads: int = 1
    trace: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ProfileAnswer:
    """`profile` with the losses joined in; `inputs` says what it ran on.

    `loss` is the SQNR in dB of every tensor that both models make, `reference` the float model it was
    taken against; both empty where there is none, and `remark` says why.
    """

    profile: Profile
    inputs: str
    loss: dict[str, float] = dataclasses.field(default_factory=dict)
    reference: Path | None = None
    remark: str = ""


def run(request: ProfileRequest, progress: Progress = no_progress) -> ProfileAnswer:
    """Profile a model.

    Raises NotPossible for a runtime without a profiler, and what opening and running it raises.
    """
    model = request.model
    contract = model.contract(request.overrides, request.size).contract
    tensors, inputs = _inputs(request, contract)
    if model.runtime == TORCH:
        found = profile_torch.run(
            model.checkpoint.module,
            tensors,
            runs=request.runs,
            threads=request.threads,
            trace=request.trace,
            progress=progress,
        )
        return ProfileAnswer(profile=found, inputs=inputs)
    if model.runtime == "tensorrt":
        from edgekit.stages import profile_tensorrt

        timed = profile_tensorrt.run(model.files, tensors, runs=request.runs, progress=progress)
        return ProfileAnswer(profile=timed, inputs=inputs)
    if model.runtime not in ("onnxruntime", "ncnn"):
        raise NotPossible(
            f"{model.name} runs on {model.runtime}, whose layers edgekit cannot time.",
            hint="Profile the ONNX model that it was made of.",
        )
    file = model.files[0]
    found = layer_times(
        model.runtime,
        file,
        tensors,
        runs=request.runs,
        threads=request.threads,
        trace=request.trace,
        progress=progress,
    )
    if model.precision != "int8":
        return ProfileAnswer(profile=found, inputs=inputs)
    with StageCache() as cache:
        reference = request.float_model or _cached(model, cache)
        if reference is None:
            remark = (
                "The float model is not at hand, so losses are not known: name it with --float."
            )
            return ProfileAnswer(profile=found, inputs=inputs, remark=remark)
        loss = layer_losses(
            model.runtime, reference, file, tensors, threads=request.threads, progress=progress
        )
    return ProfileAnswer(
        profile=dataclasses.replace(found, layers=tuple(_joined(found.layers, loss))),
        inputs=inputs,
        loss=loss,
        reference=reference,
    )


def layer_times(
    runtime: str,
    model: Path,
    tensors: Sequence[NDArray[Any]],
    *,
    runs: int = 20,
    threads: int = 1,
    trace: Path | None = None,
    progress: Progress = no_progress,
) -> Profile:
    """Time per layer of an ONNX file, or of the model.json of an ncnn model, on these tensors."""
    if runtime == "ncnn":
        from edgekit.stages import profile_ncnn

        return profile_ncnn.run(
            model, tensors, runs=runs, threads=threads, trace=trace, progress=progress
        )
    name = onnx_file.main_input(onnx_file.describe(model)).name
    feeds = [{name: tensor} for tensor in tensors]
    return profile.run(model, feeds, runs=runs, threads=threads, trace=trace, progress=progress)


def layer_losses(
    runtime: str,
    reference: Path,
    candidate: Path,
    tensors: Sequence[NDArray[Any]],
    *,
    threads: int = 1,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """SQNR in dB of the tensors (ncnn: blobs) that both models make, on these input tensors.

    Raises BadInput when `reference` is not what `candidate` was made of.
    """
    hint = "Give the float model that the INT8 one was made of."
    if runtime == "ncnn":
        from edgekit.stages import layer_loss_ncnn

        if reference.suffix != ".json":
            raise BadInput(
                f"{reference} is no ncnn model, whose layers could be held against {candidate}.",
                hint=f"{hint} It is a model.json.",
            )
        return layer_loss_ncnn.run(
            reference, candidate, tensors, threads=threads, progress=progress
        )
    names = [onnx_file.main_input(onnx_file.describe(path)).name for path in (reference, candidate)]
    if names[0] != names[1]:
        raise BadInput(
            f"The input of {reference.name} is '{names[0]}', that of {candidate.name} '{names[1]}'.",
            hint=hint,
        )
    feeds = [{names[0]: tensor} for tensor in tensors]
    loss = layer_loss.run(reference, candidate, feeds, threads=threads, progress=progress)
    if not loss:
        raise BadInput(
            f"{reference} and {candidate.name} have no tensor name in common.", hint=hint
        )
    return loss


def _joined(layers: Sequence[LayerTime], loss: Mapping[str, float]) -> list[LayerTime]:
    """Each layer with the SQNR of its output; of several outputs the worst counts."""
    joined = []
    for layer in layers:
        known = [loss[name] for name in layer.outputs if name in loss]
        joined.append(dataclasses.replace(layer, sqnr_db=min(known)) if known else layer)
    return joined


def _cached(model: NamedModel, cache: StageCache) -> Path | None:
    if model.checkpoint.kind != "bundle":
        return None
    return find_float_model(read_manifest(model.path), cache)


def _inputs(request: ProfileRequest, contract: Preprocess) -> tuple[list[NDArray[Any]], str]:
    """Input tensors of one image each, and what they are in words."""
    if request.images is not None:
        paths = reader.list_images(request.images)
        bad: list[str] = []
        found = []
        for _, image in reader.read_all(paths, bad):
            found.append(apply(image, contract)[0])
            if len(found) == MOST_SAMPLES:
                break
        if not found:
            raise BadInput(f"None of the images of {request.images} can be read: {bad[0]}")
        return found, f"{len(found)} images of {request.images.name or request.images}"
    if request.model.golden:
        tensors = [read_npy(path) for path in request.model.golden[:MOST_SAMPLES]]
        return tensors, f"the bundle's {len(tensors)} golden samples"
    import numpy as np

    pixels = np.random.default_rng(0).integers(
        0, 256, (contract.height, contract.width, 3), dtype=np.uint8
    )
    exact = contract.replace(resize="stretch")
    return [apply(pixels, exact)[0]], "noise: real images tell losses better (--images)"
