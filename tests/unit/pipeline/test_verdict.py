"""The verdict: INT8 is carried unless it is slower, and budgets are about what is carried."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.pipeline.records import Measured, QuantizedRecord
from edgekit.pipeline.request import ExportRequest
from edgekit.pipeline.verdict import Verdict, budget_missed, decide
from edgekit.target_files import load_target
from edgekit.types import AccuracyReport, LatencyReport, OnnxModel, SpeedUp


def _latency(p50: float) -> LatencyReport:
    return LatencyReport(
        **dict.fromkeys(("p90_ms", "p95_ms", "mean_ms", "std_ms", "min_ms", "max_ms"), p50),
        p50_ms=p50,
        p99_ms=2 * p50,
        runs=10,
        threads=1,
        batch=1,
        throughput_fps=1000 / p50,
        peak_rss_mb=50.0,
        load=0.0,
    )


def _decide(
    low: float, high: float, drop: float | None = 0.2, agreement: float | None = None
) -> Verdict:
    model = OnnxModel(path=Path("m"), sha256="", inputs=(), outputs=(), opset=17)
    measured = Measured(
        float_latency=_latency(10.0),
        int8_latency=_latency(9.0),
        speedup=SpeedUp(ratio=(low + high) / 2, low=low, high=high),
        blame=("layer a 2.00 ms against 1.00 ms",) if low < 1 else (),
    )
    before = after = None
    if drop is not None:
        before = AccuracyReport(task="detect", images=9, map50_95=0.5)
        after = AccuracyReport(task="detect", images=9, map50_95=0.5 - drop / 100)
    record = QuantizedRecord(model=model, int8_mac_share=0.9, compute=("a",), agreement=agreement)
    return decide(load_target("x86-int8"), record, measured, before, after)


def test_faster_int8_is_carried() -> None:
    verdict = _decide(1.2, 1.4)
    assert verdict.precision == "int8"
    assert "INT8 pays" in verdict.text and "-0.20 points" in verdict.text
    assert verdict.latency.p50_ms == 9.0


def test_an_interval_that_reaches_one_is_not_slower() -> None:
    verdict = _decide(0.95, 1.02)
    assert verdict.precision == "int8"
    assert "about as fast" in verdict.text


def test_slower_int8_is_not_carried_and_the_layers_are_named() -> None:
    verdict = _decide(0.8, 0.97)
    assert verdict.precision == "fp32"
    assert verdict.drop == 0.0
    assert "does not help here" in verdict.text and "layer a" in verdict.text
    assert verdict.latency.p50_ms == 10.0


def test_a_large_loss_is_said_even_without_a_budget() -> None:
    assert "large loss" in _decide(1.2, 1.4, drop=5.0).text
    assert "not measured" in _decide(1.2, 1.4, drop=None).text


def test_a_model_far_from_float_is_said_where_there_are_no_labels() -> None:
    assert "agrees to only 60%" in _decide(1.2, 1.4, drop=None, agreement=0.6).text
    assert "agrees" not in _decide(1.2, 1.4, drop=None, agreement=0.97).text
    assert "agrees" not in _decide(1.2, 1.4, agreement=0.6).text


@pytest.mark.parametrize(
    ("budget", "code"),
    [
        ({"max_drop": 0.1}, 6),
        ({"max_drop": 0.3}, None),
        ({"max_p99_ms": 17.0}, 7),
        ({"max_p50_ms": 8.0}, 7),
        ({"max_p99_ms": 19.0, "max_p50_ms": 9.5}, None),
    ],
)
def test_budgets(budget: dict[str, float], code: int | None) -> None:
    request = ExportRequest(
        checkpoint=Path("c"), target=load_target("x86-int8"), out=Path("o"), **budget
    )
    missed = budget_missed(request, _decide(1.2, 1.4))
    assert (missed.exit_code if missed else None) == code
