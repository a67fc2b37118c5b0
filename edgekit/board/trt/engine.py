"""An engine open on its device: buffers by tensor name, one stream, pinned memory."""

from __future__ import annotations

import statistics
import struct
import time
from typing import Any, Mapping

from edgekit.board.errors import BadInput, BuildFailed, NotPossible
from edgekit.board.tensor import ITEM_BYTES, Tensor, count
from edgekit.board.trt import logger
from edgekit.board.trt.cuda import Cuda, HostMemory
from edgekit.board.trt.features import assign

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class _Buffer:
    """One input or output: device and pinned host memory of one shape."""

    def __init__(self, cuda: Cuda, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self.size = count(shape) * ITEM_BYTES[dtype]
        self._cuda = cuda
        self.pointer = cuda.malloc(self.size)
        self.host: HostMemory = cuda.host_memory(self.size)

    def release(self) -> None:
        self._cuda.free(self.pointer)
        self._cuda.free_host(self.host)


class EngineSession:
    """`edgekit.board.session.Session` of a serialized engine.

    `wanted` maps names to the dtype and shape that the bundle gives them: float16 inputs of the engine
    are fed from float32, before anything is timed, and its outputs given back as that. `graph` True
    captures copies and computation once as a CUDA graph, which spares the launches on every step.
    The session takes `cuda` over and closes it, unless `owns_cuda` is False.
    """

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        data: bytes,
        wanted: Mapping[str, Mapping[str, Any]],
        *,
        dla: int | None = None,
        version_compatible: bool = False,
        graph: bool = False,
        owns_cuda: bool = True,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._trt, self._cuda = trt, cuda
        self._log = logger.make(trt)
        self._buffers: list[_Buffer] = []
        self._closed = not owns_cuda
        self._fed = False
        self._stream = 0
        self._graph: Any = None
        self._wants_graph = graph
        self._context: Any = None
        self._profiled: Any = None
        self._profiler: Any = None
        self._wanted = wanted
        self.facts: dict[str, Any] = {**(facts or {}), "tensorrt": str(trt.__version__)}
        trt.init_libnvinfer_plugins(self._log, "")
        runtime = trt.Runtime(self._log)
        if dla is not None:
            runtime.DLA_core = dla
        if version_compatible:
            assign(runtime, "engine_host_code_allowed", True)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise NotPossible(
                f"TensorRT {trt.__version__} does not load the engine: {logger.said(self._log)}",
                "Build it again on this device: edgekit-device.pyz build .",
            )
        # TensorRT wants them in this order: an engine outlives its context, a runtime its engine
        self._runtime, self._engine = runtime, engine
        context = engine.create_execution_context()
        if context is None:
            raise BuildFailed(
                f"TensorRT makes no execution context: {logger.said(self._log)}",
                "Most often the device's memory is full.",
            )
        self._context = context
        try:
            self._allocate()
            self._stream = cuda.stream()
            if graph:
                self.facts["cuda_graph"] = True
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        trt, engine, context = self._trt, self._engine, self._context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        ins = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outs = [n for n in names if n not in ins]
        for name in ins:
            shape = tuple(int(size) for size in engine.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                # a free batch: one image
                shape = tuple(1 if size < 0 else size for size in shape)
                if not context.set_input_shape(name, shape):
                    raise NotPossible(f"The engine's profile does not hold '{name}' of {shape}.")
        for name in (*ins, *outs):
            shape = tuple(int(size) for size in context.get_tensor_shape(name))
            kind = engine.get_tensor_dtype(name)
            if kind.name not in _DTYPES:
                raise NotPossible(f"'{name}' is {kind.name}, which cannot be carried.")
            if any(size < 0 for size in shape):
                raise NotPossible(
                    f"The shape of '{name}' depends on the image: {list(shape)}.",
                    "Export the model without its NMS.",
                )
            buffer = _Buffer(self._cuda, name, shape, _DTYPES[kind.name])
            self._buffers.append(buffer)
            if not context.set_tensor_address(name, buffer.pointer):
                raise BuildFailed(
                    f"TensorRT refuses the address of '{name}': {logger.said(self._log)}"
                )
        self._inputs = self._buffers[: len(ins)]
        self._outputs = self._buffers[len(ins) :]
        self.inputs = [self._spec(buffer) for buffer in self._inputs]
        self.outputs = [self._spec(buffer) for buffer in self._outputs]

    def _spec(self, buffer: _Buffer) -> dict[str, Any]:
        wanted = self._wanted.get(buffer.name, {})
        return {
            "name": buffer.name,
            "shape": list(buffer.shape),
            "dtype": wanted.get("dtype", buffer.dtype),
        }

    # --- running ------------------------------------------------------------------------------

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.prepare(feeds)
        self.step()
        return self.read()

    def prepare(self, feeds: Mapping[str, Tensor]) -> None:
        """Put `feeds` into pinned memory. Raises BadInput unless they are the engine's inputs."""
        names = [buffer.name for buffer in self._inputs]
        if sorted(feeds) != sorted(names):
            raise BadInput(f"The engine takes {names}, not {sorted(feeds)}.")
        for buffer, spec in zip(self._inputs, self.inputs):
            tensor = feeds[buffer.name]
            if tensor.shape != buffer.shape or tensor.dtype not in (spec["dtype"], buffer.dtype):
                raise BadInput(
                    f"The input '{buffer.name}' is {tensor.dtype} {list(tensor.shape)}; the engine "
                    f"takes {spec['dtype']} {list(buffer.shape)}."
                )
            data = converted(tensor, buffer.dtype).data
            buffer.host.view[:] = memoryview(data).cast("B")
        self._fed = True

    def step(self) -> None:
        """Copy in, compute, copy out, wait."""
        if self._wants_graph:
            if self._graph is None:
                self._capture()
            self._cuda.launch(self._graph, self._stream)
        else:
            self._copy_in()
            self._compute()
            self._copy_out()
        self._cuda.synchronize(self._stream)

    def read(self) -> dict[str, Tensor]:
        """What the last `step` left in host memory, in the bundle's types."""
        found = {}
        for buffer, spec in zip(self._outputs, self.outputs):
            tensor = Tensor(buffer.shape, buffer.dtype, bytes(buffer.host.view))
            found[buffer.name] = converted(tensor, spec["dtype"])
        return found

    def _copy_in(self) -> None:
        for buffer in self._inputs:
            self._cuda.to_device(buffer.pointer, buffer.host, self._stream)

    def _compute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise BuildFailed(f"TensorRT cannot run the engine: {logger.said(self._log)}")

    def _copy_out(self) -> None:
        for buffer in self._outputs:
            self._cuda.to_host(buffer.host, buffer.pointer, self._stream)

    def _capture(self) -> None:
        """Capture one inference. TensorRT wants one run before, for what it sets up lazily."""
        self._copy_in()
        self._compute()
        self._copy_out()
        self._cuda.synchronize(self._stream)
        self._cuda.begin_capture(self._stream)
        self._copy_in()
        self._compute()
        self._copy_out()
        self._graph = self._cuda.end_capture(self._stream)

    # --- measuring ----------------------------------------------------------------------------

    def timings(self, runs: int) -> dict[str, list[float]]:
        """Milliseconds of each of `runs` inferences, four ways.

        `wall` and `wall_compute`: by the host's clock, with and without the copies; `gpu` and
        `gpu_compute`: by the device's events around the same. Inputs are those of `prepare`.
        """
        found: dict[str, list[float]] = {
            "wall": [],
            "wall_compute": [],
            "gpu": [],
            "gpu_compute": [],
        }
        cuda, stream = self._cuda, self._stream
        events = [cuda.event() for _ in range(4)]
        try:
            for _ in range(runs):
                started = time.perf_counter()
                cuda.record(events[0], stream)
                self._copy_in()
                cuda.record(events[1], stream)
                self._compute()
                cuda.record(events[2], stream)
                self._copy_out()
                cuda.record(events[3], stream)
                cuda.synchronize(stream)
                found["wall"].append((time.perf_counter() - started) * 1e3)
                found["gpu"].append(cuda.elapsed_ms(events[0], events[3]))
                found["gpu_compute"].append(cuda.elapsed_ms(events[1], events[2]))
                started = time.perf_counter()
                self._compute()
                cuda.synchronize(stream)
                found["wall_compute"].append((time.perf_counter() - started) * 1e3)
        finally:
            for event in events:
                cuda.free_event(event)
        return found

    def device_ms(self, runs: int = 30) -> dict[str, float]:
        """Medians of `timings` on what was prepared; empty where nothing was."""
        if not self._fed:
            return {}
        return {name: statistics.median(values) for name, values in self.timings(runs).items()}

    def layer_times(self) -> list[tuple[str, float]]:
        """One inference with TensorRT's profiler: (layer, milliseconds) in running order."""
        trt: Any = self._trt
        found: list[tuple[str, float]] = []

        class Profiler(trt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                found.append((layer_name, float(ms)))

        if self._profiled is None:
            # a context of its own: one with a profiler synchronizes behind every layer
            self._profiled = self._new_context()
        context = self._profiled
        # kept: the context holds no more than its address
        self._profiler = Profiler()
        context.profiler = self._profiler
        self._copy_in()
        if not context.execute_async_v3(self._stream):
            raise BuildFailed(f"TensorRT cannot run the engine: {logger.said(self._log)}")
        self._cuda.synchronize(self._stream)
        return found

    def _new_context(self) -> Any:
        """A second context over the same buffers."""
        engine = self._engine
        context = engine.create_execution_context()
        if context is None:
            raise BuildFailed(f"TensorRT makes no second context: {logger.said(self._log)}")
        for buffer in self._inputs:
            context.set_input_shape(buffer.name, buffer.shape)
        for buffer in self._buffers:
            context.set_tensor_address(buffer.name, buffer.pointer)
        return context

    def close(self) -> None:
        if self._graph is not None:
            self._cuda.free_graph(self._graph)
            self._graph = None
        # the context holds the buffers' addresses, the engine the context's memory
        self._context = self._profiled = None
        self._engine = self._runtime = None
        for buffer in self._buffers:
            buffer.release()
        self._buffers = []
        if self._stream:
            self._cuda.free_stream(self._stream)
            self._stream = 0
        if not self._closed:
            self._closed = True
            self._cuda.close()


def converted(tensor: Tensor, dtype: str) -> Tensor:
    """`tensor` as `dtype`: between float16 and float32; anything else must be it already."""
    if tensor.dtype == dtype:
        return tensor
    codes = {"float16": "e", "float32": "f"}
    if tensor.dtype not in codes or dtype not in codes:
        raise BadInput(f"{tensor.dtype} cannot be given as {dtype}.")
    number = tensor.size
    values = struct.unpack(f"<{number}{codes[tensor.dtype]}", bytes(tensor.data))
    if dtype == "float16":
        # struct refuses what does not fit; the hardware makes it infinite
        values = tuple(v if -65504.0 <= v <= 65504.0 else _infinite(v) for v in values)
    return Tensor(tensor.shape, dtype, struct.pack(f"<{number}{codes[dtype]}", *values))


def _infinite(value: float) -> float:
    if value != value:
        return value
    limit = 65519.99  # what still rounds to 65504
    if -limit < value < limit:
        return 65504.0 if value > 0 else -65504.0
    return float("inf") if value > 0 else float("-inf")
