"""ncnn through the native runner that the bundle carries: nothing need be installed.

`runner/ARCH/edgekit-ncnn` is a program of its own, started for each run and each turn of a measurement;
it reads the bundle itself and answers in JSON.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from edgekit.board import errors, integrity
from edgekit.board.cpu import detect
from edgekit.board.errors import BadInput, BuildFailed, DeviceError, NotPossible, VerificationFailed
from edgekit.board.manifest import Manifest
from edgekit.board.npy import npy_bytes, read_npy
from edgekit.board.session import Availability, SessionOptions, Spec
from edgekit.board.tensor import Tensor

NAME = "ncnn"
PROGRAM = "edgekit-ncnn"

# what else a CPU runs: a 64-bit ARM core runs 32-bit programs, as far as its kernel lets it
_RUNS = {"aarch64": ("aarch64", "armhf"), "armhf": ("armhf",), "x86_64": ("x86_64",)}
# a process that has just begun finds every cache cold
_LEAST_UNTIMED_S = 0.03
_BY_EXIT_CODE = {
    2: errors.UsageError,
    4: NotPossible,
    5: BuildFailed,
    8: BadInput,
    9: VerificationFailed,
    11: errors.NoSpace,
}


def available(manifest: Manifest | None, options: SessionOptions) -> Availability:
    """Whether the bundle carries a runner for this board's architecture that starts here."""
    if manifest is None:
        return Availability(ok=False, why="it comes with a bundle: name one")
    names = _candidates(manifest, options)
    if not names:
        carried = sorted(name.split("/")[1] for name in manifest.files if _is_runner(name))
        arch = options.arch or detect().arch
        why = f"the bundle carries no runner for {arch}"
        return Availability(
            ok=False, why=why + (f" (but for {', '.join(carried)})" * bool(carried))
        )
    why = ""
    for name in names:
        problem = integrity.file_problem(manifest, name)
        if problem is not None:
            why = f"{name} {problem}"
            continue
        try:
            with _Runner(manifest, name, options) as runner:
                versions = runner.versions()
        except DeviceError as error:
            why = error.message.rstrip(".")
            continue
        return Availability(ok=True, version=versions["version"], facts={"runner": name})
    return Availability(ok=False, why=why)


def _is_runner(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[0] == "runner" and parts[2] == PROGRAM


def _candidates(manifest: Manifest, options: SessionOptions) -> list[str]:
    arch = options.arch or detect().arch
    order = (arch,) if options.arch else _RUNS.get(arch, (arch,))
    names = [f"runner/{one}/{PROGRAM}" for one in order]
    return [name for name in names if name in manifest.files]


class _Runner:
    """The program, made to start: copied where the bundle's own place does not let it (FAT, noexec)."""

    def __init__(self, manifest: Manifest, name: str, options: SessionOptions) -> None:
        self._emulator = list(options.emulator or [])
        self._program = manifest.path(name).absolute()
        self._copied: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if not self._emulator and not self._starts():
            self._copied = tempfile.mkdtemp(prefix="edgekit-")
            copy = Path(self._copied) / PROGRAM
            shutil.copyfile(self._program, copy)
            copy.chmod(0o755)
            self._program = copy

    def _starts(self) -> bool:
        if not os.access(self._program, os.X_OK):
            return False
        with contextlib.suppress(OSError, AttributeError):
            flags = os.statvfs(self._program).f_flag
            return not flags & os.ST_NOEXEC
        return True

    def versions(self) -> dict[str, str]:
        """`version` of ncnn, `runner_version` of the program."""
        code, out, said = self._run(["--version"])
        found = re.match(rb"edgekit-ncnn (\S+) \(ncnn ([^,)\s]+)", out)
        if code != 0 or found is None:
            raise BuildFailed(
                f"{self._program} does not start here: {_last(said) or f'code {code}'}."
            )
        return {"runner_version": found[1].decode(), "version": found[2].decode()}

    def ask(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Its JSON answer. Raises what its exit code stands for, BuildFailed when it crashes."""
        code, out, said = self._run(arguments)
        try:
            answer = json.loads(out.decode())
        except ValueError:
            answer = None
        if code == 0 and isinstance(answer, dict):
            return answer
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            kind = _BY_EXIT_CODE.get(code, BuildFailed)
            raise kind(f"{PROGRAM}: {answer['error']}", str(answer.get("hint", "")))
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        text = f": {_last(said)}" if _last(said) else ""
        raise BuildFailed(f"{PROGRAM} {how}{text}.")

    def _run(self, arguments: Sequence[str]) -> tuple[int, bytes, bytes]:
        try:
            self._process = subprocess.Popen(
                [*self._emulator, str(self._program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=_end_with_parent(),
            )
        except OSError as error:
            what = self._emulator[0] if self._emulator else str(self._program)
            raise NotPossible(f"{what} does not start here: {error.strerror}.") from error
        out, said = self._process.communicate()
        return self._process.returncode, out, said

    def close(self) -> None:
        if self._copied is not None:
            shutil.rmtree(self._copied, ignore_errors=True)
            self._copied = None

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _end_with_parent() -> Callable[[], None] | None:
    """What makes the kernel kill the program when this process ends, however it ends (prctl(2))."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None).prctl
        parent = os.getpid()

        def prepare() -> None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)

        return prepare
    return None


class NativeSession:
    """The bundle's ncnn model, run by the program."""

    def __init__(self, manifest: Manifest, options: SessionOptions) -> None:
        model = next(model for model in manifest.models if model.runtime == NAME)
        self._folder = str(manifest.folder.absolute())
        self._threads = ["--threads", str(options.threads)]
        why = "the bundle carries no runner for this board"
        self._runner: _Runner | None = None
        for name in _candidates(manifest, options):
            problem = integrity.file_problem(manifest, name)
            if problem is not None:
                raise VerificationFailed(f"{name} {problem}.", "Copy the bundle again.")
            runner = _Runner(manifest, name, options)
            try:
                versions = runner.versions()
            except DeviceError as error:
                runner.close()
                why = error.message
                continue
            self._runner = runner
            self.facts: dict[str, Any] = {**versions, "runner": name}
            break
        if self._runner is None:
            raise NotPossible(why)
        if options.emulator:
            self.facts["emulator"] = " ".join(options.emulator)
        self.inputs: list[Spec] = [dict(spec) for spec in model.inputs]
        self.outputs: list[Spec] = [dict(spec) for spec in model.outputs]
        self.peak_rss_mb: float | None = None
        self._feeds: Mapping[str, Tensor] = {}
        self._run_s = 0.0

    def prepare(self, feeds: Mapping[str, Tensor]) -> None:
        for spec in self.inputs:
            tensor = feeds.get(spec["name"])
            if tensor is None:
                names = [item["name"] for item in self.inputs]
                raise BadInput(f"The model takes {names}, not {sorted(feeds)}.")
            if tensor.dtype != spec["dtype"] or list(tensor.shape) != list(spec["shape"]):
                raise BadInput(
                    f"The input '{spec['name']}' is {tensor.dtype} {list(tensor.shape)}; "
                    f"the model takes {spec['dtype']} {spec['shape']}."
                )
        self._feeds = feeds

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, through files."""
        self.prepare(feeds)
        assert self._runner is not None
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            given = Path(folder) / "input.npy"
            given.write_bytes(npy_bytes(feeds[self.inputs[0]["name"]]))
            out = Path(folder) / "outputs"
            arguments = ["--tensor", str(given), "--raw", "--save-outputs", str(out)]
            self._runner.ask([*arguments, *self._threads, "--", self._folder])
            found = {}
            for number, spec in enumerate(self.outputs):
                tensor = read_npy(out / f"000_output_{number}.npy")
                found[spec["name"]] = Tensor(tensor.shape, tensor.dtype, bytes(tensor.data))
            return found

    def step(self) -> None:
        self.time_steps(0, 1)

    def time_steps(self, untimed: int, timed: int) -> list[int]:
        """Nanoseconds of each of `timed` runs, as the program times them, on golden sample 0.

        Every call is a process, so more runs are left untimed than were asked for.
        """
        assert self._runner is not None
        if self._run_s:
            untimed = max(untimed, math.ceil(_LEAST_UNTIMED_S / self._run_s))
        answer = self._runner.ask(
            [
                *("--bench", "--samples", "--cooldown-s", "0"),
                *("--warmup", str(untimed), "--runs", str(timed)),
                *self._threads,
                *("--", self._folder),
            ]
        )
        samples = [float(value) for value in answer["samples_ms"]]
        self._run_s = min(samples) / 1e3
        peak = answer.get("peak_rss_mb")
        if peak is not None:
            self.peak_rss_mb = max(float(peak), self.peak_rss_mb or 0.0)
        return [round(value * 1e6) for value in samples]

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()


def open_session(folder: Path, manifest: Manifest, options: SessionOptions) -> NativeSession:
    """The bundle's ncnn model in the runner that it carries for this board."""
    return NativeSession(manifest, options)
