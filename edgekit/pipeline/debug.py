"""Where an INT8 model loses accuracy: a float model, or a bundle's, quantized again and taken apart."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import bundle, cpu, onnx_file
from edgekit import images as reader
from edgekit.errors import BadInput, UsageError
from edgekit.pipeline.single import open_for_parity
from edgekit.preprocess import Preprocess, apply
from edgekit.stages import calibrate, debug, prepare, quantize
from edgekit.stages.debug import DebugReport
from edgekit.stages.quantize import QuantizeOptions
from edgekit.target import TargetProfile
from edgekit.types import Calibration, OnnxModel, Progress, no_progress

MOST_IMAGES = 32
"""Images on which the whole INT8 model is compared with the float one."""


@dataclass(frozen=True, kw_only=True)
class DebugRequest:
    """One debugging of the float ONNX `model` for `target`.

    `images`: a folder; statistics are collected on all of it unless `calibration` holds those of
    this very graph. `method` chooses the ranges. With `reference`, a float ONNX file, `model` is a
    quantized one or a bundle that holds one, and is taken apart as it is; no target is needed.
    """

    model: Path
    target: TargetProfile | None
    images: Path
    reference: Path | None = None
    calibration: Path | None = None
    method: str = "percentile"
    options: QuantizeOptions = dataclasses.field(default_factory=QuantizeOptions)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DebugAnswer:
    """`report`, on how many images the outputs were compared, and a warning on the contract."""

    report: DebugReport
    images: int
    warning: str = ""


def run(request: DebugRequest, progress: Progress = no_progress) -> DebugAnswer:
    """Quantize and take apart.

    Raises BadInput for a model that is no float ONNX file and for images that cannot be used,
    NotPossible for a float target.
    """
    if request.reference is not None:
        return _quantized(request, request.reference, progress)
    target = request.target
    if target is None:
        raise UsageError(
            "No target was given.",
            hint="--target NAME quantizes a float model; --float FILE takes an INT8 file apart.",
        )
    quantize.rules_of(target)  # a float target is refused before the work
    if request.model.is_dir() or request.model.suffix.lower() != ".onnx":
        raise UsageError(
            f"{request.model} is not an ONNX file.",
            hint="Name the float ONNX model; of a checkpoint, `edgekit export CHECKPOINT --target "
            "x86-fp32` makes one.",
        )
    paths = reader.list_images(request.images)
    subject = open_for_parity(request.model, request.images, request.overrides)
    _refuse_quantized(subject.model)
    feeds = _feeds(paths, request.images, subject.contract)
    with tempfile.TemporaryDirectory(prefix="edgekit-debug-") as folder:
        model = subject.model
        if request.calibration is None:
            # BatchNorms folded, constants lifted: what is quantized in an export
            model = prepare.run(model, subject.feeds, Path(folder) / "prepared.onnx").model
        calibration = _calibration(request, target, model, subject.contract, Path(folder), progress)
        report = debug.run(model, calibration, target, feeds, request.options, progress)
    return DebugAnswer(report=report, images=len(feeds), warning=subject.warning)


def _feeds(paths: list[Path], folder: Path, contract: Preprocess) -> dict[str, Any]:
    """Input tensors of the first MOST_IMAGES readable images, by name."""
    feeds: dict[str, Any] = {}
    bad: list[str] = []
    for path, image in reader.read_all(paths, bad):
        feeds[path.name] = apply(image, contract)[0]
        if len(feeds) == MOST_IMAGES:
            break
    if not feeds:
        raise BadInput(f"None of the images of {folder} can be read: {bad[0]}")
    return feeds


def _quantized(request: DebugRequest, reference: Path, progress: Progress) -> DebugAnswer:
    """An INT8 file, or that of a bundle, beside its float twin."""
    from edgekit.stages import debug_quantized

    path = request.model
    if bundle.is_bundle(path):
        runtime, files, _ = bundle.open_model(path)
        if files[0].suffix.lower() != ".onnx":
            raise UsageError(
                f"The bundle's model is for {runtime}; an ONNX file can be taken apart.",
                hint="Name the float model and the target: edgekit debug FLOAT --target T.",
            )
        path = files[0]
    for file in (path, reference):
        if file.is_dir() or file.suffix.lower() != ".onnx":
            raise UsageError(f"{file} is not an ONNX file.")
    paths = reader.list_images(request.images)
    quantized = onnx_file.describe(path)
    if not _is_quantized(quantized):
        raise BadInput(
            f"{path.name} is not quantized.",
            hint="edgekit debug MODEL --target T quantizes it; --float is for INT8 files.",
        )
    overrides = dict(request.overrides)
    own = onnx_file.read_contract(quantized)
    if own is not None and not overrides:
        overrides = {name: getattr(own, name) for name in own.to_dict()}
    subject = open_for_parity(reference, request.images, overrides)
    _refuse_quantized(subject.model)
    feeds = _feeds(paths, request.images, subject.contract)
    report = debug_quantized.run(subject.model, quantized, feeds, progress)
    return DebugAnswer(report=report, images=len(feeds), warning=subject.warning)


def _is_quantized(model: OnnxModel) -> bool:
    graph = onnx_file.load(model.path, external_data=False).graph
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)


def _refuse_quantized(model: OnnxModel) -> None:
    if _is_quantized(model):
        raise BadInput(
            f"{model.path.name} is quantized already.",
            hint=f"edgekit debug {model.path.name} --float FLOAT --images DIR takes it apart beside "
            "the float model that it was made of.",
        )


def _calibration(
    request: DebugRequest,
    target: TargetProfile,
    model: OnnxModel,
    contract: Preprocess,
    folder: Path,
    progress: Progress,
) -> Calibration:
    section = target.quantize
    symmetric = section is not None and section.symmetric_activations
    if request.calibration is not None:
        return calibrate.open_calibration(request.calibration, request.method, symmetric=symmetric)
    options = calibrate.CalibrateOptions(
        method=request.method,
        symmetric=symmetric,
        tensors=quantize.observed_tensors(model, target),
        channels=quantize.observed_channels(model, target),
        threads=cpu.available_cores(),
        time_inference=False,
    )
    return calibrate.run(
        model, request.images, contract, folder / "calibration.npz", options, progress
    )
