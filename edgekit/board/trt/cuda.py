"""CUDA's memory, streams, events and graphs: what is asked of every way to them (`cuda_routes`).

TensorRT works in the primary context of the runtime API; every route uses that one and gives it back.
Addresses are plain integers. Host memory for copies is pinned.
"""

from __future__ import annotations

import ctypes
from typing import Any

from edgekit.board.tensor import Buffer

NON_BLOCKING = 1
"""cudaStreamNonBlocking: the stream does not wait for the default one."""


class HostMemory:
    """Pinned memory of the host: its `address`, and its bytes as a memoryview."""

    def __init__(self, address: int, size: int, keep: Any = None) -> None:
        self.address, self.size, self.keep = address, size, keep
        array = (ctypes.c_uint8 * max(size, 1)).from_address(address)
        self.view = memoryview(array).cast("B")[:size]


class Cuda:
    """The calls that are needed, on one device. Every one raises BuildFailed with CUDA's own message."""

    route = ""

    def facts(self) -> dict[str, Any]:
        """`gpu` (name), `compute_capability` ("8.7"), `cuda_runtime`, `cuda_driver`, `memory_mb`, `route`."""
        raise NotImplementedError

    def malloc(self, size: int) -> int:
        raise NotImplementedError

    def free(self, pointer: int) -> None:
        raise NotImplementedError

    def host_memory(self, size: int) -> HostMemory:
        raise NotImplementedError

    def free_host(self, memory: HostMemory) -> None:
        raise NotImplementedError

    def to_device(self, pointer: int, memory: HostMemory, stream: int) -> None:
        """Copy, on `stream`; complete only once it is synchronized."""
        raise NotImplementedError

    def to_host(self, memory: HostMemory, pointer: int, stream: int) -> None:
        raise NotImplementedError

    def stream(self) -> int:
        raise NotImplementedError

    def synchronize(self, stream: int) -> None:
        raise NotImplementedError

    def free_stream(self, stream: int) -> None:
        raise NotImplementedError

    def event(self) -> Any:
        raise NotImplementedError

    def record(self, event: Any, stream: int) -> None:
        raise NotImplementedError

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds of the device between two recorded events; waits for the second."""
        raise NotImplementedError

    def free_event(self, event: Any) -> None:
        raise NotImplementedError

    def begin_capture(self, stream: int) -> None:
        raise NotImplementedError

    def end_capture(self, stream: int) -> Any:
        """An executable graph of what was put on `stream` since `begin_capture`."""
        raise NotImplementedError

    def launch(self, graph: Any, stream: int) -> None:
        raise NotImplementedError

    def free_graph(self, graph: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Give the context back."""

    def write(self, pointer: int, data: Buffer) -> None:
        """Copy `data` to the device and wait."""
        size = memoryview(data).nbytes
        memory = self.host_memory(size)
        try:
            memory.view[:] = memoryview(data).cast("B")
            stream = self.stream()
            try:
                self.to_device(pointer, memory, stream)
                self.synchronize(stream)
            finally:
                self.free_stream(stream)
        finally:
            self.free_host(memory)


def hint_for(code: int) -> str:
    """What to do about the errors that a user can do something about (cudaError)."""
    if code in (35, 100, 999):
        return (
            "The NVIDIA driver is missing, not loaded, or older than this CUDA: nvidia-smi tells."
        )
    if code == 2:
        return "Close what else uses the GPU's memory, or build with --workspace-mb."
    return ""


def version_text(number: int) -> str:
    """12040 → "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"
