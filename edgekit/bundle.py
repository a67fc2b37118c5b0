"""The bundle: a folder that carries a model to its board and proves itself there.

manifest.json    everything below, and how it came about (schema in docs/bundle.md)
SHA256SUMS       `sha256sum -c SHA256SUMS` checks the folder with nothing of edgekit installed
preprocess.json  the preprocessing contract alone
calibration.npz  activation statistics (INT8 only)
RUNTIME/…        the model files of each runtime
golden/NNN/…     inputs and outputs to compare with (edgekit.golden)
README.txt       what each file is
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit import atomic
from edgekit.block import Block
from edgekit.contents import (
    CALIBRATION,
    BundleContents,
    BundleModel,
    ChainStep,
    ExtraFile,
    chain_problem,
)
from edgekit.errors import BadInput, VerificationFailed
from edgekit.golden import GoldenSample, write_samples
from edgekit.integrity import file_problem, sums_text, unlisted
from edgekit.manifest import (
    MANIFEST,
    PREPROCESS,
    README,
    SUMS,
    FileEntry,
    Manifest,
    is_bundle,
    path_problem,
    read_manifest,
)
from edgekit.manifest_json import manifest_json, parity_json, readme_text
from edgekit.preprocess import Preprocess
from edgekit.types import to_json

__all__ = [
    "Block",
    "BundleContents",
    "BundleModel",
    "ChainStep",
    "ExtraFile",
    "GoldenSample",
    "Manifest",
    "is_bundle",
    "open_model",
    "parity_json",
    "read_manifest",
    "write",
]


def write(
    folder: Path, contents: BundleContents, *, check: Callable[[Path], None] | None = None
) -> Manifest:
    """Write the bundle to `folder`, atomically, and return its manifest.

    `check` gets the finished bundle before it takes its place; when it raises, what was at `folder`
    stays. Raises BadInput when `folder` holds anything but an earlier bundle: nothing of the user's
    is ever removed. NoSpace when the disk is full, VerificationFailed when a source file is not
    what its hash says, ValueError for contents that contradict themselves.
    """
    folder = Path(folder)
    _check_place(folder)
    if not contents.models or not contents.golden:
        raise ValueError("a bundle needs a model and a golden sample")
    with atomic.replacing_folder(folder) as temporary:
        what: dict[str, str] = {}
        models = [_copy_model(temporary, model, what) for model in contents.models]
        _check_chain(contents)
        samples = write_samples(temporary, contents.golden, contents.preprocess)
        for number, sample in enumerate(samples):
            what[sample["image"]] = f"golden sample {number}: source image (lossless RGB)"
            what[sample["input"]] = f"golden sample {number}: the model's input tensor"
            for output in sample["outputs"]:
                what[output["file"]] = f"golden sample {number}: output '{output['name']}', float32"
        if contents.calibration is not None:
            _copy(temporary, CALIBRATION, contents.calibration)
            what[CALIBRATION] = "activation statistics of the calibration images (numpy)"
        for item in contents.extra:
            _copy(temporary, item.path, item.source)
            if os.access(item.source, os.X_OK):
                (temporary / item.path).chmod(0o755)
            what[item.path] = item.what
        atomic.write_json(temporary / PREPROCESS, contents.preprocess.to_dict())
        what[PREPROCESS] = "how an image becomes the input tensor"
        what[README] = "this text"
        atomic.write_text(temporary / README, readme_text(contents, models, what))
        files = {name: _entry(temporary, name) for name in sorted(what)}
        atomic.write_json(
            temporary / MANIFEST, manifest_json(contents, models, samples, files, what)
        )
        digest = atomic.sha256_file(temporary / MANIFEST)
        atomic.write_text(temporary / SUMS, sums_text(files, digest))
        read_manifest(temporary)
        if check is not None:
            check(temporary)
    return read_manifest(folder)


def open_model(path: Path, runtime: str | None = None) -> tuple[str, list[Path], Preprocess]:
    """(runtime, model files, contract) of the bundle at `path`; the first file is the one to open.

    `runtime` chooses among several; the default is the bundle's main one. The files' hashes are
    checked. Raises BadInput for a damaged manifest, VerificationFailed for a changed model file.
    """
    manifest = read_manifest(path)
    model = manifest.model(runtime)
    for name in model.files:
        problem = file_problem(manifest, name)
        if problem is not None:
            raise VerificationFailed(
                f"{manifest.folder}: {name} {problem}.",
                hint="`edgekit verify` checks the whole bundle; copy it again, or export it again.",
            )
    return model.runtime, [manifest.path(name) for name in model.files], manifest.preprocess


def _check_place(folder: Path) -> None:
    """Refuse a folder that holds what an earlier bundle did not put there."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    hint = "Choose another folder with --out, or remove this one yourself."
    if not is_bundle(folder):
        raise BadInput(f"{folder} is not empty and is not a bundle; it is left alone.", hint=hint)
    try:
        earlier = read_manifest(folder)
    except BadInput as error:
        raise BadInput(
            f"{folder} holds a bundle whose manifest is damaged, so its files cannot be told from "
            f"yours; it is left alone. {error.message}",
            hint=hint,
        ) from error
    foreign = unlisted(earlier)
    if foreign:
        raise BadInput(
            f"{folder} holds files that the bundle did not put there ({', '.join(foreign[:3])}"
            + (", …" if len(foreign) > 3 else "")
            + "); it is left alone.",
            hint="Move them away, or choose another folder with --out.",
        )


def _copy(folder: Path, name: str, source: Path) -> None:
    problem = path_problem(name)
    if problem is not None:
        raise ValueError(f"the path {name!r} {problem}")
    target = folder / name
    if target.exists():
        raise ValueError(f"two files for {name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _copy_model(folder: Path, model: BundleModel, what: dict[str, str]) -> dict[str, Any]:
    """Copy the files of one model; returns its part of the manifest."""
    engine = model.engine
    names = []
    for number, source in enumerate(engine.files):
        file = re.sub(r"[^A-Za-z0-9._+-]", "_", source.name).lstrip(".-") or "model"
        name = f"{model.folder or engine.runtime}/{file}"
        if name in what and atomic.sha256_file(folder / name) == atomic.sha256_file(source):
            names.append(name)  # two runtimes read the same file
            continue
        _copy(folder, name, source)
        if number == 0 and engine.sha256 and atomic.sha256_file(folder / name) != engine.sha256:
            raise VerificationFailed(
                f"{source} has changed since it was built.", hint="Run the same command again."
            )
        verb = "open this one" if number == 0 else "belongs to it"
        what[name] = f"the model for {engine.runtime}, {engine.precision}: {verb}"
        names.append(name)
    return {
        "runtime": engine.runtime,
        "precision": engine.precision,
        "files": names,
        "inputs": to_json(model.inputs),
        "outputs": to_json(model.outputs),
        "notes": list(engine.notes),
    }


def _check_chain(contents: BundleContents) -> None:
    """Each step must start from the checkpoint or from what a step before it gave."""
    problem = chain_problem(
        str(contents.checkpoint.get("sha256", "")),
        [(step.name, step.input_sha256, step.output_sha256) for step in contents.chain],
    )
    if problem is not None:
        raise ValueError(f"the chain is broken: {problem}")


def _entry(folder: Path, name: str) -> FileEntry:
    file = folder / name
    return FileEntry(path=name, size_bytes=file.stat().st_size, sha256=atomic.sha256_file(file))
