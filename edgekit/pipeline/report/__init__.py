"""The report of a bundle: what its manifest says, and what can be worked out from its files.

The float model is not in a bundle. It is taken from the stage cache of the machine that made it, where
it lies under the hash that the manifest names, or from the caller; without it the page has no losses
and shows the bundle's own answers alone, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.atomic import sha256_file, write_text
from edgekit.cache import StageCache
from edgekit.errors import BadInput, EdgekitError, VerificationFailed
from edgekit.golden import read_npy
from edgekit.integrity import file_problem
from edgekit.manifest import Manifest, read_manifest
from edgekit.pipeline.float_model import find_float_model, float_sha256
from edgekit.pipeline.profile import layer_losses
from edgekit.pipeline.report import evidence, written
from edgekit.pipeline.report.raw import number, part, text, texts
from edgekit.report.bundle_report import BundleReport
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["build", "write"]

_NO_FLOAT = (
    "The float model is not in a bundle and was not found in the stage cache of this machine, so "
    "losses against it and its boxes are not shown. Name it with --float."
)


def write(
    bundle: Path,
    out: Path,
    *,
    float_model: Path | None = None,
    progress: Progress = no_progress,
) -> BundleReport:
    """Write the report page of the bundle to `out` (HTML), atomically; see `build`.

    Raises BadInput when `out` lies in the bundle, which would not verify any more.
    """
    from edgekit.report.bundle_page import render

    if out.resolve().is_relative_to(bundle.resolve()):
        raise BadInput(
            f"{out} lies in the bundle, whose files are all listed and hashed.",
            hint="Write the report beside it.",
        )
    report = build(bundle, float_model=float_model, progress=progress)
    write_text(out, render(report))
    return report


def build(
    bundle: Path, *, float_model: Path | None = None, progress: Progress = no_progress
) -> BundleReport:
    """Gather everything that the page of the bundle shows.

    The model is run on the golden samples where its runtime is ONNX Runtime or ncnn. Raises BadInput for
    what is no bundle, VerificationFailed when a file that is read is not as it was written, or when
    `float_model` is not the one that the bundle was made of.
    """
    manifest = read_manifest(bundle)
    raw = manifest.raw
    _demand_files(manifest)
    with StageCache() as cache:
        plain = _float(manifest, float_model, cache)
        figures, classes, images = written.accuracy(raw)
        sizes = _sizes(manifest, plain)
        found = _evidence(manifest, plain, progress)
    details = part(raw, "details")
    blamed = texts(details, "quantization", "slower_in_int8")
    warnings = [text(details, "warning")] if text(details, "warning") else []
    warnings += [f"Slower in INT8: {line}." for line in blamed]
    return BundleReport(
        name=manifest.name,
        verdict=manifest.verdict,
        tone=written.tone(raw),
        target=manifest.target,
        created=text(raw, "created_utc"),
        edgekit=manifest.edgekit,
        precision=manifest.models[0].precision,
        metric=text(raw, "accuracy", "metric"),
        images=images,
        tiles=written.tiles(manifest, sizes),
        stages=written.stages(raw),
        latency=written.latency(raw),
        latency_note=written.latency_note(raw),
        accuracy=figures,
        classes=classes,
        files=written.files(manifest),
        sizes=sizes,
        facts=written.facts(manifest),
        warnings=tuple(warnings),
        **found,
    )


def _demand_files(manifest: Manifest) -> None:
    for name in manifest.files:
        problem = file_problem(manifest, name)
        if problem is not None:
            raise VerificationFailed(
                f"{manifest.folder}: {name} {problem}.",
                hint="`edgekit verify` checks the whole bundle; copy it again, or export it again.",
            )


def _float(manifest: Manifest, given: Path | None, cache: StageCache) -> Path | None:
    """The float model; one that the user names must be the one of the chain."""
    if given is None:
        return find_float_model(manifest, cache)
    if not given.is_file():
        raise BadInput(f"The float model {given} does not exist.")
    wanted = float_sha256(manifest)
    if wanted is not None and sha256_file(given) != wanted[1]:
        raise VerificationFailed(
            f"{given} is not the float model that {manifest.name} was made of.",
            hint=f"The chain names the one with sha256 {wanted[1][:16]}… (step {wanted[0]}).",
        )
    return given


def _sizes(manifest: Manifest, plain: Path | None) -> tuple[tuple[str, float], ...]:
    """Name and size in MB of the float model, where known, and of what the bundle carries."""
    main = manifest.models[0]
    carried = sum(manifest.files[name].size_bytes for name in main.files) / 1e6
    name = f"{main.precision.upper()} ({main.runtime})"
    if plain is None or main.precision != "int8":
        return ((name, carried),)
    if plain.suffix == ".json":
        whole = sum(file.stat().st_size for file in plain.parent.glob("model.*"))
        return (("FP32 (ncnn)", whole / 1e6), (name, carried))
    return (("FP32 (ONNX)", plain.stat().st_size / 1e6), (name, carried))


def _evidence(manifest: Manifest, plain: Path | None, progress: Progress) -> dict[str, Any]:
    """The parts that are worked out anew, as fields of the report; what fails becomes a sentence."""
    found: dict[str, Any] = {}
    missing: list[str] = []
    entry = manifest.models[0]
    is_int8 = entry.precision == "int8"
    if is_int8 and plain is None:
        missing.append(_NO_FLOAT)
    loss: dict[str, float] = {}
    model = manifest.path(entry.files[0])
    if entry.runtime in ("onnxruntime", "ncnn"):
        inputs = [read_npy(manifest.path(sample.input)) for sample in manifest.golden.samples]
        try:
            if is_int8 and plain is not None:
                loss = layer_losses(entry.runtime, plain, model, inputs, progress=progress)
            found |= _layers(
                entry.runtime, model, plain if is_int8 else None, inputs, loss, progress
            )
        except EdgekitError as error:
            missing.append(f"Layers could not be looked at: {error.message}")
    else:
        missing.append(f"Layers cannot be timed here: this model runs on {entry.runtime}.")
    if is_int8 and model.suffix == ".onnx":
        try:
            found["tensors"], found["tensors_total"] = evidence.tensors(manifest, model, loss)
        except EdgekitError as error:
            missing.append(f"Activations could not be looked at: {error.message}")
    elif is_int8:
        missing.append(f"Activations are drawn for ONNX models only; this runs on {entry.runtime}.")
    try:
        found["samples"] = evidence.samples(manifest, plain)
    except EdgekitError as error:
        missing.append(f"Samples could not be decoded: {error.message}")
    if number(manifest.raw, "accuracy", "float") is None:
        missing.append("Accuracy was not measured: the export was given no labelled data (--data).")
    found["missing"] = tuple(missing)
    return found


def _layers(
    runtime: str,
    model: Path,
    plain: Path | None,
    inputs: list[NDArray[Any]],
    loss: dict[str, float],
    progress: Progress,
) -> dict[str, Any]:
    carried, other = evidence.profiles(runtime, model, plain, inputs, progress)
    way = "layer by layer in ncnn" if runtime == "ncnn" else "under ONNX Runtime's profiler"
    note = f"Median of {carried.runs} runs {way}, one thread"
    if loss:
        note += "; SQNR of each layer's output against the float model on the golden samples"
    return {
        "layers": evidence.layers(carried, other, loss),
        "layers_total": len(carried.layers),
        "layers_note": note + ".",
        "operators": evidence.operators(carried.operators),
        "float_operators": evidence.operators(other.operators) if other is not None else (),
    }
