"""What a statistics file says: each tensor's distribution, its range by every method, and the loss.

The loss is that of quantizing the tensor once, from its distribution alone: clipping and rounding,
without the noise of the layers before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.calibration import store
from edgekit.calibration.methods import METHODS, choose, method_named
from edgekit.calibration.stability import Stability, stability
from edgekit.quantization.scheme import Scheme, activation_params
from edgekit.stages.debug_advice import tensor_error
from edgekit.stages.tensor_ranges import bars
from edgekit.types import Range

_LEVELS = 256


@dataclass(frozen=True, kw_only=True)
class MethodRange:
    """A method's range for one tensor: SQNR in dB (inf: no loss) and the share of values outside."""

    low: float
    high: float
    sqnr_db: float
    clipped_share: float


@dataclass(frozen=True, kw_only=True)
class ObservedTensor:
    """One tensor over all images.

    count, minimum, maximum, mean of its values; `bars` (low, high, count) is its histogram in equal
    stretches; `ranges` by method; `best` is the method that loses least.
    """

    name: str
    count: int
    minimum: float
    maximum: float
    mean: float
    bars: tuple[tuple[float, float, int], ...]
    ranges: Mapping[str, MethodRange]
    best: str

    @property
    def sqnr_db(self) -> float:
        """SQNR under the best method: how well 8 bits can serve this tensor at all."""
        return self.ranges[self.best].sqnr_db


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """A statistics file; `tensors` with the one that INT8 serves worst first.

    `steady` says how far the ranges depend on the images, for the method asked about.
    """

    path: Path
    sha256: str
    graph_sha256: str
    images: int
    skipped: tuple[str, ...]
    preprocess: str
    versions: Mapping[str, str]
    tensors: tuple[ObservedTensor, ...]
    steady: Stability


def describe(
    path: Path,
    scheme: Scheme,
    *,
    methods: Sequence[str] = tuple(METHODS),
    method: str = "percentile",
    overrides: Mapping[str, str | Range] | None = None,
) -> CalibrationReport:
    """Read the statistics in `path` and choose every tensor's range by each of `methods`.

    Raises BadInput for a damaged file, UsageError for an unknown method or tensor.
    """
    method_named(method)
    statistics, digest = store.read(path)
    symmetric = scheme.symmetric_activations
    chosen = {
        name: choose(statistics, name, symmetric=symmetric, levels=_LEVELS, overrides=overrides)
        for name in methods
    }
    tensors = []
    for name in statistics.tensors:
        histogram = statistics.histogram(name)
        ranges = {}
        for how, spans in chosen.items():
            span = spans[name]
            error = tensor_error(histogram, activation_params(span, scheme))
            ranges[how] = MethodRange(
                low=span.low,
                high=span.high,
                sqnr_db=error.sqnr_db,
                clipped_share=error.clipped_share,
            )
        tensors.append(
            ObservedTensor(
                name=name,
                count=histogram.count,
                minimum=histogram.minimum if histogram.count else 0.0,
                maximum=histogram.maximum if histogram.count else 0.0,
                mean=histogram.mean,
                bars=tuple(bars(histogram)),
                ranges=ranges,
                best=max(ranges, key=lambda how: ranges[how].sqnr_db),
            )
        )
    return CalibrationReport(
        path=Path(path),
        sha256=digest,
        graph_sha256=statistics.origin.graph_sha256,
        images=len(statistics.images),
        skipped=tuple(sorted(statistics.skipped.values())),
        preprocess=statistics.origin.preprocess,
        versions=dict(statistics.origin.versions),
        # of two that lose alike, graph order: sorting is stable
        tensors=tuple(sorted(tensors, key=lambda tensor: tensor.sqnr_db)),
        steady=stability(
            statistics, method, symmetric=symmetric, levels=_LEVELS, overrides=overrides
        ),
    )
