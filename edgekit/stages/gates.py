"""Gates: what was found, held against what was allowed. A value that is missing fails its gate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import (
    AccuracyBudgetMissed,
    DeviceUnreachable,
    EdgekitError,
    LatencyBudgetMissed,
    VerificationFailed,
)
from edgekit.manifest import Manifest
from edgekit.stages.device import DeviceAnswer


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What is allowed; None is not asked for.

    `max_drop` in points of the metric (1 point = 0.01); `max_size_mb` of the main model's files, and
    `max_rss_mb` of the process that runs it, in 10^6 bytes; `max_joules` of one inference;
    `max_regression` is the share of time that may be lost against a baseline (0.03 = 3 %).
    """

    max_p50_ms: float | None = None
    max_p99_ms: float | None = None
    max_drop: float | None = None
    max_size_mb: float | None = None
    max_joules: float | None = None
    max_rss_mb: float | None = None
    max_regression: float = 0.03

    @property
    def measured(self) -> bool:
        """Whether something must be measured on a device."""
        values = (self.max_p50_ms, self.max_p99_ms, self.max_joules, self.max_rss_mb)
        return any(value is not None for value in values)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One thing that was checked: `device` None for the bundle itself, `value` None when not known.

    `exit_code` is that of the failure, 0 when it passed; `detail` says it in words.
    """

    name: str
    device: str | None
    ok: bool
    detail: str
    exit_code: int = 0
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    seconds: float = 0.0


def bundle_gates(manifest: Manifest, budgets: Budgets) -> list[Gate]:
    """The gates that need no device: size of the model, accuracy lost at export."""
    gates = []
    if budgets.max_size_mb is not None:
        size_mb = sum(manifest.files[name].size_bytes for name in manifest.models[0].files) / 1e6
        gates.append(_limit(None, "size", size_mb, budgets.max_size_mb, "MB", LatencyBudgetMissed))
    if budgets.max_drop is not None:
        drop, why = _drop(manifest)
        gates.append(
            _limit(
                None, "accuracy drop", drop, budgets.max_drop, "points", AccuracyBudgetMissed, why
            )
        )
    return gates


def _drop(manifest: Manifest) -> tuple[float | None, str]:
    """Points lost from the float model to the bundle's, or why that is not known."""
    accuracy = manifest.raw.get("accuracy")
    if not isinstance(accuracy, Mapping):
        return None, "the bundle was exported without labelled images (export --data)"
    before, after = number(accuracy.get("float")), number(accuracy.get("int8"))
    if before is None:
        return None, "the bundle does not say how accurate the float model is"
    if after is None:
        if "int8" in manifest.models[0].precision:
            return None, "the bundle does not say how accurate its INT8 model is"
        # what is carried is the float model itself
        after = before
    return 100.0 * (before - after), ""


def verify_gate(answer: DeviceAnswer) -> Gate:
    """Whether the bundle proves itself on the device."""
    checks = (answer.answer or {}).get("checks", [])
    if answer.error is not None:
        return failed(answer.device, "verification", answer.error, answer.seconds)
    passed = [check for check in checks if check.get("ok") and not check.get("skipped")]
    golden = [check for check in passed if str(check.get("name")).startswith("golden outputs")]
    if not golden:
        error = VerificationFailed(
            "the golden outputs were not checked there: nothing could run them"
        )
        return failed(answer.device, "verification", error, answer.seconds)
    return Gate(
        name="verification",
        device=answer.device,
        ok=True,
        detail=f"{len(passed)} checks passed",
        seconds=answer.seconds,
    )


def device_gates(answer: DeviceAnswer, budgets: Budgets) -> list[Gate]:
    """The gates of what was measured on one device."""
    found = answer.answer or {}
    missing = _reasons(found)
    asked: list[tuple[str, float | None, float | None, str, str]] = [
        ("p50", number(found.get("p50_ms")), budgets.max_p50_ms, "ms", ""),
        ("p99", number(found.get("p99_ms")), budgets.max_p99_ms, "ms", ""),
        ("energy", joules(found), budgets.max_joules, "J", missing.get("power", "")),
        ("memory", number(found.get("peak_rss_mb")), budgets.max_rss_mb, "MB",
         missing.get("memory", "")),
    ]  # fmt: skip
    gates = []
    for name, value, limit, unit, why in asked:
        if limit is None:
            continue
        if answer.error is not None:
            gates.append(failed(answer.device, name, answer.error, answer.seconds))
        else:
            gate = _limit(answer.device, name, value, limit, unit, LatencyBudgetMissed, why)
            gates.append(gate)
    return gates


def baseline_gate(answer: DeviceAnswer, tolerance: float) -> Gate:
    """Whether the bundle is slower than its baseline beyond noise and tolerance.

    Both were timed in turns; it fails when the whole 95 % interval of the time ratio lies above
    1 + tolerance. An interval that holds 1 + tolerance is not a regression that could be shown.
    """
    if answer.error is not None:
        return failed(answer.device, "baseline", answer.error, answer.seconds)
    against = (answer.answer or {}).get("against") or {}
    ratio, low, high = (number(against.get(key)) for key in ("ratio", "low", "high"))
    if not ratio or low is None or high is None:
        error = DeviceUnreachable("the device's answer has no comparison")
        return failed(answer.device, "baseline", error, answer.seconds)
    slower = 1.0 / ratio
    least = 1.0 / high if high else math.inf
    most = 1.0 / low if low else math.inf
    regressed = least > 1.0 + tolerance
    interval = f"95 % interval {least:.3f} to {most:.3f}"
    detail = (
        f"takes {slower:.3f} times the baseline's time ({interval}); allowed {1 + tolerance:.3f}"
    )
    if not regressed and most > 1.0 + tolerance:
        detail += "; more runs would tell more"
    return Gate(
        name="baseline",
        device=answer.device,
        ok=not regressed,
        detail=detail,
        exit_code=LatencyBudgetMissed.exit_code if regressed else 0,
        value=slower,
        limit=1.0 + tolerance,
        unit="times",
        seconds=answer.seconds,
    )


def joules(found: Mapping[str, Any]) -> float | None:
    """Energy of one inference in an answer of the device program, where it was measured."""
    conditions = found.get("conditions")
    power = conditions.get("power") if isinstance(conditions, Mapping) else None
    return number(power.get("joules_per_inference")) if isinstance(power, Mapping) else None


def _reasons(found: Mapping[str, Any]) -> dict[str, str]:
    conditions = found.get("conditions")
    reasons = conditions.get("not_available") if isinstance(conditions, Mapping) else None
    return (
        {str(key): str(why) for key, why in reasons.items()} if isinstance(reasons, Mapping) else {}
    )


def number(value: Any) -> float | None:
    """`value` as a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _limit(
    device: str | None,
    name: str,
    value: float | None,
    limit: float,
    unit: str,
    kind: type[EdgekitError],
    why: str = "",
) -> Gate:
    if value is None:
        detail = "not available" + (f": {why}" if why else "")
        return Gate(
            name=name, device=device, ok=False, detail=detail, exit_code=kind.exit_code,
            limit=limit, unit=unit,
        )  # fmt: skip
    ok = value <= limit
    return Gate(
        name=name,
        device=device,
        ok=ok,
        detail=f"{value:.4g} {unit}, allowed {limit:g} {unit}",
        exit_code=0 if ok else kind.exit_code,
        value=value,
        limit=limit,
        unit=unit,
    )


def failed(device: str | None, name: str, error: EdgekitError, seconds: float = 0.0) -> Gate:
    """The gate could not be looked at."""
    return Gate(
        name=name,
        device=device,
        ok=False,
        detail=error.message,
        exit_code=error.exit_code,
        seconds=seconds,
    )


def exit_code(gates: Sequence[Gate]) -> int:
    """0 when every gate passed; else a bug before all, then the highest of the failures."""
    codes = [gate.exit_code for gate in gates if not gate.ok]
    return 1 if 1 in codes else max(codes, default=0)
