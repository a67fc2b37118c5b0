"""The stages of an export to TensorRT: everything that a host can do; the engine is built on its device.

prepare → calibrate (every activation) → quantize → build: TensorRT's files (stages.convert_tensorrt),
and what TensorRT-RTX makes of them where it is installed. Accuracy and golden outputs are those of the
QDQ graph in ONNX Runtime: what the device is held against.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import BundleModel
from edgekit.errors import NotPossible
from edgekit.pipeline.choosing import with_method
from edgekit.pipeline.records import Built, Evaluated, Exported, Measured, QuantizedRecord
from edgekit.pipeline.runner import Outcome
from edgekit.pipeline.steps import Steps
from edgekit.types import Calibration, Engine, OnnxModel, StageOutput, TensorSpec

if TYPE_CHECKING:
    from edgekit.pipeline.packing import Made

# compute capability that TensorRT-RTX is asked for: Ampere, as Orin's 8.7, which it does not build
_RTX_SM = "8.6"


class TensorRtSteps(Steps):
    """The stages of one export to TensorRT."""

    # a float layer between integer ones costs more on a GPU than on a CPU: more has to stay INT8; and a
    # few float layers more cost little there, so the nearest trial is taken
    least_share, within = 0.90, 0.001

    _exported: Outcome[Exported] | None = None
    _plain: Outcome[Built] | None = None
    _calibration: Outcome[Calibration] | None = None

    def float_model(
        self, exported: Outcome[Exported], prepared: Outcome[StageOutput]
    ) -> Outcome[Built]:
        from edgekit.stages import convert_tensorrt

        self._exported = exported
        self._plain = super().float_model(exported, prepared)
        # before anything is calibrated: what TensorRT refuses is known now
        convert_tensorrt.check(self._float_graph(prepared))
        return self._plain

    def calibrate(
        self, exported: Outcome[Exported], prepared: Outcome[StageOutput]
    ) -> Outcome[Calibration] | None:
        self._calibration = super().calibrate(exported, prepared)
        return self._calibration

    def build(
        self, prepared: Outcome[StageOutput], quantized: Outcome[QuantizedRecord] | None
    ) -> Outcome[Built]:
        """TensorRT's files; `float_model` and, for INT8, `calibrate` came before."""
        if self._exported is None or self._plain is None:
            raise ValueError("build comes after float_model")
        exported, request = self._exported.value, self.request
        plain = self._float_graph(prepared)
        calibration = self._calibration.value if self._calibration and quantized else None
        record = quantized.value if quantized else None
        method = request.method
        if record is not None and record.choice is not None:
            method = record.choice.method
        fields = self._fields(
            "convert_tensorrt",
            "onnx",
            "onnx_ir",
            "onnxruntime",
            "tensorrt_rtx_bindings",
            model=plain.sha256,
            quantized=record.model.sha256 if record else None,
            statistics=calibration.sha256 if calibration else None,
            method=method,
            batches=request.calibration_batches,
            half_io=request.half_io,
            images=self.images.parity_key,
            contract=exported.contract.to_dict(),
        )

        def work(folder: Path) -> Built:
            from edgekit.stages import convert_tensorrt

            chosen = calibration
            if chosen is not None:
                chosen = with_method(chosen, method, True)
            done = convert_tensorrt.run(
                plain,
                record.model if record else None,
                chosen,
                self.feeds(exported),
                folder,
                half_io=request.half_io,
            )
            batches = self._batches(exported, folder) if record else ()
            notes = (*done.notes, *_checked_by_rtx(done.files))
            engine = Engine(
                runtime="tensorrt",
                files=(*done.files, *batches),
                precision=self.profile.build.precision,
                sha256=record.model.sha256 if record else _sha256(done.files[0]),
                notes=notes,
            )
            size = done.files[0].stat().st_size
            return Built(engine=engine, size_bytes=size, parity=done.parity)

        outcome = self.runner.run("convert_tensorrt", fields, Built, work)
        value = outcome.value
        self.runner.report(
            "build",
            outcome,
            size_bytes=value.size_bytes,
            parity=value.parity,
            notes=value.engine.notes,
        )
        return outcome

    def _float_graph(self, prepared: Outcome[StageOutput]) -> OnnxModel:
        """The float graph: the prepared one, or the float twin of one that holds QDQ of its own."""
        from edgekit import onnx_file

        assert self._plain is not None
        engine = self._plain.value.engine
        if engine.sha256 == prepared.value.model.sha256:
            return prepared.value.model
        return onnx_file.describe(engine.files[0])

    def _batches(self, exported: Exported, folder: Path) -> tuple[Path, ...]:
        """Preprocessed calibration images, for a calibrator that is to see images itself."""
        from edgekit.golden import npy_bytes
        from edgekit.preprocess import apply

        files: list[Path] = []
        if not self.request.calibration_batches:
            return ()
        for number, picture in enumerate(self.images.spread(self.request.calibration_batches)):
            tensor, _ = apply(picture, exported.contract)
            file = folder / f"calibration_batch_{number:04d}.npy"
            file.write_bytes(npy_bytes(tensor))
            files.append(file)
        return tuple(files)

    def measure(
        self,
        exported: Outcome[Exported],
        plain: Outcome[Built],
        built: Outcome[Built],
        quantized: Outcome[QuantizedRecord] | None,
    ) -> Outcome[Measured]:
        """Nothing: what is to be timed is built on the device."""
        outcome = Outcome(value=Measured(), key="measure-on-device", cached=True, seconds=0.0)
        note = "an engine is built and timed on its device: edgekit build, edgekit bench"
        self.runner.report("measure", outcome, notes=(note,))
        return outcome

    # --- the bundle ---------------------------------------------------------------------------

    def runnable(self, engine: Engine) -> Engine:
        """The first file in ONNX Runtime: what the device is held against."""
        precision = "int8" if engine.precision == "int8" else "fp32"
        return dataclasses.replace(
            engine, runtime="onnxruntime", files=engine.files[:1], precision=precision, notes=()
        )

    def stand_ins(
        self, engine: Engine, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> tuple[BundleModel, ...]:
        stands = dataclasses.replace(
            self.runnable(engine),
            notes=(
                "the graph that the engine is built from, on a CPU: for checking, not for speed",
            ),
        )
        return (BundleModel(engine=stands, inputs=inputs, outputs=outputs, folder=engine.runtime),)

    def details(self, made: Made) -> dict[str, Any]:
        """What the device program reads: files by role, and the accuracy to expect."""
        names = [file.name for file in made.built.value.engine.files]
        roles = {role: f"tensorrt/{name}" for role, name in ROLES.items() if name in names}
        evaluated = made.evaluated_int8 or made.evaluated_float
        return {
            "tensorrt": {
                "files": roles,
                "batches": [f"tensorrt/{n}" for n in names if n.startswith("calibration_batch_")],
                "half_io": self.request.half_io,
                "expected_accuracy": _expected(evaluated),
                "dynamic_batch": self.request.dynamic_batch,
                "workspace_mb": self.profile.build.workspace_mb,
            }
        }


ROLES = {
    "float": "model.onnx",
    "float_fp16": "model_fp16.onnx",
    "qdq_fp32": "model_qdq_fp32.onnx",
    "qdq_fp16": "model_qdq_fp16.onnx",
    "entropy": "calibration_entropy.cache",
    "minmax": "calibration_minmax.cache",
}
"""Role → file name in the bundle's tensorrt folder; `details.tensorrt.files` of the manifest."""


def _expected(evaluated: Outcome[Evaluated] | None) -> dict[str, Any] | None:
    """Accuracy that the device should reach: of the same graph, on a CPU."""
    if evaluated is None:
        return None
    accuracy = evaluated.value.accuracy
    return {
        "metric": accuracy.metric,
        "value": accuracy.value,
        "images": accuracy.images,
        "runtime": "onnxruntime",
    }


def _sha256(path: Path) -> str:
    from edgekit.atomic import sha256_file

    return sha256_file(path)


def _checked_by_rtx(files: tuple[Path, ...]) -> tuple[str, ...]:
    """What TensorRT-RTX makes of the graphs. NotPossible when its parser refuses one."""
    from edgekit.builders import tensorrt_rtx

    if not tensorrt_rtx.available():
        return (
            "not parsed here: pip install 'edgekit[tensorrt-rtx]' has a real parser without a GPU",
        )
    notes = []
    for file in files:
        if file.suffix != ".onnx":
            continue
        report = tensorrt_rtx.inspect(file, _RTX_SM)
        if not report.parsed:
            raise NotPossible(
                f"TensorRT-RTX {report.version} refuses {file.name}: {'; '.join(report.errors[:3])}"
            )
        layers = _layer_names(file)
        kinds: dict[str, int] = {}
        for node, datatype in report.datatypes().items():
            if node in layers:
                kinds[datatype] = kinds.get(datatype, 0) + 1
        if report.built:
            text = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            notes.append(
                f"{file.name} parsed and built by TensorRT-RTX {report.version}: layers in {text}"
            )
        else:
            notes.append(
                f"{file.name} parsed, but not built by TensorRT-RTX {report.version}: "
                + "; ".join(report.errors[:2])
            )
    return tuple(notes)


def _layer_names(path: Path) -> set[str]:
    """Names of the convolutions and matrix products of an ONNX file."""
    from edgekit import onnx_file

    graph = onnx_file.load(path, external_data=False).graph
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return {node.name for node in graph.node if node.op_type in kinds}
