"""CUDA's driver API through pycuda."""

from __future__ import annotations

from typing import Any

from edgekit.board.errors import BuildFailed, MissingDependency
from edgekit.board.trt.cuda import Cuda, HostMemory, version_text


class PyCuda(Cuda):
    """pycuda's driver API on the device's primary context, pushed here and popped on close."""

    route = "pycuda"

    def __init__(self, device: int = 0, driver: Any = None) -> None:
        self._driver = driver if driver is not None else _pycuda()
        self._driver.init()
        if self._driver.Device.count() <= device:
            raise BuildFailed(
                "CUDA sees no device.", "Is the driver loaded? nvidia-smi, tegrastats"
            )
        self._device = self._driver.Device(device)
        self._context = self._device.retain_primary_context()
        self._context.push()
        self._streams: dict[int, Any] = {}
        self._allocations: dict[int, Any] = {}

    def facts(self) -> dict[str, Any]:
        major, minor = self._device.compute_capability()
        _, total = self._driver.mem_get_info()
        runtime = ".".join(str(part) for part in self._driver.get_version()[:2])
        return {
            "gpu": str(self._device.name()),
            "compute_capability": f"{major}.{minor}",
            "cuda_runtime": runtime,
            "cuda_driver": version_text(int(self._driver.get_driver_version())),
            "memory_mb": int(total) // (1 << 20),
            "route": self.route,
        }

    def malloc(self, size: int) -> int:
        allocation = self._driver.mem_alloc(max(size, 1))
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, pointer: int) -> None:
        self._allocations.pop(pointer).free()

    def host_memory(self, size: int) -> HostMemory:
        import numpy  # pycuda needs it itself

        array = self._driver.pagelocked_empty(max(size, 1), numpy.uint8)
        return HostMemory(int(array.ctypes.data), size, keep=array)

    def free_host(self, memory: HostMemory) -> None:
        memory.view.release()
        memory.keep = None

    def to_device(self, pointer: int, memory: HostMemory, stream: int) -> None:
        source = memory.keep[: memory.size]
        self._driver.memcpy_htod_async(pointer, source, self._streams[stream])

    def to_host(self, memory: HostMemory, pointer: int, stream: int) -> None:
        target = memory.keep[: memory.size]
        self._driver.memcpy_dtoh_async(target, pointer, self._streams[stream])

    def stream(self) -> int:
        stream = self._driver.Stream()
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def synchronize(self, stream: int) -> None:
        self._streams[stream].synchronize()

    def free_stream(self, stream: int) -> None:
        self._streams.pop(stream)

    def event(self) -> Any:
        return self._driver.Event()

    def record(self, event: Any, stream: int) -> None:
        event.record(self._streams[stream])

    def elapsed_ms(self, start: Any, end: Any) -> float:
        end.synchronize()
        return float(end.time_since(start))

    def free_event(self, event: Any) -> None:
        """pycuda frees it with the object."""

    def begin_capture(self, stream: int) -> None:
        raise MissingDependency(
            "CUDA graphs are not captured through pycuda.", "Set EDGEKIT_CUDA=ctypes."
        )

    def close(self) -> None:
        self._allocations.clear()
        self._streams.clear()
        if self._context is not None:
            self._context.pop()
            self._context = None


def _pycuda() -> Any:
    try:
        import pycuda.driver

        return pycuda.driver
    except ImportError as error:
        raise MissingDependency(f"pycuda does not load: {error}.") from error
