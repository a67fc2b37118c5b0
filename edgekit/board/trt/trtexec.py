"""The command line of trtexec for the same build, for those who want NVIDIA's own tool to say it."""

from __future__ import annotations

from edgekit.board.session import BuildOptions
from edgekit.board.trt.features import Features
from edgekit.board.trt.plan import Plan

PROGRAM = "trtexec"
"""On a Jetson: /usr/src/tensorrt/bin/trtexec."""


def command(plan: Plan, have: Features, options: BuildOptions, engine: str) -> list[str]:
    """Arguments, relative to the bundle's folder. TensorRT 11 has neither --int8 nor --fp16 nor --calib,
    and is strongly typed without being told."""
    arguments = [PROGRAM, f"--onnx={plan.onnx}", f"--saveEngine={engine}"]
    arguments += [f"--{flag.lower()}" for flag in plan.flags]
    if plan.cache is not None:
        arguments.append(f"--calib={plan.cache}")
    if plan.strongly_typed and have.weak_fp16:
        arguments.append("--stronglyTyped")
    if options.workspace_mb is not None:
        arguments.append(f"--memPoolSize=workspace:{options.workspace_mb}M")
    if options.dla is not None:
        arguments += [f"--useDLACore={options.dla}", "--allowGPUFallback"]
    if options.version_compatible:
        arguments.append("--versionCompatible")
    if options.hardware_compatible:
        arguments.append("--hardwareCompatibilityLevel=ampere+")
    return [*arguments, "--profilingVerbosity=detailed", "--timingCacheFile=built/trtexec.timing"]
