"""What this machine has, what each target lacks here, and what does not work together."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edgekit import __version__, cpu
from edgekit.cpu import Cpu
from edgekit.require import install_line, satisfies, version_of
from edgekit.stages.known_bad import Installed, Problem, problems
from edgekit.target import TargetProfile
from edgekit.target_files import list_targets, load_target
from edgekit.types import Progress, no_progress

RUNTIME_TITLES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "ncnn": "ncnn"}
# runtimes: they run models; the others make or read them
RUNTIMES = ("onnxruntime", "ncnn", "tensorrt", "torch")
PACKAGES = (
    "numpy", "cv2", "onnx", "onnx_ir", "onnxsim", "onnxslim", "onnxscript", "pnnx", "ultralytics",
    "safetensors", "faster_coco_eval", "pycuda",
)  # fmt: skip
# what every target needs on the host that prepares it, and what a runtime's builder needs besides
_CORE = ("numpy", "cv2", "onnx", "onnx_ir", "onnxruntime")
_BUILDER_NEEDS: dict[str, tuple[str, ...]] = {"ncnn": ("ncnn", "pnnx")}
# importing these is harmless and tells most: native libraries that may be missing or not fit.
# ultralytics is not among them, because its import writes files into the home folder
_PROBED = ("onnxruntime", "ncnn", "tensorrt", "torch", "numpy", "cv2", "onnx")
_PROBE_LIMIT_S = 120.0
# each probe imports what the parent would: `-m` would look into the working directory first
_IMPORT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2])"
)
_NEWEST_IR = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import onnx, onnxruntime
value = onnx.helper.make_tensor_value_info
graph = onnx.helper.make_graph(
    [onnx.helper.make_node("Relu", ["x"], ["y"])], "probe",
    [value("x", onnx.TensorProto.FLOAT, [1])], [value("y", onnx.TensorProto.FLOAT, [1])])
model = onnx.helper.make_model(
    graph, ir_version=onnx.IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", 17)])
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


@dataclass(frozen=True, kw_only=True)
class Package:
    """An installed package, or one that could be. `imports` None: not tried; `detail`: why not."""

    version: str | None
    imports: bool | None
    detail: str
    install: str

    @property
    def usable(self) -> bool:
        return self.version is not None and self.imports is not False


@dataclass(frozen=True, kw_only=True)
class TargetState:
    """Whether this machine can prepare bundles for a target.

    `missing` says what is not there, `install` the commands that bring it. `runs_here`: whether
    this machine's CPU can also run what is built; `remark` says why not.
    """

    ready: bool
    missing: tuple[str, ...]
    install: tuple[str, ...]
    runs_here: bool
    remark: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The doctor's answer; the keys of `edgekit doctor --json`."""

    edgekit: str
    python: str
    executable: str
    platform: str
    cpu: Cpu
    runtimes: dict[str, Package]
    packages: dict[str, Package]
    targets: dict[str, TargetState]
    problems: tuple[Problem, ...]


def examine(*, probe: bool = True, progress: Progress = no_progress) -> Diagnosis:
    """Look at Python, the CPU, the installed packages and every target.

    `probe` imports each native package in a process of its own, which finds libraries that are
    missing or do not fit; without it only the packages' metadata is read.
    """
    names = (*RUNTIMES, *PACKAGES)
    versions = {name: version_of(name) for name in names}
    tried = [name for name in _PROBED if versions[name] is not None] if probe else []
    failures = _probe_all(tried, progress)
    packages = {
        name: Package(
            version=versions[name],
            imports=None if name not in tried else name not in failures,
            detail=failures.get(name, ""),
            install=install_line(name),
        )
        for name in names
    }
    at_hand = cpu.detect()
    found = problems(Installed())
    if {"onnx", "onnxruntime"} <= set(tried) - set(failures):
        found += _newest_ir(versions["onnx"] or "", versions["onnxruntime"] or "")
    targets = {name: target_state(load_target(name), packages, at_hand) for name in list_targets()}
    return Diagnosis(
        edgekit=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        cpu=at_hand,
        runtimes={name: packages[name] for name in RUNTIMES},
        packages={name: packages[name] for name in PACKAGES},
        targets=targets,
        problems=tuple(found),
    )


def missing_part(profile: TargetProfile, builders: Mapping[str, str] | None = None) -> str | None:
    """Which part of edgekit the target needs and this version lacks, in words; None when none.

    `builders` maps runtimes to modules; None takes edgekit.builders.BUILDERS.
    """
    if builders is None:
        from edgekit.builders import BUILDERS

        builders = BUILDERS
    name = profile.runtime.name
    module = builders.get(name)
    if module is not None and importlib.util.find_spec(module) is not None:
        return None
    return f"the {RUNTIME_TITLES[name]} builder is not part of this version"


def target_state(
    profile: TargetProfile,
    packages: Mapping[str, Package],
    at_hand: Cpu,
    builders: Mapping[str, str] | None = None,
) -> TargetState:
    """What `profile` lacks on a machine with these packages and this CPU."""
    missing: list[str] = []
    install: dict[str, None] = {}
    part = missing_part(profile, builders)
    if part:
        missing.append(part)
    runtime = profile.runtime.name
    for name in (*_CORE, *_BUILDER_NEEDS.get(runtime, ())):
        package = packages[name]
        if package.version is None:
            missing.append(f"{name} is not installed")
        elif not package.usable:
            missing.append(f"{name} {package.version} does not import: {package.detail}")
        elif name == runtime and not satisfies(package.version, profile.runtime.versions):
            missing.append(
                f"{name} {package.version} is installed, {profile.runtime.versions} is needed"
            )
        else:
            continue
        install.setdefault(package.install)
    remark = profile.why_not_on(at_hand)
    if not remark and not packages[runtime].usable:
        remark = f"this machine has no {RUNTIME_TITLES[runtime]} to run it"
    return TargetState(
        ready=not missing,
        missing=tuple(missing),
        install=tuple(install),
        runs_here=not remark,
        remark=remark,
    )


def _child(code: str, *arguments: str) -> str:
    """Run Python code in a process of its own; what went wrong, "" when nothing did."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(sys.path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PROBE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {_PROBE_LIMIT_S:.0f} s"
    if done.returncode < 0:
        return f"it crashed with signal {-done.returncode}"
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {done.returncode}"
    return ""


def _probe_all(names: list[str], progress: Progress) -> dict[str, str]:
    """Import each of `names` in its own process; the error of those that fail."""
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=cpu.available_cores()) as pool:
        for done, (name, failure) in enumerate(
            zip(names, pool.map(lambda name: _child(_IMPORT, name), names), strict=True), start=1
        ):
            progress(done, len(names), "importing the installed packages")
            if failure:
                failures[name] = failure
    return failures


def _newest_ir(onnx_version: str, runtime_version: str) -> list[Problem]:
    """Whether ONNX Runtime refuses the newest file version that the installed onnx writes."""
    failure = _child(_NEWEST_IR)
    if "IR version" not in failure:
        return []
    detail = failure[failure.index("IR version") :].rstrip(".")
    return [
        Problem(
            what=f"onnx {onnx_version} writes newer files than onnxruntime {runtime_version} reads "
            f"({detail}): models that other tools save with it may not load.",
            fix="pip install -U onnxruntime, or lower the model's ir_version before saving it",
            source="https://github.com/microsoft/onnxruntime/issues/23602",
        )
    ]
