"""What a bundle carries for the board beside its model: the device program, and the native runner."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.atomic import sha256_file
from edgekit.board.program import PROGRAM, WHAT, program_bytes
from edgekit.contents import ExtraFile
from edgekit.errors import EdgekitError
from edgekit.pipeline.request import ExportRequest
from edgekit.types import Progress

_ARM = ("aarch64", "armhf")


@dataclass(frozen=True, kw_only=True)
class DeviceFiles:
    """What goes along: `runner` is the native program for `arch`, None where there is none."""

    program: bytes
    runner: Path | None = None
    arch: str = ""

    @property
    def key(self) -> str:
        """Hash of all that is carried."""
        digest = hashlib.sha256(self.program)
        if self.runner is not None:
            digest.update(f"{self.arch} {sha256_file(self.runner)}".encode())
        return digest.hexdigest()

    def write(self, folder: Path) -> tuple[ExtraFile, ...]:
        """Write the device program into `folder`, and say where each file goes in the bundle."""
        program = folder / PROGRAM
        program.write_bytes(self.program)
        files = [ExtraFile(path=PROGRAM, source=program, what=WHAT)]
        if self.runner is not None:
            files.append(
                ExtraFile(
                    path=f"runner/{self.arch}/{self.runner.name}",
                    source=self.runner,
                    what=f"the native ncnn runner for {self.arch}, needs nothing but the kernel",
                )
            )
        return tuple(files)


def device_files(
    request: ExportRequest, note: Callable[[str], None], progress: Progress
) -> DeviceFiles:
    """What the bundle of `request` carries.

    The native runner comes along with ncnn models: where `request.runner` asks for it, it is built (which
    may take minutes, once); by default one that was built before is packed for ARM boards, and a note
    says how to get it where there is none. Raises what building it raises.
    """
    program = program_bytes()
    target = request.target
    if target.runtime.name != "ncnn":
        return DeviceFiles(program=program)
    arch = target.device.arch
    if request.runner is False or (request.runner is None and arch not in _ARM):
        return DeviceFiles(program=program)
    from edgekit.stages import runner_build

    if request.runner:
        return DeviceFiles(
            program=program, runner=runner_build.build(arch, progress=progress), arch=arch
        )
    try:
        found = runner_build.ready(arch)
    except EdgekitError as error:
        note(f"The bundle carries no native runner: {error.message}")
        return DeviceFiles(program=program)
    if found is None:
        note(
            "The bundle carries no native runner: the board needs ncnn's Python package. "
            "`edgekit export --runner` builds and packs one."
        )
    return DeviceFiles(program=program, runner=found, arch=arch)
