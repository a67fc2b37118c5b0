"""How fast candidate graphs run beside each other: short, taking turns, robust against a busy machine.

With one thread the runtime computes in the calling thread, so the thread's own CPU time is measured:
what other processes do to the wall clock does not enter. Candidates take turns forwards and
backwards (A B C C B A …), and a candidate's time is the lower quartile of its runs, because whatever
disturbs a run makes it longer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.runtimes.base import Session, SessionOptions
from edgekit.runtimes.onnxruntime import open_bytes
from edgekit.stages.search import Pace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROUNDS = 24
_LEAST_ROUNDS = 8
_RESAMPLES = 200


def race(
    models: Sequence[bytes],
    feed: Mapping[str, NDArray[Any]],
    *,
    threads: int = 1,
    seconds: float = 6.0,
    open_model: Callable[[bytes, SessionOptions], Session] = open_bytes,
    clock: Callable[[], int] | None = None,
) -> list[Pace]:
    """Time serialized models in ONNX Runtime; `seconds` is about what the whole race may take.

    `clock` gives nanoseconds; by default the thread's CPU time, or the wall clock with more threads.
    """
    now = clock or (time.thread_time_ns if threads == 1 else time.perf_counter_ns)
    samples: list[list[int]] = [[] for _ in models]
    options = SessionOptions(threads=threads, spinning=threads == 1)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(open_model(model, options)) for model in models]
        for session in sessions:
            session.run(feed)
        ends = time.monotonic() + seconds
        for number in range(_ROUNDS):
            if number >= _LEAST_ROUNDS and time.monotonic() > ends:
                break
            order = range(len(sessions)) if number % 2 == 0 else range(len(sessions) - 1, -1, -1)
            for index in order:
                # the first run brings the model's own data back into the cache
                sessions[index].run(feed)
                for _ in range(2):
                    began = now()
                    sessions[index].run(feed)
                    samples[index].append(now() - began)
    return paces(samples)


def paces(samples: Sequence[Sequence[int]]) -> list[Pace]:
    """Lower quartiles of nanoseconds, and their ratios to the first with an interval by bootstrap over
    rounds (the same rounds for all: what disturbed a round disturbed all of it)."""
    import numpy as np

    rng = np.random.default_rng(0)
    table = np.asarray(samples, np.float64) / 1e6
    runs = table.shape[1]
    picks = rng.integers(0, runs, (_RESAMPLES, runs))
    quartiles = np.quantile(table, 0.25, axis=1)
    drawn: NDArray[np.float64] = np.quantile(table[:, picks], 0.25, axis=2)
    ratios = drawn[0] / np.maximum(drawn, 1e-9)
    return [
        Pace(
            ms=float(quartiles[index]),
            ratio=float(quartiles[0] / max(quartiles[index], 1e-9)),
            low=float(np.quantile(ratios[index], 0.05)),
            high=float(np.quantile(ratios[index], 0.95)),
        )
        for index in range(len(samples))
    ]
