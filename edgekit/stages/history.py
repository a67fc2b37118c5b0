"""What a measurement becomes in the history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.atomic import sha256_file
from edgekit.history import Result, now_utc
from edgekit.manifest import MANIFEST, Manifest, read_manifest
from edgekit.stages.device import DeviceAnswer
from edgekit.stages.gates import joules, number


def of_device(bundle: Path, answer: DeviceAnswer) -> Result | None:
    """The result of a measurement on a device; None for an answer without one."""
    found = answer.answer
    if found is None or number(found.get("p50_ms")) is None:
        return None
    facts = answer.facts
    return _result(
        read_manifest(bundle),
        found,
        device=answer.device,
        host=facts.host if facts else "",
        machine=facts.machine if facts else "",
        precision=str(found.get("model_precision") or ""),
    )


def of_report(bundle: Path, found: Mapping[str, Any]) -> Result:
    """The result of a measurement on this machine, from the keys of `edgekit bench --json`."""
    import platform

    manifest = read_manifest(bundle)
    entry = next((m for m in manifest.models if m.runtime == found.get("runtime")), None)
    return _result(
        manifest,
        found,
        device="local",
        host=platform.node(),
        machine=platform.machine(),
        precision=entry.precision if entry is not None else "",
    )


def _result(
    manifest: Manifest,
    found: Mapping[str, Any],
    *,
    device: str,
    host: str,
    machine: str,
    precision: str,
) -> Result:
    threads, runs = number(found.get("threads")), number(found.get("runs"))
    return Result(
        utc=now_utc(),
        model=manifest.name,
        bundle_sha256=sha256_file(manifest.folder / MANIFEST),
        target=manifest.target,
        runtime=str(found.get("runtime") or ""),
        precision=precision,
        device=device,
        host=host,
        machine=machine,
        threads=None if threads is None else int(threads),
        runs=None if runs is None else int(runs),
        p50_ms=number(found.get("p50_ms")),
        p90_ms=number(found.get("p90_ms")),
        p95_ms=number(found.get("p95_ms")),
        p99_ms=number(found.get("p99_ms")),
        mean_ms=number(found.get("mean_ms")),
        throughput_fps=number(found.get("throughput_fps")),
        peak_rss_mb=number(found.get("peak_rss_mb")),
        joules=joules(found),
        size_mb=sum(manifest.files[name].size_bytes for name in manifest.models[0].files) / 1e6,
        load=number(found.get("load")),
        answer=json.dumps({"edgekit": __version__, **_small(found)}, allow_nan=False, default=str),
    )


def _small(found: Mapping[str, Any]) -> dict[str, Any]:
    """The answer's plain values, and the conditions; not the single samples."""
    kept = {
        key: value
        for key, value in found.items()
        if isinstance(value, (str, bool, int)) or number(value) is not None or value is None
    }
    conditions = found.get("conditions")
    if isinstance(conditions, Mapping):
        kept["conditions"] = conditions
    return kept
