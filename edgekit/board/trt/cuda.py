"""CUDA's memory, streams, events and graphs through whichever door is there.

Three routes, tried in this order, or chosen by EDGEKIT_CUDA:

    ctypes         libcudart, found in CUDA's and pip's folders; needs no Python package
    cuda-python    cuda.bindings.runtime (or cuda.cudart of older versions)
    pycuda         pycuda.driver, on the device's primary context; never pycuda.autoinit

TensorRT works in the primary context of the runtime API; every route uses that one and gives it back.
Addresses are plain integers. Host memory for copies is pinned.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Sequence

from edgekit.board.errors import BuildFailed, MissingDependency, UsageError
from edgekit.board.tensor import Buffer

ENVIRONMENT = "EDGEKIT_CUDA"
LIBRARY = "EDGEKIT_CUDART"
"""Names libcudart's file, where several lie about or it is in an odd place."""

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, …Minor
# cudaDeviceProp begins with char name[256]; its length differs by version and stays below this
_PROPERTIES_BYTES = 16384


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


def _hint(code: int) -> str:
    """What to do about the errors that a user can do something about (cudaError)."""
    if code in (35, 100, 999):
        return (
            "The NVIDIA driver is missing, not loaded, or older than this CUDA: nvidia-smi tells."
        )
    if code == 2:
        return "Close what else uses the GPU's memory, or build with --workspace-mb."
    return ""


def _version(number: int) -> str:
    """12040 → "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"


class CtypesCuda(Cuda):
    """libcudart by ctypes: pointers, handles and sizes have explicit types, every code is looked at."""

    route = "ctypes"

    def __init__(self, library: str | None = None, device: int = 0) -> None:
        self._library = _load_cudart(library)
        self._device = device
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        if count.value <= device:
            raise BuildFailed(
                "CUDA sees no device.", "Is the driver loaded? nvidia-smi, tegrastats"
            )
        self._call("cudaSetDevice", ctypes.c_int(device))

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        code = function(*arguments)
        if code != 0:
            describe = self._library.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            text = describe(ctypes.c_int(code)) or b"unknown error"
            raise BuildFailed(
                f"CUDA: {name}: {text.decode(errors='replace')} (code {code}).", _hint(code)
            )

    def facts(self) -> dict[str, Any]:
        major, minor, runtime, driver = (ctypes.c_int() for _ in range(4))
        device = ctypes.c_int(self._device)
        self._call("cudaDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(_MAJOR), device)
        self._call("cudaDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(_MINOR), device)
        self._call("cudaRuntimeGetVersion", ctypes.byref(runtime))
        self._call("cudaDriverGetVersion", ctypes.byref(driver))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", properties, device)
        return {
            "gpu": properties.raw[:256].split(b"\0", 1)[0].decode(errors="replace"),
            "compute_capability": f"{major.value}.{minor.value}",
            "cuda_runtime": _version(runtime.value),
            "cuda_driver": _version(driver.value),
            "memory_mb": total.value // (1 << 20),
            "route": self.route,
        }

    def malloc(self, size: int) -> int:
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(pointer))

    def host_memory(self, size: int) -> HostMemory:
        pointer = ctypes.c_void_p()
        flags = ctypes.c_uint(0)
        self._call("cudaHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)), flags)
        return HostMemory(int(pointer.value or 0), size)

    def free_host(self, memory: HostMemory) -> None:
        self._call("cudaFreeHost", ctypes.c_void_p(memory.address))

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            ctypes.c_void_p(stream),
        )

    def to_device(self, pointer: int, memory: HostMemory, stream: int) -> None:
        self._copy(pointer, memory.address, memory.size, HOST_TO_DEVICE, stream)

    def to_host(self, memory: HostMemory, pointer: int, stream: int) -> None:
        self._copy(memory.address, pointer, memory.size, DEVICE_TO_HOST, stream)

    def stream(self) -> int:
        handle = ctypes.c_void_p()
        flags = ctypes.c_uint(_NON_BLOCKING)
        self._call("cudaStreamCreateWithFlags", ctypes.byref(handle), flags)
        return int(handle.value or 0)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def free_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def event(self) -> Any:
        handle = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(handle))
        return handle

    def record(self, event: Any, stream: int) -> None:
        self._call("cudaEventRecord", event, ctypes.c_void_p(stream))

    def elapsed_ms(self, start: Any, end: Any) -> float:
        self._call("cudaEventSynchronize", end)
        milliseconds = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return float(milliseconds.value)

    def free_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        mode = ctypes.c_int(_CAPTURE_THREAD_LOCAL)
        self._call("cudaStreamBeginCapture", ctypes.c_void_p(stream), mode)

    def end_capture(self, stream: int) -> Any:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            # cudaGraphInstantiate itself has another signature in CUDA 11 than later
            self._call(
                "cudaGraphInstantiateWithFlags",
                ctypes.byref(executable),
                graph,
                ctypes.c_ulonglong(0),
            )
        finally:
            self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, ctypes.c_void_p(stream))

    def free_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)


def cudart_places() -> list[str]:
    """Where libcudart may lie, the loader's own search first, CUDA's folder, then pip's wheels."""
    import sys
    from ctypes.util import find_library

    found = find_library("cudart")
    places = [found] if found else []
    places += [f"libcudart.so{suffix}" for suffix in ("", ".13", ".12", ".11.0", ".10.2")]
    folders = [Path("/usr/local/cuda/lib64"), *sorted(Path("/usr/local").glob("cuda-*/lib64"))]
    for entry in sys.path:
        root = Path(entry) / "nvidia"
        folders += [root / "cuda_runtime" / "lib", *sorted(root.glob("cu1?/lib"))]
    for folder in folders:
        places += [str(path) for path in sorted(folder.glob("libcudart.so*"), reverse=True)]
    return places


def _load_cudart(library: str | None) -> Any:
    reasons = []
    library = library or os.environ.get(LIBRARY)
    for place in [library] if library else cudart_places():
        try:
            return ctypes.CDLL(place)
        except OSError as error:
            reasons.append(str(error))
    raise MissingDependency(
        f"libcudart cannot be loaded: {reasons[0] if reasons else 'it was not found'}.",
        "It belongs to CUDA: apt-get install cuda-cudart-12-6, or pip install nvidia-cuda-runtime-cu12.",
    )


class PythonCuda(Cuda):
    """NVIDIA's cuda-python: each function returns a tuple, the error code first."""

    route = "cuda-python"

    def __init__(self, device: int = 0, runtime: Any = None) -> None:
        self._runtime = runtime if runtime is not None else _cuda_python()
        self._device = device
        if self._call("cudaGetDeviceCount") <= device:
            raise BuildFailed(
                "CUDA sees no device.", "Is the driver loaded? nvidia-smi, tegrastats"
            )
        self._call("cudaSetDevice", device)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._runtime, name)(*arguments)
        if int(code) != 0:
            answer = self._runtime.cudaGetErrorString(code)
            text = answer[1] if isinstance(answer, tuple) else answer
            text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            raise BuildFailed(f"CUDA: {name}: {text} (code {int(code)}).", _hint(int(code)))
        return values[0] if len(values) == 1 else tuple(values)

    def facts(self) -> dict[str, Any]:
        properties = self._call("cudaGetDeviceProperties", self._device)
        name = properties.name
        _, total = self._call("cudaMemGetInfo")
        return {
            "gpu": name.decode(errors="replace") if isinstance(name, bytes) else str(name),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda_runtime": _version(int(self._call("cudaRuntimeGetVersion"))),
            "cuda_driver": _version(int(self._call("cudaDriverGetVersion"))),
            "memory_mb": int(total) // (1 << 20),
            "route": self.route,
        }

    def malloc(self, size: int) -> int:
        return int(self._call("cudaMalloc", max(size, 1)))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def host_memory(self, size: int) -> HostMemory:
        return HostMemory(int(self._call("cudaHostAlloc", max(size, 1), 0)), size)

    def free_host(self, memory: HostMemory) -> None:
        self._call("cudaFreeHost", memory.address)

    def _kind(self, name: str) -> Any:
        return getattr(self._runtime.cudaMemcpyKind, name)

    def to_device(self, pointer: int, memory: HostMemory, stream: int) -> None:
        kind = self._kind("cudaMemcpyHostToDevice")
        self._call("cudaMemcpyAsync", pointer, memory.address, memory.size, kind, stream)

    def to_host(self, memory: HostMemory, pointer: int, stream: int) -> None:
        kind = self._kind("cudaMemcpyDeviceToHost")
        self._call("cudaMemcpyAsync", memory.address, pointer, memory.size, kind, stream)

    def stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def free_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def event(self) -> Any:
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        self._call("cudaEventSynchronize", end)
        return float(self._call("cudaEventElapsedTime", start, end))

    def free_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)


def _cuda_python() -> Any:
    try:
        from cuda.bindings import runtime

        return runtime
    except ImportError:
        pass
    try:
        from cuda import cudart

        return cudart
    except ImportError as error:
        raise MissingDependency(
            f"cuda-python does not load: {error}.", "python3 -m pip install cuda-python"
        ) from error


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
            "cuda_driver": _version(int(self._driver.get_driver_version())),
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
            "CUDA graphs are not captured through pycuda.", f"Set {ENVIRONMENT}=ctypes."
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


ROUTES = {"ctypes": CtypesCuda, "cuda-python": PythonCuda, "pycuda": PyCuda}


def open_cuda(device: int = 0, routes: Sequence[str] = ()) -> Cuda:
    """CUDA through the first route that loads. Raises MissingDependency when none does, BuildFailed
    when there is no device, UsageError for an unknown name in EDGEKIT_CUDA."""
    asked = os.environ.get(ENVIRONMENT)
    names = [asked] if asked else list(routes or ROUTES)
    reasons = []
    for name in names:
        if name not in ROUTES:
            raise UsageError(f"{ENVIRONMENT}={name}", f"Known: {', '.join(ROUTES)}.")
        try:
            opened: Cuda = ROUTES[name](device=device)
            return opened
        except MissingDependency as error:
            reasons.append(f"{name}: {error.message.rstrip('.')}")
    raise MissingDependency(
        f"There is no way to CUDA's memory ({'; '.join(reasons)}).",
        "Install CUDA's runtime (libcudart), cuda-python or pycuda.",
    )
