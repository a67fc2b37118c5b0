"""Several models in turns: the order of turns, equal runs, and models that drop out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from edgekit.errors import BadInput, BuildFailed
from edgekit.stages import measure_many, timed
from edgekit.stages.measure_many import measure_together
from edgekit.stages.timed import MeasureOptions, ModelToTime
from edgekit.types import TensorSpec


class FakeProcess:
    """Stands for a timing process: a fixed time per run, and a diary of all turns."""

    diary: list[tuple[str, int]] = []  # noqa: RUF012 — one diary for all
    run_ms = {"a": 10.0, "b": 20.0, "c": 5.0}  # noqa: RUF012
    fails_after: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, name: str, *_: Any, **settings: Any) -> None:
        self.device_ms: dict[str, float] = {}
        if name == "missing":
            raise BadInput("The model missing does not exist.")
        self.name, self.settings, self.runs = name, settings, 0
        self.inputs = (TensorSpec(name="x", shape=("batch", 4), dtype="float32"),)

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def feed(self, file: object) -> None: ...

    def run(self, timed: int, untimed: int = 0) -> list[float]:
        self.runs += timed
        if self.runs > FakeProcess.fails_after.get(self.name, 1 << 30):
            raise BuildFailed(f"{self.name} died.")
        FakeProcess.diary.append((self.name, timed))
        return [FakeProcess.run_ms.get(self.name, 10.0)] * timed

    def usage(self) -> tuple[float, float]:
        FakeProcess.diary.append(("usage", 0))
        return 0.0, 77.0


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    FakeProcess.diary, FakeProcess.fails_after = [], {}
    monkeypatch.setattr(timed, "TimingProcess", FakeProcess)
    yield FakeProcess.diary


def models(*names: str) -> list[ModelToTime]:
    return [ModelToTime(name=name, runtime="onnxruntime", files=()) for name in names]


def turns(diary: list[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    """The timed part: what lies between the two askings of `count` models for their usage."""
    marks = [index for index, (name, _) in enumerate(diary) if name == "usage"]
    return diary[marks[count - 1] + 1 : marks[count]]


def test_blocks_are_palindromes_that_begin_elsewhere_each_time(
    diary: list[tuple[str, int]],
) -> None:
    measure_together(models("a", "b", "c"), MeasureOptions(runs=48))
    order = turns(diary, 3)
    blocks = [[name for name, _ in order[i : i + 5]] for i in range(0, len(order), 5)]
    assert blocks[:3] == [list("abcba"), list("bcacb"), list("cabac")]
    assert all(block == block[::-1] for block in blocks)
    assert len(blocks) == 12
    for name in "abc":  # each is in the middle equally often
        assert sum(block[2] == name for block in blocks) == 4


@pytest.mark.parametrize("runs", [1, 2, 5, 12, 13, 100])
def test_every_model_makes_just_the_runs_asked_for(diary: list[tuple[str, int]], runs: int) -> None:
    timings = measure_together(models("a", "b", "c"), MeasureOptions(runs=runs))
    assert [t.report.runs for t in timings if t.report] == [runs] * 3


def test_ratios_are_against_the_baseline_of_the_same_run(diary: list[tuple[str, int]]) -> None:
    a, b, c = measure_together(models("a", "b", "c"), MeasureOptions(runs=24))
    assert b.against(a).ratio == 0.5
    assert c.against(a).ratio == 2.0
    assert a.report is not None and a.report.peak_rss_mb == 77.0


def test_without_a_number_slow_and_fast_models_both_get_enough(
    diary: list[tuple[str, int]],
) -> None:
    slow, _, fast = measure_together(models("b", "a", "c"))
    assert slow.report is not None and fast.report is not None
    assert slow.report.runs >= 100
    assert fast.report.runs > slow.report.runs, "a turn of the fast one holds more runs"
    assert len(slow.blocks_ms) == len(fast.blocks_ms)


def test_a_model_that_cannot_be_opened_is_left_out(diary: list[tuple[str, int]]) -> None:
    a, missing, c = measure_together(models("a", "missing", "c"), MeasureOptions(runs=12))
    assert a.report is not None and c.report is not None
    assert missing.report is None
    assert isinstance(missing.error, BadInput) and "does not exist" in missing.error.message


def test_a_model_that_dies_on_the_way_drops_out(diary: list[tuple[str, int]]) -> None:
    FakeProcess.fails_after = {"b": 70}
    a, b, c = measure_together(models("a", "b", "c"), MeasureOptions(runs=120))
    assert isinstance(b.error, BuildFailed) and b.report is None
    assert a.report is not None and a.report.runs == 120
    assert c.report is not None and c.report.runs == 120
    assert c.against(a).ratio == 2.0


def test_all_failing_ends_the_run(diary: list[tuple[str, int]]) -> None:
    timings = measure_together(models("missing", "missing"), MeasureOptions(runs=5))
    assert [t.report for t in timings] == [None, None]


def test_a_time_limit_ends_after_a_whole_block(
    diary: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = measure_together(models("a", "b"), MeasureOptions(seconds=1e-6))
    assert len(a.blocks_ms) == len(b.blocks_ms) == 1


def test_pools_sleep_in_company_and_spin_alone(
    diary: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    @contextlib.contextmanager
    def opened(model: ModelToTime, options: MeasureOptions, spinning: bool) -> Iterator[Any]:
        seen.append(spinning)
        with timed.opened(model, options, spinning) as found:
            yield found

    monkeypatch.setattr(measure_many, "opened", opened)
    measure_together(models("a"), MeasureOptions(runs=2, threads=4))
    measure_together(models("a", "b"), MeasureOptions(runs=2, threads=4))
    measure_together(models("a", "b"), MeasureOptions(runs=2, threads=1))
    assert seen == [True, False, False, True, True]
