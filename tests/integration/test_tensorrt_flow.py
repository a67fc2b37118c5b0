"""The way from a bundle to a built, verified and timed engine, with FAKES of TensorRT and libcudart.

tests/native/fake_tensorrt and fake_cudart.c stand for what needs an NVIDIA driver, so that every branch
of the adapter runs: nothing here says that a real TensorRT takes a graph (test_tensorrt_rtx does) or
that an engine computes it (no NVIDIA driver: unproved, see DESIGN.md).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import tensorrt_graphs

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "native"


@pytest.fixture(scope="module")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake-cudart")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the fake libcudart")
    library = folder / "libcudart.so"
    source = FAKES / "fake_cudart.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", str(source), "-o", str(library)], check=True
    )
    return folder


class Bundles(dict[str, Path]):
    """Bundles by name, each made by the real export when it is first asked for."""

    KINDS = {  # noqa: RUF012 - name → network, target, options
        "cuda-int8": ("net", "cuda-int8", ["--method", "minmax", "--calibration-batches", "2"]),
        "cuda-fp16": ("net", "cuda-fp16", []),
        "half-io": ("net", "cuda-int8", ["--method", "minmax", "--half-io"]),
        "free": ("free", "cuda-int8", ["--method", "minmax", "--imgsz", "32", "--dynamic"]),
    }

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        onnx.save(tensorrt_graphs.residual_network(), folder / "net.onnx")
        free = tensorrt_graphs.residual_network()
        for value in (*free.graph.input, *free.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del free.graph.value_info[:]
        onnx.save(onnx.shape_inference.infer_shapes(free), folder / "free.onnx")
        random = np.random.default_rng(0)
        np.savez(folder / "calib.npz", images=random.integers(0, 256, (8, 32, 32, 3), np.uint8))

    def __missing__(self, name: str) -> Path:
        net, target, options = self.KINDS[name]
        out = self.folder / name
        words = [str(self.folder / f"{net}.onnx"), "-t", target, "-o", str(out), *options]
        words += ["--images", str(self.folder / "calib.npz"), "--color", "rgb", "--resize", "none"]
        words += ["--scale", "1/255", "--mean", "0,0,0", "--std", "1,1,1"]
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", "export", *words],
            env={**os.environ, "EDGEKIT_CACHE": f"{self.folder}/cache", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self[name] = out
        return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def bundle(made: Bundles, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["cuda-int8"], tmp_path / "bundle"))


class Fakes:
    """Runs edgekit, or the bundle's own program, in a process that sees the fakes."""

    def __init__(self, cudart: Path, report: Path) -> None:
        self.report = report
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(FAKES / "fake_tensorrt"), str(ROOT)]),
            "EDGEKIT_CUDART": str(cudart / "libcudart.so"),
            "EDGEKIT_CUDA": "ctypes",
            "FAKE_CUDART_REPORT": str(report),
        }

    def run(self, *command: str, code: int = 0, **more: str) -> Any:
        done = subprocess.run(
            [sys.executable, *command],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else done.stderr

    def build(self, bundle: Path, *options: str, code: int = 0, **more: str) -> Any:
        return self.run(
            "-m", "edgekit", "build", str(bundle), "--json", *options, code=code, **more
        )

    def device(self, bundle: Path, *words: str, code: int = 0, **more: str) -> Any:
        """The program in the bundle, as the board runs it: nothing of edgekit on the path."""
        paths = {"PYTHONPATH": str(FAKES / "fake_tensorrt"), **more}
        program = str(bundle / "edgekit-device.pyz")
        return self.run(program, words[0], str(bundle), *words[1:], code=code, **paths)

    def nothing_is_left(self) -> None:
        # the fake writes its report with the first allocation
        counts = json.loads(self.report.read_text()) if self.report.exists() else {"all": 0}
        assert set(counts.values()) == {0}, counts


@pytest.fixture
def fakes(cudart: Path, tmp_path: Path) -> Fakes:
    return Fakes(cudart, tmp_path / "cudart.json")


def _sidecar(bundle: Path) -> Any:
    return json.loads((bundle / "built" / "tensorrt.engine.json").read_text())


def _head(bundle: Path) -> Any:
    """What the fake builder was told, from the head of its engine."""
    data = (bundle / "built" / "tensorrt.engine").read_bytes()
    return json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])


@pytest.mark.parametrize(
    ("version", "source", "flags", "network_flags"),
    [
        ("8.5.2", "model_qdq_fp32.onnx", ["INT8", "FP16"], 1),
        ("10.3.0", "model_qdq_fp32.onnx", ["INT8", "FP16"], 1),
        # no flags any more: the graph's types decide
        ("11.4.0", "model_qdq_fp16.onnx", [], 1),
    ],
)
def test_auto_takes_what_each_version_has(
    bundle: Path, fakes: Fakes, version: str, source: str, flags: list[str], network_flags: int
) -> None:
    answer = fakes.build(bundle, FAKE_TENSORRT_VERSION=version)
    assert (answer["method"], answer["reused"]) == ("qdq", False)
    sidecar, head = _sidecar(bundle), _head(bundle)
    assert list(sidecar["from"]) == [f"tensorrt/{source}"]
    assert (head["flags"], head["network_flags"]) == (flags, network_flags)
    assert sidecar["versions"]["tensorrt"] == version
    assert sidecar["device"]["gpu"] == "FAKE Orin"
    assert sidecar["device"]["compute_capability"] == "8.7"
    assert set(sidecar["timing_ms"]) == {"wall", "wall_compute", "gpu", "gpu_compute"}
    assert "Layers" in json.loads((bundle / "built" / "tensorrt.layers").read_text())
    fakes.nothing_is_left()


def test_the_engine_is_verified_evaluated_and_timed(bundle: Path, fakes: Fakes) -> None:
    fakes.build(bundle, FAKE_TENSORRT_VERSION="10.3.0")
    answer = fakes.run("-m", "edgekit", "verify", str(bundle), "--json")
    checks = {check["name"]: check for check in answer["checks"]}
    golden = checks["golden outputs (tensorrt)"]
    assert golden["ok"] and not golden["skipped"], golden
    fakes.nothing_is_left()
    timed = fakes.run("-m", "edgekit", "bench", str(bundle), "--json", "--runs", "20")
    assert timed["p50_ms"] > 0
    assert set(timed["device_ms"]) == {"wall", "wall_compute", "gpu", "gpu_compute"}
    found = fakes.run(
        "-c",
        "import json, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from edgekit.runtimes import open_session\n"
        "from edgekit.runtimes.base import SessionOptions\n"
        "files = [Path(sys.argv[1]) / 'tensorrt' / 'model_qdq_fp32.onnx']\n"
        "x = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)\n"
        "answer = {}\n"
        "for graph in (False, True):\n"
        "    with open_session('tensorrt', files, SessionOptions(cuda_graph=graph)) as session:\n"
        "        name = session.inputs[0].name\n"
        "        outputs = session.run({name: x})\n"
        "        answer[str(graph)] = float(outputs['y'].sum())\n"
        "        times = session.timings(3)\n"
        "        answer['layers'] = session.layer_times()\n"
        "answer['times'] = {key: len(value) for key, value in times.items()}\n"
        "with open_session('onnxruntime', files) as session:\n"
        "    answer['expected'] = float(session.run({name: x})['y'].sum())\n"
        "print(json.dumps(answer))\n",
        str(bundle),
    )
    assert found["False"] == pytest.approx(found["expected"], rel=1e-3)
    # the fake's captured graph does nothing on launch: what counts is what the capturing run left
    assert found["True"] == pytest.approx(found["expected"], rel=1e-3)
    assert found["layers"] == [["a FAKE layer", 0.5]]
    layers = fakes.run("-m", "edgekit", "profile", str(bundle), "--json")["layers"]
    assert [layer["name"] for layer in layers] == ["a FAKE layer"]
    assert found["times"] == {"wall": 3, "wall_compute": 3, "gpu": 3, "gpu_compute": 3}
    fakes.nothing_is_left()


def test_the_bundles_own_program_does_the_same(bundle: Path, fakes: Fakes) -> None:
    built = fakes.device(bundle, "build", FAKE_TENSORRT_VERSION="11.4.0")
    assert (built["runtime"], built["method"]) == ("tensorrt", "qdq")
    verified = fakes.device(bundle, "verify", FAKE_TENSORRT_VERSION="11.4.0")
    assert verified["ok"], verified
    again = fakes.device(bundle, "build", FAKE_TENSORRT_VERSION="11.4.0")
    assert again["reused"] and again["sha256"] == built["sha256"]
    timed = fakes.device(bundle, "bench", "--runs", "10", FAKE_TENSORRT_VERSION="11.4.0")
    assert timed["runtime"] == "tensorrt" and timed["p50_ms"] > 0
    assert '"gpu_compute"' in json.dumps(timed)
    info = fakes.device(bundle, "info")
    assert "FAKE Orin" in json.dumps(info)


@pytest.mark.parametrize("method", ["entropy", "minmax"])
def test_calibrators_take_the_bundles_cache(bundle: Path, fakes: Fakes, method: str) -> None:
    answer = fakes.build(bundle, "--method", method, FAKE_TENSORRT_VERSION="8.5.2")
    assert answer["method"] == method and answer["flags"] == ["INT8", "FP16"]
    cache = bundle / "tensorrt" / f"calibration_{method}.cache"
    assert _head(bundle)["scales"] == len(cache.read_text().splitlines()) - 1
    assert set(_sidecar(bundle)["from"]) == {
        "tensorrt/model.onnx",
        f"tensorrt/calibration_{method}.cache",
    }


def test_without_a_cache_the_calibrator_feeds_the_batches(bundle: Path, fakes: Fakes) -> None:
    _edit_details(bundle, lambda details: details["files"].pop("entropy"))
    fakes.build(bundle, "--method", "entropy")
    assert _head(bundle)["scales"] is None
    fakes.nothing_is_left()


def _edit_details(bundle: Path, change: Any) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["details"]["tensorrt"])
    path.write_text(json.dumps(manifest))


def test_an_error_inside_of_get_batch_is_the_builds_error(bundle: Path, fakes: Fakes) -> None:
    def change(details: Any) -> None:
        details["files"].pop("entropy")
        details["batches"].append("golden/000/output_0.npy")  # an array of another size

    _edit_details(bundle, change)
    answer = fakes.build(bundle, "--method", "entropy", code=4)
    assert "output_0.npy has 40 bytes, the batches before 12288" in answer["error"]
    fakes.nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "version", "error", "hint"),
    [
        (("--method", "entropy"), "11.4.0", "has no calibrators", "--method qdq"),
        (("--method", "minmax"), "11.4.0", "has no calibrators", "--method qdq"),
        (("--dla", "0"), "11.4.0", "has no calibrators", "--method float"),
        (("--dla", "0", "--method", "qdq"), "10.3.0", "not from QDQ", "--method entropy"),
        (("--dla", "1"), "10.3.0", "this device has 1", "--dla"),
        (("--method", "float"), "11.4.0", "no float16 graph without INT8", "--method qdq"),
        (("--version-compatible",), "8.5.2", "no version compatible", ""),
        (("--hardware-compatible",), "8.5.2", "no hardware compatible", ""),
    ],
)
def test_what_a_version_lacks_is_said_with_what_to_use(
    bundle: Path, fakes: Fakes, options: tuple[str, ...], version: str, error: str, hint: str
) -> None:
    answer = fakes.build(
        bundle, *options, code=4, FAKE_TENSORRT_VERSION=version, FAKE_TENSORRT_DLA="1"
    )
    assert error in answer["error"] and hint in answer["hint"]
    assert not (bundle / "built" / "tensorrt.engine").exists()


def test_options_reach_the_builder(bundle: Path, fakes: Fakes) -> None:
    options = [
        "--workspace-mb",
        "256",
        "--no-fp16",
        "--version-compatible",
        "--hardware-compatible",
    ]
    answer = fakes.build(bundle, *options, FAKE_TENSORRT_VERSION="10.3.0")
    head = _head(bundle)
    assert head["workspace"] == 256 << 20 and "AMPERE_PLUS" in head["hardware"]
    assert answer["flags"] == ["INT8", "VERSION_COMPATIBLE", "AMPERE_PLUS"]
    # DLA takes the cache, and the GPU what DLA does not know
    answer = fakes.build(bundle, "--dla", "0", FAKE_TENSORRT_DLA="2")
    assert answer["method"] == "entropy" and _head(bundle)["dla"] == 0
    assert answer["flags"] == ["INT8", "FP16", "DLA", "GPU_FALLBACK"]


@pytest.mark.slow
def test_another_option_builds_again_and_the_timing_cache_is_used(
    bundle: Path, fakes: Fakes
) -> None:
    fakes.build(bundle)
    assert (bundle / "built" / "tensorrt.timing").read_bytes() == b"+"
    assert fakes.build(bundle)["reused"]
    assert not fakes.build(bundle, "--workspace-mb", "64")["reused"]
    assert (bundle / "built" / "tensorrt.timing").read_bytes() == b"++"
    assert not fakes.build(bundle, "--workspace-mb", "64", "--force")["reused"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "code", "error"),
    [
        ("parse", 5, "does not parse model_qdq_fp32.onnx: n_fake: a FAKE parser's complaint"),
        ("build", 5, "cannot build model.onnx (entropy): a FAKE builder's reason"),
        ("load", 5, "does not load: a FAKE runtime's reason"),
    ],
)
def test_tensorrts_own_reasons_are_told(
    bundle: Path, fakes: Fakes, failure: str, code: int, error: str
) -> None:
    method = [] if failure != "parse" else ["--method", "qdq"]
    answer = fakes.build(bundle, *method, code=code, FAKE_TENSORRT_FAIL=failure)
    assert error in answer["error"]
    assert not (bundle / "built" / "tensorrt.engine").exists()
    fakes.nothing_is_left()


def test_auto_falls_back_to_the_calibration_where_qdq_does_not_build(
    bundle: Path, fakes: Fakes
) -> None:
    answer = fakes.build(bundle, FAKE_TENSORRT_FAIL="build-qdq")
    assert answer["method"] == "entropy"
    assert "a FAKE builder's reason" in answer["remarks"][0]
    # asked for by name there is no other way
    answer = fakes.build(bundle, "--method", "qdq", code=5, FAKE_TENSORRT_FAIL="build-qdq")
    assert "a FAKE builder's reason" in answer["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("elsewhere", "said"),
    [
        ({"FAKE_TENSORRT_VERSION": "10.13.3"}, "built by TensorRT 10.3.0, here is 10.13.3"),
        ({"FAKE_CUDART_GPU": "FAKE Thor"}, "built on the GPU FAKE Orin, here is FAKE Thor"),
        ({"FAKE_CUDART_SM": "11.0"}, "built on the compute capability 8.7, here is 11.0"),
    ],
)
def test_an_engine_of_another_device_is_explained(
    bundle: Path, fakes: Fakes, elsewhere: dict[str, str], said: str
) -> None:
    fakes.build(bundle)
    answer = fakes.run("-m", "edgekit", "bench", str(bundle), "--json", code=4, **elsewhere)
    assert said in answer["error"] and "build" in answer["hint"]


@pytest.mark.slow
def test_an_engine_that_changed_or_was_not_built_is_told(bundle: Path, fakes: Fakes) -> None:
    answer = fakes.run("-m", "edgekit", "bench", str(bundle), "--json", code=4)
    assert "not been built yet" in answer["error"]
    # verify says so without failing: everything else holds
    answer = fakes.run("-m", "edgekit", "verify", str(bundle), "--json")
    checks = {check["name"]: check for check in answer["checks"]}
    assert checks["golden outputs (tensorrt)"]["skipped"]
    fakes.build(bundle)
    with (bundle / "built" / "tensorrt.engine").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\0")
    answer = fakes.run("-m", "edgekit", "bench", str(bundle), "--json", code=8)
    assert "has changed since it was built" in answer["error"]
    fakes.run("-m", "edgekit", "verify", str(bundle), "--json", code=9)


@pytest.mark.slow
def test_no_device_no_memory_and_no_tensorrt_are_clear(bundle: Path, fakes: Fakes) -> None:
    assert "no device" in fakes.build(bundle, code=3, FAKE_CUDART_DEVICES="0")["error"]
    assert "out of memory" in fakes.build(bundle, code=5, FAKE_CUDART_LIMIT="100")["error"]
    answer = fakes.build(bundle, code=3, PYTHONPATH=str(ROOT))
    assert "tensorrt is not installed" in answer["error"] and "on the board" in answer["hint"]
    answer = fakes.build(bundle, code=3, EDGEKIT_CUDART="/nowhere.so")
    assert "libcudart" in answer["error"]
    assert "EDGEKIT_CUDA" in fakes.build(bundle, code=3, EDGEKIT_CUDA="vulkan")["error"]


def test_a_float16_bundle_builds_on_every_version(
    made: Bundles, tmp_path: Path, fakes: Fakes
) -> None:
    bundle = Path(shutil.copytree(made["cuda-fp16"], tmp_path / "bundle"))
    for version, source, flags in (
        ("8.5.2", "model.onnx", ["FP16"]),
        ("11.4.0", "model_fp16.onnx", ["STRONGLY_TYPED"]),
    ):
        answer = fakes.build(bundle, FAKE_TENSORRT_VERSION=version)
        assert (answer["method"], answer["flags"]) == ("float", flags)
        assert list(_sidecar(bundle)["from"]) == [f"tensorrt/{source}"]
    answer = fakes.build(bundle, "--method", "qdq", code=4)
    assert "no INT8 model" in answer["error"]


def test_trtexecs_command_line(bundle: Path, fakes: Fakes) -> None:
    lines = fakes.build(bundle, "--trtexec", PYTHONPATH=str(ROOT))["trtexec"]
    assert list(lines) == ["TensorRT 8.5 to 8.6", "TensorRT 10", "TensorRT 11"]
    assert {"--int8", "--fp16", "--onnx=tensorrt/model_qdq_fp32.onnx"} <= set(
        lines["TensorRT 8.5 to 8.6"]
    )
    newest = lines["TensorRT 11"]
    assert "--onnx=tensorrt/model_qdq_fp16.onnx" in newest
    assert not {"--int8", "--fp16", "--stronglyTyped"} & set(newest)
    lines = fakes.build(bundle, "--trtexec", "--method", "entropy", "--dla", "0")["trtexec"]
    assert "--calib=tensorrt/calibration_entropy.cache" in lines["TensorRT 10.3.0"]
    assert "--useDLACore=0" in lines["TensorRT 10.3.0"]
    assert not (bundle / "built").exists()


def test_a_bundle_of_another_runtime_is_not_built(
    bundle: Path, fakes: Fakes, tmp_path: Path
) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["models"] = manifest["models"][1:]
    path.write_text(json.dumps(manifest))
    assert fakes.build(bundle)["nothing_to_build"]


@pytest.mark.slow
def test_float16_inputs_are_fed_from_float32(made: Bundles, tmp_path: Path, fakes: Fakes) -> None:
    bundle = Path(shutil.copytree(made["half-io"], tmp_path / "bundle"))
    model = onnx.load(str(bundle / "tensorrt" / "model_qdq_fp16.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    built = fakes.device(bundle, "build", FAKE_TENSORRT_VERSION="11.4.0")
    assert built["method"] == "qdq"
    verified = fakes.device(bundle, "verify", FAKE_TENSORRT_VERSION="11.4.0")
    assert verified["ok"], verified


@pytest.mark.slow
def test_a_free_batch_gets_a_profile(made: Bundles, tmp_path: Path, fakes: Fakes) -> None:
    bundle = Path(shutil.copytree(made["free"], tmp_path / "bundle"))
    fakes.build(bundle, "--max-batch", "8")
    shapes = [[1, 3, 32, 32], [1, 3, 32, 32], [8, 3, 32, 32]]
    assert _head(bundle)["profiles"] == [{"x": shapes}]
    assert fakes.device(bundle, "verify")["ok"]


def test_without_tensorrt_the_graph_behind_the_engine_can_be_run(
    bundle: Path, fakes: Fakes
) -> None:
    answer = fakes.run(
        "-m", "edgekit", "bench", str(bundle), "--json", code=3, PYTHONPATH=str(ROOT)
    )
    assert "--runtime onnxruntime" in answer["hint"]
