"""A board without Python, reached by ssh or adb: files by their hash, and a native program.

Each step is one call of a constant shell line (edgekit.transports.shell_scripts) whose values go in on
standard input; every one can be repeated, so a lost connection costs no more than the step. Uploads
begin anew file by file; what arrived whole is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from edgekit.errors import (
    BadInput,
    DeviceUnreachable,
    EdgekitError,
    NoSpace,
    NotPossible,
    UsageError,
)
from edgekit.transports import shell_scripts as scripts
from edgekit.transports.address import ADB_FOLDER, DEFAULT_FOLDER
from edgekit.transports.board import BoardFile, Facts, Outcome, bundle_key, printable
from edgekit.transports.carriers import adb_argv, explain, ssh_argv, unreachable
from edgekit.transports.channel import Cancelled, ConnectionLost
from edgekit.transports.settings import Device
from edgekit.types import Progress, no_progress

_SLACK_BYTES = 1 << 20
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0)
_CALL_S = 60.0


class ShellBoard:
    """A board within a time limit. Use it as a context manager.

    Raises DeviceUnreachable when the limit is reached, NoSpace and BadInput where the board refuses.
    """

    def __init__(
        self,
        device: Device,
        *,
        limit_s: float,
        stop: threading.Event | None = None,
        progress: Progress = no_progress,
    ) -> None:
        if "\n" in device.address.folder:
            raise UsageError(
                "A folder on a device without Python cannot have a line end in its name."
            )
        if device.address.kind == "adb" and device.address.folder == DEFAULT_FOLDER:
            device = replace(device, address=replace(device.address, folder=ADB_FOLDER))
        self.device = device
        self.sent_bytes = 0
        self._limit_s, self._end_s = limit_s, time.monotonic() + limit_s
        self._stop, self._progress = stop or threading.Event(), progress
        self._free_bytes: float = math.inf
        self._reached = False
        self._run: str | None = None
        self._root = ""

    def __enter__(self) -> ShellBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancel a run that is left in the middle, if we still can."""
        if self._run is not None and self._reached:
            self._end_s, self._stop = time.monotonic() + 10.0, threading.Event()
            with contextlib.suppress(EdgekitError):
                self._call(scripts.REMOVE, [self._run])

    def connect(self) -> Facts:
        """Make the folder there; what the board says of itself."""
        lines = self._lines(scripts.HELLO, [])
        if lines[:1] == ["FOREIGN"]:
            raise BadInput(
                f"{self.device.name}: the folder {self.device.address.folder} holds other files; it is "
                "left alone.",
                hint="Name an empty folder, or one that does not exist, in the address.",
            )
        if lines and lines[0].startswith("LACKS "):
            raise NotPossible(
                f"{self.device.name} has neither Python 3.8 nor the program {lines[0][6:]}.",
                hint="Install python3 or busybox there.",
            )
        if len(lines) < 5:
            raise ConnectionLost(f"{self.device.name} answers, but not as a POSIX shell does.")
        fields = lines[3].split()
        # a df of another kind is not held against the board: the disk will tell
        if len(fields) > 3 and fields[3].isdigit():
            self._free_bytes = int(fields[3]) * 1024
        self._root = lines[4]
        return Facts(
            system=lines[0],
            machine=lines[1],
            host=lines[2],
            python="",
            free_bytes=int(self._free_bytes) if math.isfinite(self._free_bytes) else 0,
        )

    def send(self, files: Sequence[BoardFile]) -> str:
        """Make the bundle of `files` on the board; only what is not there is sent. Returns its key."""
        objects = {item.sha256: item for item in files}
        self._send_objects(objects)
        key = bundle_key(files)
        self._lines(scripts.PLACE, [key, *(f"{item.sha256} {item.path}" for item in files), ""])
        return key

    def _send_objects(self, objects: dict[str, BoardFile]) -> None:
        for _ in range(4):
            missing = self._lines(scripts.MISSING, [*objects, ""])
            missing = [sha for sha in missing if sha in objects]
            if not missing:
                return
            need = sum(objects[sha].size_bytes for sha in missing) + _SLACK_BYTES
            if need > self._free_bytes:
                raise NoSpace(
                    f"{self.device.name}: no space left on the device: "
                    f"{self._free_bytes / 1e6:.1f} MB are free, {need / 1e6:.1f} MB are needed.",
                    hint="Free some space there, or name a folder on another disk in the address.",
                )
            self._progress(0, 0, f"{self.device.name}: sending {need / 1e6:.1f} MB")
            try:
                if self.device.address.kind == "adb":
                    self._push([objects[sha] for sha in missing])
                else:
                    self._pack([objects[sha] for sha in missing])
            except NoSpace:
                self._call(scripts.CLEAR, [])
                raise
            self._lines(scripts.ACCEPT, [])
            self.sent_bytes += sum(objects[sha].size_bytes for sha in missing)
        raise DeviceUnreachable(f"{self.device.name}: an upload failed again and again.")

    def _pack(self, items: Sequence[BoardFile]) -> None:
        """Send files as one tar through the connection."""
        with tempfile.TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for item in items:
                    entry = tarfile.TarInfo(item.sha256)
                    entry.size, entry.mode = item.size_bytes, 0o600
                    with open(item.source, "rb") as source:
                        archive.addfile(entry, source)
            size = file.tell()
            file.seek(0)
            self._call(scripts.UNPACK, [], file.read(size))

    def _push(self, items: Sequence[BoardFile]) -> None:
        """Send files with `adb push`, under their hashes."""
        self._call(scripts.CLEAR, [])
        with tempfile.TemporaryDirectory(prefix="edgekit-push-") as folder:
            links = []
            for item in items:
                link = Path(folder) / item.sha256
                link.symlink_to(item.source.absolute())
                links.append(str(link))
            target = f"{self.device.address.folder}/incoming/"
            done = self._process([*adb_argv(self.device), "push", *links, target], b"")
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        if done.returncode:
            if "No space left" in text:
                raise NoSpace(f"{self.device.name}: no space left on the device.")
            raise ConnectionLost(f"{self.device.name}: adb push failed: {printable(text)[-200:]}")

    def run(self, program: str, words: Sequence[str], name: str, *, keep: bool = False) -> Outcome:
        """Run `program` (a path below the board's folder) with `words`, apart from the connection.

        `{root}` in a word is the folder on the board. Raises as `Board.run`.
        """
        words = [word.replace("{root}", self._root) for word in words]
        for word in words:
            if "\n" in word or not word:
                raise UsageError(f"{word!r} cannot be given to a device without Python.")
        data = scripts.MINDER.encode()
        minder = hashlib.sha256(data).hexdigest()
        with tempfile.TemporaryDirectory(prefix="edgekit-minder-") as folder:
            source = Path(folder) / "minder"
            source.write_bytes(data)
            self._send_objects(
                {minder: BoardFile(path="", source=source, size_bytes=len(data), sha256=minder)}
            )
        limit_s = max(1, int(self._end_s - time.monotonic()))
        self._run = None if keep else name
        self._lines(
            scripts.START,
            [name, minder, str(limit_s), program, self.device.emulator or "", *words, ""],
        )
        return self.pick_up(name, keep=keep)

    def pick_up(self, name: str, *, keep: bool = False) -> Outcome:
        """Wait for the run of that name and fetch what it printed; see `Board.pick_up`."""
        self._run = None if keep else name
        while not (state := self._lines(scripts.POLL, [name])):
            self._progress(0, 0, f"{self.device.name}: running")
        if state == ["NONE"]:
            self._run = None
            raise BadInput(
                f"{self.device.name}: there is no run {name} here.",
                hint="It has been fetched and removed already, or was started on another device.",
            )
        lost, late = state == ["LOST"], "late" in state
        stdout = self._call(scripts.FETCH, [name, "stdout"]) if not lost else b""
        stderr = self._call(scripts.FETCH, [name, "stderr"]) if not lost else b""
        if not keep:
            self._lines(scripts.REMOVE, [name])
            self._run = None
        if lost:
            raise DeviceUnreachable(
                f"{self.device.name}: the run was broken off there.", hint="Run the same again."
            )
        if late:
            raise self._too_late()
        status = int(state[0]) if state[0].isdigit() else -1
        return Outcome(
            run=name,
            # a shell tells a signal as 128 and its number
            exit_code=128 - status if status > 128 else status,
            stdout=stdout,
            stderr=stderr.decode("utf-8", "replace"),
        )

    def purge(self) -> list[str]:
        """Remove everything that edgekit put on the board; names of others' files left there."""
        return self._lines(scripts.PURGE, [])

    def _lines(self, script: str, values: Sequence[str]) -> list[str]:
        text = self._call(script, values).decode("utf-8", "replace")
        return [line.rstrip("\r") for line in text.splitlines() if line.strip()]

    def _call(self, script: str, values: Sequence[str], payload: bytes = b"") -> bytes:
        """What `script` printed, given the folder and `values`; repeated when the connection is lost."""
        told = "".join(f"{line}\n" for line in (self.device.address.folder, *values)).encode()
        argv = (
            [*adb_argv(self.device), "shell", "-T", script]
            if self.device.address.kind == "adb"
            else [*ssh_argv(self.device), script]
        )
        failures = 0
        while True:
            try:
                done = self._process(argv, told + payload)
                output = self._output(done)
            except ConnectionLost as error:
                final = explain(self.device, error, error.message)
                if final is not None:
                    raise final from error
                if not self._reached:
                    raise unreachable(self.device, error, error.message) from error
                self._stop.wait(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                failures += 1
                continue
            self._reached = True
            return output

    def _output(self, done: subprocess.CompletedProcess[bytes]) -> bytes:
        """What stands between the script's first and last words."""
        _, begun, rest = done.stdout.partition(scripts.BEGIN.encode() + b"\n")
        if not begun:
            _, begun, rest = done.stdout.partition(scripts.BEGIN.encode() + b"\r\n")
        body, ended, status = rest.rpartition(b"\n" + scripts.END.encode() + b" ")
        said = printable(done.stderr.decode("utf-8", "replace").strip())
        if not begun or not ended:
            last = said.splitlines()[-1:] or ["it said nothing"]
            raise ConnectionLost(f"The connection to {self.device.name} ended: {' '.join(last)}.")
        code = status.strip().decode("ascii", "replace")
        if code != "0":
            if "No space left" in said or code == "11":
                raise NoSpace(f"{self.device.name}: no space left on the device. {said[-200:]}")
            raise BadInput(
                f"{self.device.name}: {said[-200:] or 'a step failed there'}.",
                hint="Name another folder in the address.",
            )
        return body

    def _process(self, argv: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
        if self._stop.is_set():
            raise Cancelled(f"{self.device.name}: given up.")
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise self._too_late()
        most_s = min(left_s, max(_CALL_S, len(data) / 1e5))
        try:
            return subprocess.run(
                argv,
                input=data,
                capture_output=True,
                timeout=most_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            if most_s == left_s:
                raise self._too_late() from error
            raise ConnectionLost(f"{self.device.name} does not answer.") from error

    def _too_late(self) -> DeviceUnreachable:
        return DeviceUnreachable(
            f"{self.device.name} did not finish within {self._limit_s:.0f} s.",
            hint="Give it more time with --device-limit, or limit_s in devices.toml.",
        )
