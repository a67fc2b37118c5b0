"""The search on its own: a model with its statistics and images, and a record of all that was tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit import atomic, onnx_file
from edgekit.cache import StageCache, cache_folder
from edgekit.codec import to_record
from edgekit.errors import AccuracyBudgetMissed, UsageError
from edgekit.filehash import FileHashes
from edgekit.pipeline.choosing import searched
from edgekit.pipeline.inputs import CalibrationImages
from edgekit.preprocess import Preprocess
from edgekit.require import versions_of
from edgekit.stages.quantize import QuantizeOptions, rules_of, scheme_of
from edgekit.stages.search import SearchOptions, SearchResult
from edgekit.target import TargetProfile
from edgekit.types import Calibration, OnnxModel, Progress


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search chose: ranges and options to quantize with, how it went, and where that stands."""

    ranges: Calibration
    options: QuantizeOptions
    result: SearchResult
    record: Path


def limits_of(max_drop: float | None, minutes: float) -> SearchOptions:
    """Search limits: `max_drop` in points of agreement with the float model (1 point = 0.01)."""
    if max_drop is None:
        return SearchOptions(seconds=60 * minutes)
    return SearchOptions(seconds=60 * minutes, least_agreement=1 - max_drop / 100)


def search(
    model: OnnxModel,
    calibration: Calibration,
    profile: TargetProfile,
    contract: Preprocess,
    images: Path,
    options: QuantizeOptions,
    limits: SearchOptions,
    record: Path,
    progress: Progress,
) -> Found:
    """Search with the images of a folder; what was tried is written to `record` (JSON).

    An interrupted search of the same content goes on where it stopped. Raises AccuracyBudgetMissed,
    with the record written, when nothing reaches `limits.least_agreement`.
    """
    from edgekit.stages import search_int8
    from edgekit.stages.quantize import check_calibration

    if options.recover.needed:
        raise UsageError(
            "The search rounds to nearest and corrects biases by itself.",
            hint="Search first, then `edgekit quantize --replay SEARCH.json --rounding …`.",
        )
    check_calibration(calibration, model)
    with FileHashes(cache_folder() / "hashes.json") as hashes:
        pictures = CalibrationImages.collect(images, hashes, progress)
    cache = StageCache()
    key = cache.key(
        "search",
        {
            "version": search_int8.VERSION,
            "libraries": versions_of("onnx", "onnx_ir", "onnxruntime", "numpy"),
            "graph": model.sha256,
            "statistics": calibration.sha256,
            "images": sorted(pictures.sha256),
            "preprocess": contract.to_dict(),
            "rules": to_record(rules_of(profile)),
            "scheme": to_record(scheme_of(profile, options)),
            "keep_float": list(options.keep_float),
        },
    )
    ranges, chosen, result = searched(
        model,
        calibration,
        profile,
        contract,
        pictures.spread(search_int8.JUDGED_IMAGES),
        options,
        limits,
        cache.partial(key),
        progress,
        head=model.metadata.get(onnx_file.HEAD_KEY),
    )
    atomic.write_json(record, _told(result))
    if not result.met:
        assert limits.least_agreement is not None
        raise AccuracyBudgetMissed(
            f"The best INT8 model found agrees to {result.best.agreement:.1%} with float; "
            f"{limits.least_agreement:.1%} was asked for. What was tried stands in {record}.",
            hint="Give it more --minutes or a larger --max-drop; more calibration images may help.",
        )
    return Found(ranges=ranges, options=chosen, result=result, record=record)


def _told(result: SearchResult) -> dict[str, object]:
    return {
        "choice": to_record(result.best.choice),
        "agreement": result.best.agreement,
        "int8_mac_share": result.best.int8_mac_share,
        "latency_ms": result.best.latency_ms,
        "faster_float": list(result.faster_float),
        "sensitivity_db": dict(
            sorted(to_record(result.sensitivity_db).items(), key=lambda item: float(item[1]))
        ),
        "trials": to_record(result.trials),
        "out_of_time": result.out_of_time,
    }
