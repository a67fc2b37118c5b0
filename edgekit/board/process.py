"""The parent's end of a worker: starts it, asks it, never waits for ever, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Mapping, Sequence

from edgekit.board import errors
from edgekit.board.errors import BadInput, BuildFailed, DeviceError, TimedOut
from edgekit.board.session import BuildOptions, SessionOptions, Spec

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgekit.board.worker import main; main()"
)
_GRACE_S = 5.0


class WorkerProcess:
    """A process that drives one runtime. Use as a context manager: leaving ends the process.

    Raises what the driver raises; BuildFailed when the process dies, TimedOut when it does not answer
    within `timeout_s` (None waits for ever).
    """

    def __init__(self, name: str, timeout_s: float | None) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._unread = b""
        self.inputs: list[Spec] = []
        self.outputs: list[Spec] = []
        self.facts: dict[str, Any] = {}
        self.device_ms: dict[str, float] = {}
        try:
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 — closed in close()
            # what the worker leaves when it is ended goes with this folder
            self._temporary = tempfile.TemporaryDirectory(prefix="edgekit-")
        except OSError as error:
            raise BadInput(
                f"No temporary file can be made: {error.strerror}.",
                "Set TMPDIR to a folder that can be written to.",
            ) from error
        # isolated: neither the working directory nor PYTHON… variables decide what is imported
        flags = ["-I", *(["-S"] if sys.flags.no_site else [])]
        path = [str(Path(entry).absolute()) if entry else "" for entry in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", _START, json.dumps([entry for entry in path if entry])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # numpy's BLAS would start a thread for each core, and memory for each thread
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "TMPDIR": self._temporary.name,
            },
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def open(
        self,
        driver: str,
        bundle: Path,
        options: SessionOptions,
        affinity: Sequence[int] = (),
    ) -> None:
        """Open the bundle's model in `driver`, pinned to the CPUs of `affinity` when there are any."""
        try:
            str(bundle.absolute()).encode()
        except UnicodeEncodeError as error:
            # the runtimes take their files' names as UTF-8
            raise BadInput(
                f"The path {str(bundle)!r} is not valid UTF-8.", "Rename the folder."
            ) from error
        answer = self._ask(
            "opening",
            do="open",
            driver=driver,
            bundle=str(bundle.absolute()),
            options=asdict(options),
            affinity=list(affinity),
        )
        self.inputs, self.outputs = answer["inputs"], answer["outputs"]
        self.facts = answer["facts"]

    def build(
        self, driver: str, bundle: Path, options: BuildOptions, quiet: bool
    ) -> dict[str, Any]:
        """Let `driver` build what the bundle needs; its answer."""
        return self._ask(
            "building",
            do="build",
            driver=driver,
            bundle=str(bundle.absolute()),
            options=asdict(options),
            quiet=quiet,
        )

    def feed(self, files: Mapping[str, Path]) -> None:
        """Load the inputs, an .npy each."""
        self._ask("loading inputs", do="feed", files={n: str(p) for n, p in files.items()})

    def run(self, timed: int, untimed: int = 0) -> list[float]:
        """Milliseconds of each of `timed` runs, made after `untimed` ones."""
        answer = self._ask("running", do="run", timed=timed, untimed=untimed)
        return [nanoseconds / 1e6 for nanoseconds in answer["samples_ns"]]

    def outputs_into(self, folder: Path) -> dict[str, Path]:
        """Run once on the inputs fed and write each output to an .npy in `folder`."""
        answer = self._ask("running", do="outputs", folder=str(folder))
        return {name: Path(file) for name, file in answer["files"].items()}

    def usage(self) -> tuple[float, float | None]:
        """CPU seconds used and peak resident memory in MB, both since the process began."""
        answer = self._ask("reporting", do="usage")
        if answer.get("device_ms"):
            self.device_ms = answer["device_ms"]
        return float(answer["cpu_s"]), answer["peak_rss_mb"]

    def close(self) -> None:
        """End the process: its stdin ends, and it is killed if it does not go."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._stderr.close()
        self._temporary.cleanup()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, doing: str, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died(doing) from None
        answer: dict[str, Any] = json.loads(self._line(doing))
        if "failure" in answer:
            raise _rebuilt(answer["failure"])
        return answer

    def _line(self, doing: str) -> bytes:
        """The next line of the worker's stdout."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    self._process.kill()
                    raise TimedOut(
                        f"{self._name} did not answer within {self._timeout_s:g} s while {doing}.",
                        "Give it more time with --timeout, or take a smaller model.",
                    )
                data = os.read(descriptor, 1 << 16)
                if not data:
                    raise self._died(doing)
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _died(self, doing: str) -> Exception:
        """Why there is no answer: a crash of the runtime, or a bug with its traceback."""
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        if code >= 0:
            return RuntimeError(f"the worker process ended with {code} while {doing}:\n{said}")
        last = f": {said.splitlines()[-1]}" if said else ""
        hint = "The runtime crashed on this model; try it with another version of the runtime."
        if -code == signal.SIGKILL:
            hint = "SIGKILL usually means that memory ran out."
        return BuildFailed(
            f"The process that ran {self._name} died of {signal.Signals(-code).name} "
            f"while {doing}{last}.",
            hint,
        )


def _rebuilt(failure: dict[str, str]) -> DeviceError:
    """The worker's failure as an exception of the same kind."""
    kind = getattr(errors, failure["kind"], DeviceError)
    rebuilt: DeviceError = kind(failure["message"], failure["hint"])
    return rebuilt
