"""The parent's end of a timing worker: starts it, asks it, and never waits for ever."""

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
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit import errors
from edgekit.codec import to_record
from edgekit.errors import BuildFailed, DeviceUnreachable, EdgekitError
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions
    from edgekit.preprocess import Preprocess

# the child imports what the parent would: `-m` would look into the working directory first
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgekit.stages.timing_worker import main; main()"
)
_GRACE_S = 5.0


class TimingProcess:
    """A model open in a process of its own. Use as a context manager: leaving ends the process.

    Raises what the worker raises: BadInput for a model that does not open, and so on; BuildFailed
    when the process dies, DeviceUnreachable when it does not answer within `timeout_s`.
    """

    def __init__(
        self,
        name: str,
        runtime: str,
        files: Sequence[Path],
        *,
        threads: int,
        spinning: bool,
        affinity: Sequence[int],
        timeout_s: float,
        optimize: bool = True,
        load: LoadOptions | None = None,
        contract: Preprocess | None = None,
    ) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._unread = b""
        self.device_ms: dict[str, float] = {}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 — closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # numpy's BLAS would start a thread for each core, and memory for each thread
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        try:
            answer = self._ask(
                "opening",
                do="open",
                runtime=runtime,
                files=[str(Path(file).absolute()) for file in files],
                threads=threads,
                spinning=spinning,
                affinity=list(affinity),
                optimize=optimize,
                load=None if load is None else to_record(load),
                contract=None if contract is None else contract.to_dict(),
            )
        except BaseException:
            self.close()
            raise
        self.inputs = tuple(
            TensorSpec(name=spec["name"], shape=tuple(spec["shape"]), dtype=spec["dtype"])
            for spec in answer["inputs"]
        )

    def feed(self, file: Path) -> None:
        """Load the input arrays of an .npz: "SAMPLE_INPUT" → array; runs take the samples in turn."""
        self._ask("loading inputs", do="feed", file=str(file))

    def run(self, timed: int, untimed: int = 0) -> list[float]:
        """Milliseconds of each of `timed` runs, made after `untimed` ones."""
        answer = self._ask("running", do="run", timed=timed, untimed=untimed)
        return [nanoseconds / 1e6 for nanoseconds in answer["samples_ns"]]

    def usage(self) -> tuple[float, float]:
        """CPU seconds used and peak resident memory in MB, both since the process began."""
        answer = self._ask("reporting", do="usage")
        self.device_ms.update(answer.get("device_ms", {}))
        return float(answer["cpu_s"]), float(answer["peak_rss_mb"])

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

    def __enter__(self) -> TimingProcess:
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
        if "error" in answer:
            raise _rebuilt(answer["error"])
        return answer

    def _line(self, doing: str) -> bytes:
        """The next line of the worker's stdout."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise DeviceUnreachable(
                        f"{self._name} did not answer within {self._timeout_s:g} s while {doing}.",
                        hint="Give it more time with --timeout, or take a smaller model or batch.",
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
            return RuntimeError(f"the timing process ended with {code} while {doing}:\n{said}")
        last = f": {said.splitlines()[-1]}" if said else ""
        hint = "The runtime crashed on this model; try it with another version of the runtime."
        if -code == signal.SIGKILL:
            hint = "SIGKILL usually means that memory ran out: try a smaller batch."
        return BuildFailed(
            f"The process that ran {self._name} died of {signal.Signals(-code).name} "
            f"while {doing}{last}.",
            hint=hint,
        )


def _rebuilt(error: dict[str, str]) -> EdgekitError:
    """The worker's error as an exception of the same kind."""
    kind = getattr(errors, error["kind"], EdgekitError)
    rebuilt: EdgekitError = kind(error["message"], hint=error["hint"])
    return rebuilt
