"""Bundles with hand-made ncnn models, and the native runner that runs them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import bundle
from edgekit.block import whole
from edgekit.bundle import BundleContents, BundleModel, ChainStep, GoldenSample
from edgekit.formats import ncnn_json
from edgekit.formats.ncnn_json import Sidecar, Tensor
from edgekit.preprocess import Preprocess, apply
from edgekit.require import version_of
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.types import Engine, TensorSpec

Shape = tuple[int, ...]


def identity(contract: Preprocess) -> tuple[str, dict[str, Shape]]:
    """A graph that gives its input again: (the .param, outputs by name)."""
    text = "7767517\n2 2\nInput in0 0 1 in0\nBinaryOp one 1 1 in0 out0 0=2 1=1 2=1.0\n"
    return text, {"output0": contract.input_shape}


def front(contract: Preprocess, shape: Shape) -> tuple[str, dict[str, Shape]]:
    """A graph whose output [1, A, B] or [1, K] is the first values of its input."""
    count = int(np.prod(shape))
    size = "" if len(shape) == 2 else f" 1={shape[1]}"
    text = (
        "7767517\n4 5\n"
        "Input in0 0 1 in0\n"
        "Flatten flat 1 1 in0 flat\n"
        f"Slice front 1 2 flat head rest -23300=2,{count},-233 1=0\n"
        f"Reshape shape 1 1 head out0 0={shape[-1]}{size}\n"
    )
    return text, {"output0": shape}


def write_model(
    folder: Path,
    param: str,
    contract: Preprocess,
    outputs: Mapping[str, Shape],
    weights: bytes = b"",
    precision: str = "fp32",
    **options: bool,
) -> Path:
    """model.json, model.param and model.bin in `folder`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.param").write_text(param)
    (folder / "model.bin").write_bytes(weights)
    plain = {"use_fp16_packed": False, "use_fp16_storage": False, "use_fp16_arithmetic": False}
    sidecar = Sidecar(
        param=ncnn_json.describe(folder / "model.param"),
        bin=ncnn_json.describe(folder / "model.bin"),
        inputs=(Tensor(blob="in0", name="images", shape=contract.input_shape),),
        outputs=tuple(
            Tensor(blob=f"out{number}", name=name, shape=shape)
            for number, (name, shape) in enumerate(outputs.items())
        ),
        precision=precision,
        options=plain | options,
        versions={"ncnn": version_of("ncnn") or "", "pnnx": ""},
    )
    ncnn_json.write(sidecar, folder / "model.json")
    return folder / "model.json"


def write_bundle(
    folder: Path,
    contract: Preprocess,
    graph: tuple[str, Mapping[str, Shape]],
    *,
    weights: bytes = b"",
    images: Sequence[NDArray[np.uint8]] = (),
    **changes: Any,
) -> Path:
    """A bundle at `folder` around the graph (.param, outputs), with golden samples of `images`."""
    param, outputs = graph
    model = write_model(folder.with_name(folder.name + "-model"), param, contract, outputs, weights)
    files = (model, model.with_suffix(".param"), model.with_suffix(".bin"))
    if not images:
        random = np.random.default_rng(5)
        sides = contract.height, contract.width
        images = [random.integers(0, 256, (*sides, 3), dtype=np.uint8)]
    samples = []
    with open_session("ncnn", [model], SessionOptions()) as session:
        for image in images:
            tensor, _ = apply(image, contract)
            samples.append(
                GoldenSample(image=image, input=tensor, outputs=session.run({"images": tensor}))
            )
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    checkpoint = hashlib.sha256(b"checkpoint").hexdigest()
    values: dict[str, Any] = {
        "name": folder.name,
        "target": {"name": "x86-ncnn-fp32", "runtime": {"name": "ncnn"}},
        "checkpoint": {"sha256": checkpoint},
        "chain": (ChainStep(name="convert", input_sha256=(checkpoint,), output_sha256=(sha256,)),),
        "models": (
            BundleModel(
                engine=Engine(runtime="ncnn", files=files, precision="fp32", sha256=sha256),
                inputs=(TensorSpec(name="images", shape=contract.input_shape, dtype="float32"),),
                outputs=tuple(
                    TensorSpec(name=name, shape=shape, dtype="float32")
                    for name, shape in outputs.items()
                ),
            ),
        ),
        "preprocess": contract,
        "golden": tuple(samples),
        "golden_runtime": "ncnn",
        "golden_runtime_version": version_of("ncnn") or "",
        "blocks": whole(list(outputs)),
        "verdict": "Made by hand.",
    }
    bundle.write(folder, BundleContents(**{**values, **changes}))
    return folder


def run_program(
    program: Path, *arguments: str | Path, timeout: float = 120
) -> tuple[int, dict[str, Any], str]:
    """(exit code, the object on stdout, stderr) of the runner; fails when stdout is anything else."""
    done = subprocess.run(
        [str(program), *(str(a) for a in arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode >= 0, f"killed by signal {-done.returncode}: {done.stderr}"
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    assert answer.get("exit_code", 0) == done.returncode
    return done.returncode, answer, done.stderr
