"""Verifying a bundle against itself, and one model against another.

Every check is made and reported, also after one has failed. A bundle's hashes show that nothing was
changed by accident; the other checks would still tell if somebody had set the hashes right as well.
What they cannot tell is who made the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import integrity
from edgekit import manifest as manifests
from edgekit.block import Block, whole
from edgekit.contents import chain_problem
from edgekit.cpu import detect
from edgekit.errors import (
    BadInput,
    EdgekitError,
    MissingDependency,
    NotPossible,
    VerificationFailed,
)
from edgekit.golden import read_image, read_npy
from edgekit.manifest import MANIFEST, PREPROCESS, SUMS, Manifest, ModelEntry, read_manifest
from edgekit.manifest_json import cpu_text
from edgekit.onnx_file import read_contract
from edgekit.preprocess import METADATA_KEY, Preprocess
from edgekit.require import version_of
from edgekit.runtimes import RUNTIMES, open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.stages.diagnose import explain, within_grey_levels
from edgekit.stages.parity import ParityLimits, ParityMeter
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: what was looked at, whether it holds, and what was found.

    `skipped` marks a check that could not be made here (a runtime that is not installed); it counts
    as ok, and `detail` says why.
    """

    name: str
    ok: bool
    detail: str
    skipped: bool = False


def all_ok(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.ok for check in checks)


def demand(checks: Sequence[Check], what: Path) -> None:
    """Raise VerificationFailed, naming every failed check, when one failed."""
    failed = [check for check in checks if not check.ok]
    if failed:
        lines = "".join(f"\n  {check.name}: {check.detail}" for check in failed)
        raise VerificationFailed(
            f"{what} does not verify; {len(failed)} of {len(checks)} checks failed:{lines}",
            hint="Copy the bundle again, or export it again.",
        )


def verify_bundle(path: Path, progress: Progress = no_progress) -> list[Check]:
    """Check the bundle at `path`: hashes, contents against each other, golden inputs and outputs.

    Nothing is raised for a damaged bundle: each problem is a failed check. Raises BadInput only when
    `path` does not exist or is no bundle at all.
    """
    path = Path(path)
    if not manifests.is_bundle(path):
        read_manifest(path)  # says what is missing
    steps: list[tuple[str, Callable[[Manifest], list[Check]]]] = [
        (SUMS, _check_sums),
        ("files", _check_files),
        ("unlisted files", _check_unlisted),
        (f"{manifests.BUILT}/", _check_built),
        ("chain", _check_chain),
        ("preprocessing", _check_preprocessing),
        ("golden inputs", _check_golden_inputs),
        ("golden outputs", _check_golden_outputs),
    ]
    try:
        manifest = read_manifest(path)
    except BadInput as error:
        return [Check(name="manifest", ok=False, detail=error.message)]
    checks = [Check(name="manifest", ok=True, detail=f"schema {manifests.SCHEMA}")]
    for number, (name, step) in enumerate(steps):
        progress(number, len(steps), "verify")
        try:
            checks += step(manifest)
        except EdgekitError as error:
            checks.append(Check(name=name, ok=False, detail=error.message))
    progress(len(steps), len(steps), "verify")
    return checks


def _check_sums(manifest: Manifest) -> list[Check]:
    problem = integrity.sums_problem(manifest)
    return [Check(name=SUMS, ok=problem is None, detail=problem or "is that of the manifest")]


def _check_files(manifest: Manifest) -> list[Check]:
    problems = [
        Check(name=f"file {name}", ok=False, detail=f"{name} {problem}")
        for name in manifest.files
        for problem in [integrity.file_problem(manifest, name)]
        if problem is not None
    ]
    size_mb = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
    detail = f"{len(manifest.files)} files, {size_mb:.1f} MB, all as they were written"
    return problems or [Check(name="files", ok=True, detail=detail)]


def _check_unlisted(manifest: Manifest) -> list[Check]:
    names = integrity.unlisted(manifest)
    detail = "nothing but what the manifest lists"
    if names:
        detail = f"not in the manifest: {', '.join(names[:5])}" + (" …" if names[5:] else "")
    return [Check(name="unlisted files", ok=not names, detail=detail)]


def _check_built(manifest: Manifest) -> list[Check]:
    """What the board made must be what its sidecars say, and made from this bundle's files."""
    from edgekit.board import built
    from edgekit.board.manifest import read_manifest as read_on_board

    folder = manifest.folder / manifests.BUILT
    if not folder.exists() and not folder.is_symlink():
        return []
    found = built.problems(read_on_board(manifest.folder))
    detail = "; ".join(found[:5]) + (" …" if found[5:] else "")
    detail = detail or "what was made on the board is as it was made"
    return [Check(name=f"{manifests.BUILT}/", ok=not found, detail=detail)]


def _check_chain(manifest: Manifest) -> list[Check]:
    """The chain must lead from the checkpoint to the model."""
    try:
        checkpoint = str(manifest.raw["checkpoint"]["sha256"])
        steps = [
            (str(step["name"]), tuple(step["input_sha256"]), tuple(step["output_sha256"]))
            for step in manifest.raw["chain"]
        ]
    except (KeyError, TypeError) as error:
        return [Check(name="chain", ok=False, detail=f"{MANIFEST}: the chain lacks {error}")]
    main = manifest.files[manifest.models[0].files[0]]
    problem = chain_problem(checkpoint, steps, main.sha256)
    detail = problem or " → ".join(["checkpoint", *(name for name, _, _ in steps)])
    return [Check(name="chain", ok=problem is None, detail=detail)]


def _differences(one: Preprocess, other: Preprocess) -> str:
    """The fields in which two contracts differ: "color bgr, not rgb"."""
    ours, theirs = one.to_dict(), other.to_dict()
    return ", ".join(
        f"{name} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name]
    )


def _check_preprocessing(manifest: Manifest) -> list[Check]:
    """preprocess.json, the manifest and the metadata of every ONNX file must say the same."""
    sources: dict[str, Callable[[], Preprocess | None]] = {
        PREPROCESS: lambda: Preprocess.from_json(_text(manifest.path(PREPROCESS)), PREPROCESS)
    }
    for model in manifest.models:
        name = model.files[0]
        if name.endswith(".onnx"):
            sources[name] = lambda name=name: _metadata_contract(manifest.path(name))  # type: ignore[misc]
    checks = []
    for name, read in sources.items():
        try:
            found = read()
        except EdgekitError as error:
            detail, ok = error.message, False
        else:
            if found is None:
                detail, ok = f"{name} has no metadata {METADATA_KEY}", False
            else:
                detail = _differences(manifest.preprocess, found)
                ok = not detail
                detail = f"against the manifest: {detail}" if detail else "as in the manifest"
        checks.append(Check(name=f"preprocessing in {name}", ok=ok, detail=detail))
    return checks


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}.") from error


def _metadata_contract(path: Path) -> Preprocess | None:
    from edgekit.onnx_file import describe

    return read_contract(describe(path))


def _check_golden_inputs(manifest: Manifest) -> list[Check]:
    """Each golden input must be the contract applied to its image, bit for bit.

    On another CPU architecture than the one that wrote it a resize may round one grey level
    otherwise; nothing more is let through there.
    """
    checks = []
    same_architecture = manifest.golden.cpu.split(" ")[0] == detect().arch
    for sample in manifest.golden.samples:
        try:
            image = read_image(manifest.path(sample.image))
            tensor = read_npy(manifest.path(sample.input))
            problem = explain(image, tensor, manifest.preprocess)
        except EdgekitError as error:
            problem = error.message
        else:
            if (
                problem
                and not same_architecture
                and within_grey_levels(image, tensor, manifest.preprocess, 1.0)
            ):
                problem = ""
        detail = f"{sample.input} is not {sample.image} preprocessed: {problem}"
        checks.append(
            Check(
                name=f"golden input {sample.input.split('/')[1]}",
                ok=not problem,
                detail=detail if problem else "the contract applied to its image gives it",
            )
        )
    if not checks:
        checks.append(Check(name="golden input", ok=False, detail="there is no golden sample"))
    return checks


def _check_golden_outputs(manifest: Manifest) -> list[Check]:
    """Every model of the main precision, and the one that made them, must reproduce the golden outputs."""
    main = manifest.models[0]
    entries = [
        entry
        for entry in manifest.models
        if entry.precision == main.precision or entry.runtime == manifest.golden.runtime
    ]
    return [_reproduce(manifest, entry) for entry in entries]


def _reproduce(manifest: Manifest, entry: ModelEntry) -> Check:
    name = f"golden outputs ({entry.runtime})"
    if entry.runtime not in RUNTIMES:
        return Check(
            name=name,
            ok=True,
            skipped=True,
            detail=f"not checked: {entry.runtime} does not run here; the device program checks it",
        )
    for file in entry.files:
        problem = integrity.file_problem(manifest, file)
        if problem is not None:  # a damaged model is not given to a runtime
            return Check(name=name, ok=False, detail=f"not run: {file} {problem}")
    golden = manifest.golden
    version = version_of(entry.runtime) or "unknown"
    cpu = detect()
    same = (entry.runtime, version, cpu_text(cpu.arch, cpu.isa)) == (
        golden.runtime,
        golden.runtime_version,
        golden.cpu,
    )
    limits = golden.same if same else golden.other
    try:
        report = _measure(manifest, entry)
    except (MissingDependency, NotPossible) as error:
        detail = f"not checked: {error.message}"
        return Check(name=name, ok=True, skipped=True, detail=detail)
    except EdgekitError as error:
        return Check(name=name, ok=False, detail=error.message)
    rules = ParityLimits(max_rel_error=limits.max_rel_error, min_cosine=limits.min_cosine)
    broken = [
        f"block '{block.name}' has {problem}"
        for block in report.blocks
        for problem in [rules.problem(block)]
        if problem is not None
    ]
    if broken:
        where = "" if same else _elsewhere(entry, golden.cpu, golden.runtime_version, version)
        return Check(name=name, ok=False, detail="; ".join(broken[:3]) + where)
    kind = "same CPU kind and runtime version" if same else "another CPU or runtime version"
    return Check(
        name=name,
        ok=True,
        detail=f"{report.samples} samples, max_rel_error {report.max_rel_error:.1e} "
        f"(limit {limits.max_rel_error:g}, {kind})",
    )


def _elsewhere(entry: ModelEntry, golden_cpu: str, golden_version: str, version: str) -> str:
    """What may lie behind a difference between two machines."""
    cpu = detect()
    text = f". Made with {entry.runtime} {golden_version} on {golden_cpu or 'an unknown CPU'}"
    text += f"; here {version} on {cpu_text(cpu.arch, cpu.isa)}."
    if "int8" in entry.precision and cpu.arch == "x86_64" and not cpu.has_vnni:
        text += (
            " This CPU has no VNNI: 8-bit weights saturate on it. Export for it with 7-bit weights"
            " (reduce_range)."
        )
    return text


def _measure(manifest: Manifest, entry: ModelEntry) -> Any:
    """Run `entry` on the golden inputs; parity of its outputs with the golden ones."""
    import numpy as np

    samples = manifest.golden.samples
    outputs = [name for name, _ in samples[0].outputs] if samples else []
    named = {block.output for block in manifest.golden.blocks}
    blocks: tuple[Block, ...] = (
        *(block for block in manifest.golden.blocks if block.output in outputs),
        *whole([name for name in outputs if name not in named]),
    )
    if not blocks:
        raise VerificationFailed("There is no golden output.")
    meter = ParityMeter(blocks)
    files = [manifest.path(file) for file in entry.files]
    with open_session(entry.runtime, files, SessionOptions(threads=1)) as session:
        if len(session.inputs) != 1:
            raise VerificationFailed(f"The model has {len(session.inputs)} inputs, not one.")
        for sample in samples:
            expected = {name: read_npy(manifest.path(file)) for name, file in sample.outputs}
            feeds = {session.inputs[0].name: read_npy(manifest.path(sample.input))}
            found = {name: a.astype(np.float32) for name, a in session.run(feeds).items()}
            try:
                meter.add(expected, found)
            except ValueError as error:
                raise VerificationFailed(f"{MANIFEST}: {error}.") from error
    return meter.report()
