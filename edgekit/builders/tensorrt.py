"""TensorRT engines: built on the device that runs them, by the adapter that the bundle carries."""

from __future__ import annotations

from pathlib import Path

from edgekit.atomic import sha256_file, write_bytes
from edgekit.board.session import BuildOptions
from edgekit.device_errors import board_errors
from edgekit.target import TargetProfile
from edgekit.types import Engine, OnnxModel

VERSION = 1


def build(model: OnnxModel, profile: TargetProfile, out: Path) -> Engine:
    """Build `model`, a float or float32 QDQ graph, for the GPU of this machine into `out`/model.engine.

    Raises MissingDependency without TensorRT and CUDA here, BuildFailed with TensorRT's reasons.
    """
    from edgekit.board import trt

    int8 = profile.build.precision == "int8"
    options = BuildOptions(workspace_mb=profile.build.workspace_mb)
    with board_errors():
        made = trt.build_file(model.path, options, int8=int8, say=lambda line: None)
    path = out / "model.engine"
    write_bytes(path, made.engine)
    return Engine(
        runtime="tensorrt",
        files=(path,),
        precision=profile.build.precision,
        sha256=sha256_file(path),
        notes=(f"built in {made.seconds:.0f} s: {', '.join(made.flags)}",),
    )
