"""Build here what a bundle has to have built on its device: TensorRT's engines, in `built/`.

The work is done by the device program's own code, so that an engine is the same wherever it was asked
for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.board import build as on_board
from edgekit.board.errors import DeviceError
from edgekit.board.session import BuildOptions
from edgekit.errors import BuildFailed
from edgekit.manifest import read_manifest
from edgekit.stages.device import kind_of
from edgekit.types import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How engines are built; see `edgekit-device.pyz build` in docs/device.md."""

    method: str = "auto"
    fp16: bool = False
    workspace_mb: int | None = None
    dla: int | None = None
    force: bool = False

    def words(self) -> list[str]:
        """The same as options of the device program."""
        words = [f"--method={self.method}"]
        words += ["--fp16"] if self.fp16 else []
        words += [f"--workspace-mb={self.workspace_mb}"] if self.workspace_mb is not None else []
        words += [f"--dla={self.dla}"] if self.dla is not None else []
        return words + (["--force"] if self.force else [])


def build_here(
    bundle: Path, options: EngineOptions, progress: Progress = no_progress
) -> dict[str, Any]:
    """The answer of the device program's `build`, made on this machine; files go to built/.

    Raises BadInput for a folder that is no bundle, MissingDependency without the runtime, BuildFailed
    and VerificationFailed as the device program does.
    """
    read_manifest(bundle)
    asked = BuildOptions(
        method=options.method,
        fp16=options.fp16,
        workspace_mb=options.workspace_mb,
        dla=options.dla,
        force=options.force,
    )
    try:
        return on_board.build(bundle, asked, lambda line: progress(0, 0, line), True)
    except DeviceError as error:
        raise kind_of(error.exit_code, BuildFailed)(error.message, hint=error.hint) from error
