"""`verify`: the bundle against itself, with the checks and the names of `edgekit verify`.

Every check is made and reported, also after one has failed.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable

from edgekit.board import built, drivers, integrity
from edgekit.board.compare import Comparison
from edgekit.board.contract import Contract, apply, is_resampled
from edgekit.board.cpu import detect
from edgekit.board.errors import (
    BadInput,
    DeviceError,
    MissingDependency,
    NotPossible,
    VerificationFailed,
)
from edgekit.board.manifest import (
    BUILT,
    MANIFEST,
    PREPROCESS,
    SCHEMA,
    SUMS,
    Block,
    Manifest,
    Model,
    Sample,
    read_manifest,
)
from edgekit.board.npy import read_npy
from edgekit.board.png import decode
from edgekit.board.process import WorkerProcess
from edgekit.board.session import Progress, SessionOptions

_MAX_IMAGE_BYTES = 256 << 20


@dataclass(frozen=True)
class Check:
    """One check; `skipped` marks one that could not be made here, which counts as ok."""

    name: str
    ok: bool
    detail: str
    skipped: bool = False


@dataclass(frozen=True)
class VerifyOptions:
    """`runtime` None: whatever here can run the bundle's main model."""

    runtime: str | None = None
    session: SessionOptions = field(default_factory=SessionOptions)
    timeout_s: float | None = 600.0


def verify(folder: Path, options: VerifyOptions, progress: Progress) -> dict[str, Any]:
    """The answer of `verify`: `ok`, `checks`, `runtime`. A damaged bundle raises nothing.

    Raises BadInput when `folder` is no bundle at all.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        read_manifest(folder)  # says what is missing
    try:
        manifest = read_manifest(folder)
    except BadInput as error:
        return _answer(folder, [Check("manifest", False, error.message)], None)
    checks = [Check("manifest", True, f"schema {SCHEMA}")]
    steps: list[tuple[str, Callable[[Manifest], list[Check]]]] = [
        (SUMS, _sums),
        ("files", _files),
        ("unlisted files", _unlisted),
        (f"{BUILT}/", _built),
        ("chain", _chain),
        ("preprocessing", _preprocessing),
        ("golden inputs", _golden_inputs),
    ]
    for name, step in steps:
        progress(f"checking {name}")
        try:
            checks += step(manifest)
        except DeviceError as error:
            checks.append(Check(name, False, error.message))
    progress("checking golden outputs")
    check, facts = _golden_outputs(manifest, options)
    return _answer(folder, [*checks, check], facts, manifest)


def _answer(
    folder: Path,
    checks: list[Check],
    runtime: dict[str, Any] | None,
    manifest: Manifest | None = None,
) -> dict[str, Any]:
    return {
        "bundle": manifest.name if manifest else folder.name,
        "ok": all(check.ok for check in checks),
        "unchecked": [check.name for check in checks if check.skipped],
        **(runtime or {"runtime": None, "runtime_facts": None, "model_precision": None}),
        "checks": [asdict(check) for check in checks],
    }


def _sums(manifest: Manifest) -> list[Check]:
    problem = integrity.sums_problem(manifest)
    return [Check(SUMS, problem is None, problem or "is that of the manifest")]


def _files(manifest: Manifest) -> list[Check]:
    problems = []
    for name in manifest.files:
        problem = integrity.file_problem(manifest, name)
        if problem is not None:
            problems.append(Check(f"file {name}", False, f"{name} {problem}"))
    size_mb = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
    detail = f"{len(manifest.files)} files, {size_mb:.1f} MB, all as they were written"
    return problems or [Check("files", True, detail)]


def _unlisted(manifest: Manifest) -> list[Check]:
    names = integrity.unlisted(manifest)
    detail = "nothing but what the manifest lists"
    if names:
        detail = f"not in the manifest: {', '.join(names[:5])}" + (" …" if names[5:] else "")
    return [Check("unlisted files", not names, detail)]


def _built(manifest: Manifest) -> list[Check]:
    if not (manifest.folder / BUILT).exists() and not (manifest.folder / BUILT).is_symlink():
        return []
    found = built.problems(manifest)
    detail = "; ".join(found[:5]) + (" …" if found[5:] else "")
    return [Check(f"{BUILT}/", not found, detail or "what was made here is as it was made")]


def _chain(manifest: Manifest) -> list[Check]:
    problem = integrity.chain_problem(manifest)
    names = ["checkpoint", *(str(step["name"]) for step in manifest.raw["chain"])]
    return [Check("chain", problem is None, problem or " → ".join(names))]


def _preprocessing(manifest: Manifest) -> list[Check]:
    """preprocess.json, the manifest and the metadata of every ONNX file must say the same."""
    names = [PREPROCESS, *(m.files[0] for m in manifest.models if m.files[0].endswith(".onnx"))]
    checks = []
    for name in names:
        path = manifest.path(name)
        try:
            if name == PREPROCESS:
                text: str | None = path.read_text(encoding="utf-8")
            else:
                text = integrity.onnx_metadata(path).get(integrity.METADATA_KEY)
            if text is None:
                detail, ok = f"{name} has no metadata {integrity.METADATA_KEY}", False
            else:
                contract = Contract.from_value(json.loads(text), name)
                difference = integrity.contract_difference(manifest, contract)
                ok = not difference
                detail = (
                    f"against the manifest: {difference}" if difference else "as in the manifest"
                )
        except DeviceError as error:
            detail, ok = error.message, False
        except (OSError, ValueError, RecursionError) as error:
            detail, ok = f"{name} cannot be read: {error}", False
        checks.append(Check(f"preprocessing in {name}", ok, detail))
    return checks


def _golden_inputs(manifest: Manifest) -> list[Check]:
    """Each golden input must be the contract applied to its image, bit for bit."""
    checks = []
    for sample in manifest.golden.samples:
        name = f"golden input {sample.input.split('/')[1] if '/' in sample.input else sample.input}"
        try:
            checks.append(_golden_input(manifest, sample, name))
        except DeviceError as error:
            detail = f"{sample.input} is not {sample.image} preprocessed: {error.message}"
            checks.append(Check(name, False, detail))
    return checks or [Check("golden input", False, "there is no golden sample")]


def _golden_input(manifest: Manifest, sample: Sample, name: str) -> Check:
    tensor = read_npy(manifest.path(sample.input))
    contract, path = manifest.contract, manifest.path(sample.image)
    if (tensor.shape, tensor.dtype) != (contract.input_shape, contract.dtype):
        detail = (
            f"{sample.input} is {tensor.dtype} {list(tensor.shape)}, the contract gives "
            f"{contract.dtype} {list(contract.input_shape)}"
        )
        return Check(name, False, detail)
    try:
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise BadInput(f"{path} is larger than {_MAX_IMAGE_BYTES >> 20} MiB.")
        image = decode(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    expected = apply(image, contract)
    if expected is None:
        detail = (
            f"its hash alone: the contract resizes by '{contract.interpolation}', which "
            "`edgekit verify` computes, not this program"
        )
        return Check(name, True, detail, skipped=True)
    if bytes(expected.data) != bytes(tensor.data):
        made_on = manifest.golden.cpu.split(" ")[0]
        if is_resampled(image, contract) and made_on != "x86_64":
            detail = f"its hash alone: it was resized on {made_on}, where OpenCV rounds otherwise"
            return Check(name, True, detail, skipped=True)
        detail = f"{sample.input} is not {sample.image} preprocessed"
        return Check(name, False, detail)
    return Check(name, True, "the contract applied to its image gives it")


def _golden_outputs(
    manifest: Manifest, options: VerifyOptions
) -> tuple[Check, dict[str, Any] | None]:
    """The model must reproduce the golden outputs, block by block."""
    name = "golden outputs"
    try:
        driver, model = drivers.choose(manifest, options.runtime, options.session)
    except (MissingDependency, NotPossible) as error:
        if options.runtime is not None:
            raise
        return Check(name, True, f"not checked: {error.message}", skipped=True), None
    name = f"golden outputs ({driver})"
    for file in model.files:
        problem = integrity.file_problem(manifest, file)
        if problem is not None:  # a damaged model is not given to a runtime
            return Check(name, False, f"not run: {file} {problem}"), None
    if not manifest.golden.samples:
        return Check(name, False, "there is no golden sample"), None
    try:
        comparison, facts = _reproduce(manifest, driver, options)
    except DeviceError as error:
        return Check(name, False, error.message), None
    check = _judge(manifest, model, name, comparison, facts)
    return check, {"runtime": driver, "runtime_facts": facts, "model_precision": model.precision}


def _reproduce(
    manifest: Manifest, driver: str, options: VerifyOptions
) -> tuple[Comparison, dict[str, Any]]:
    """Run the model on the golden inputs and compare; the comparison and facts of the runtime."""
    golden = manifest.golden
    outputs = [name for name, _ in golden.samples[0].outputs]
    named = {block.output for block in golden.blocks}
    blocks = [block for block in golden.blocks if block.output in outputs]
    blocks += [Block(name, name) for name in outputs if name not in named]
    if not blocks:
        raise VerificationFailed("There is no golden output.")
    comparison = Comparison(blocks)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder, WorkerProcess(
        manifest.name, options.timeout_s
    ) as worker:
        worker.open(driver, manifest.folder, options.session)
        if len(worker.inputs) != 1:
            raise VerificationFailed(f"The model has {len(worker.inputs)} inputs, not one.")
        for sample in golden.samples:
            worker.feed({worker.inputs[0]["name"]: manifest.path(sample.input)})
            found = worker.outputs_into(Path(folder))
            comparison.add(
                {name: read_npy(manifest.path(file)) for name, file in sample.outputs},
                {name: read_npy(file) for name, file in found.items()},
            )
        return comparison, worker.facts


def _judge(
    manifest: Manifest, model: Model, name: str, comparison: Comparison, facts: dict[str, Any]
) -> Check:
    golden, cpu = manifest.golden, detect()
    here = (model.runtime, facts.get("version"), cpu.text)
    # the native runner is another build of ncnn than the one that made the golden outputs, even of the
    # same version: its compiler may round otherwise
    same = here == (golden.runtime, golden.runtime_version, golden.cpu) and "runner" not in facts
    limits = golden.same if same else golden.other
    results = comparison.results()
    broken = [
        f"block '{result.name}' has {problem}"
        for result in results
        for problem in [result.problem(limits)]
        if problem is not None
    ]
    if broken:
        detail = "; ".join(broken[:3])
        if not same:
            detail += (
                f". Made with {golden.runtime} {golden.runtime_version} on "
                f"{golden.cpu or 'an unknown CPU'}; here {facts.get('version')} on {cpu.text}."
            )
        return Check(name, False, detail)
    kind = "another build of the runtime" if "runner" in facts else "another CPU or runtime version"
    if same:
        kind = "same CPU kind and runtime version"
    worst = max(result.max_rel_error for result in results)
    detail = (
        f"{len(golden.samples)} samples, max_rel_error {worst:.1e} "
        f"(limit {limits.max_rel_error:g}, {kind})"
    )
    return Check(name, True, detail)
