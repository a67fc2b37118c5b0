"""What travels between the stages: frozen values with units in their field names.

Arrays and graphs stay in files; these values say where the files are and what is in them. Nothing
here imports numpy or a runtime, so that every command can import it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.preprocess import Preprocess

Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`: how long work reports; `total` 0 means unknown."""


def no_progress(done: int, total: int, what: str) -> None:
    """The `Progress` of a caller who does not want to hear."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, shape and element type of a model's input or output.

    A dimension is an int, or the name of a free dimension (a dynamic batch, say).
    `dtype` is numpy's name: "float32", "uint8", "int64".
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def is_static(self) -> bool:
        return all(isinstance(size, int) for size in self.shape)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint: a torch module in eval mode and float32, or an ONNX file.

    Exactly one of `module` and `onnx` is set. `preprocess`, `head`, `names`, `input_shape` are what
    the checkpoint itself says, None where it is silent. `head` is a decoder's name
    (edgekit.metrics.heads). `architecture` is the network's name ("yolo11n", a factory's name),
    `training_batch` the batch size it was trained with; "" and None where nobody says.
    """

    path: Path
    sha256: str
    kind: str
    module: Any = None
    onnx: Path | None = None
    input_shape: tuple[int, ...] | None = None
    preprocess: Preprocess | None = None
    task: str | None = None
    head: str | None = None
    names: tuple[str, ...] = ()
    parameters: int = 0
    notes: tuple[str, ...] = ()
    architecture: str = ""
    training_batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """An ONNX file with what the next stage must know without opening it."""

    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    metadata: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    parameters: int = 0

    @property
    def size_mb(self) -> float:
        return self.size_bytes / 1e6


@dataclass(frozen=True, kw_only=True)
class Range:
    """Lower and upper end of the values that a tensor's quantized levels must span."""

    low: float
    high: float

    @property
    def amax(self) -> float:
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Activation statistics of one prepared graph, on disk, and how they came about.

    `ranges` maps tensor names to the range that `method` chose; the histograms in `path` let any
    other method choose again without running images. `graph_sha256` names the prepared graph.
    `uncertainty` is the estimated relative error of the ranges (nine tenths of the tensors are within
    it), None where it was not estimated or cannot be; `warning` says when the images are too few.
    """

    path: Path
    sha256: str
    graph_sha256: str
    method: str
    ranges: dict[str, Range]
    images: int
    image_sha256: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0
    inference_seconds: float = 0.0
    peak_rss_mb: float = 0.0
    cached: bool = False
    uncertainty: float | None = None
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class QuantParams:
    """Scale and zero point of one tensor.

    scale float32 [] or [C]; zero_point of `dtype` and the same shape; `axis` names the channel axis,
    None for per-tensor. real = (q - zero_point) * scale, as in ONNX DequantizeLinear.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a runtime loads: its files (the first is the one to open) and how they were built."""

    runtime: str
    files: tuple[Path, ...]
    precision: str
    sha256: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BlockParity:
    """How far one block of an output is from its reference.

    cosine in [-1, 1]; sqnr_db = 10 log10(sum ref^2 / sum (ref - x)^2), inf when equal;
    max_rel_error = max|ref - x| / max|ref| of the block. `group_max` is the largest |ref| among the
    blocks of the same meaning (the scores of all scales, say): beside it an error may be nothing.
    """

    name: str
    cosine: float
    sqnr_db: float
    max_abs_error: float
    max_rel_error: float
    group_max: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Parity of a stage with the one before: every block of every output, the worst first to count."""

    blocks: tuple[BlockParity, ...]
    samples: int

    @property
    def cosine(self) -> float:
        return min((block.cosine for block in self.blocks), default=1.0)

    @property
    def sqnr_db(self) -> float:
        return min((block.sqnr_db for block in self.blocks), default=float("inf"))

    @property
    def max_abs_error(self) -> float:
        return max((block.max_abs_error for block in self.blocks), default=0.0)

    @property
    def max_rel_error(self) -> float:
        return max((block.max_rel_error for block in self.blocks), default=0.0)

    @property
    def worst(self) -> BlockParity | None:
        """The block with the lowest SQNR."""
        return min(self.blocks, key=lambda block: block.sqnr_db, default=None)


@dataclass(frozen=True, kw_only=True)
class StageOutput:
    """What a stage that makes a model gives: the model, its parity with its input, and remarks.

    `holds_qdq`: the graph carries quantization of its own (a quantization-aware checkpoint).
    """

    model: OnnxModel
    parity: ParityReport | None = None
    notes: tuple[str, ...] = ()
    holds_qdq: bool = False


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """Ratio of two interleaved medians with its bootstrap confidence interval; above 1 is faster."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """Latency of one model on one machine, milliseconds per run of `batch` images.

    `load` is the share (0 to 1) of the machine's CPU time that went to other processes during the
    timed runs, NaN where the system does not tell; `peak_rss_mb` is the peak resident memory (VmHWM)
    of the fresh process that ran the model, Python and the runtime included. `spinning` False: the
    runtime's threads slept between runs instead of waiting busily. `warmup` counts the untimed runs
    before the first timed one, `settled` says whether their times had stopped changing. `inputs` is
    "given" for arrays of the user, "random" for noise within the contract. `device_ms`, of a GPU
    alone, are medians by the host's clock ("wall", "wall_compute") and by the GPU's ("gpu",
    "gpu_compute"), with the copies and without.
    """

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    runs: int
    threads: int
    batch: int
    throughput_fps: float
    peak_rss_mb: float
    load: float
    runtime: str = ""
    affinity: tuple[int, ...] = ()
    spinning: bool = True
    warmup: int = 0
    settled: bool = True
    inputs: str = ""
    samples_ms: tuple[float, ...] = ()
    device_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """Accuracy on labelled images, fractions of 1.

    task "detect": map50_95, map50, map75, precision, recall; task "classify": top1, top5. The values
    of the other task are None. `settings` holds what the figures depend on (NMS thresholds, head).
    `intervals` maps a figure's name to the ends of its confidence interval, where one was asked for;
    `confusion` [K][K] counts images by true class (rows) and answer; `notes` say what was odd about
    the data or the model's answers.
    """

    task: str
    images: int
    map50_95: float | None = None
    map50: float | None = None
    map75: float | None = None
    precision: float | None = None
    recall: float | None = None
    top1: float | None = None
    top5: float | None = None
    per_class: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, tuple[float, ...]] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the figure that budgets speak about: "map50_95" or "top1"."""
        return "map50_95" if self.task == "detect" else "top1"

    @property
    def value(self) -> float:
        """The figure that budgets speak about."""
        value = self.map50_95 if self.task == "detect" else self.top1
        if value is None:
            raise ValueError(f"an AccuracyReport of task {self.task!r} without {self.metric}")
        return value


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One line of the export table: what a stage took, gave, and how its output compares."""

    name: str
    seconds: float
    cached: bool
    size_mb: float | None = None
    parity: ParityReport | None = None
    notes: tuple[str, ...] = ()


def to_json(value: Any) -> Any:
    """Plain JSON values of any of the above: tuples become lists, paths strings, inf and nan None.

    JSON has no infinity; readers take a null SQNR as "identical".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if hasattr(value, "item"):  # a numpy scalar
        return to_json(value.item())
    raise TypeError(f"{type(value).__name__} does not go into JSON")
