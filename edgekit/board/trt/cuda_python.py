"""CUDA's runtime API through NVIDIA's cuda-python."""

from __future__ import annotations

from typing import Any

from edgekit.board.errors import BuildFailed, MissingDependency
from edgekit.board.trt.cuda import NON_BLOCKING, Cuda, HostMemory, hint_for, version_text


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
            raise BuildFailed(f"CUDA: {name}: {text} (code {int(code)}).", hint_for(int(code)))
        return values[0] if len(values) == 1 else tuple(values)

    def facts(self) -> dict[str, Any]:
        properties = self._call("cudaGetDeviceProperties", self._device)
        name = properties.name
        _, total = self._call("cudaMemGetInfo")
        return {
            "gpu": name.decode(errors="replace") if isinstance(name, bytes) else str(name),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda_runtime": version_text(int(self._call("cudaRuntimeGetVersion"))),
            "cuda_driver": version_text(int(self._call("cudaDriverGetVersion"))),
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
        return int(self._call("cudaStreamCreateWithFlags", NON_BLOCKING))

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
