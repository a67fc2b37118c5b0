"""The ways to CUDA's memory: real libcudart and real cuda-python as far as they go without a driver, and
FAKES of all three for what comes behind that.
"""

from __future__ import annotations

import ast
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.board.errors import BuildFailed, MissingDependency, UsageError
from edgekit.board.trt import cuda_routes
from edgekit.board.trt.cuda import Cuda
from edgekit.board.trt.cuda_ctypes import CtypesCuda, cudart_places
from edgekit.board.trt.cuda_pycuda import PyCuda
from edgekit.board.trt.cuda_python import PythonCuda
from tests.native.tensorrt_bindings import CUDA, cache_folder
from tests.native.tensorrt_names import FOLDER

ROOT = Path(__file__).resolve().parents[2]
NO_DRIVER = (35, 100, 999)


def _names(file: str) -> set[str]:
    """Every string and attribute of a module that begins with cuda and a capital: CUDA's functions."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / file).read_text(encoding="utf-8"))):
        text = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        elif isinstance(node, ast.Attribute):
            text = node.attr
        if text.startswith("cuda") and text[4:5].isupper() and text.isidentifier():
            found.add(text)
    return found


def _place(version: str) -> Path:
    place = cache_folder() / version
    if not place.is_dir():
        pytest.skip(f"{version} is not fetched: make setup")
    return place


def _library(version: str) -> Path:
    (library,) = _place(version).glob("nvidia/*/lib/libcudart.so.*")
    return library


@pytest.mark.parametrize("version", list(CUDA))
def test_every_function_is_in_the_real_library(version: str) -> None:
    names = _names("cuda_ctypes.py")
    assert {"cudaMalloc", "cudaGraphInstantiateWithFlags", "cudaHostAlloc"} <= names
    library = ctypes.CDLL(str(_library(version)))
    assert [name for name in sorted(names) if not hasattr(library, name)] == []


@pytest.mark.parametrize("version", list(CUDA))
def test_the_real_library_says_that_there_is_no_driver(version: str) -> None:
    try:
        cuda = CtypesCuda(library=str(_library(version)))
    except BuildFailed as error:
        assert any(f"code {code}" in error.message for code in NO_DRIVER), error.message
        assert "driver" in error.hint
    else:  # on a machine with a GPU the whole way is there
        _exercise(cuda)


REAL_PYTHON = """
import json, sys
from cuda.bindings import runtime
missing = [name for name in json.loads(sys.argv[1]) if not hasattr(runtime, name)]
missing += [n for n in ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost")
            if not hasattr(runtime.cudaMemcpyKind, n)]
if not hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal"):
    missing.append("cudaStreamCaptureModeThreadLocal")
from edgekit.board.errors import DeviceError
from edgekit.board.trt.cuda_python import PythonCuda
try:
    PythonCuda()
    said = ""
except DeviceError as error:
    said = error.message
print(json.dumps([missing, said]))
"""


@pytest.mark.parametrize("version", list(CUDA))
def test_cuda_python_has_every_name_and_says_that_there_is_no_driver(version: str) -> None:
    members = {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"}
    members |= {"cudaStreamCaptureModeThreadLocal"}
    names = sorted(_names("cuda_python.py") - members)
    assert "cudaStreamCreateWithFlags" in names
    done = subprocess.run(
        [sys.executable, "-c", REAL_PYTHON, json.dumps(names)],
        env={"PYTHONPATH": f"{_place(version)}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    missing, said = json.loads(done.stdout)
    assert missing == []
    assert said == "" or any(f"code {code}" in said for code in NO_DRIVER), said


def _exercise(cuda: Cuda) -> None:
    """Copy in and out through device memory, time it, capture it, give everything back."""
    facts = cuda.facts()
    assert facts["gpu"] and "." in facts["compute_capability"] and facts["memory_mb"] > 0
    data = bytes(range(256)) * 4
    pointer = cuda.malloc(len(data))
    memory = cuda.host_memory(len(data))
    stream = cuda.stream()
    start, end = cuda.event(), cuda.event()
    cuda.write(pointer, data)
    memory.view[:] = bytes(len(data))
    cuda.record(start, stream)
    cuda.to_host(memory, pointer, stream)
    cuda.record(end, stream)
    cuda.synchronize(stream)
    assert bytes(memory.view) == data
    assert cuda.elapsed_ms(start, end) >= 0
    cuda.free_event(start)
    cuda.free_event(end)
    cuda.free_host(memory)
    cuda.free(pointer)
    cuda.free_stream(stream)
    cuda.close()


class FakeRuntime:
    """A FAKE cuda.bindings.runtime: device memory is the host's; each call returns (code, …)."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    class Properties:
        name, major, minor = b"FAKE GPU", 8, 7

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.memory: dict[int, Any] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            return getattr(self, f"_{name}", lambda *a: (0, 7))(*arguments)

        return call

    def _cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return 0, self.devices

    def _cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        return 0, self.Properties

    def _cudaMemGetInfo(self) -> Any:  # noqa: N802
        return 0, 1 << 30, 8 << 30

    def _cudaRuntimeGetVersion(self) -> Any:  # noqa: N802
        return 0, 12060

    _cudaDriverGetVersion = _cudaRuntimeGetVersion  # noqa: N815

    def _cudaMalloc(self, size: int) -> Any:  # noqa: N802
        if size > 1 << 20:
            return (2,)
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def _cudaHostAlloc(self, size: int, flags: int) -> Any:  # noqa: N802
        return self._cudaMalloc(size)

    def _cudaFree(self, pointer: int) -> Any:  # noqa: N802
        del self.memory[pointer]
        return (0,)

    _cudaFreeHost = _cudaFree  # noqa: N815

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> Any:  # noqa: N802
        ctypes.memmove(to, source, size)
        return (0,)

    def _cudaEventElapsedTime(self, start: Any, end: Any) -> Any:  # noqa: N802
        return 0, 0.5

    def _cudaGetErrorString(self, code: int) -> Any:  # noqa: N802
        return 0, b"out of memory"


def test_cuda_python_with_a_fake_runtime() -> None:
    fake = FakeRuntime()
    cuda = PythonCuda(runtime=fake)
    assert cuda.facts()["gpu"] == "FAKE GPU" and cuda.facts()["cuda_runtime"] == "12.6"
    stream = cuda.stream()
    cuda.begin_capture(stream)
    graph = cuda.end_capture(stream)
    cuda.launch(graph, stream)
    cuda.free_graph(graph)
    with pytest.raises(BuildFailed, match=r"cudaMalloc: out of memory \(code 2\)"):
        cuda.malloc(2 << 20)
    _exercise(cuda)
    assert fake.memory == {}
    assert fake.calls.count("cudaGraphDestroy") == fake.calls.count("cudaGraphExecDestroy") == 1
    with pytest.raises(BuildFailed, match="no device"):
        PythonCuda(runtime=FakeRuntime(devices=0))


class FakeDriver:
    """A FAKE pycuda.driver."""

    def __init__(self) -> None:
        import numpy as np

        self.context: list[str] = []
        self.memory: dict[int, Any] = {}
        driver = self

        class Allocation:
            def __init__(self, size: int) -> None:
                self.block = np.zeros(size, np.uint8)
                driver.memory[int(self)] = self.block

            def __int__(self) -> int:
                return int(self.block.ctypes.data)

            def free(self) -> None:
                del driver.memory[int(self)]

        class Context:
            def push(self) -> None:
                driver.context.append("push")

            def pop(self) -> None:
                driver.context.append("pop")

        class Device:
            def __init__(self, index: int) -> None:
                pass

            @staticmethod
            def count() -> int:
                return 1

            def retain_primary_context(self) -> Context:
                return Context()

            def compute_capability(self) -> tuple[int, int]:
                return 8, 7

            def name(self) -> str:
                return "FAKE GPU"

        numbers = iter(range(77, 1000))

        class Stream:
            def __init__(self) -> None:
                self.handle = next(numbers)

            def synchronize(self) -> None:
                pass

        class Event:
            def record(self, stream: Stream) -> None:
                assert stream.handle >= 77

            def synchronize(self) -> None:
                pass

            def time_since(self, other: Event) -> float:
                return 0.5

        self.Device, self.Stream, self.Event = Device, Stream, Event
        self.mem_alloc = Allocation

    def init(self) -> None:
        self.context.append("init")

    def mem_get_info(self) -> tuple[int, int]:
        return 1 << 30, 8 << 30

    def get_version(self) -> tuple[int, int, int]:
        return 12, 6, 0

    def get_driver_version(self) -> int:
        return 12060

    def pagelocked_empty(self, size: int, dtype: Any) -> Any:
        import numpy as np

        return np.empty(size, dtype)

    def memcpy_htod_async(self, pointer: int, source: Any, stream: Any) -> None:
        self.memory[pointer][: source.size] = source

    def memcpy_dtoh_async(self, target: Any, pointer: int, stream: Any) -> None:
        target[:] = self.memory[pointer][: target.size]


def test_pycuda_with_a_fake_driver_uses_the_primary_context_and_gives_it_back() -> None:
    fake = FakeDriver()
    cuda = PyCuda(driver=fake)
    with pytest.raises(MissingDependency, match="CUDA graphs"):
        cuda.begin_capture(0)
    _exercise(cuda)
    cuda.close()
    assert fake.context == ["init", "push", "pop"] and fake.memory == {}


def test_pycuda_is_never_initialized_by_itself() -> None:
    for path in FOLDER.glob("*.py"):
        imports = [
            name.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        ]
        assert not any("autoinit" in name for name in imports), path


def test_routes_are_tried_in_order_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def missing(name: str) -> Any:
        def opened(device: int = 0) -> Cuda:
            tried.append(name)
            raise MissingDependency(f"no {name} here.")

        return opened

    monkeypatch.delenv(cuda_routes.ENVIRONMENT, raising=False)
    monkeypatch.setattr(cuda_routes, "ROUTES", {name: missing(name) for name in cuda_routes.ROUTES})
    with pytest.raises(MissingDependency, match="ctypes: no ctypes here; cuda-python"):
        cuda_routes.open_cuda()
    assert tried == ["ctypes", "cuda-python", "pycuda"]
    monkeypatch.setenv(cuda_routes.ENVIRONMENT, "pycuda")
    with pytest.raises(MissingDependency):
        cuda_routes.open_cuda()
    assert tried[3:] == ["pycuda"]
    monkeypatch.setenv(cuda_routes.ENVIRONMENT, "metal")
    with pytest.raises(UsageError):
        cuda_routes.open_cuda()


def test_a_library_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingDependency, match="nowhere"):
        CtypesCuda(library="/nowhere/libcudart.so")
    assert any(place == "libcudart.so" for place in cudart_places())
