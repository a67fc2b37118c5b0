"""What the stages of an export leave in the stage cache: plain records with paths of their own files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgekit.preprocess import Preprocess
from edgekit.stages.search import Choice, Trial
from edgekit.types import (
    AccuracyReport,
    Engine,
    LatencyReport,
    OnnxModel,
    ParityReport,
    SpeedUp,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The export stage: the ONNX model, its contract, and what the checkpoint said of itself.

    `holds_qdq`: the graph carries quantization of its own.
    """

    model: OnnxModel
    contract: Preprocess
    origin: str
    warning: str
    kind: str
    task: str | None = None
    head: str | None = None
    names: tuple[str, ...] = ()
    parameters: int = 0
    parity: ParityReport | None = None
    notes: tuple[str, ...] = ()
    holds_qdq: bool = False


@dataclass(frozen=True, kw_only=True)
class QuantizedRecord:
    """The quantize stage: the INT8 model and where it computes in integers.

    `model` is the QDQ graph; where a runtime's own files are quantized, `engine` holds those and
    `model` is the float graph that they were made of. `choice` is what was taken (ranges and float
    layers), `trials` what the search tried for it, `methods` those of layers with one of their own;
    `faster_float` are the layers left float for speed, `sensitivity_db` the SQNR of the outputs with
    one layer alone in INT8, where the search asked for it; `agreement` of what was taken (0 to 1).
    """

    model: OnnxModel
    int8_mac_share: float
    compute: tuple[str, ...]
    engine: Engine | None = None
    floats: dict[str, str] = field(default_factory=dict)
    weight_bits: int = 8
    choice: Choice | None = None
    trials: tuple[Trial, ...] = ()
    agreement: float | None = None
    faster_float: tuple[str, ...] = ()
    sensitivity_db: dict[str, float] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    parity: ParityReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def runnable(self) -> Engine:
        """The INT8 model as it runs on this machine: accuracy is measured with it."""
        return self.engine or onnx_engine(self.model, "int8")


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a runtime loads; `parity` is that with the ONNX graph, where it was converted."""

    engine: Engine
    size_bytes: int
    parity: ParityReport | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Accuracy of one model, with the hashes of the images it was measured on."""

    accuracy: AccuracyReport
    image_sha256: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Latency of the float model and, for an INT8 target, of the INT8 model in the same run.

    All is None where this machine is of another architecture than the target. `blame` names what
    takes longer in INT8 than in float, the worst first; empty where INT8 pays.
    """

    float_latency: LatencyReport | None = None
    int8_latency: LatencyReport | None = None
    speedup: SpeedUp | None = None
    blame: tuple[str, ...] = ()


def onnx_engine(model: OnnxModel, precision: str) -> Engine:
    """An ONNX file as ONNX Runtime loads it: unchanged."""
    return Engine(
        runtime="onnxruntime", files=(model.path,), precision=precision, sha256=model.sha256
    )


def relocate(value: T, old: Path | None, new: Path | None) -> T:
    """A copy of a record whose files moved: under `old` → relative; relative → under `new`."""
    result: Any = value
    if isinstance(value, Path):
        if old is not None and value.is_relative_to(old):
            result = value.relative_to(old)
        elif new is not None and not value.is_absolute():
            result = new / value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            item.name: relocate(getattr(value, item.name), old, new)
            for item in dataclasses.fields(value)
        }
        result = dataclasses.replace(value, **changed)
    elif isinstance(value, tuple):
        result = tuple(relocate(item, old, new) for item in value)
    return result  # type: ignore[no-any-return]
