"""The stages in order: checkpoint → export → simplify → prepare → calibrate → quantize → build →
evaluate → measure → bundle.

Each stage is answered from the stage cache when its content was seen before.
"""

from __future__ import annotations

from collections.abc import Callable

from edgekit import cpu
from edgekit.cache import StageCache
from edgekit.errors import EdgekitError, NotPossible, UsageError
from edgekit.filehash import FileHashes
from edgekit.pipeline.device_files import device_files
from edgekit.pipeline.packing import Made, is_there, pack
from edgekit.pipeline.request import ExportRequest, ExportResult
from edgekit.pipeline.routes import steps_for
from edgekit.pipeline.runner import StageRunner
from edgekit.pipeline.steps import demand_images
from edgekit.pipeline.verdict import budget_missed, decide
from edgekit.types import Progress, StageReport, no_progress

__all__ = ["ExportRequest", "ExportResult", "export"]


def export(
    request: ExportRequest,
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda message: None,
) -> tuple[ExportResult, EdgekitError | None]:
    """Take a checkpoint to a verified bundle for the target.

    Returns the result and, when a budget was missed, the error to raise after showing it: then no
    bundle is written and an earlier one at `request.out` stays as it was. Everything else that goes
    wrong is raised as the EdgekitError that fits.
    """
    profile = request.target
    _demand_possible(request)
    with StageCache(note=note) as cache, FileHashes(cache.folder / "hashes.json") as hashes:
        runner = StageRunner(cache, progress, note, fresh=request.fresh)
        steps = steps_for(request, runner, hashes)
        exported = steps.export()
        if profile.is_int8 and not exported.value.holds_qdq:
            demand_images(request)
        if exported.value.warning:
            note(f"Warning: {exported.value.warning}")
        simplified = steps.simplify(exported)
        prepared = steps.prepare(exported, simplified)
        plain = steps.float_model(exported, prepared)
        calibration = quantized = None
        if profile.is_int8:
            calibration = steps.calibrate(exported, prepared)
            if calibration is not None and calibration.value.warning:
                note(f"Warning: {calibration.value.warning}")
            quantized = steps.quantize(exported, prepared, calibration)
        built = steps.build(prepared, quantized)
        evaluated_float = steps.evaluate("evaluate float", exported, plain.value.engine)
        evaluated_int8 = None
        if quantized is not None:
            evaluated_int8 = steps.evaluate("evaluate int8", exported, quantized.value.runnable)
        measured = steps.measure(exported, plain, built, quantized)
        float_accuracy = evaluated_float.value.accuracy if evaluated_float else None
        int8_accuracy = evaluated_int8.value.accuracy if evaluated_int8 else None
        verdict = decide(
            profile,
            quantized.value if quantized else None,
            measured.value,
            float_accuracy,
            int8_accuracy,
        )
        made = Made(
            exported=exported,
            simplified=simplified,
            prepared=prepared,
            plain=plain,
            calibration=calibration,
            quantized=quantized,
            built=built,
            evaluated_float=evaluated_float,
            evaluated_int8=evaluated_int8,
            measured=measured,
            verdict=verdict,
        )
        missed = budget_missed(request, verdict)
        device = device_files(request, note, progress)
        key = made.key(steps, device)
        unchanged = missed is None and is_there(request.out, key)
        if missed is None and not unchanged:
            progress(0, 0, "bundle")
            pack(steps, made, key, device)
        carries_int8 = verdict.precision == "int8"
        result = ExportResult(
            bundle=request.out,
            verdict=verdict.text,
            stages=tuple(runner.reports),
            parameters=exported.value.parameters,
            size_mb=(built if carries_int8 else plain).value.size_bytes / 1e6,
            float_latency=measured.value.float_latency,
            int8_latency=measured.value.int8_latency,
            speedup=measured.value.speedup,
            float_accuracy=float_accuracy,
            int8_accuracy=int8_accuracy,
            precision=verdict.precision,
            unchanged=unchanged,
            warnings=tuple(
                warning
                for warning in (
                    exported.value.warning,
                    calibration.value.warning if calibration else "",
                )
                if warning
            ),
        )
    return result, missed


def _demand_possible(request: ExportRequest) -> None:
    """Refuse early what can never work, before any stage has run."""
    from edgekit.builders import demand_builder

    demand_builder(request.target)
    if request.runner and request.target.runtime.name != "ncnn":
        raise UsageError(
            f"--runner is for ncnn targets; {request.target.name} runs "
            f"{request.target.runtime.name}.",
            hint="Choose arm-fp32, arm-int8, rpi5-int8 and the like, or leave --runner out.",
        )
    if request.ncnn_table is not None and not (
        request.target.is_int8 and request.target.runtime.name == "ncnn"
    ):
        raise UsageError(
            f"--ncnn-table is for INT8 targets of ncnn; {request.target.name} is none.",
            hint="Choose arm-int8, rpi4-int8, rpi5-int8 or x86-ncnn-int8.",
        )
    if request.replay is not None and (
        not request.target.is_int8 or request.target.runtime.name == "ncnn"
    ):
        raise UsageError(
            f"--replay is for INT8 targets of ONNX Runtime and TensorRT; {request.target.name} "
            "is none.",
            hint="Leave --replay out: the stage cache remembers what a search found.",
        )
    if (request.calibration_batches or request.half_io) and (
        request.target.runtime.name != "tensorrt"
    ):
        raise UsageError(
            "--calibration-batches and --half-io are for TensorRT targets; "
            f"{request.target.name} is none.",
            hint="Choose jetson-int8, cuda-int8 or another of `edgekit targets list`.",
        )
    timed = request.max_p99_ms is not None or request.max_p50_ms is not None
    if timed and request.target.build.build_on_device:
        raise NotPossible(
            f"A latency budget for {request.target.name} cannot be checked here: the engine is "
            "built on its device.",
            hint="Export without it; `edgekit bench BUNDLE --max-p99-ms` on the device checks it.",
        )
    if timed and request.target.device.arch != cpu.detect().arch:
        raise NotPossible(
            f"A latency budget for {request.target.name} cannot be checked here: it is built for "
            f"{request.target.device.arch}, this machine is {cpu.detect().arch}.",
            hint="Export without it, and measure the bundle on the board.",
        )


def parity_of(report: StageReport) -> dict[str, float] | None:
    """The parity keys of the design's machine-readable answers."""
    if report.parity is None:
        return None
    return {
        "cosine": report.parity.cosine,
        "sqnr_db": report.parity.sqnr_db,
        "max_abs_error": report.parity.max_abs_error,
        "max_rel_error": report.parity.max_rel_error,
    }
