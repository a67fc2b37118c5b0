"""What goes into a bundle, as the pipeline hands it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.block import Block
from edgekit.golden import GoldenSample
from edgekit.preprocess import Preprocess
from edgekit.types import (
    AccuracyReport,
    Engine,
    LatencyReport,
    ParityReport,
    SpeedUp,
    TensorSpec,
)

CALIBRATION = "calibration.npz"


@dataclass(frozen=True, kw_only=True)
class BundleModel:
    """The model as one runtime loads it; its files go into `folder` (default: runtime)."""

    engine: Engine
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class ExtraFile:
    """A further file: its path in the bundle, where it lies now, and one line on what it is."""

    path: str
    source: Path
    what: str


@dataclass(frozen=True, kw_only=True)
class ChainStep:
    """One stage on the way from checkpoint to model, by the hashes of what it took and gave.

    `versions` are those of the libraries that did the work; `parity` compares the step's output
    with its input.
    """

    name: str
    input_sha256: tuple[str, ...]
    output_sha256: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cached: bool = False
    parity: ParityReport | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """Everything that goes into a bundle. The first of `models` is the bundle's main one.

    `target` is the profile as plain values and has a "name"; `checkpoint` holds plain values too,
    at least its "sha256". `golden` are samples that `golden_runtime` computed with one thread;
    `blocks` says how their outputs are compared (edgekit.stages.blocks). `validation_sha256` and
    `calibration_sha256` are the hashes of the images that entered either. `details` takes further
    plain values, by topic.
    """

    name: str
    target: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    chain: tuple[ChainStep, ...]
    models: tuple[BundleModel, ...]
    preprocess: Preprocess
    golden: tuple[GoldenSample, ...]
    golden_runtime: str
    golden_runtime_version: str
    blocks: tuple[Block, ...]
    verdict: str
    task: str | None = None
    head: str | None = None
    names: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    calibration: Path | None = None
    calibration_method: str | None = None
    calibration_sha256: tuple[str, ...] = ()
    calibration_skipped: tuple[str, ...] = ()
    validation_sha256: tuple[str, ...] = ()
    latency_float: LatencyReport | None = None
    latency_int8: LatencyReport | None = None
    speedup: SpeedUp | None = None
    accuracy_float: AccuracyReport | None = None
    accuracy_int8: AccuracyReport | None = None
    extra: tuple[ExtraFile, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def chain_problem(
    checkpoint_sha256: str,
    steps: list[tuple[str, tuple[str, ...], tuple[str, ...]]],
    model_sha256: str | None = None,
) -> str | None:
    """Where the chain (name, inputs, outputs by sha256) breaks; None when it holds.

    With `model_sha256` the chain must also end in that file.
    """
    known = {checkpoint_sha256}
    if not steps:
        return "it has no steps"
    for name, inputs, outputs in steps:
        for digest in inputs:
            if digest not in known:
                return f"{name} starts from {digest[:12]}…, which no earlier step gave"
        known.update(outputs)
    if model_sha256 is not None and model_sha256 not in known:
        return f"no step gave the model {model_sha256[:12]}…"
    return None
