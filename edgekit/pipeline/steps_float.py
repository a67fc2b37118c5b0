"""From the checkpoint to the float model: what the exports to every runtime have in common.

Each stage with its cache key: what it depends on, and the call that does it. Stage modules with heavy
imports are imported inside the work that needs them; keys are made of hashes, options and versions
alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import checkpoint as checkpoints
from edgekit import onnx_file
from edgekit.codec import to_record
from edgekit.filehash import FileHashes
from edgekit.pipeline.inputs import CalibrationImages
from edgekit.pipeline.records import (
    Built,
    Exported,
    onnx_engine,
)
from edgekit.pipeline.request import ExportRequest
from edgekit.pipeline.runner import Outcome, StageRunner
from edgekit.require import versions_of
from edgekit.types import StageOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.metrics.datasets import Dataset

# raised when a stage's answer for the same content changes; part of its key
VERSIONS = {
    "export": 3,
    "simplify": 2,
    "prepare": 3,
    "float_twin": 1,
    "convert": 1,
    "convert_tensorrt": 1,
    "calibrate": 4,
    "quantize": 16,
    "quantize_ncnn": 3,
    "build": 1,
    "evaluate": 2,
    "measure": 1,
}


class FloatSteps:
    """The stages up to the float model; call them in the order of the methods."""

    def __init__(self, request: ExportRequest, runner: StageRunner, hashes: FileHashes) -> None:
        self.request = request
        self.runner = runner
        self.profile = request.target
        self.hashes = hashes
        self.images = CalibrationImages.collect(request.images, hashes, runner.progress)
        self.checkpoint_sha256 = hashes.sha256(request.checkpoint)
        self._feeds: list[NDArray[Any]] | None = None

    @functools.cached_property
    def dataset(self) -> Dataset | None:
        """The labelled images, None when none were given."""
        if self.request.data is None:
            return None
        from edgekit.metrics.datasets import open_dataset

        return open_dataset(self.request.data, split=self.request.split, limit=self.request.limit)

    def feeds(self, exported: Exported) -> list[NDArray[Any]]:
        if self._feeds is None:
            self._feeds = self.images.feeds(exported.contract)
        return self._feeds

    def _fields(self, stage: str, *libraries: str, **fields: Any) -> dict[str, Any]:
        return {"version": VERSIONS[stage], "libraries": versions_of(*libraries), **fields}

    # --- checkpoint to float graph ----------------------------------------------------------

    def export(self) -> Outcome[Exported]:
        request = self.request
        fields = self._fields(
            "export",
            "torch",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "ultralytics",
            checkpoint=self.checkpoint_sha256,
            load=checkpoints.options_key(request.load),
            size=list(request.size) if request.size else None,
            overrides=to_record(dict(request.overrides)),
            head=request.head,
            opset=self.profile.build.opset,
            dynamic_batch=request.dynamic_batch,
            dequantize=request.dequantize,
            images=self.images.parity_key,
        )
        outcome = self.runner.run("export", fields, Exported, self._export)
        value = outcome.value
        self.runner.report(
            "export",
            outcome,
            size_bytes=value.model.size_bytes,
            parity=value.parity,
            notes=value.notes,
        )
        return outcome

    def _export(self, folder: Path) -> Exported:
        from edgekit.quantization import existing
        from edgekit.stages import contract, export

        request = self.request
        loaded = checkpoints.load(request.checkpoint, _with_shape(request))
        if request.head is not None:
            loaded = dataclasses.replace(loaded, head=request.head)
        resolved = contract.resolve(loaded, request.overrides, request.size)
        feeds = self.images.feeds(resolved.contract)
        options = export.ExportOptions(
            opset=self.profile.build.opset,
            dynamic_batch=request.dynamic_batch,
            dequantize=request.dequantize,
        )
        done = export.run(loaded, resolved.contract, feeds, folder / "model.onnx", options)
        notes = loaded.notes + done.notes
        head = loaded.head
        if head is None:
            # boxes and scores are compared apart, and decoded, by the layout that the shapes show
            from edgekit.metrics.heads import detect_head

            size = (resolved.contract.height, resolved.contract.width)
            head = detect_head(done.model.outputs, len(loaded.names) or None, size, loaded.task)
            if head is not None:
                notes += (f"outputs decoded as {head}, by their shapes",)
        if not self.images.paths:
            notes += ("no images were given: parity was checked on noise",)
        return Exported(
            model=done.model,
            contract=resolved.contract,
            origin=resolved.origin,
            warning=resolved.warning,
            kind=loaded.kind,
            task=loaded.task,
            head=head,
            names=loaded.names,
            parameters=loaded.parameters,
            parity=done.parity,
            notes=notes,
            holds_qdq=existing.holds_qdq(onnx_file.load(done.model.path)),
        )

    def simplify(self, exported: Outcome[Exported]) -> Outcome[StageOutput]:
        from edgekit.stages import simplify

        options = simplify.SimplifyOptions()
        fields = self._fields(
            "simplify",
            "onnx",
            "onnxruntime",
            *options.ladder,
            model=exported.value.model.sha256,
            ladder=list(options.ladder),
            images=self.images.parity_key,
        )
        return self._model_stage(
            "simplify",
            fields,
            lambda out: simplify.run(
                exported.value.model, self.feeds(exported.value), out, options
            ),
        )

    def prepare(
        self, exported: Outcome[Exported], simplified: Outcome[StageOutput]
    ) -> Outcome[StageOutput]:
        fields = self._fields(
            "prepare",
            "onnx",
            "onnx_ir",
            "onnxruntime",
            model=simplified.value.model.sha256,
            images=self.images.parity_key,
        )

        def work(out: Path) -> StageOutput:
            from edgekit.stages import prepare

            return prepare.run(simplified.value.model, self.feeds(exported.value), out)

        return self._model_stage("prepare", fields, work)

    def _model_stage(
        self, name: str, fields: dict[str, Any], work: Callable[[Path], StageOutput]
    ) -> Outcome[StageOutput]:
        outcome = self.runner.run(
            name, fields, StageOutput, lambda folder: work(folder / "model.onnx")
        )
        value = outcome.value
        self.runner.report(
            name, outcome, size_bytes=value.model.size_bytes, parity=value.parity, notes=value.notes
        )
        return outcome

    # --- the float model as the runtime loads it ----------------------------------------------

    def float_model(
        self, exported: Outcome[Exported], prepared: Outcome[StageOutput]
    ) -> Outcome[Built]:
        """What INT8 is compared with, and what is carried where INT8 does not pay.

        ONNX Runtime loads the prepared graph as it is; a graph that holds quantization of its own
        (a quantization-aware checkpoint) is compared with its float twin.
        """
        model = prepared.value.model
        if not (self.profile.is_int8 and prepared.value.holds_qdq):
            return Outcome(
                value=Built(engine=onnx_engine(model, "fp32"), size_bytes=model.size_bytes),
                key=prepared.key,
                cached=prepared.cached,
                seconds=0.0,
            )

        def work(folder: Path) -> Built:
            from edgekit.stages import prepare

            twin = prepare.float_twin(model, folder / "model.onnx")
            engine = onnx_engine(twin, "fp32")
            note = "the checkpoint's own quantization taken off"
            return Built(
                engine=dataclasses.replace(engine, notes=(note,)), size_bytes=twin.size_bytes
            )

        fields = self._fields("float_twin", "onnx", "onnx_ir", model=model.sha256)
        outcome = self.runner.run("float_twin", fields, Built, work)
        self.runner.report(
            "float twin",
            outcome,
            size_bytes=outcome.value.size_bytes,
            notes=outcome.value.engine.notes,
        )
        return outcome


def _with_shape(request: ExportRequest) -> checkpoints.LoadOptions:
    """The load options with the input shape that was asked for: a pruned network is tried with it."""
    if request.size is None or request.load.input_shape is not None:
        return request.load
    channels = 1 if request.overrides.get("color") == "gray" else 3
    return dataclasses.replace(request.load, input_shape=(1, channels, *request.size))
