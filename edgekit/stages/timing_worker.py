"""The process in which a model is timed: one model, nothing else, so that its peak memory is its own.

Started by edgekit.stages.timing_process. Requests come as JSON lines on stdin, each gets one JSON line
on stdout:

    {"do": "open", "runtime", "files", "threads", "spinning", "affinity",
     "optimize", "load" (of a checkpoint), "contract"}                    → {"inputs": [spec, …]}
    {"do": "feed", "file": an .npz with arrays "SAMPLE_INPUT"}            → {}
    {"do": "run", "untimed": n, "timed": n}                               → {"samples_ns": […]}
    {"do": "usage"}                                                       → {"cpu_s", "peak_rss_mb"}

An expected failure is answered with {"error": {"kind", "message", "hint"}}. When stdin ends, because
the parent is done or was killed, the process ends at once, also in the middle of a run.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.runtimes.base import Session, SessionOptions


def main() -> None:
    """Answer requests until stdin ends."""
    # Ctrl-C reaches the whole process group; the parent decides what becomes of us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # libraries print to stdout; only answers may go there
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    worker = Worker()
    while True:
        request = requests.get()
        try:
            answer = worker.answer(request)
        except EdgekitError as error:
            answer = {
                "error": {
                    "kind": type(error).__name__,
                    "message": error.message,
                    "hint": error.hint,
                }
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _listen(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    # a thread of its own, asleep in read(): so the parent's death is noticed during a long run, too
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


class Worker:
    """Answers requests about one model."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._feeds: list[dict[str, Any]] = []
        self._next = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; raises what the runtime raises."""
        if request["do"] == "open":
            return self._open(request)
        if request["do"] == "feed":
            return self._feed(Path(request["file"]))
        if request["do"] == "run":
            return {"samples_ns": self._run(request["untimed"], request["timed"])}
        if request["do"] == "usage":
            usage = {"cpu_s": time.process_time(), "peak_rss_mb": peak_rss_mb()}
            # a GPU's own clock, and the share of the copies: what wall time cannot tell
            device_ms = getattr(self._session, "device_ms", None)
            return usage if device_ms is None else {**usage, "device_ms": device_ms()}
        raise ValueError(f"unknown request {request['do']!r}")

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["affinity"]:
            # before the runtime is loaded, so that the threads it starts inherit the mask
            os.sched_setaffinity(0, request["affinity"])
        from edgekit.runtimes.base import SessionOptions

        options = SessionOptions(
            threads=request["threads"],
            spinning=request["spinning"],
            optimize=request.get("optimize", True),
        )
        files = [Path(file) for file in request["files"]]
        if request["runtime"] == "torch":
            self._session = _open_checkpoint(files, options, request)
        else:
            # nothing but the runtime is imported: peak memory is to be the model's
            from edgekit.runtimes import open_session

            self._session = open_session(request["runtime"], files, options)
        return {"inputs": [dataclasses.asdict(spec) for spec in self._session.inputs]}

    def _feed(self, file: Path) -> dict[str, Any]:
        import numpy as np

        assert self._session is not None
        names = [spec.name for spec in self._session.inputs]
        samples: dict[int, dict[str, Any]] = {}
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                sample, position = (int(part) for part in key.split("_"))
                samples.setdefault(sample, {})[names[position]] = arrays[key]
        self._feeds = [samples[number] for number in sorted(samples)]
        gc.collect()
        gc.disable()
        return {}

    def _run(self, untimed: int, timed: int) -> list[int]:
        """Nanoseconds of each timed run, from arrays in memory to arrays in memory."""
        assert self._session is not None
        run, feeds, clock = self._session.run, self._feeds, time.perf_counter_ns
        samples: list[int] = []
        for number in range(untimed + timed):
            feed = feeds[self._next % len(feeds)]
            self._next += 1
            start = clock()
            outputs = run(feed)
            end = clock()
            del outputs
            if number >= untimed:
                samples.append(end - start)
        return samples


def _open_checkpoint(
    files: list[Path], options: SessionOptions, request: dict[str, Any]
) -> Session:
    from edgekit.checkpoint import LoadOptions
    from edgekit.codec import from_json
    from edgekit.preprocess import Preprocess
    from edgekit.stages.opening import open_session

    load, contract = request.get("load"), request.get("contract")
    return open_session(
        "torch",
        files,
        options,
        load=None if load is None else from_json(LoadOptions, load),
        contract=None if contract is None else Preprocess.from_dict(contract),
    )


def peak_rss_mb() -> float:
    """Peak resident memory of this process since it began, in 10^6 bytes.

    VmHWM, because ru_maxrss of a child starts from its parent's; ru_maxrss where there is no /proc.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
