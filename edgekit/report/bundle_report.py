"""What the report page of a bundle shows: plain values, gathered by the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

GOOD, NEUTRAL, BAD = "good", "neutral", "bad"


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A headline figure: what it is, its value, one line about it, and whether that is good news."""

    title: str
    value: str
    detail: str = ""
    tone: str = NEUTRAL


@dataclass(frozen=True, kw_only=True)
class StageLine:
    """One stage of the chain; parity with the stage before, None where there is none to tell.

    `sqnr_db` inf means exact.
    """

    name: str
    seconds: float
    cached: bool
    cosine: float | None = None
    sqnr_db: float | None = None
    max_rel_error: float | None = None
    worst_block: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LatencyLine:
    """One model's latency, milliseconds; `samples_ms` are the single runs."""

    name: str
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    throughput_fps: float
    peak_rss_mb: float | None
    runs: int
    samples_ms: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class AccuracyLine:
    """One figure or class before and after, fractions of 1; None where it was not measured."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True, kw_only=True)
class LayerLine:
    """One layer in running order; `float_ms` is the same layer's time in the float model."""

    number: int
    name: str
    op_type: str
    ms: float
    share: float
    float_ms: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorLine:
    """All layers of one operator type."""

    op_type: str
    count: int
    ms: float
    share: float


@dataclass(frozen=True, kw_only=True)
class TensorChart:
    """An activation's distribution, the range it was given, and what both cost.

    `sqnr_db` is what rounding and clipping alone leave; `measured_db` is against the float model,
    with the noise of all layers before, None where that was not measured.
    """

    name: str
    low: float
    high: float
    scale: float
    minimum: float
    maximum: float
    bars: tuple[tuple[float, float, int], ...] = field(repr=False)
    clipped_share: float
    sqnr_db: float
    measured_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class BoxMark:
    """A detection in pixels of the shown image."""

    x1: float
    y1: float
    x2: float
    y2: float
    number: int
    name: str
    score: float


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """One model's answer on a sample: boxes, or the best classes with their probabilities."""

    title: str
    boxes: tuple[BoxMark, ...] = ()
    ranking: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class SampleImage:
    """A sample image (JPEG or WebP, `width` x `height` pixels) and the answers on it, float first."""

    name: str
    media_type: str
    data: bytes = field(repr=False)
    width: int
    height: int
    views: tuple[SampleView, ...]


@dataclass(frozen=True, kw_only=True)
class FileLine:
    """A file of the bundle."""

    path: str
    size_bytes: int
    what: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BundleReport:
    """Everything on the page. Parts that are not known are empty; `missing` says why, in sentences.

    `verdict` with its `tone`; `facts` are (name, value) pairs of the provenance.
    """

    name: str
    verdict: str
    tone: str
    target: str
    created: str
    edgekit: str
    precision: str
    metric: str = ""
    images: int = 0
    tiles: tuple[Tile, ...] = ()
    stages: tuple[StageLine, ...] = ()
    latency: tuple[LatencyLine, ...] = ()
    latency_note: str = ""
    accuracy: tuple[AccuracyLine, ...] = ()
    classes: tuple[AccuracyLine, ...] = ()
    layers: tuple[LayerLine, ...] = ()
    layers_total: int = 0
    layers_note: str = ""
    operators: tuple[OperatorLine, ...] = ()
    float_operators: tuple[OperatorLine, ...] = ()
    tensors: tuple[TensorChart, ...] = ()
    tensors_total: int = 0
    samples: tuple[SampleImage, ...] = ()
    files: tuple[FileLine, ...] = ()
    sizes: tuple[tuple[str, float], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
