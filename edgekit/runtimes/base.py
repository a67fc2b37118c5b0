"""What every runtime offers: a session that is opened, run and closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a model is opened.

    `spinning` False stops the thread pool's busy waiting: needed when two sessions of several
    threads take turns, because spinning pools slow each other down.
    `memory_pattern` False gives up laying out a run's memory in one piece beforehand: less memory
    where many intermediate tensors are outputs.
    `cuda_graph` launches an inference on the GPU as one graph (TensorRT).
    `optimize` False runs the graph as it stands (for comparing graphs, not for speed).
    """

    threads: int = 1
    spinning: bool = True
    memory_pattern: bool = True
    optimize: bool = True
    cuda_graph: bool = False
    profile_prefix: str = ""


class Session(Protocol):
    """An open model. Use it as a context manager; after `close` it must not be run."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; outputs by name, in the model's order. Raises BadInput for wrong feeds."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
