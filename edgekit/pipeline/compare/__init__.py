"""Comparing models: sizes, operations, latency in every runtime, accuracy; one row each.

Each part of each row goes through the stage cache, so that an interrupted comparison goes on where
it stopped. What fails stays in its row.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable

from edgekit import __version__, cpu
from edgekit.cache import StageCache
from edgekit.filehash import FileHashes
from edgekit.metrics.datasets import Dataset, open_dataset
from edgekit.pipeline.compare.ablation import variants
from edgekit.pipeline.compare.candidates import Candidate, candidates
from edgekit.pipeline.compare.request import PRESETS, CompareRequest, listed
from edgekit.pipeline.compare.scoring import Score, drop, score
from edgekit.pipeline.compare.timing import options_of, time_rows
from edgekit.pipeline.runner import Outcome, StageRunner
from edgekit.report.comparison import Comparison, Drop, Row, RowTiming
from edgekit.types import Progress, no_progress

__all__ = ["PRESETS", "CompareRequest", "compare"]


def compare(
    request: CompareRequest,
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Compare the models of `request`.

    Raises BadInput for an argument that does not exist and data that cannot be used, UsageError for
    options that do not fit; a model that cannot be loaded, exported, run or evaluated is a row with
    errors.
    """
    dataset = None
    if request.data is not None:
        dataset = open_dataset(
            request.data, split=request.split, images=request.data_images, limit=request.limit
        )
        request = _with_real_images(request, dataset)
    models = listed(request.models, request.baseline)
    with StageCache(note=note) as cache, FileHashes(cache.folder / "hashes.json") as hashes:
        runner = StageRunner(cache, progress, note, fresh=request.fresh)
        if request.preset == "ablation":
            rows = variants(request, models[0], runner, hashes)
        else:
            rows = candidates(request, models, runner, hashes)
        baselines = _baselines(request, rows)
        scores: list[Outcome[Score] | None] = [None] * len(rows)
        if dataset is not None:
            data_sha256 = dataset.sha256(hashes.sha256)
            for number, row in enumerate(rows):
                progress(number, len(rows), f"evaluating {row.name}")
                scores[number] = score(row, dataset, data_sha256, runner)
        drops = [
            _drop(scores[number], base, scores, request, runner)
            for number, base in enumerate(baselines)
        ]
        timings = time_rows(rows, baselines, request, runner)
    finished = tuple(
        _row(row, rows, baselines[number], timings[number], scores[number], drops[number])
        for number, row in enumerate(rows)
    )
    loads = [
        timing.latency.load
        for row in finished
        for timing in row.timings
        if timing.latency is not None and not math.isnan(timing.latency.load)
    ]
    return Comparison(
        rows=finished,
        batches=request.batches,
        task=dataset.task if dataset is not None else None,
        images=max((len(s.value.images) for s in scores if s is not None), default=0),
        settings=_settings(request),
        load=max(loads, default=None),
        notes=dataset.notes if dataset is not None else (),
    )


def _with_real_images(request: CompareRequest, dataset: Dataset) -> CompareRequest:
    """The first labelled image serves the exports' parity checks where no images were given.

    Noise would do, but real images tell more. Never to calibrate with: that must not be done on what
    accuracy is measured on.
    """
    if request.images is not None or request.target.is_int8 or not dataset.samples:
        return request
    first = dataset.samples[0].path
    return dataclasses.replace(
        request, images=first.parent if first is not None else dataset.source
    )


def _drop(
    this: Outcome[Score] | None,
    base: int | None,
    scores: list[Outcome[Score] | None],
    request: CompareRequest,
    runner: StageRunner,
) -> Drop | None:
    other = scores[base] if base is not None else None
    if this is None or other is None:
        return None
    return drop(this, other, request.resamples, runner)


def _baselines(request: CompareRequest, rows: list[Candidate]) -> list[int | None]:
    """For each row the one it is held against: the first, or (compression) the first of its kind."""
    found: list[int | None] = []
    for number, row in enumerate(rows):
        base = 0
        if request.preset == "compression" and request.baseline is None:
            base = next(i for i, other in enumerate(rows) if _kin(other, row))
        found.append(None if base == number else base)
    return found


def _kin(one: Candidate, other: Candidate) -> bool:
    """Whether two rows are of one architecture: by name, else by the sequence of their layers."""
    if one is other:
        return True
    if one.architecture and other.architecture:
        return one.architecture == other.architecture
    return (
        one.facts is not None
        and other.facts is not None
        and one.facts.structure == other.facts.structure
    )


def _row(
    row: Candidate,
    rows: list[Candidate],
    base: int | None,
    timings: list[RowTiming],
    scored: Outcome[Score] | None,
    dropped: Drop | None,
) -> Row:
    facts, other = row.facts, rows[base] if base is not None else row
    pruned = None
    if (
        facts is not None
        and other.facts is not None
        and other.facts.channels
        and facts.structure == other.facts.structure
    ):
        pruned = 1 - facts.channels / other.facts.channels
    kin = next(item for item in rows if _kin(item, row))
    return Row(
        name=row.name,
        source=str(row.source),
        precision=row.precision,
        made_from=row.made_from,
        baseline=rows[base].name if base is not None else "",
        architecture=row.architecture or kin.architecture or kin.name,
        training_batch=row.training_batch,
        parameters=row.parameters or (facts.weights if facts else None),
        size_mb=None if row.size_bytes is None else row.size_bytes / 1e6,
        macs=facts.macs if facts else None,
        sparsity=facts.zero_share if facts else None,
        ternary_share=facts.ternary_share if facts else None,
        pruned_share=pruned,
        timings=tuple(timings),
        accuracy=scored.value.accuracy if scored is not None else None,
        drop=dropped,
        variant=row.variant,
        errors=tuple(row.errors),
        notes=tuple(row.notes),
    )


def _settings(request: CompareRequest) -> dict[str, object]:
    machine = cpu.detect()
    options = options_of(request, request.batches[0])
    return {
        "edgekit": __version__,
        "machine": machine.model or platform.machine(),
        "cores": machine.cores,
        "threads": options.threads,
        "target": request.target.name,
        "batches": list(request.batches),
        "data": request.data.name if request.data is not None else None,
        "split": request.split if request.data is not None else None,
    }
