"""The plain verdict: which model the bundle carries, and what a person must know of it."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.errors import AccuracyBudgetMissed, EdgekitError, LatencyBudgetMissed
from edgekit.pipeline.records import Measured, QuantizedRecord
from edgekit.pipeline.request import ExportRequest
from edgekit.target import TargetProfile
from edgekit.types import AccuracyReport, LatencyReport

# a drop of this many points without a budget still deserves a warning
_REMARKABLE_DROP = 2.0
# and so does agreement with float on the calibration images, where there are no labels
_LOW_AGREEMENT = 0.85


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`precision` of the model that is carried ("int8", "fp32"), its latency, and the sentence.

    `latency` is None where it cannot be measured on this machine. `drop` is the loss of accuracy in
    points (float minus carried model), None without labels.
    """

    precision: str
    text: str
    latency: LatencyReport | None
    drop: float | None


def decide(
    profile: TargetProfile,
    quantized: QuantizedRecord | None,
    measured: Measured,
    float_accuracy: AccuracyReport | None,
    int8_accuracy: AccuracyReport | None,
) -> Verdict:
    """Choose between the INT8 and the float model.

    INT8 is carried unless it is slower: the interval of its speed-up lies below 1.0 as a whole.
    """
    timed = measured.float_latency
    if quantized is None:
        speed_text = f"p50 {timed.p50_ms:.2f} ms" if timed else _unmeasured(profile)
        text = f"Float model for {profile.name}: {speed_text}."
        if float_accuracy is not None:
            text += f" {_name(float_accuracy)} {100 * float_accuracy.value:.1f}."
        return Verdict(precision=profile.build.precision, text=text, latency=timed, drop=None)
    drop = None
    if float_accuracy is not None and int8_accuracy is not None:
        drop = 100 * (float_accuracy.value - int8_accuracy.value)
    if measured.int8_latency is None or measured.speedup is None:
        text = f"INT8 for {profile.name}: {_unmeasured(profile)}"
        text += _worth(quantized, float_accuracy, int8_accuracy, drop)
        return Verdict(precision="int8", text=text, latency=None, drop=drop)
    speed = measured.speedup
    span = f"{speed.ratio:.2f}x ({speed.low:.2f}-{speed.high:.2f})"
    if speed.high < 1.0:
        blamed = "; ".join(measured.blame[:3])
        text = f"INT8 does not help here: {span} the speed of float. The float model is carried."
        if blamed:
            text += f" Slower in INT8: {blamed}."
        return Verdict(precision="fp32", text=text, latency=timed, drop=0.0)
    if speed.low > 1.0:
        text = f"INT8 pays: {span} the speed of float"
    else:
        text = f"INT8 is about as fast as float: {span}"
    text += _worth(quantized, float_accuracy, int8_accuracy, drop)
    return Verdict(precision="int8", text=text, latency=measured.int8_latency, drop=drop)


def _unmeasured(profile: TargetProfile) -> str:
    if profile.build.build_on_device:
        return "its engine is built, and its speed measured, on the device (edgekit build)"
    return f"its speed is to be measured on {profile.device.arch}, not here"


def _worth(
    quantized: QuantizedRecord,
    float_accuracy: AccuracyReport | None,
    int8_accuracy: AccuracyReport | None,
    drop: float | None,
) -> str:
    """How much is INT8, and what it costs in accuracy: the end of a sentence."""
    text = f", {quantized.int8_mac_share:.0%} of the MACs in INT8"
    if drop is not None and float_accuracy is not None and int8_accuracy is not None:
        text += (
            f", {_name(float_accuracy)} {100 * float_accuracy.value:.2f} → "
            f"{100 * int8_accuracy.value:.2f} ({-drop:+.2f} points)"
        )
        if drop > _REMARKABLE_DROP:
            text += ". That is a large loss: set --max-drop, or keep layers float"
    else:
        text += "; accuracy not measured (no --data)"
        if quantized.agreement is not None and quantized.agreement < _LOW_AGREEMENT:
            text += (
                f". It agrees to only {quantized.agreement:.0%} with float on the calibration images: "
                "measure with --data, and try more images, a longer --search-seconds or a float target"
            )
    return text + "."


def _name(accuracy: AccuracyReport) -> str:
    return "mAP50-95" if accuracy.task == "detect" else "top-1"


def budget_missed(request: ExportRequest, verdict: Verdict) -> EdgekitError | None:
    """The error for the first budget that the carried model misses, None when all are kept."""
    if (
        request.max_drop is not None
        and verdict.drop is not None
        and verdict.drop > request.max_drop
    ):
        return AccuracyBudgetMissed(
            f"INT8 loses {verdict.drop:.2f} points, the budget is {request.max_drop:g}.",
            hint="Try --method entropy, percentile or mse, more calibration images, or --keep-float.",
        )
    if verdict.latency is None:
        return None
    for name, budget, value in (
        ("p99", request.max_p99_ms, verdict.latency.p99_ms),
        ("p50", request.max_p50_ms, verdict.latency.p50_ms),
    ):
        if budget is not None and value > budget:
            return LatencyBudgetMissed(
                f"{name} is {value:.2f} ms, the budget is {budget:g} ms.",
                hint="Measure on a quiet machine, use a smaller input (--imgsz), or a smaller model.",
            )
    return None
