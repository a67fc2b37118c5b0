"""Prepared ONNX + images → activation statistics, and the ranges a method chooses from them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit import onnx_file
from edgekit.atomic import sha256_file, sha256_json
from edgekit.calibration import store
from edgekit.calibration.methods import choose, method_named
from edgekit.calibration.source import ImageSource, open_source
from edgekit.calibration.stability import stability
from edgekit.calibration.statistics import Origin, Statistics
from edgekit.errors import BadInput, UsageError, nearest
from edgekit.images import check_bad_share
from edgekit.preprocess import Preprocess, apply
from edgekit.require import versions_of
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.stages import collect_workers
from edgekit.stages.collect import Collector, Task, open_observed
from edgekit.stages.timing_worker import peak_rss_mb
from edgekit.stages.unfinished import BASE, clear, resume, unfinished_folder
from edgekit.types import Calibration, OnnxModel, Progress, Range, no_progress

VERSION = 3
"""Raised when the statistics of the same content change."""

# images on which the bare model is timed, for `inference_seconds`
_TIMED_IMAGES = 5


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """How statistics are collected and ranges chosen.

    `tensors` None observes every float activation; `channels` maps tensors to the axis along which
    per-channel minimum, maximum and mean are kept. `threads` is shared by all `workers` (processes);
    neither changes a bit of the result. `partial` is a folder for what an interrupted run had
    reached, kept for this content (StageCache.partial), saved every `save_every_s` seconds.
    `hash_file` may answer from memory what it hashed before.
    """

    method: str = "minmax"
    symmetric: bool = False
    levels: int = 256
    overrides: Mapping[str, str | Range] = field(default_factory=dict)
    tensors: tuple[str, ...] | None = None
    channels: Mapping[str, int] = field(default_factory=dict)
    workers: int = 1
    threads: int = 1
    max_bad_share: float = 0.1
    partial: Path | None = None
    save_every_s: float = 5.0
    time_inference: bool = True
    hash_file: Callable[[Path], str] = sha256_file


@dataclass(frozen=True, kw_only=True)
class ContentKey:
    """Everything the statistics depend on, as plain JSON values, and the sha256 of it."""

    fields: dict[str, Any]
    sha256: str


def content_key(
    model: OnnxModel,
    images: Sequence[str],
    contract: Preprocess,
    tensors: Sequence[str] | None,
    channels: Mapping[str, int] | None = None,
) -> ContentKey:
    """The key of the statistics of `images` (sha256 each, any order): no method, no ranges.

    `fields` goes to StageCache.key and why_missed, which names the field that changed.
    """
    fields: dict[str, Any] = {
        "graph": model.sha256,
        "weights": _external_weights(model.path),
        "images": sorted(set(images)),
        "preprocess": contract.to_dict(),
        "tensors": None if tensors is None else sorted(set(tensors)),
        "channels": dict(channels or {}),
        "versions": _versions(),
    }
    return ContentKey(fields=fields, sha256=sha256_json(fields))


def _versions() -> dict[str, str]:
    return {"calibrate": str(VERSION), **versions_of("onnxruntime", "cv2", "numpy")}


def _external_weights(path: Path) -> str:
    """sha256 over the external data files that the model names; "" when it has none."""
    locations: set[str] = set()
    for item in onnx_file.load(path, external_data=False).graph.initializer:
        locations.update(e.value for e in item.external_data if e.key == "location")
    if not locations:
        return ""
    folder = path.absolute().parent
    try:
        return sha256_json({name: sha256_file(folder / name) for name in sorted(locations)})
    except OSError as error:
        raise BadInput(
            f"The external data of {path} cannot be read: {error.strerror} ({error.filename}).",
            hint="Keep the data files beside the model.",
        ) from error


def check_fits(model: OnnxModel, contract: Preprocess) -> None:
    """Raise BadInput when the model's input cannot take what the contract makes, one image a time.

    Free dimensions take what the contract says. NotPossible for models with several inputs.
    """
    given, wanted = onnx_file.main_input(model), contract.input_shape
    where = f"{model.path.name}: the input '{given.name}'"
    if len(given.shape) != len(wanted):
        raise BadInput(f"{where} has shape {list(given.shape)}, not that of a batch of images.")
    if isinstance(given.shape[0], int) and given.shape[0] != 1:
        raise BadInput(
            f"{where} has a fixed batch of {given.shape[0]}; calibration runs one image at a time.",
            hint="Export with a batch of 1, or with --dynamic.",
        )
    for size, expected in zip(given.shape[1:], wanted[1:], strict=True):
        if isinstance(size, int) and size != expected:
            raise BadInput(
                f"{where} is fixed at {list(given.shape)}, the preprocessing gives {list(wanted)}.",
                hint="Give the size the model was exported for (--imgsz) and its layout (--layout), "
                "or export the model again for this size.",
            )
    if given.dtype != contract.dtype:
        raise BadInput(
            f"{where} is {given.dtype}, the preprocessing gives {contract.dtype}.",
            hint=f'Set "dtype": "{given.dtype}" in the preprocessing contract (--preprocess FILE).',
        )


def run(
    model: OnnxModel,
    images: Path | Sequence[Path] | ImageSource,
    contract: Preprocess,
    out: Path,
    options: CalibrateOptions | None = None,
    progress: Progress = no_progress,
) -> Calibration:
    """Collect statistics of `model` over `images` into `out` (.npz) and choose ranges.

    `images`: a folder, an .npz, a list of image files, or a source. The statistics depend on the set
    of distinct images (equal bytes count once) and on nothing else: not on their order, `workers`,
    `threads`, or interruptions. Unusable images are skipped and counted.
    Raises BadInput for a model that does not fit the contract, when more than `max_bad_share` of the
    images are unusable or none is left, and when a tensor is not finite for an image (both named).
    """
    options = options or CalibrateOptions()
    started = time.perf_counter()
    method_named(options.method)
    check_fits(model, contract)
    source = open_source(images)
    threads = max(1, options.threads // options.workers)
    with open_observed(model.path, _wanted(options), threads) as observed:
        origin = Origin(
            graph_sha256=model.sha256,
            weights_sha256=_external_weights(model.path),
            preprocess=contract.to_json(),
            versions=_versions(),
            tensors=observed.tensors,
            channels=dict(options.channels),
        )
        if not origin.tensors:
            raise BadInput(f"{model.path} has no float tensor to observe.")
        _check_channels(options, origin)
        found, unreadable = fingerprints(source, options.hash_file, progress)
        with unfinished_folder(options.partial) as folder:
            statistics = resume(folder, origin, set(found))
            for sha256, reason in unreadable.items():
                statistics.skip(sha256, reason)
            tally = _Tally(len(source), statistics, options.max_bad_share, progress)
            task = Task(
                model=model.path,
                origin=origin,
                source=source,
                contract=contract,
                threads=threads,
                partial=None if options.partial is None else folder / BASE,
                save_every_s=options.save_every_s,
            )
            todo = [(index, sha256) for sha256, index in found.items() if sha256 not in statistics]
            peak_mb = 0.0
            if options.workers > 1 and len(todo) > 1:
                # each worker opens the model itself; here it would only take memory
                observed.close()
                parts, peak_mb = collect_workers.collect(
                    task, todo, folder, options.workers, tally.on_image
                )
                collect_workers.merged(parts, statistics)
            else:
                Collector(task, statistics, tally.on_image).run(observed, iter(todo))
                observed.close()
            check_bad_share(sorted(statistics.skipped.values()), len(source), options.max_bad_share)
            if not statistics.images:
                raise BadInput(f"None of the {len(source)} images can be used.")
            digest = store.write(statistics, out)
            seconds = time.perf_counter() - started
            peak_mb += peak_rss_mb()
            clear(folder)
    inference = _bare_seconds(model, source, contract, threads) if options.time_inference else 0.0
    return replace(
        _described(statistics, out, digest, options),
        seconds=seconds,
        inference_seconds=inference * len(statistics.images),
        peak_rss_mb=peak_mb,
    )


def choose_ranges(
    calibration: Calibration,
    method: str,
    *,
    symmetric: bool,
    levels: int = 256,
    overrides: Mapping[str, str | Range] | None = None,
) -> Calibration:
    """`calibration` with ranges chosen anew from its file; no image is run."""
    fresh = open_calibration(
        calibration.path, method, symmetric=symmetric, levels=levels, overrides=overrides
    )
    if fresh.sha256 != calibration.sha256:
        raise BadInput(
            f"{calibration.path} is not the calibration it was ({fresh.sha256[:12]}… instead of "
            f"{calibration.sha256[:12]}…).",
            hint="Calibrate again.",
        )
    return replace(calibration, method=method, ranges=fresh.ranges)


def with_stability(calibration: Calibration, *, symmetric: bool, levels: int = 256) -> Calibration:
    """`calibration` with how far its ranges depend on the images (edgekit.calibration.stability)."""
    statistics, _ = store.read(calibration.path)
    steady = stability(statistics, calibration.method, symmetric=symmetric, levels=levels)
    return replace(
        calibration,
        uncertainty=None if math.isnan(steady.p90) else steady.p90,
        warning=steady.warning,
    )


def open_calibration(
    path: Path,
    method: str,
    *,
    symmetric: bool,
    levels: int = 256,
    overrides: Mapping[str, str | Range] | None = None,
) -> Calibration:
    """The calibration in `path` with ranges chosen by `method`; no image is run."""
    statistics, digest = store.read(path)
    return _described(
        statistics,
        path,
        digest,
        CalibrateOptions(
            method=method, symmetric=symmetric, levels=levels, overrides=overrides or {}
        ),
    )


def merge(files: Sequence[Path], out: Path, options: CalibrateOptions) -> Calibration:
    """Add up statistics of disjoint sets of images into `out`, and choose ranges.

    Raises BadInput when two were collected on different graphs or in different ways, or share images.
    """
    if not files:
        raise BadInput("There is nothing to merge.", hint="Give two or more calibration files.")
    started = time.perf_counter()
    method_named(options.method)
    statistics, _ = store.read(files[0])
    for file in files[1:]:
        other, _ = store.read(file)
        try:
            statistics.merge(other)
        except BadInput as error:
            raise BadInput(f"{file}: {error.message}", hint=error.hint) from error
    digest = store.write(statistics, out)
    return replace(
        _described(statistics, out, digest, options),
        seconds=time.perf_counter() - started,
        peak_rss_mb=peak_rss_mb(),
    )


def _described(
    statistics: Statistics, path: Path, digest: str, options: CalibrateOptions
) -> Calibration:
    return Calibration(
        path=path,
        sha256=digest,
        graph_sha256=statistics.origin.graph_sha256,
        method=options.method,
        ranges=choose(
            statistics,
            options.method,
            symmetric=options.symmetric,
            levels=options.levels,
            overrides=options.overrides,
        ),
        images=len(statistics.images),
        image_sha256=statistics.images,
        skipped=tuple(sorted(statistics.skipped.values())),
    )


def _check_channels(options: CalibrateOptions, origin: Origin) -> None:
    for name in options.channels:
        if name not in origin.tensors:
            raise UsageError(
                f"No channels can be observed of '{name}': it is not a float activation.",
                hint=nearest(name, origin.tensors),
            )


def _wanted(options: CalibrateOptions) -> tuple[str, ...] | None:
    if options.tensors is None:
        return None
    return tuple(dict.fromkeys((*options.tensors, *options.channels)))


def fingerprints(
    source: ImageSource, hash_file: Callable[[Path], str], progress: Progress
) -> tuple[dict[str, int], dict[str, str]]:
    """sha256 → number of the first image with these bytes, and what cannot be read at all."""
    found: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    for index in range(len(source)):
        progress(index, len(source), "hash images")
        try:
            found.setdefault(source.fingerprint(index, hash_file), index)
        except BadInput as error:
            unreadable[f"unreadable:{source.name(index)}"] = error.message
    return found, unreadable


class _Tally:
    """Hears of every image: shows progress, and gives up as soon as too many are unusable."""

    def __init__(
        self, total: int, statistics: Statistics, max_bad_share: float, progress: Progress
    ) -> None:
        self._total, self._share, self._progress = total, max_bad_share, progress
        self._done = statistics.total
        self._bad = list(statistics.skipped.values())
        progress(self._done, total, "calibrate")

    def on_image(self, sha256: str, reason: str) -> None:
        self._done += 1
        if reason:
            self._bad.append(reason)
            check_bad_share(self._bad, self._total, self._share)
        self._progress(self._done, self._total, "calibrate")


def _bare_seconds(
    model: OnnxModel, source: ImageSource, contract: Preprocess, threads: int
) -> float:
    """Seconds per image of the model as it is, nothing observed: the median of a few images."""
    name = model.inputs[0].name
    samples: list[float] = []
    with open_session("onnxruntime", model.path, SessionOptions(threads=threads)) as session:
        for index in range(len(source)):
            with contextlib.suppress(BadInput):
                tensor, _ = apply(source.read(index)[1], contract)
                if not samples:
                    session.run({name: tensor})
                started = time.perf_counter()
                session.run({name: tensor})
                samples.append(time.perf_counter() - started)
            if len(samples) == _TIMED_IMAGES:
                break
    return sorted(samples)[len(samples) // 2] if samples else 0.0
