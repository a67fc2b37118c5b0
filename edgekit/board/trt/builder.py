"""ONNX → engine: one function for every TensorRT from 8.5 to 11."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

from edgekit.board.errors import BuildFailed, NotPossible
from edgekit.board.session import BuildOptions, Progress
from edgekit.board.trt import calibrators, logger
from edgekit.board.trt.cuda import Cuda
from edgekit.board.trt.features import assign, network_flags, optional
from edgekit.board.trt.plan import Plan


@dataclass(frozen=True)
class Built:
    """What a build gave: the serialized engine, TensorRT's layer report (JSON text), the timing cache,
    the flags that were set, seconds, TensorRT's warnings, and the cache its own calibration wrote."""

    engine: bytes
    layers: str
    timing_cache: bytes
    flags: list[str]
    seconds: float
    warnings: list[str] = field(default_factory=list)
    written_cache: bytes | None = None


def build_engine(
    trt: Any,
    plan: Plan,
    onnx: Path,
    options: BuildOptions,
    progress: Progress,
    *,
    cache: bytes | None = None,
    batches: Sequence[Path] = (),
    cuda: Cuda | None = None,
    timing_cache: bytes = b"",
) -> Built:
    """Build the engine that `plan` describes from the file `onnx`.

    `cache` and `batches` are for a calibrator; `timing_cache` is what an earlier build gave, of this
    device and version. Raises BuildFailed with TensorRT's own errors, NotPossible for what this
    TensorRT or device lacks, and what failed inside of a calibrator.
    """
    started = time.monotonic()
    log = logger.make(trt)
    trt.init_libnvinfer_plugins(log, "")
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt, plan.strongly_typed))
    _parse(trt, network, onnx, log)
    config = builder.create_builder_config()
    flags = _configure(trt, builder, config, plan, options)
    profile = _profile(builder, network, config, options)
    calibrator = None
    if plan.algorithm is not None:
        calibrator = calibrators.make(trt, plan.algorithm, cache, batches, cuda)
        if not assign(config, "int8_calibrator", calibrator):
            raise NotPossible(
                f"TensorRT {trt.__version__} takes no calibrator.", "Use --method qdq."
            )
        if profile is not None:
            set_profile = optional(config, "set_calibration_profile")
            if set_profile is not None:
                set_profile(profile)
    timing = config.create_timing_cache(timing_cache)
    config.set_timing_cache(timing, False)
    monitor = _monitor(trt, progress)
    if monitor is not None:
        assign(config, "progress_monitor", monitor)
    try:
        plan_memory = builder.build_serialized_network(network, config)
    finally:
        if calibrator is not None:
            calibrator.release()
    # what went wrong inside of a calibrator comes first: TensorRT only says that calibration failed
    calibrators.demand_no_failure(calibrator)
    if plan_memory is None:
        raise BuildFailed(
            f"TensorRT {trt.__version__} cannot build {onnx.name} ({plan.method}): {logger.said(log)}",
            "--workspace-mb gives the builder more memory; --method names another way to build.",
        )
    engine = bytes(memoryview(plan_memory))
    after = config.get_timing_cache()
    timing_after = b"" if after is None else bytes(memoryview(after.serialize()))
    return Built(
        engine=engine,
        layers=layer_report(trt, engine, log),
        timing_cache=timing_after,
        flags=flags,
        seconds=time.monotonic() - started,
        warnings=list(log.warnings),
        written_cache=None if calibrator is None else calibrator.written,
    )


def _parse(trt: Any, network: Any, onnx: Path, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(onnx)):
        return
    problems = []
    for index in range(parser.num_errors):
        parser_error = parser.get_error(index)
        name = optional(parser_error, "node_name")
        where = name() if name is not None else ""
        where = where or f"node {parser_error.node()}"
        problems.append(f"{where}: {parser_error.desc()}")
    detail = "; ".join(problems[:3]) or logger.said(log)
    raise BuildFailed(
        f"TensorRT {trt.__version__} does not parse {onnx.name}: {detail}",
        "Export the bundle again for this target; another --method builds from another graph.",
    )


def _configure(trt: Any, builder: Any, config: Any, plan: Plan, options: BuildOptions) -> list[str]:
    """Flags, workspace, DLA; returns the names of what was set."""
    names = []
    for name in plan.flags:
        flag = optional(trt.BuilderFlag, name)
        if flag is None:
            raise NotPossible(f"TensorRT {trt.__version__} has no builder flag {name}.")
        config.set_flag(flag)
        names.append(name)
    if plan.strongly_typed:
        names.append("STRONGLY_TYPED")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mb is not None:
        _set_workspace(trt, config, options.workspace_mb << 20)
    if options.dla is not None:
        _use_dla(trt, builder, config, options.dla)
        names += ["DLA", "GPU_FALLBACK"]
    if options.version_compatible:
        flag = optional(trt.BuilderFlag, "VERSION_COMPATIBLE")
        if flag is None:
            raise NotPossible(f"TensorRT {trt.__version__} has no version compatible engines.")
        config.set_flag(flag)
        names.append("VERSION_COMPATIBLE")
    if options.hardware_compatible:
        levels = optional(trt, "HardwareCompatibilityLevel")
        level = None if levels is None else optional(levels, "AMPERE_PLUS")
        if level is None or not assign(config, "hardware_compatibility_level", level):
            raise NotPossible(f"TensorRT {trt.__version__} has no hardware compatible engines.")
        names.append("AMPERE_PLUS")
    return names


def _set_workspace(trt: Any, config: Any, size: int) -> None:
    limit = optional(config, "set_memory_pool_limit")
    if limit is not None:
        limit(trt.MemoryPoolType.WORKSPACE, size)
    elif not assign(config, "max_workspace_size", size):
        raise NotPossible(f"TensorRT {trt.__version__} takes no limit for its workspace.")


def _use_dla(trt: Any, builder: Any, config: Any, core: int) -> None:
    cores = int(builder.num_DLA_cores)
    if core >= cores:
        raise NotPossible(
            f"DLA core {core} was asked for; this device has {cores}.",
            "Leave --dla out to build for the GPU.",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    # what DLA does not know runs on the GPU
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _profile(builder: Any, network: Any, config: Any, options: BuildOptions) -> Any:
    """An optimization profile where an input has a free batch; None where all shapes are fixed."""
    free = []
    for index in range(network.num_inputs):
        input_tensor = network.get_input(index)
        shape = [int(size) for size in input_tensor.shape]
        if any(size < 0 for size in shape):
            free.append((input_tensor.name, shape))
    if not free:
        return None
    profile = builder.create_optimization_profile()
    for name, shape in free:
        if any(size < 0 for size in shape[1:]):
            raise NotPossible(
                f"The input '{name}' has free dimensions beside the batch: {shape}.",
                "Export for a fixed size: --imgsz.",
            )
        one, most = [1, *shape[1:]], [options.max_batch, *shape[1:]]
        profile.set_shape(name, one, one, most)
    config.add_optimization_profile(profile)
    return profile


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's progress as lines, where this version tells it."""
    base = optional(trt, "IProgressMonitor")
    if base is None:
        return None

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: Any, num_steps: int) -> None:
            if parent_phase is None:
                progress(f"{phase_name} ({num_steps} steps)")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def layer_report(trt: Any, engine_bytes: bytes, log: Any) -> str:
    """What the inspector says of every layer, JSON text. BuildFailed when the engine does not load."""
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(engine_bytes)
    if engine is None:
        raise BuildFailed(
            f"The engine that was just built does not load: {logger.said(log)}",
            "Is there enough memory beside it? `tegrastats` shows it.",
        )
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
