"""The parts of the report that stand in the manifest: stages, latency, accuracy, sizes, provenance."""

from __future__ import annotations

import math
from typing import Any

from edgekit.manifest import Manifest
from edgekit.pipeline.report.raw import number, numbers, objects, part, text, texts
from edgekit.report.bundle_report import (
    BAD,
    GOOD,
    NEUTRAL,
    AccuracyLine,
    FileLine,
    LatencyLine,
    StageLine,
    Tile,
)
from edgekit.report.svg import minus
from edgekit.stages.contract import describe

_FIGURES = (
    ("map50_95", "mAP50-95"),
    ("map50", "mAP50"),
    ("map75", "mAP75"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("top1", "top-1"),
    ("top5", "top-5"),
)
# drops in points: hardly one, one that deserves a word, a broken model
_SMALL_DROP, _LARGE_DROP, _RUINOUS_DROP = 0.5, 2.0, 10.0
_MOST_SAMPLES_MS = 4000


def stages(raw: dict[str, Any]) -> tuple[StageLine, ...]:
    """The chain, one line for each step."""
    lines = []
    for step in objects(raw, "chain"):
        parity = part(step, "parity")
        known = isinstance(parity, dict)
        blocks = objects(parity, "blocks")
        # null is how JSON says that two things are equal
        worst = min(blocks, key=lambda b: _db(number(b, "sqnr_db")), default=None)
        lines.append(
            StageLine(
                name=text(step, "name"),
                seconds=number(step, "seconds") or 0.0,
                cached=part(step, "cached") is True,
                cosine=number(parity, "cosine"),
                sqnr_db=_db(number(parity, "sqnr_db")) if known else None,
                max_rel_error=number(parity, "max_rel_error"),
                worst_block=text(worst, "name"),
                notes=texts(step, "notes"),
            )
        )
    return tuple(lines)


def _db(value: float | None) -> float:
    return math.inf if value is None else value


def latency(raw: dict[str, Any]) -> tuple[LatencyLine, ...]:
    """Float first, then INT8, as far as they were measured."""
    lines = []
    for key, name in (("float", "FP32"), ("int8", "INT8")):
        value = part(raw, "latency", key)
        samples = numbers(value, "samples_ms")
        p50 = number(value, "p50_ms")
        if p50 is None:
            continue
        lines.append(
            LatencyLine(
                name=name,
                p50_ms=p50,
                p90_ms=number(value, "p90_ms") or p50,
                p95_ms=number(value, "p95_ms") or p50,
                p99_ms=number(value, "p99_ms") or p50,
                mean_ms=number(value, "mean_ms") or p50,
                throughput_fps=number(value, "throughput_fps") or 0.0,
                peak_rss_mb=number(value, "peak_rss_mb"),
                runs=int(number(value, "runs") or len(samples)),
                samples_ms=samples[:_MOST_SAMPLES_MS],
            )
        )
    return tuple(lines)


def latency_note(raw: dict[str, Any]) -> str:
    """How the latency was measured, in a sentence."""
    first = part(raw, "latency", "float") or part(raw, "latency", "int8")
    if not isinstance(first, dict):
        return ""
    threads = int(number(first, "threads") or 1)
    note = (
        f"{threads} thread{'s' if threads != 1 else ''}, batch {int(number(first, 'batch') or 1)}"
    )
    if part(raw, "latency", "int8") is not None:
        note += ", both models taking turns in one run"
    load = number(first, "load")
    if load is not None:
        note += f"; other processes used {load:.0%} of the machine"
    return note + "."


def accuracy(raw: dict[str, Any]) -> tuple[tuple[AccuracyLine, ...], tuple[AccuracyLine, ...], int]:
    """Figures before and after, those of each class, and the number of images."""
    before = part(raw, "accuracy", "reports", "float")
    after = part(raw, "accuracy", "reports", "int8")
    figures = tuple(
        AccuracyLine(name=name, before=number(before, key), after=number(after, key))
        for key, name in _FIGURES
        if number(before, key) is not None or number(after, key) is not None
    )
    named = [part(each, "per_class") for each in (before, after)]
    names = dict.fromkeys(name for each in named if isinstance(each, dict) for name in each)
    classes = tuple(
        AccuracyLine(
            name=name,
            before=number(before, "per_class", name),
            after=number(after, "per_class", name),
        )
        for name in names
    )
    images = number(before, "images") or number(after, "images") or 0
    return figures, classes, int(images)


def tiles(manifest: Manifest, sizes: tuple[tuple[str, float], ...]) -> tuple[Tile, ...]:
    """The headline figures."""
    raw, found = manifest.raw, []
    ratio = number(raw, "latency", "speedup", "ratio")
    low = number(raw, "latency", "speedup", "low")
    high = number(raw, "latency", "speedup", "high")
    if ratio is not None:
        interval = f"95 % interval {low:.2f} to {high:.2f}" if low and high else ""
        tone = GOOD if low is not None and low > 1 else BAD if high and high < 1 else NEUTRAL
        found.append(
            Tile(title="Speed-up of INT8", value=f"{ratio:.2f}×", detail=interval, tone=tone)
        )
    lines = {line.name: line for line in latency(raw)}
    if "INT8" in lines and "FP32" in lines:
        found.append(
            Tile(
                title="Median latency, INT8",
                value=f"{lines['INT8'].p50_ms:.2f} ms",
                detail=f"FP32 {lines['FP32'].p50_ms:.2f} ms",
            )
        )
    elif lines:
        line = next(iter(lines.values()))
        found.append(
            Tile(
                title=f"Median latency, {line.name}",
                value=f"{line.p50_ms:.2f} ms",
                detail=f"p99 {line.p99_ms:.2f} ms",
            )
        )
    figures, _, images = accuracy(raw)
    metric = dict(_FIGURES).get(text(raw, "accuracy", "metric"), "")
    found += [_accuracy_tile(figure, images) for figure in figures if figure.name == metric]
    if len(sizes) > 1:
        before, after = sizes[0][1], sizes[-1][1]
        found.append(
            Tile(
                title="Model size",
                value=f"{after:.2f} MB",
                detail=minus(f"FP32 {before:.2f} MB ({100 * (after / before - 1):+.0f} %)"),
                tone=GOOD if after < before else NEUTRAL,
            )
        )
    elif sizes:
        found.append(Tile(title="Model size", value=f"{sizes[0][1]:.2f} MB"))
    return tuple(found)


def _accuracy_tile(line: AccuracyLine, images: int) -> Tile:
    if line.after is None or line.before is None:
        value = line.before if line.before is not None else line.after
        return Tile(
            title=line.name, value=f"{100 * (value or 0.0):.1f} %", detail=f"on {images} images"
        )
    points = 100 * (line.after - line.before)
    tone = GOOD if points > -_SMALL_DROP else BAD if points < -_LARGE_DROP else NEUTRAL
    return Tile(
        title=f"{line.name}, INT8",
        value=f"{100 * line.after:.1f} %",
        detail=minus(f"{points:+.2f} points from {100 * line.before:.1f} % on {images} images"),
        tone=tone,
    )


def tone(raw: dict[str, Any]) -> str:
    """Whether the verdict is good news."""
    low = number(raw, "latency", "speedup", "low")
    figures, _, _ = accuracy(raw)
    metric = dict(_FIGURES).get(text(raw, "accuracy", "metric"), "")
    lost = 0.0
    for line in figures:
        if line.name == metric and line.before is not None and line.after is not None:
            lost = 100 * (line.before - line.after)
    if lost > _RUINOUS_DROP:
        return BAD
    return GOOD if low is not None and low > 1 and lost <= _LARGE_DROP else NEUTRAL


def files(manifest: Manifest) -> tuple[FileLine, ...]:
    """Every file of the bundle, the largest first."""
    lines = [
        FileLine(
            path=name,
            size_bytes=entry.size_bytes,
            what=text(manifest.raw, "files", name, "what"),
            sha256=entry.sha256,
        )
        for name, entry in manifest.files.items()
    ]
    return tuple(sorted(lines, key=lambda line: -line.size_bytes))


def facts(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Provenance: where everything came from, with hashes."""
    raw, found = manifest.raw, []
    parameters = number(raw, "checkpoint", "parameters")
    checkpoint = text(raw, "checkpoint", "file")
    kind = text(raw, "checkpoint", "kind")
    found.append(("Checkpoint", f"{checkpoint} ({kind})" if kind else checkpoint))
    found.append(("Checkpoint sha256", text(raw, "checkpoint", "sha256")))
    if parameters:
        found.append(("Parameters", f"{int(parameters):,}".replace(",", " ")))
    found.append(("Target", manifest.target))
    main = manifest.models[0]
    found.append(("Runtime", f"{main.runtime}, {main.precision}"))
    found.append(("Model sha256", manifest.files[main.files[0]].sha256))
    found.append(("Input", describe(manifest.preprocess)))
    if manifest.task:
        head = f", head {manifest.head}" if manifest.head else ""
        found.append(("Task", f"{manifest.task}{head}"))
    if manifest.names:
        shown = ", ".join(manifest.names[:12]) + (" …" if len(manifest.names) > 12 else "")
        found.append(("Classes", f"{len(manifest.names)}: {shown}"))
    calibrated = texts(raw, "calibration", "image_sha256")
    if calibrated:
        method = text(raw, "calibration", "method")
        skipped = len(texts(raw, "calibration", "skipped"))
        left_out = f", {skipped} left out" if skipped else ""
        found.append(("Calibration", f"{len(calibrated)} images{left_out}, method {method}"))
    validated = texts(raw, "validation", "image_sha256")
    if validated:
        overlap = len(set(validated) & set(calibrated))
        shared = f"; {overlap} of them were calibrated on" if overlap else ""
        found.append(("Validation", f"{len(validated)} images{shared}"))
    found.append(("Golden outputs", f"{manifest.golden.runtime} {manifest.golden.runtime_version}"))
    found.append(("Made on", manifest.golden.cpu))
    versions = part(raw, "versions")
    if isinstance(versions, dict):
        pairs = (f"{name} {value}" for name, value in versions.items())
        found.append(("Versions", ", ".join(pairs)))
    return tuple((name, value) for name, value in found if value)
