"""TensorRT on the board: engines are built from the bundle's graphs, and run.

A driver as edgekit.board.session says, for TensorRT 8.5 to 11 through its Python package. What an
engine is tied to stands in its sidecar (edgekit.board.built), and is compared before TensorRT sees the
file: its own message for a foreign engine is a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from edgekit.board import VERSION, built
from edgekit.board.errors import BadInput, BuildFailed, DeviceError, MissingDependency, NotPossible
from edgekit.board.manifest import BUILT, Manifest
from edgekit.board.npy import read_npy
from edgekit.board.session import Availability, BuildOptions, Progress, SessionOptions
from edgekit.board.trt import plan as plans
from edgekit.board.trt import trtexec
from edgekit.board.trt.builder import Built, build_engine
from edgekit.board.trt.cuda import Cuda
from edgekit.board.trt.cuda_routes import open_cuda
from edgekit.board.trt.engine import EngineSession
from edgekit.board.trt.features import Features, features, load

NAME = "tensorrt"
ENGINE, LAYERS, TIMING = "tensorrt.engine", "tensorrt.layers", "tensorrt.timing"
"""Files in built/: the engine, the inspector's report of its layers (JSON text), the timing cache."""

_WARMUP_RUNS, _TIMED_RUNS = 10, 30
_TIED_TO = ("gpu", "compute_capability")


def available() -> Availability:
    """Whether TensorRT loads and a GPU is there; `facts` tell which, and through what."""
    try:
        trt = load()
    except MissingDependency as error:
        return Availability(ok=False, why=error.message.rstrip("."))
    version = str(trt.__version__)
    try:
        cuda = open_cuda()
    except DeviceError as error:
        return Availability(ok=False, version=version, why=error.message.rstrip("."))
    try:
        facts = cuda.facts()
    except DeviceError as error:
        return Availability(ok=False, version=version, why=error.message.rstrip("."))
    finally:
        cuda.close()
    return Availability(ok=True, version=version, facts=facts)


def trtexec_commands(manifest: Manifest, options: BuildOptions) -> dict[str, list[str]]:
    """trtexec's arguments for the build that `build` would do here, by the name of the TensorRT.

    Without one, for every kind that there is; a kind that lacks the way asked for is left out. Raises
    NotPossible where none has it.
    """
    roles = plans.files_by_role(manifest)["files"]
    try:
        have = features(load())
        kinds = {f"TensorRT {have.version}": have}
    except MissingDependency:
        kinds = dict(KINDS)
    lines = {}
    refusal: NotPossible | None = None
    for name, have in kinds.items():
        try:
            chosen = plans.choose(roles, have, options)
        except NotPossible as error:
            refusal = error
            continue
        lines[name] = trtexec.command(chosen, have, options, f"{BUILT}/{ENGINE}")
    if not lines and refusal is not None:
        raise refusal
    return lines


KINDS = {
    "TensorRT 8.5 to 8.6": Features("8", True, True, True, True, False),
    "TensorRT 10": Features("10", True, True, True, True, True),
    "TensorRT 11": Features("11", False, False, False, False, True),
}
"""What each kind of TensorRT can do, for those who ask without having one."""


def build(
    folder: Path, manifest: Manifest, options: BuildOptions, progress: Progress
) -> dict[str, Any]:
    """Build the bundle's engine into built/, with its sidecar, layer report and timing cache.

    An engine that is there and fits (this bundle, this TensorRT, this device, these options) is kept
    unless `options.force`. With `options.show_trtexec` nothing is built. Returns what the engine is,
    JSON values. Raises BuildFailed, NotPossible, MissingDependency, NoSpace.
    """
    trt = load()
    have = features(trt)
    details = plans.files_by_role(manifest)
    roles = details["files"]
    chosen = plans.choose(roles, have, options)
    command = trtexec.command(chosen, have, options, f"{BUILT}/{ENGINE}")
    if options.show_trtexec:
        return {"method": chosen.method, "trtexec": command, "built": None}
    cuda = open_cuda()
    try:
        device = cuda.facts()
        asked = _asked(options)
        if not options.force:
            kept = _kept(folder, manifest, trt, device, asked)
            if kept is not None:
                progress("the engine is there already: --force builds it again")
                return {**kept, "trtexec": command, "reused": True}
        remarks = []
        try:
            made = _built(trt, cuda, folder, manifest, details, chosen, options, progress)
        except BuildFailed as error:
            other = plans.fallback(chosen, roles, have, options)
            if other is None:
                raise
            remarks.append(f"{chosen.method} did not build: {error.message}")
            progress(f"{remarks[0]} Trying {other.method}.")
            chosen = other
            command = trtexec.command(chosen, have, options, f"{BUILT}/{ENGINE}")
            made = _built(trt, cuda, folder, manifest, details, chosen, options, progress)
        timing = _first_times(trt, cuda, manifest, made.engine, options)
    finally:
        cuda.close()
    made_from = [chosen.onnx, *([chosen.cache] if chosen.cache else [])]
    versions = {"tensorrt": str(trt.__version__), "edgekit": VERSION}

    def keep(name: str, data: bytes, **more: Any) -> None:
        built.add(
            manifest, name, data, made_from=made_from, device=device, versions=versions, **more
        )

    keep(LAYERS, made.layers.encode())
    if made.timing_cache:
        keep(TIMING, made.timing_cache)
    summary = {
        "method": chosen.method,
        "why": chosen.why,
        "flags": made.flags,
        "options": asked,
        "timing_ms": timing,
        "build_seconds": round(made.seconds, 1),
        "remarks": remarks,
        "warnings": made.warnings[-20:],
    }
    keep(ENGINE, made.engine, **summary)
    sidecar = built.read_sidecar(folder, ENGINE)
    return {**_summary(sidecar), "trtexec": command, "reused": False}


def _first_times(
    trt: Any, cuda: Cuda, manifest: Manifest, engine: bytes, options: BuildOptions
) -> dict[str, float]:
    """The engine run on a golden input right after its build: median milliseconds, four ways.

    An engine that builds but does not run is known now, and a first idea of its speed.
    """
    wanted = _wanted(manifest)
    session = EngineSession(
        trt,
        cuda,
        engine,
        wanted,
        dla=options.dla,
        version_compatible=options.version_compatible,
        owns_cuda=False,
    )
    try:
        sample = manifest.golden.samples[0]
        session.prepare({session.inputs[0]["name"]: read_npy(manifest.path(sample.input))})
        session.timings(_WARMUP_RUNS)
        return {name: round(ms, 4) for name, ms in session.device_ms(_TIMED_RUNS).items()}
    finally:
        session.close()


def _wanted(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """Inputs and outputs as the bundle gives them, by name."""
    model = next(model for model in manifest.models if model.runtime == NAME)
    return {spec["name"]: spec for spec in (*model.inputs, *model.outputs)}


def _asked(options: BuildOptions) -> dict[str, Any]:
    """The options that the engine depends on."""
    return {
        "method": options.method,
        "fp16": options.fp16,
        "workspace_mb": options.workspace_mb,
        "dla": options.dla,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "max_batch": options.max_batch,
    }


def _built(
    trt: Any,
    cuda: Cuda,
    folder: Path,
    manifest: Manifest,
    details: Mapping[str, Any],
    chosen: plans.Plan,
    options: BuildOptions,
    progress: Progress,
) -> Built:
    progress(f"{chosen.method} from {chosen.onnx} ({chosen.why})")
    cache = None if chosen.cache is None else manifest.path(chosen.cache).read_bytes()
    batches = [manifest.path(name) for name in details.get("batches", [])]
    timing = b""
    old = _sidecar_of(folder, TIMING)
    if old is not None and not mismatches(old, str(trt.__version__), cuda.facts()):
        timing = (folder / BUILT / TIMING).read_bytes()
    return build_engine(
        trt,
        chosen,
        manifest.path(chosen.onnx),
        options,
        progress,
        cache=cache,
        batches=batches,
        cuda=cuda,
        timing_cache=timing,
    )


def _sidecar_of(folder: Path, name: str) -> dict[str, Any] | None:
    """The sidecar of built/NAME, None where the file or its sidecar is not there or is broken."""
    try:
        sidecar = built.read_sidecar(folder, name)
    except BadInput:
        return None
    path = folder / BUILT / name
    return sidecar if path.is_file() and built.sha256_of(path) == sidecar["sha256"] else None


def _kept(
    folder: Path, manifest: Manifest, trt: Any, device: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What is there already, when it is what would be built."""
    sidecar = _sidecar_of(folder, ENGINE)
    if sidecar is None or sidecar.get("options") != dict(asked):
        return None
    if mismatches(sidecar, str(trt.__version__), device):
        return None
    made_from = sidecar.get("from", {})
    fresh = all(
        name in manifest.files and manifest.files[name].sha256 == digest
        for name, digest in made_from.items()
    )
    return _summary(sidecar) if fresh else None


def _summary(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "method",
        "why",
        "flags",
        "timing_ms",
        "build_seconds",
        "remarks",
        "warnings",
        "device",
        "versions",
    )
    return {
        "built": f"{BUILT}/{ENGINE}",
        "size": sidecar["size"],
        "sha256": sidecar["sha256"],
        **{key: sidecar.get(key) for key in keys},
    }


def mismatches(sidecar: Mapping[str, Any], version: str, device: Mapping[str, Any]) -> list[str]:
    """Why the file of `sidecar` is not for this TensorRT and this device, in words; nothing when it is."""
    found = []
    flags = sidecar.get("flags") or []
    theirs = sidecar.get("versions", {}).get("tensorrt")
    if theirs != version and "VERSION_COMPATIBLE" not in flags:
        found.append(f"it was built by TensorRT {theirs}, here is {version}")
    made_on = sidecar.get("device", {})
    if "AMPERE_PLUS" not in flags:
        for key in _TIED_TO:
            if made_on.get(key) != device.get(key):
                what = {"gpu": "GPU", "compute_capability": "compute capability"}[key]
                found.append(
                    f"it was built on the {what} {made_on.get(key)}, here is {device.get(key)}"
                )
    return found


def open_session(folder: Path, manifest: Manifest, options: SessionOptions) -> EngineSession:
    """Open the engine in built/.

    Raises NotPossible, saying why, where there is none or it is another device's or version's;
    BadInput where it is damaged or the bundle has changed since.
    """
    trt = load()
    path = folder / BUILT / ENGINE
    if not path.is_file():
        raise NotPossible(
            "The engine has not been built yet.", "On this device: edgekit-device.pyz build ."
        )
    sidecar = built.read_sidecar(folder, ENGINE)
    data = path.read_bytes()
    if built.sha256_of(path) != sidecar["sha256"]:
        raise BadInput(f"{BUILT}/{ENGINE} has changed since it was built.", "Build it again.")
    for name, digest in sidecar.get("from", {}).items():
        if name not in manifest.files or manifest.files[name].sha256 != digest:
            raise BadInput(f"{BUILT}/{ENGINE} was made from another {name}.", "Build it again.")
    cuda = open_cuda()
    try:
        device = cuda.facts()
        problems = mismatches(sidecar, str(trt.__version__), device)
        if problems:
            raise NotPossible(
                f"The engine does not fit this device: {'; '.join(problems)}.",
                "Engines hold for one TensorRT and one GPU. Build it here: edgekit-device.pyz build .",
            )
        asked = sidecar.get("options", {})
        return EngineSession(
            trt,
            cuda,
            data,
            _wanted(manifest),
            dla=asked.get("dla"),
            version_compatible="VERSION_COMPATIBLE" in (sidecar.get("flags") or []),
            graph=options.cuda_graph,
            facts={"method": sidecar.get("method"), "flags": sidecar.get("flags"), **device},
        )
    except BaseException:
        cuda.close()
        raise


def open_file(path: Path, options: SessionOptions) -> EngineSession:
    """Open a serialized engine that belongs to no bundle. NotPossible where TensorRT does not load it."""
    trt = load()
    cuda = open_cuda()
    try:
        return EngineSession(
            trt, cuda, path.read_bytes(), {}, graph=options.cuda_graph, facts=cuda.facts()
        )
    except BaseException:
        cuda.close()
        raise


def build_file(onnx: Path, options: BuildOptions, *, int8: bool, say: Progress) -> Built:
    """Build one ONNX file (float, or float32 QDQ with `int8`) for the GPU at hand."""
    trt = load()
    have = features(trt)
    roles = {"qdq_fp32" if int8 else "float": onnx.name}
    if int8 and not have.weak_int8:
        roles["qdq_fp16"] = onnx.name  # strongly typed: in the types that the file has
    if not int8 and not have.weak_fp16:
        roles["float_fp16"] = onnx.name
    return build_engine(trt, plans.choose(roles, have, options), onnx, options, say)
