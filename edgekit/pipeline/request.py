"""What is asked of an export, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.checkpoint import LoadOptions
from edgekit.stages.search import Choice
from edgekit.target import TargetProfile
from edgekit.types import AccuracyReport, LatencyReport, SpeedUp, StageReport


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """One export. `size` is (height, width); `overrides` are fields of the preprocessing contract.

    `method` "auto" searches ranges and float layers for `search_seconds` at most; a calibration
    method's name takes that one as it is; `replay` takes what an earlier run chose. `max_drop` is in
    points of the metric (1 point = 0.01), latencies in ms. `limit` caps the labelled images. `fresh`
    does every stage again although the cache knows it. `runner`: whether the native ncnn runner is
    packed; True builds it, None packs it for ARM boards where it has been built before. `calibration_batches`
    and `half_io` are for TensorRT: how many preprocessed images the bundle carries for its own
    calibrators, and whether the float16 graph's inputs and outputs are float16.
    """

    checkpoint: Path
    target: TargetProfile
    out: Path
    images: Path | None = None
    data: Path | None = None
    split: str = "val"
    limit: int | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    size: tuple[int, int] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    method: str = "auto"
    search_seconds: float = 180.0
    replay: Choice | None = None
    keep_float: tuple[str, ...] = ()
    ncnn_table: Path | None = None
    calibration_batches: int = 0
    half_io: bool = False
    dynamic_batch: bool = False
    dequantize: bool = False
    max_bad_share: float = 0.1
    workers: int = 1
    golden: int = 2
    max_drop: float | None = None
    max_p99_ms: float | None = None
    max_p50_ms: float | None = None
    runner: bool | None = None
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made. `unchanged` when the bundle was there already with the same content."""

    bundle: Path
    verdict: str
    stages: tuple[StageReport, ...]
    parameters: int
    size_mb: float
    float_latency: LatencyReport | None
    int8_latency: LatencyReport | None
    speedup: SpeedUp | None
    float_accuracy: AccuracyReport | None
    int8_accuracy: AccuracyReport | None
    precision: str
    unchanged: bool = False
    warnings: tuple[str, ...] = ()
