"""Writing a bundle's manifest.json and README.txt."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from edgekit import __version__
from edgekit.contents import CALIBRATION, BundleContents
from edgekit.cpu import detect
from edgekit.golden import SAME_LIMITS, limits_for
from edgekit.manifest import FORMAT, MANIFEST, SCHEMA, SUMS, FileEntry
from edgekit.types import ParityReport, to_json

DEVICE_PROGRAM = "edgekit-device.pyz"
_DEVICE_LINES = [
    "",
    "On the board, with Python 3.8 or newer and nothing of edgekit:",
    "  python3 edgekit-device.pyz verify .    the same check, with the runtime that is there",
    "  python3 edgekit-device.pyz bench .     latency",
]


def parity_json(report: ParityReport | None) -> dict[str, Any] | None:
    """A parity report as the keys of the machine-readable answers, with its blocks."""
    if report is None:
        return None
    value: dict[str, Any] = to_json(
        {
            "cosine": report.cosine,
            "sqnr_db": report.sqnr_db,
            "max_abs_error": report.max_abs_error,
            "max_rel_error": report.max_rel_error,
            "samples": report.samples,
            "blocks": report.blocks,
        }
    )
    return value


def _created() -> str:
    """UTC now, or SOURCE_DATE_EPOCH where reproducible builds set it."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(text) if text.isascii() and text.isdigit() else time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def manifest_json(
    contents: BundleContents,
    models: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    files: Mapping[str, FileEntry],
    what: Mapping[str, str],
) -> dict[str, Any]:
    """manifest.json as a value; `models` and `samples` are its parts that were made on writing."""
    cpu = detect()
    accuracy = None
    best = contents.accuracy_float or contents.accuracy_int8
    if best is not None:
        pair = {"float": contents.accuracy_float, "int8": contents.accuracy_int8}
        accuracy = {
            "metric": best.metric,
            **{kind: item and item.value for kind, item in pair.items()},
            "reports": pair,
        }
    latency = {
        "float": contents.latency_float,
        "int8": contents.latency_int8,
        "speedup": contents.speedup,
    }
    chain = []
    for step in contents.chain:
        value = to_json(step)
        value["parity"] = parity_json(step.parity)
        chain.append(value)
    manifest: dict[str, Any] = to_json(
        {
            "format": FORMAT,
            "schema": SCHEMA,
            "name": contents.name,
            "created_utc": _created(),
            "verdict": contents.verdict,
            "target": contents.target,
            "checkpoint": contents.checkpoint,
            "task": contents.task,
            "head": contents.head,
            "names": contents.names,
            "preprocess": contents.preprocess.to_dict(),
            "models": models,
            "chain": chain,
            "versions": {**contents.versions, "edgekit": __version__},
            "calibration": {
                "file": CALIBRATION if contents.calibration is not None else None,
                "method": contents.calibration_method,
                "image_sha256": contents.calibration_sha256,
                "skipped": contents.calibration_skipped,
            },
            "validation": {"image_sha256": contents.validation_sha256},
            "latency": latency if any(latency.values()) else None,
            "accuracy": accuracy,
            "golden": {
                "runtime": contents.golden_runtime,
                "runtime_version": contents.golden_runtime_version,
                "cpu": cpu_text(cpu.arch, cpu.isa),
                "same": SAME_LIMITS,
                "other": limits_for(models[0]["precision"]),
                "samples": samples,
                "blocks": [block.to_json() for block in contents.blocks],
            },
            "details": contents.details,
            "files": {
                name: {"sha256": entry.sha256, "size": entry.size_bytes, "what": what[name]}
                for name, entry in files.items()
            },
        }
    )
    return manifest


def cpu_text(arch: str, isa: tuple[str, ...]) -> str:
    """What decides the kernels a runtime takes, in one line: architecture and instruction sets."""
    return " ".join((arch, *sorted(isa)))


def readme_text(
    contents: BundleContents, models: list[dict[str, Any]], what: Mapping[str, str]
) -> str:
    main, shape = models[0], "x".join(str(n) for n in contents.preprocess.input_shape)
    names = ", ".join(" ".join(name.split()) for name in contents.names[:10]) + (
        " …" if len(contents.names) > 10 else ""
    )
    width = max(len(name) for name in (*what, MANIFEST, SUMS))
    all_files = {
        **what,
        MANIFEST: "how the model came about; hashes; limits; results (JSON)",
        SUMS: "hashes of all files, for `sha256sum -c SHA256SUMS`",
    }
    lines = [
        f"{' '.join(contents.name.split())}: a model for {contents.target.get('name', 'a board')}",
        "",
        contents.verdict,
        "",
        f"Runtime {main['runtime']}, {main['precision']}; input {shape} {contents.preprocess.dtype}"
        f" ({contents.preprocess.color}, {contents.preprocess.resize}).",
        *([f"Classes: {names}."] if names else []),
        "",
        "Check this folder:",
        "  edgekit verify .              hashes, preprocessing, golden outputs",
        "  sha256sum -c SHA256SUMS       hashes alone, with nothing installed",
        *(_DEVICE_LINES if DEVICE_PROGRAM in what else []),
        "",
        "Files:",
        *(f"  {name.ljust(width)}  {all_files[name]}" for name in sorted(all_files)),
        "",
        "Arrays (.npy) are little-endian in C order. Names in manifest.json carry their unit (_ms,",
        "_mb). Written by edgekit " + __version__ + ".",
    ]
    return "\n".join(lines) + "\n"
