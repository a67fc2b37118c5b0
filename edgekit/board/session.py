"""What drives a runtime on the board: the interface that each driver fulfils.

A driver is a module with

    NAME: str                                             the runtime's name in the manifest
    available() -> Availability                           is it here? says why not; raises nothing
    open_session(folder, manifest, options) -> Session    raises DeviceError

and, where a model must be built on the device,

    build(folder, manifest, options, progress) -> dict    writes into FOLDER/built/

`folder` is the bundle's folder as a Path and `manifest` its edgekit.board.manifest.Manifest. A driver
imports its runtime inside functions: that `available` can be asked without it is the point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Mapping, Protocol

from edgekit.board.tensor import Tensor

Spec = Dict[str, Any]
"""An input or output: {"name": str, "shape": [int, …], "dtype": "float32"}."""

Progress = Callable[[str], None]
"""Takes one line for people; goes to stderr."""


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used here; `why` says why not, `facts` what else is known of it."""

    ok: bool
    version: str | None = None
    why: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionOptions:
    """How to open a model. `spinning` False: idle threads sleep, as two models in turns need it.

    `cuda_graph`: launch an inference on the GPU as one graph. `arch` and `emulator` are for the packed
    native runner alone: the architecture to take instead of the machine's, and a program (with its
    arguments) to start it with.
    """

    threads: int = 1
    spinning: bool = True
    arch: str | None = None
    emulator: list[str] | None = None
    cuda_graph: bool = False


@dataclass(frozen=True)
class BuildOptions:
    """How to build. `method` "auto", "qdq", "entropy", "minmax", "float"; None leaves a choice to the driver.

    `fp16`: what is not INT8 may be float16. `version_compatible`, `hardware_compatible`: the engine
    also loads in later versions, or on other GPUs, where TensorRT can do that. `max_batch` is for
    models with a free batch.
    """

    method: str = "auto"
    fp16: bool = True
    workspace_mb: int | None = None
    dla: int | None = None
    force: bool = False
    show_trtexec: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    max_batch: int = 1


class Session(Protocol):
    """A model open in its runtime. `facts` goes into the answers: version, device, flags."""

    inputs: list[Spec]
    outputs: list[Spec]
    facts: dict[str, Any]

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, from tensors by input name to tensors by output name. Raises DeviceError."""
        ...

    def prepare(self, feeds: Mapping[str, Tensor]) -> None:
        """Convert `feeds` to what the runtime takes, once, for the `step`s that follow."""
        ...

    def step(self) -> None:
        """One inference, from input arrays in memory to output arrays in memory, complete on return.

        Nothing else: no conversion, no allocation that the runtime itself does not make.
        """
        ...

    def close(self) -> None:
        """Give everything back; further calls do nothing."""
        ...
