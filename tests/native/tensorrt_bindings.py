"""TensorRT's real Python bindings of several versions, without TensorRT: fetched, and made to import.

`python -m tests.native.tensorrt_bindings` (part of `make setup`) downloads the wheels, some 7 MB, into
EDGEKIT_NATIVE_CACHE/tensorrt-bindings/VERSION (default ~/.cache/edgekit-native), and beside them
cuda-python and libcudart of CUDA 12 and 13 (32 MB). Nothing is downloaded when tests run.

The bindings need libnvinfer and its kin, which are not on PyPI. Libraries of the same names with the
dozen C functions that they name, each answering 0, let them import: enumerations, classes, loggers,
calibrators and everything else that lives in the bindings themselves is then real. Builder and Runtime
cannot be made: their C++ factories answer null.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# version → distribution that carries it; the number is pinned, the bytes are PyPI's
VERSIONS = {
    "8.6.1": "tensorrt-bindings==8.6.1",
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.8.0.43": "tensorrt-cu12-bindings==10.8.0.43",
    "10.13.3.9": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16.1.11": "tensorrt-cu13-bindings==10.16.1.11",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
}
# CUDA's runtime, as a library and as cuda-python: both load without a driver, and then say so
CUDA = {
    "cuda-12": (
        "cuda-bindings==12.9.4",
        "cuda-pathfinder==1.9.0",
        "nvidia-cuda-runtime-cu12==12.9.79",
    ),
    "cuda-13": (
        "cuda-bindings==13.0.3",
        "cuda-pathfinder==1.9.0",
        "nvidia-cuda-runtime==13.0.96",
    ),
}
WITH_CALIBRATORS = tuple(version for version in VERSIONS if not version.startswith("11."))
# the wheels of 8.6.1 end with Python 3.11
PYTHON_LIMIT = {"8.6.1": (3, 11)}

_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    # the Caffe and UFF parsers that 8.x still had, as C++ names them
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
)
_LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers")


def cache_folder() -> Path:
    """Where the wheels lie unpacked."""
    given = os.environ.get("EDGEKIT_NATIVE_CACHE")
    root = Path(given) if given else Path.home() / ".cache" / "edgekit-native"
    return root / "tensorrt-bindings"


def why_not(version: str) -> str:
    """Why the bindings of `version` cannot be used here, "" when they can."""
    limit = PYTHON_LIMIT.get(version)
    if limit is not None and sys.version_info[:2] > limit:
        return f"the wheels of {version} end with Python {limit[0]}.{limit[1]}"
    if platform.system() != "Linux":
        return "the bindings are fetched for Linux only"
    if not (cache_folder() / version / "tensorrt_bindings").is_dir():
        return f"the bindings of {version} are not fetched: make setup"
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        return "there is no C compiler for the stub libraries"
    return ""


def fetch(name: str, distributions: tuple[str, ...]) -> None:
    """Download and unpack into one folder; nothing when it is there."""
    place = cache_folder() / name
    if place.is_dir():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch-") as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, *distributions], check=True)
        unpacked = Path(folder) / "unpacked"
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        unpacked.rename(place)


def stub_libraries(version: str, folder: Path) -> None:
    """Compile the stand-ins for TensorRT's libraries of `version` into `folder`."""
    major = version.split(".")[0]
    source = folder / "stubs.c"
    body = "\n".join(f"void* {name}(void) {{ return 0; }}" for name in _FUNCTIONS)
    source.write_text(body + "\n")
    compiler = shutil.which("gcc") or shutil.which("cc") or "cc"
    for library in _LIBRARIES:
        name = f"lib{library}.so.{major}"
        subprocess.run(
            [
                compiler,
                "-shared",
                "-fPIC",
                f"-Wl,-soname,{name}",
                str(source),
                "-o",
                str(folder / name),
            ],
            check=True,
        )


def run_with(
    version: str, code: str, stubs: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run Python `code` in a process of its own in which `import tensorrt` gives that version's bindings."""
    preamble = "import sys, tensorrt_bindings\nsys.modules['tensorrt'] = tensorrt_bindings\n"
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(stubs),
        "PYTHONPATH": os.pathsep.join([str(cache_folder() / version), str(root)]),
    }
    return subprocess.run(
        [sys.executable, "-c", preamble + code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def main() -> None:
    """Fetch every version; one that cannot be had is said, and its tests will skip."""
    wanted = {**{version: (name,) for version, name in VERSIONS.items()}, **CUDA}
    for name, distributions in wanted.items():
        limit = PYTHON_LIMIT.get(name)
        if platform.system() != "Linux" or (limit is not None and sys.version_info[:2] > limit):
            print(f"{name}: not for this Python or system")
            continue
        try:
            fetch(name, distributions)
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            print(f"{name}: {error}")


if __name__ == "__main__":
    main()
