"""Build here what a bundle has to have built on its device: TensorRT's engines, in `built/`.

The work is done by the device program's own code, so that an engine is the same wherever it was asked
for.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.board import build as on_board
from edgekit.board.errors import DeviceError
from edgekit.board.session import BuildOptions
from edgekit.device_errors import board_errors
from edgekit.errors import BuildFailed
from edgekit.manifest import read_manifest
from edgekit.stages.device import kind_of
from edgekit.types import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How engines are built; see `edgekit-device.pyz build` in docs/device.md."""

    method: str = "auto"
    fp16: bool = True
    workspace_mb: int | None = None
    dla: int | None = None
    force: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    max_batch: int = 1

    def words(self) -> list[str]:
        """The same as options of the device program."""
        words = [f"--method={self.method}"]
        words += [] if self.fp16 else ["--no-fp16"]
        words += [f"--workspace-mb={self.workspace_mb}"] if self.workspace_mb is not None else []
        words += [f"--dla={self.dla}"] if self.dla is not None else []
        words += ["--version-compatible"] if self.version_compatible else []
        words += ["--hardware-compatible"] if self.hardware_compatible else []
        words += [f"--max-batch={self.max_batch}"] if self.max_batch != 1 else []
        return words + (["--force"] if self.force else [])

    def on_board(self) -> BuildOptions:
        """The same as the device program's own value."""
        return BuildOptions(**dataclasses.asdict(self))


def build_here(
    bundle: Path, options: EngineOptions, progress: Progress = no_progress
) -> dict[str, Any]:
    """The answer of the device program's `build`, made on this machine; files go to built/.

    Raises BadInput for a folder that is no bundle, MissingDependency without the runtime, BuildFailed
    and VerificationFailed as the device program does.
    """
    read_manifest(bundle)
    try:
        return on_board.build(bundle, options.on_board(), lambda line: progress(0, 0, line), True)
    except DeviceError as error:
        raise kind_of(error.exit_code, BuildFailed)(error.message, hint=error.hint) from error


def trtexec_lines(bundle: Path, options: EngineOptions) -> dict[str, list[str]]:
    """trtexec's arguments for the same build, by the TensorRT at hand, or without one for each kind.

    Raises NotPossible where no TensorRT has the way asked for, BadInput for a bundle of another runtime.
    """
    from edgekit.board import trt
    from edgekit.board.manifest import read_manifest as read_on_board

    with board_errors():
        return trt.trtexec_commands(read_on_board(bundle), options.on_board())
