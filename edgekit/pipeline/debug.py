"""Where an INT8 model loses accuracy: a float model, or a bundle's, quantized again and taken apart."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import cpu, onnx_file
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
    this very graph. `method` chooses the ranges.
    """

    model: Path
    target: TargetProfile
    images: Path
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
    quantize.rules_of(request.target)  # a float target is refused before the work
    if request.model.is_dir() or request.model.suffix.lower() != ".onnx":
        raise UsageError(
            f"{request.model} is not an ONNX file.",
            hint="Name the float ONNX model; of a checkpoint, `edgekit export CHECKPOINT --target "
            "x86-fp32` makes one.",
        )
    paths = reader.list_images(request.images)
    subject = open_for_parity(request.model, request.images, request.overrides)
    _refuse_quantized(subject.model)
    feeds: dict[str, Any] = {}
    bad: list[str] = []
    for path, image in reader.read_all(paths, bad):
        feeds[path.name] = apply(image, subject.contract)[0]
        if len(feeds) == MOST_IMAGES:
            break
    if not feeds:
        raise BadInput(f"None of the images of {request.images} can be read: {bad[0]}")
    with tempfile.TemporaryDirectory(prefix="edgekit-debug-") as folder:
        model = subject.model
        if request.calibration is None:
            # BatchNorms folded, constants lifted: what is quantized in an export
            model = prepare.run(model, subject.feeds, Path(folder) / "prepared.onnx").model
        calibration = _calibration(request, model, subject.contract, Path(folder), progress)
        report = debug.run(model, calibration, request.target, feeds, request.options, progress)
    return DebugAnswer(report=report, images=len(feeds), warning=subject.warning)


def _refuse_quantized(model: OnnxModel) -> None:
    graph = onnx_file.load(model.path, external_data=False).graph
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        raise BadInput(
            f"{model.path.name} is quantized already.",
            hint="Name the float model that it was made of; `edgekit profile INT8 --float FLOAT` "
            "shows what an INT8 file loses at each layer.",
        )


def _calibration(
    request: DebugRequest, model: OnnxModel, contract: Preprocess, folder: Path, progress: Progress
) -> Calibration:
    section = request.target.quantize
    symmetric = section is not None and section.symmetric_activations
    if request.calibration is not None:
        return calibrate.open_calibration(request.calibration, request.method, symmetric=symmetric)
    options = calibrate.CalibrateOptions(
        method=request.method,
        symmetric=symmetric,
        tensors=quantize.observed_tensors(model, request.target),
        channels=quantize.observed_channels(model, request.target),
        threads=cpu.available_cores(),
        time_inference=False,
    )
    return calibrate.run(
        model, request.images, contract, folder / "calibration.npz", options, progress
    )
