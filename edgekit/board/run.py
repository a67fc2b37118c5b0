"""`run`: the model once, on a golden sample or on a tensor."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.board import drivers, integrity
from edgekit.board.built import replacing
from edgekit.board.compare import floats
from edgekit.board.errors import BadInput, NotPossible, UsageError
from edgekit.board.manifest import Manifest, read_manifest
from edgekit.board.npy import read_npy
from edgekit.board.process import WorkerProcess
from edgekit.board.session import Progress, SessionOptions
from edgekit.board.tensor import Tensor


@dataclass(frozen=True)
class RunOptions:
    """One of `golden` (the sample's number) and `input` (an .npy) is given. `values`: the outputs'
    values go into the answer."""

    runtime: str | None = None
    session: SessionOptions = field(default_factory=SessionOptions)
    golden: int | None = None
    input: Path | None = None
    out: Path | None = None
    values: bool = False
    timeout_s: float | None = 600.0


def run(folder: Path, options: RunOptions, progress: Progress) -> dict[str, Any]:
    """The answer of `run`: `runtime`, `input`, and of each output its name, shape, dtype, range.

    Raises BadInput for an unusable tensor, UsageError for a place inside the bundle, and what opening
    and running the model raises.
    """
    manifest = read_manifest(folder)
    driver, model = drivers.choose(manifest, options.runtime, options.session)
    integrity.demand_files(manifest, model)
    if options.out is not None:
        home, out = folder.resolve(), options.out.resolve()
        if home == out or home in out.parents:
            raise UsageError(
                f"--out {options.out} lies in the bundle, which holds nothing but its own files.",
                "Name a folder outside of it.",
            )
    source = input_file(manifest, options.golden, options.input)
    read_npy(source)
    progress(f"running {manifest.name} with {driver}")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as temporary:
        with WorkerProcess(manifest.name, options.timeout_s) as worker:
            worker.open(driver, folder, options.session)
            if len(worker.inputs) != 1:
                raise NotPossible(f"The model has {len(worker.inputs)} inputs, not one.")
            worker.feed({worker.inputs[0]["name"]: source})
            files = worker.outputs_into(Path(temporary))
            facts = worker.facts
        outputs = []
        for number, (name, file) in enumerate(files.items()):
            value = _described(name, read_npy(file), options.values)
            if options.out is not None:
                target = options.out / f"output_{number}.npy"
                with replacing(target) as place:
                    shutil.copyfile(file, place)
                value["file"] = str(target)
            outputs.append(value)
    return {
        "bundle": manifest.name,
        "runtime": driver,
        "runtime_facts": facts,
        "model_precision": model.precision,
        "input": str(source),
        "outputs": outputs,
    }


def input_file(manifest: Manifest, golden: int | None, given: Path | None) -> Path:
    """The .npy to feed: a golden sample's (checked against its hash), else the one given."""
    if given is not None:
        return given.absolute()
    samples = manifest.golden.samples
    number = golden or 0
    if number >= len(samples):
        raise UsageError(f"There is no golden sample {number}; the bundle has {len(samples)}.")
    name = samples[number].input
    problem = integrity.file_problem(manifest, name)
    if problem is not None:
        raise BadInput(f"{manifest.folder}: {name} {problem}.", "Copy the bundle again.")
    return manifest.path(name).absolute()


def _described(name: str, tensor: Tensor, values: bool) -> dict[str, Any]:
    numbers = floats(tensor)
    finite = [value for value in numbers if math.isfinite(value)]
    found: dict[str, Any] = {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "sha256": hashlib.sha256(tensor.data).hexdigest(),
        "min": min(finite) if finite else None,
        "max": max(finite) if finite else None,
        "not_finite": len(numbers) - len(finite),
    }
    if values:
        found["values"] = list(numbers)
    return found
