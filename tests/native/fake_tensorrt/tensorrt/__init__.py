"""A FAKE tensorrt for tests of control flow, nothing else: engines are ONNX files, run by ONNX Runtime.

Device addresses are the host's (tests/native/fake_cudart.c). FAKE_TENSORRT_VERSION chooses which names
exist, as in 8.5, 10 or 11; FAKE_TENSORRT_FAIL makes one step fail: "parse", "build", "build-qdq",
"load". What a real TensorRT does with a graph is not shown by this.
"""

from __future__ import annotations

import ctypes
import enum
import os
from typing import Any

FAKE = True
__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "10.3.0")
_MAJOR = int(__version__.split(".")[0])
_MINOR = int(__version__.split(".")[1])
_OLD = _MAJOR < 11


def _failing(step: str) -> bool:
    return os.environ.get("FAKE_TENSORRT_FAIL", "") == step


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


def _flags() -> Any:
    names = ["GPU_FALLBACK", "TF32"]
    if _OLD:
        names += ["FP16", "INT8"]
    if (_MAJOR, _MINOR) >= (8, 6):
        names += ["VERSION_COMPATIBLE"]
    return enum.IntEnum("BuilderFlag", names, start=0)


BuilderFlag = _flags()
if _MAJOR == 8:
    NetworkDefinitionCreationFlag = enum.IntEnum("F", ["EXPLICIT_BATCH"], start=0)
elif _MAJOR == 10:
    NetworkDefinitionCreationFlag = enum.IntEnum("F", ["EXPLICIT_BATCH", "STRONGLY_TYPED"], start=0)
else:
    NetworkDefinitionCreationFlag = enum.IntEnum("F", ["STRONGLY_TYPED"], start=0)
DeviceType = enum.Enum("DeviceType", ["GPU", "DLA"])
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["DETAILED"])
LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL"])
if (_MAJOR, _MINOR) >= (8, 6):
    HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"])

if _OLD:

    class IInt8EntropyCalibrator2:
        def __init__(self) -> None:
            pass

    class IInt8MinMaxCalibrator:
        def __init__(self) -> None:
            pass


if _MAJOR >= 10:

    class IProgressMonitor:
        def __init__(self) -> None:
            pass


class IProfiler:
    def __init__(self) -> None:
        pass


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    return True


class _Memory(bytes):
    """Serialized bytes: like TensorRT's IHostMemory, they give a buffer."""


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> _Memory:
        return _Memory(self.data + b"+")


class _ConfigBase:
    def __init__(self) -> None:
        self.flags: list[str] = []
        self.pools: dict[str, int] = {}
        self.timing = ITimingCache(b"")
        self.profiling_verbosity: Any = None
        self.default_device_type: Any = DeviceType.GPU
        self.DLA_core = -1
        self.profiles: list[Any] = []
        self.calibrator: Any = None

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def create_timing_cache(self, data: bytes) -> ITimingCache:
        return ITimingCache(bytes(data))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self.timing = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self.timing

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class _ConfigCalibrated(_ConfigBase):
    @property
    def int8_calibrator(self) -> Any:
        return self.calibrator

    @int8_calibrator.setter
    def int8_calibrator(self, value: Any) -> None:
        self.calibrator = value

    def set_calibration_profile(self, profile: Any) -> bool:
        return True


class _ConfigMonitored(_ConfigBase):
    progress_monitor: Any = None
    hardware_compatibility_level: Any = None


if _MAJOR == 8:
    IBuilderConfig: Any = _ConfigCalibrated
elif _MAJOR == 10:

    class IBuilderConfig(_ConfigCalibrated, _ConfigMonitored):  # type: ignore[no-redef]
        pass

else:
    IBuilderConfig = _ConfigMonitored


class _Tensor:
    def __init__(self, name: str, shape: list[int]) -> None:
        self.name, self.shape = name, tuple(shape)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags, self.path = flags, ""
        self.inputs: list[_Tensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]


class ParserError:
    def desc(self) -> str:
        return "a FAKE parser's complaint"

    def node(self) -> int:
        return 7

    if _MAJOR >= 10:

        def node_name(self) -> str:
            return "n_fake"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self.network, self.num_errors = network, 0

    def parse_from_file(self, path: str) -> bool:
        if _failing("parse"):
            self.num_errors = 1
            return False
        import onnx

        model = onnx.load(path)
        self.network.path = path
        for value in model.graph.input:
            dims = value.type.tensor_type.shape.dim
            shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
            self.network.inputs.append(_Tensor(value.name, shape))
        return True

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = (list(low), list(best), list(high))


class Builder:
    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.num_DLA_cores = int(os.environ.get("FAKE_TENSORRT_DLA", "0"))

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> Any:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: Any) -> _Memory | None:
        import json

        if _failing("build") or (_failing("build-qdq") and "qdq" in network.path):
            self.logger.log(ILogger.Severity.ERROR, "a FAKE builder's reason")
            return None
        scales = None
        if config.calibrator is not None:
            cache = config.calibrator.read_calibration_cache()
            if cache is None:
                while config.calibrator.get_batch(["images"]) is not None:
                    pass
                name = type(config.calibrator).__mro__[1].__name__
                config.calibrator.write_calibration_cache(f"TRT-1-{name}\n".encode())
            else:
                scales = cache.decode().count("\n") - 1
        self.logger.log(ILogger.Severity.WARNING, "this is a FAKE engine")
        if getattr(config, "progress_monitor", None) is not None:
            config.progress_monitor.phase_start("Building", None, 2)
            config.progress_monitor.step_complete("Building", 1)
            config.progress_monitor.phase_finish("Building")
        with open(network.path, "rb") as stream:
            model = stream.read()
        head = json.dumps(
            {
                "fake": True,
                "version": __version__,
                "flags": config.flags,
                "network_flags": network.flags,
                "workspace": config.pools.get("WORKSPACE"),
                "dla": config.DLA_core if config.default_device_type is DeviceType.DLA else None,
                "scales": scales,
                "profiles": [profile.shapes for profile in config.profiles],
                "hardware": str(getattr(config, "hardware_compatibility_level", None)),
            }
        ).encode()
        return _Memory(len(head).to_bytes(4, "little") + head + model)


class EngineInspector:
    def __init__(self, head: dict[str, Any]) -> None:
        self.head = head

    def get_engine_information(self, form: Any) -> str:
        import json

        return json.dumps({"Layers": [], "fake": self.head})


class ICudaEngine:
    def __init__(self, data: bytes) -> None:
        import json

        import onnxruntime

        size = int.from_bytes(data[:4], "little")
        self.head = json.loads(data[4 : 4 + size])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # as it stands: onnxruntime's own float16 QDQ fusions are not what this is about
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(data[4 + size :], options)
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.inputs = {value.name for value in self.session.get_inputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(self.tensors[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = next(value for value in self.tensors if value.name == name)
        return tuple(size if isinstance(size, int) else -1 for size in value.shape)

    def get_tensor_dtype(self, name: str) -> Any:
        value = next(value for value in self.tensors if value.name == name)
        kinds = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
        return DataType[kinds[value.type]]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self.head)

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        batch = next(iter(self.shapes.values()), (1,))[0]
        return tuple(batch if size < 0 else size for size in self.engine.get_tensor_shape(name))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        import numpy as np

        types = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}

        def view(name: str) -> Any:
            dtype = np.dtype(types[self.engine.get_tensor_dtype(name).name])
            shape = self.get_tensor_shape(name)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            memory = (ctypes.c_uint8 * size).from_address(self.addresses[name])
            return np.frombuffer(memory, dtype=dtype).reshape(shape)

        names = [value.name for value in self.engine.session.get_outputs()]
        feeds = {name: view(name).copy() for name in self.engine.inputs}
        for name, array in zip(names, self.engine.session.run(names, feeds), strict=True):
            view(name)[...] = array
        if self.profiler is not None:
            self.profiler.report_layer_time("a FAKE layer", 0.5)
        return bool(stream)


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.DLA_core = -1
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        if _failing("load"):
            self.logger.log(ILogger.Severity.ERROR, "a FAKE runtime's reason")
            return None
        return ICudaEngine(bytes(data))
