"""The board's TensorRT adapter against the real bindings of 8.6.1 to 11.4: every name it uses, and its
calibrators made, fed and read. See tests/native/tensorrt_bindings.py for how the bindings import here.

TensorRT 8.5, JetPack 5's, has no wheel on PyPI: what came with 8.6 is known by name, and must be optional.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.formats import tensorrt_cache
from edgekit.formats.tensorrt_cache import CalibrationCache
from tests.native import tensorrt_names
from tests.native.tensorrt_bindings import (
    VERSIONS,
    WITH_CALIBRATORS,
    run_with,
    stub_libraries,
    why_not,
)

RESOLVE = """
import json, tensorrt
missing = []
for name in json.load(sys.stdin):
    value = tensorrt
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            missing.append(name)
            break
print(json.dumps([tensorrt.__version__, missing]))
"""

NEW_IN_8_6 = {
    "BuilderFlag.VERSION_COMPATIBLE",
    "BuilderFlag.EXCLUDE_LEAN_RUNTIME",
    "BuilderFlag.FP8",
    "HardwareCompatibilityLevel",
    "IBuilderConfig.hardware_compatibility_level",
    "IBuilderConfig.builder_optimization_level",
    "IBuilderConfig.max_aux_streams",
    "Runtime.engine_host_code_allowed",
    "Runtime.load_runtime",
    "INetworkDefinition.add_cast",
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for version in VERSIONS:
        if not why_not(version):
            folders[version] = tmp_path_factory.mktemp(f"stubs-{version}")
            stub_libraries(version, folders[version])
    return folders


def _stubs(stubs: dict[str, Path], version: str) -> Path:
    if version not in stubs:
        pytest.skip(why_not(version))
    return stubs[version]


def _missing(version: str, names: set[str], folder: Path) -> list[str]:
    code = RESOLVE.replace(
        "json.load(sys.stdin)", f"json.loads({json.dumps(json.dumps(sorted(names)))})"
    )
    done = run_with(version, code, folder)
    assert done.returncode == 0, done.stderr
    found, missing = json.loads(done.stdout.splitlines()[-1])
    assert found == version
    return missing


def test_the_names_are_read_from_the_source() -> None:
    names = tensorrt_names.collect()
    assert not names.unnamed
    # a sample, so that a collector that finds nothing cannot pass
    assert {
        "Builder.build_serialized_network",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.get_tensor_name",
        "ITensor.shape",
        "ParserError.desc",
    } <= names.required
    assert {"BuilderFlag.INT8", "IInt8EntropyCalibrator2", "IProgressMonitor"} <= names.optional
    assert len(names.required) > 50
    assert not names.required & names.optional - {"Builder", "HardwareCompatibilityLevel"}
    assert not names.required & NEW_IN_8_6


@pytest.mark.parametrize("version", list(VERSIONS))
def test_every_plain_name_is_in_every_version(stubs: dict[str, Path], version: str) -> None:
    folder = _stubs(stubs, version)
    assert _missing(version, tensorrt_names.collect().required, folder) == []


def test_every_optional_name_is_in_some_version(stubs: dict[str, Path]) -> None:
    """A misspelt optional name would be silently absent everywhere."""
    left = tensorrt_names.collect().optional
    # gone before the oldest bindings that can be had: TensorRT 8.5's own name for the workspace
    for version in VERSIONS:
        if left:
            left = set(_missing(version, left, _stubs(stubs, version)))
    assert left == set()


def test_a_misspelt_name_is_found(stubs: dict[str, Path]) -> None:
    sources = {
        "builder.py": "def f(trt, config, builder):\n"
        "    network = builder.create_netwrok(1)\n"
        "    optional(config, 'int8_calibrater')\n"
    }
    names = tensorrt_names.collect(sources)
    version = "10.3.0"
    folder = _stubs(stubs, version)
    assert _missing(version, names.required, folder) == ["Builder.create_netwrok"]
    assert _missing(version, names.optional, folder) == ["IBuilderConfig.int8_calibrater"]


def test_an_object_under_a_name_that_says_nothing_is_found() -> None:
    sources = {"builder.py": "def f(builder):\n    thing = builder.create_network(1)\n"}
    assert tensorrt_names.collect(sources).unnamed == ["builder.py: thing = …create_network()"]


CALIBRATE = """
import ctypes, json, tensorrt
from pathlib import Path
from edgekit.board.trt import calibrators
method, cache, folder = sys.argv[1:]

class Virtual:
    # the calibrator as TensorRT's C++ sees it: its virtual functions, called from outside of Python
    def __init__(self, calibrator):
        # a pybind11 object of one C++ base holds the pointer right behind PyObject's two words
        self.this = ctypes.c_void_p.from_address(id(calibrator) + 16).value
        table = ctypes.c_void_p.from_address(self.this).value
        # in 10 IVersionedInterface comes first: language, two destructors, interface info
        first = 0 if tensorrt.__version__.startswith("8.") else 4
        self.slots = [ctypes.c_void_p.from_address(table + 8 * (first + n)).value for n in range(5)]

    def call(self, slot, kind, types, *arguments):
        function = ctypes.CFUNCTYPE(kind, ctypes.c_void_p, *types)(self.slots[slot])
        return function(self.this, *arguments)

    def batch_size(self):
        return self.call(0, ctypes.c_int32, [])

    def batch(self):
        bindings = (ctypes.c_void_p * 1)()
        names = (ctypes.c_char_p * 1)(b"images")
        types = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
        more = self.call(1, ctypes.c_bool, types, bindings, names, 1)
        return bindings[0] if more else None

    def read(self):
        size = ctypes.c_size_t()
        where = self.call(2, ctypes.c_void_p, [ctypes.c_void_p], ctypes.byref(size))
        return ctypes.string_at(where, size.value).decode() if where else None

    def write(self, data):
        self.call(3, None, [ctypes.c_char_p, ctypes.c_size_t], data, len(data))

    def algorithm(self):
        return self.call(4, ctypes.c_int32, [])

class FakeCuda:
    def __init__(self):
        self.written, self.freed = [], []
    def malloc(self, size):
        return 4096
    def write(self, pointer, data):
        assert pointer == 4096
        self.written.append(bytes(data))
    def free(self, pointer):
        self.freed.append(pointer)

made = calibrators.make(tensorrt, method, Path(cache).read_bytes())
assert isinstance(made, getattr(tensorrt, calibrators.BASES[method]))
virtual = Virtual(made)
fake = FakeCuda()
batches = sorted(Path(folder).glob("*.npy"))
fed = calibrators.make(tensorrt, method, None, batches, fake)
virtual_fed = Virtual(fed)
given = [virtual_fed.batch() for _ in range(4)]
virtual_fed.write(b"TRT-1-X\\na: 3f800000\\n")
fed.release()
broken = calibrators.make(tensorrt, method, None, [Path(folder) / "none.npy"], fake)
nothing = Virtual(broken).batch()
try:
    calibrators.demand_no_failure(broken)
    said = ""
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(json.dumps({
    "algorithm": str(made.get_algorithm()),
    "algorithm_number": [virtual.algorithm(), int(made.get_algorithm())],
    "batch_size": virtual.batch_size(),
    "cache": virtual.read(),
    "given": given, "written": [len(part) for part in fake.written], "freed": fake.freed,
    "own_cache": fed.written.decode(), "none": virtual_fed.read(),
    "broken": [nothing, said],
}))
"""


@pytest.mark.parametrize("version", WITH_CALIBRATORS)
@pytest.mark.parametrize(
    ("method", "algorithm"),
    [("entropy", tensorrt_cache.ENTROPY), ("minmax", tensorrt_cache.MINMAX)],
)
def test_calibrators_are_made_fed_and_read_through_tensorrts_own_virtual_functions(
    stubs: dict[str, Path], tmp_path: Path, version: str, method: str, algorithm: str
) -> None:
    import numpy as np

    from edgekit.golden import npy_bytes

    scales = {"images": 0.0078740157186985, "conv:0": 1.5e-7}
    cache = tmp_path / "calibration.cache"
    tensorrt_cache.write(CalibrationCache(algorithm=algorithm, scales=scales), cache)
    for number in range(3):
        array = np.full((1, 3, 8, 8), number, np.float32)
        (tmp_path / f"{number}.npy").write_bytes(npy_bytes(array))
    folder = _stubs(stubs, version)
    done = run_with(version, CALIBRATE, folder, method, str(cache), str(tmp_path))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])

    # TensorRT's own class says which algorithm it is; the cache's first line must agree
    kinds = {"entropy": "ENTROPY_CALIBRATION_2", "minmax": "MINMAX_CALIBRATION"}
    assert kinds[method] in answer["algorithm"]
    read = tensorrt_cache.parse(answer["cache"])
    assert (read.algorithm, dict(read.scales)) == (
        algorithm,
        {name: float(np.float32(scale)) for name, scale in scales.items()},
    )
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    assert int(read.version) == major * (1000 if major < 10 else 10000) + minor * 100 + patch
    assert answer["batch_size"] == 1 and len(set(answer["algorithm_number"])) == 1
    # three batches of one pointer each, then the end
    assert answer["given"] == [4096, 4096, 4096, None]
    assert answer["written"] == [3 * 64 * 4] * 3 and answer["freed"] == [4096]
    assert answer["none"] is None and "3f800000" in answer["own_cache"]
    # what fails inside of get_batch is told, not swallowed
    nothing, said = answer["broken"]
    assert nothing is None and "none.npy cannot be read" in said


FEATURES = """
import dataclasses, json, tensorrt
from edgekit.board.trt.features import features, network_flags
answer = dataclasses.asdict(features(tensorrt))
answer["bits"] = [network_flags(tensorrt, False), network_flags(tensorrt, True)]
flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
answer["strong_bit"] = None if flag is None else 1 << int(flag)
print(json.dumps(answer))
"""


@pytest.mark.parametrize("version", list(VERSIONS))
def test_what_each_version_can_do_is_found_without_comparing_versions(
    stubs: dict[str, Path], version: str
) -> None:
    done = run_with(version, FEATURES, _stubs(stubs, version))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    major = int(version.split(".")[0])
    assert found["version"] == version
    assert found["entropy"] == found["minmax"] == found["weak_int8"] == (major < 11)
    assert found["strongly_typed"] == (major > 8)
    # bit 0 is EXPLICIT_BATCH up to 10; STRONGLY_TYPED is bit 1 in 10 and bit 0 in 11
    assert found["bits"] == {8: [1, 1], 10: [1, 3], 11: [0, 1]}[major]
    assert found["strong_bit"] == {8: None, 10: 2, 11: 1}[major]


def test_a_builder_needs_a_driver(stubs: dict[str, Path]) -> None:
    """What the stand-ins cannot give is refused by the bindings, not faked."""
    code = "import tensorrt\ntensorrt.Builder(tensorrt.Logger())\n"
    done = run_with("10.3.0", code, _stubs(stubs, "10.3.0"))
    assert done.returncode == 1 and "factory function returned nullptr" in done.stderr
