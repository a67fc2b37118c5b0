"""What a comparison of models found: one row for each model, plain values only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgekit.types import AccuracyReport, LatencyReport, SpeedUp

ONNX_RUNTIME = "onnxruntime"
TORCH = "torch"
RUNTIME_NAMES = {
    ONNX_RUNTIME: "ONNX Runtime",
    TORCH: "PyTorch",
    "ncnn": "ncnn",
    "tensorrt": "TensorRT",
}
PRECISION_NAMES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}


@dataclass(frozen=True, kw_only=True)
class RowTiming:
    """A row's model timed in one runtime at one batch size.

    `speedup` is against the baseline in the same runtime, at the same batch, in the same run. Where
    there is no latency, `error` says why.
    """

    runtime: str
    batch: int
    latency: LatencyReport | None = None
    speedup: SpeedUp | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy against the baseline's on the same images: negative is a loss, fractions of 1.

    low and high are the ends of the paired 95 % interval, None when it was not worked out.
    """

    difference: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model. Values that could not be found are None; `errors` say what failed, in order.

    `baseline` is the name of the row that this one is held against ("" for a baseline itself),
    `made_from` the row whose model was quantized for this one.
    `size_mb` is that of the file that is deployed. `pruned_share` is the share of the baseline's
    output channels that are gone, None when the two are not of one structure. `variant` is what an
    ablation switched off, "" for everything on, None elsewhere.
    """

    name: str
    source: str
    precision: str
    made_from: str = ""
    baseline: str = ""
    architecture: str = ""
    training_batch: int | None = None
    parameters: int | None = None
    size_mb: float | None = None
    macs: int | None = None
    sparsity: float | None = None
    ternary_share: float | None = None
    pruned_share: float | None = None
    timings: tuple[RowTiming, ...] = ()
    accuracy: AccuracyReport | None = None
    drop: Drop | None = None
    variant: str | None = None
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def timing(self, runtime: str, batch: int) -> RowTiming | None:
        """The timing in `runtime` at `batch`, None when that was not tried."""
        for timing in self.timings:
            if (timing.runtime, timing.batch) == (runtime, batch):
                return timing
        return None

    def latency(self, runtime: str, batch: int) -> LatencyReport | None:
        timing = self.timing(runtime, batch)
        return timing.latency if timing else None

    def deployed(self, batch: int) -> RowTiming | None:
        """The timing in the runtime that the model would be deployed with: any before PyTorch."""
        timed = [t for t in self.timings if t.batch == batch and t.latency is not None]
        return min(timed, key=lambda timing: timing.runtime == TORCH, default=None)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, in the order they were named, and what they have in common.

    `settings` holds what the figures depend on (machine, threads, images), `load` is the share of
    the machine that other processes used during the timed runs, None when nothing was timed.
    """

    rows: tuple[Row, ...]
    batches: tuple[int, ...] = (1,)
    task: str | None = None
    images: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    load: float | None = None
    notes: tuple[str, ...] = ()

    def baseline(self, row: Row) -> Row | None:
        """The row that `row` is held against, None for a baseline itself."""
        for other in self.rows:
            if row.baseline and other.name == row.baseline:
                return other
        return None

    def runtimes(self) -> tuple[str, ...]:
        """Every runtime that timed something, PyTorch first."""
        found = {t.runtime: None for row in self.rows for t in row.timings if t.latency}
        return tuple(sorted(found, key=lambda name: (name != TORCH, name != ONNX_RUNTIME, name)))

    def errors(self) -> Iterator[tuple[Row, str]]:
        for row in self.rows:
            for error in row.errors:
                yield row, error


def runtime_name(runtime: str) -> str:
    return RUNTIME_NAMES.get(runtime, runtime)


def precision_name(precision: str) -> str:
    """The usual spelling; a dash for a model that could not be opened."""
    return PRECISION_NAMES.get(precision, precision.upper()) or "–"
