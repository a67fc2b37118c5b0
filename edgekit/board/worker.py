"""The process in which a model is open: one model, nothing else, so that its peak memory is its own
and a crash of the runtime costs only this process.

Started by edgekit.board.process. Requests come as JSON lines on stdin, each gets one JSON line on stdout:

    {"do": "open", "driver", "bundle", "options", "affinity"}   → {"inputs", "outputs", "facts"}
    {"do": "build", "driver", "bundle", "options"}              → what the driver's build answers
    {"do": "feed", "files": {input: an .npy}}                   → {}
    {"do": "run", "untimed": n, "timed": n}                     → {"samples_ns": […]}
    {"do": "outputs", "folder"}                                 → {"files": {output: an .npy}}
    {"do": "usage"}                                             → {"cpu_s", "peak_rss_mb"}

An expected failure is answered with {"failure": {"kind", "message", "hint"}}. When stdin ends, because
the parent is done or was killed, the process ends at once, also in the middle of a run.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edgekit.board import drivers
from edgekit.board.errors import DeviceError
from edgekit.board.manifest import Manifest, read_manifest
from edgekit.board.npy import npy_bytes, read_npy
from edgekit.board.session import BuildOptions, Session, SessionOptions


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
        except DeviceError as error:
            answer = {
                "failure": {
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
        self._feeds: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; raises what the driver raises."""
        action = request["do"]
        if action == "open":
            return self._open(request)
        if action == "build":
            return self._build(request)
        if action == "usage":
            # a runtime in a process of its own knows its own peak
            own = getattr(self._session, "peak_rss_mb", None)
            usage = {"cpu_s": _cpu_s(), "peak_rss_mb": own or peak_rss_mb()}
            # a GPU's own clock, and the share of the copies: what wall time cannot tell
            device_ms = getattr(self._session, "device_ms", None)
            return usage if device_ms is None else {**usage, "device_ms": device_ms()}
        assert self._session is not None
        if action == "feed":
            self._feeds = {name: read_npy(Path(file)) for name, file in request["files"].items()}
            self._session.prepare(self._feeds)
            gc.collect()
            gc.disable()
            return {}
        if action == "run":
            return {"samples_ns": self._run(request["untimed"], request["timed"])}
        if action == "outputs":
            return {"files": self._outputs(Path(request["folder"]))}
        raise ValueError(f"unknown request {action!r}")

    def _bundle(self, request: dict[str, Any]) -> tuple[Path, Manifest]:
        folder = Path(request["bundle"])
        return folder, read_manifest(folder)

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["affinity"]:
            # before the runtime is loaded, so that the threads it starts inherit the mask
            os.sched_setaffinity(0, request["affinity"])
        folder, manifest = self._bundle(request)
        options = SessionOptions(**request["options"])
        self._session = drivers.open_session(request["driver"], folder, manifest, options)
        session = self._session
        return {"inputs": session.inputs, "outputs": session.outputs, "facts": session.facts}

    def _build(self, request: dict[str, Any]) -> dict[str, Any]:
        folder, manifest = self._bundle(request)
        options = BuildOptions(**request["options"])

        def progress(line: str) -> None:
            if not request["quiet"]:
                print(line, file=sys.stderr, flush=True)

        answer: dict[str, Any] = drivers.module(request["driver"]).build(
            folder, manifest, options, progress
        )
        return answer

    def _run(self, untimed: int, timed: int) -> list[int]:
        """Nanoseconds of each timed run, from arrays in memory to arrays in memory."""
        assert self._session is not None
        # a runtime in a process of its own does its own timing
        own = getattr(self._session, "time_steps", None)
        if own is not None:
            samples: list[int] = own(untimed, timed)
            return samples
        step, clock = self._session.step, time.perf_counter_ns
        for _ in range(untimed):
            step()
        samples = []
        for _ in range(timed):
            start = clock()
            step()
            samples.append(clock() - start)
        return samples

    def _outputs(self, folder: Path) -> dict[str, str]:
        assert self._session is not None
        files = {}
        for number, (name, tensor) in enumerate(self._session.run(self._feeds).items()):
            path = folder / f"output_{number}.npy"
            path.write_bytes(npy_bytes(tensor))
            files[name] = str(path)
        return files


def _cpu_s() -> float:
    """CPU seconds of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_rss_mb() -> float | None:
    """Peak resident memory in 10^6 bytes, of this process or of the largest it has waited for.

    VmHWM, because ru_maxrss of a child starts from its parent's; None where nothing tells.
    """
    peak = None
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return peak
    if peak is None:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = own / 1e6 if sys.platform == "darwin" else own * 1024 / 1e6
    return peak
