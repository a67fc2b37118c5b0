"""Timing candidates beside each other, with sessions and a clock that are fakes by name."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from edgekit.stages.pace import paces, race
from edgekit.types import TensorSpec


class FakeClock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


class FakeSession:
    """A run takes as many microseconds as the model's text says; every fifth is disturbed."""

    def __init__(self, model: bytes, clock: FakeClock, log: list[bytes]) -> None:
        self.model, self.clock, self.log = model, clock, log
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()

    def run(self, feeds: Any) -> dict[str, Any]:
        self.log.append(self.model)
        disturbed = 5 if len(self.log) % 5 == 0 else 1
        self.clock.ns += int(self.model) * 1000 * disturbed
        return {}

    def close(self) -> None:
        self.log.append(b"closed")

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def test_candidates_take_turns_and_disturbed_runs_do_not_count() -> None:
    clock, log = FakeClock(), list[bytes]()
    found = race(
        [b"2000", b"1000", b"4000"],
        {},
        open_model=lambda model, options: FakeSession(model, clock, log),
        clock=clock,
    )
    assert [round(pace.ms, 3) for pace in found] == [2.0, 1.0, 4.0]
    assert [round(pace.ratio, 2) for pace in found] == [1.0, 2.0, 0.5]
    # A B C, then C B A: nobody is always behind the same one
    turns = log[3:21]
    assert turns[:9] == [b"2000"] * 3 + [b"1000"] * 3 + [b"4000"] * 3
    assert turns[9:18] == turns[:9][::-1]
    assert log[-3:] == [b"closed"] * 3


def test_the_interval_tells_noise_from_a_difference() -> None:
    noisy = [[100, 140, 90, 130, 105, 95, 120, 101], [101, 92, 133, 99, 140, 94, 119, 106]]
    first, second = paces([[value * 10**4 for value in run] for run in noisy])
    assert first.ratio == first.low == first.high == 1.0
    assert second.low < 1.0 < second.high
    clear = paces([[100, 101, 102, 103], [50, 51, 52, 53]])[1]
    assert 1.9 < clear.low <= clear.ratio <= clear.high < 2.1
