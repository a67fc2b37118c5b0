"""Collecting in several processes: each takes the next image from the parent until none is left.

Which process gets which image is a matter of chance; the statistics do not depend on it. Workers are
spawned, never forked: ONNX Runtime's and OpenCV's threads do not survive a fork. A worker ends by
itself when its parent is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from edgekit.calibration import store
from edgekit.calibration.statistics import Statistics
from edgekit.errors import BuildFailed, EdgekitError
from edgekit.stages.collect import Collector, OnImage, Task, open_observed
from edgekit.stages.timing_worker import peak_rss_mb

# how long interrupted workers may take to finish the image they have and to save
_GRACE_S = 60.0


def collect(
    task: Task, images: list[tuple[int, str]], folder: Path, workers: int, on_image: OnImage
) -> tuple[list[Path], float]:
    """Collect `images` with `workers` processes, each writing its statistics into `folder`.

    Returns the files and the sum of the processes' peak memory, MB. When interrupted, the workers
    finish the image they have, save, and end. Raises what a worker raised; BuildFailed when one
    dies.
    """
    pool = _Pool(task, images, folder, on_image)
    try:
        pool.start(min(workers, len(images)))
        pool.serve()
    finally:
        pool.end()
    return pool.files, pool.peak_rss_mb


@dataclasses.dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    file: Path
    done: bool = False


class _Pool:
    def __init__(
        self, task: Task, images: list[tuple[int, str]], folder: Path, on_image: OnImage
    ) -> None:
        self._task = task
        self._images = iter(images)
        self._folder = folder
        self._on_image = on_image
        self._workers: list[_Worker] = []
        self._stopping = False
        self.peak_rss_mb = 0.0

    @property
    def files(self) -> list[Path]:
        return [worker.file for worker in self._workers]

    def start(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        if sys.platform != "win32":
            # started by the first process to be spawned otherwise, and that unblocks SIGINT
            resource_tracker.ensure_running()
        for number in range(count):
            file = self._folder / f"partial-{multiprocessing.current_process().pid}-{number}.npz"
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work,
                args=(theirs, dataclasses.replace(self._task, partial=file)),
                name=f"calibrate-{number}",
                daemon=True,
            )
            with _ctrl_c_held_back():
                process.start()
            # with this end closed here, the death of the worker ends the stream
            theirs.close()
            self._workers.append(_Worker(process, ours, file))

    def serve(self) -> None:
        """Answer the workers until all are done."""
        failed: BaseException | None = None
        while True:
            open_ends = {w.connection: w for w in self._workers if not w.done}
            if not open_ends:
                break
            for connection in wait(list(open_ends)):
                worker = open_ends[connection]  # type: ignore[index]
                try:
                    what, value = worker.connection.recv()
                except (EOFError, ConnectionError):
                    worker.done = True
                    failed = failed or _died(worker)
                    self._stopping = True
                    continue
                if what == "next":
                    self._reply(worker)
                elif what == "image":
                    self._on_image(*value)
                else:
                    worker.done = True
                    if what == "failed":
                        failed = failed or value
                        self._stopping = True
                    else:
                        self.peak_rss_mb += value
        if failed is not None:
            raise failed

    def _reply(self, worker: _Worker) -> None:
        image = None if self._stopping else next(self._images, None)
        # a worker that died meanwhile shows at the next recv
        with contextlib.suppress(OSError):
            worker.connection.send(image)

    def end(self) -> None:
        """Let unfinished workers stop after the image they have, and wait for them."""
        self._stopping = True
        self._on_image = lambda sha256, reason: None
        if any(not worker.done for worker in self._workers):
            guard = threading.Timer(_GRACE_S, self._terminate)
            guard.daemon = True
            guard.start()
            # the failure that is under way is the one to report
            with contextlib.suppress(Exception):
                self.serve()
            guard.cancel()
        for worker in self._workers:
            worker.connection.close()
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _terminate(self) -> None:
        for worker in self._workers:
            worker.process.kill()


def _died(worker: _Worker) -> EdgekitError:
    worker.process.join(5)
    code = worker.process.exitcode
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    memory = " It was probably killed for memory." if code == -9 else ""
    return BuildFailed(
        f"A calibration worker ended {how}.{memory}",
        hint="Run the same command again with fewer --workers: finished images are kept.",
    )


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Start a process undisturbed by Ctrl-C, and with SIGINT blocked, which the process inherits.

    Interrupted half-way, the new process would read half of its orders and say so at length.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held: list[int] = []
    handler: Any = None
    # blocking alone does not do: another thread may take the signal, and Python then raises here
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if in_main:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _work(connection: Connection, task: Task) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(task.threads)
    lock = threading.Lock()

    def send(what: str, value: Any) -> None:
        with lock:
            connection.send((what, value))

    def images() -> Iterator[tuple[int, str]]:
        while True:
            send("next", None)
            image = connection.recv()
            if image is None:
                return
            yield image

    try:
        collector = Collector(
            task, Statistics(task.origin), lambda sha256, reason: send("image", (sha256, reason))
        )
        with open_observed(task.model, task.origin.tensors, task.threads) as model:
            collector.run(model, images())
        collector.save()
        send("done", peak_rss_mb())
    except EdgekitError as error:
        send("failed", error)
    except (EOFError, ConnectionError):
        # the parent is gone; what was saved last is what the next run finds
        return
    except Exception:
        send("failed", RuntimeError(f"in a calibration worker:\n{traceback.format_exc()}"))


def merged(files: list[Path], into: Statistics) -> None:
    """Add the statistics in `files` to `into`."""
    for file in files:
        part, _ = store.read(file)
        into.merge(part)
