"""CUDA's runtime API by ctypes: libcudart alone is needed, found in CUDA's and pip's folders.

Every pointer, handle and size is given its C type, every code is looked at.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from edgekit.board.errors import BuildFailed, MissingDependency
from edgekit.board.trt.cuda import NON_BLOCKING, Cuda, HostMemory, hint_for, version_text

LIBRARY = "EDGEKIT_CUDART"
"""Names libcudart's file, where several lie about or it is in an odd place."""

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
_CAPTURE_THREAD_LOCAL = 1
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, …Minor
# cudaDeviceProp begins with char name[256]; its length differs by version and stays below this
_PROPERTIES_BYTES = 16384


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
                f"CUDA: {name}: {text.decode(errors='replace')} (code {code}).", hint_for(code)
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
            "cuda_runtime": version_text(runtime.value),
            "cuda_driver": version_text(driver.value),
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
        flags = ctypes.c_uint(NON_BLOCKING)
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
