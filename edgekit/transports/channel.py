"""The host's end of a connection with the agent: requests, answers, and no waiting for ever."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from edgekit.errors import INTERRUPTED, BadInput, DeviceUnreachable, EdgekitError, NoSpace
from edgekit.transports import bootstrap
from edgekit.transports.bootstrap import PythonMissing

_MOST_BANNER = 256 << 10
_MOST_MESSAGES = 16 << 10
_LIMIT = 64 << 20
CHUNK = 256 << 10


class ConnectionLost(DeviceUnreachable):
    """The connection ended, or nothing came through it for too long; it can be made again."""


class OutOfTime(DeviceUnreachable):
    """The time for all the work is over, while the connection was well."""


class Cancelled(EdgekitError):
    """The work was given up because another part of it was interrupted."""

    exit_code = INTERRUPTED


class RetryUpload(Exception):
    """The board's part of an upload is not what the host thought."""


def printable(text: str) -> str:
    """`text` from a board without what a terminal would obey."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


class Channel:
    """A process that carries the agent's frames (ssh, adb, or the agent itself), and its heartbeat.

    Nothing waits longer than `silence_s` without a sign of life, nor past `end_s` (time.monotonic()),
    nor after `stop` is set. `usable` is False in the middle of an upload.

    A frame is two big-endian uint32, the lengths of a JSON object and of raw bytes, then both.
    """

    def __init__(
        self,
        argv: Sequence[str],
        name: str,
        *,
        silence_s: float,
        end_s: float,
        stop: threading.Event,
    ) -> None:
        self.name, self.usable = name, True
        self._silence_s, self._end_s, self._stop = silence_s, end_s, stop
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._input = self._process.stdin.fileno()
        os.set_blocking(self._input, False)
        self._writable = select.poll()
        self._writable.register(self._input, select.POLLOUT)
        self._inbox: queue.Queue[tuple[dict[str, Any], bytes] | EdgekitError] = queue.Queue()
        self._messages = b""
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._number = 0
        self._heard_s = time.monotonic()
        self._sent_s = time.monotonic()
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._listen, self._collect, self._beat)
        ]
        for thread in self._threads:
            thread.start()

    def open(self, root: str, timeout_s: float) -> dict[str, Any]:
        """Send the agent, wait for it, greet it. Returns what it says of the board.

        Raises PythonMissing, ConnectionLost, or what `ask` raises.
        """
        self._write(bootstrap.first_bytes())
        header, _ = self._next(timeout_s, alive_is_enough=False)
        if "ready" not in header:
            raise ConnectionLost(f"{self.name} answers, but not as an edgekit agent does.")
        return self.ask("hello", root=root, silence_s=max(3.0 * self._silence_s, 5.0))

    def ask(self, op: str, **values: Any) -> dict[str, Any]:
        """One request and its answer; see `edgekit.transports.agent`."""
        return self.ask_bytes(op, **values)[0]

    def ask_bytes(self, op: str, **values: Any) -> tuple[dict[str, Any], bytes]:
        """`ask`, with the bytes that came with the answer.

        Raises NoSpace or BadInput when the board refuses, ConnectionLost when it is not there.
        """
        self._number += 1
        self._send({"op": op, "id": self._number, **values})
        return self._answer(self._number)

    def upload(self, sha256: str, size: int, offset: int, chunks: Iterator[bytes]) -> None:
        """Send one object from `offset` on. Raises RetryUpload when it has to begin anew."""
        self._number += 1
        number = self._number
        self.usable = False
        self._send({"op": "put", "id": number, "sha": sha256, "size": size, "offset": offset})
        for chunk in chunks:
            if not self._inbox.empty():
                # refused already: the rest of the frames are read past by the agent
                break
            self._send({"op": "data"}, chunk)
        try:
            self._answer(number)
        except (BadInput, NoSpace, RetryUpload):
            self.usable = True
            raise
        self.usable = True

    def extend(self, seconds: float) -> None:
        """Allow so much more time, from now on and whatever happens, for leaving things in order."""
        self._end_s, self._stop = time.monotonic() + seconds, threading.Event()

    def close(self) -> None:
        """Say goodbye and end the process that carried us; never raises."""
        if not self._closed.is_set():
            with contextlib.suppress(ConnectionLost):
                self._send({"op": "bye"}, wait_s=0.5)
            self._closed.set()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        self.kill()

    def kill(self) -> None:
        """End the process that carries the connection at once."""
        self._closed.set()
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(timeout=1.0)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            # a thread that still reads (a program has kept the other end) owns its stream
            if stream is not None and not any(thread.is_alive() for thread in self._threads):
                with contextlib.suppress(OSError):
                    stream.close()

    def messages(self) -> str:
        """What the carrier (ssh, adb) said on its error output."""
        return printable(self._messages.decode("utf-8", "replace").replace("\r", "")).strip()

    def _send(self, header: dict[str, Any], body: bytes = b"", wait_s: float | None = None) -> None:
        text = json.dumps(header).encode()
        self._write(struct.pack(">II", len(text), len(body)) + text + body, wait_s)

    def _write(self, data: bytes, wait_s: float | None = None) -> None:
        end = time.monotonic() + (self._silence_s if wait_s is None else wait_s)
        end = min(end, max(self._end_s, time.monotonic() + 0.5))
        view = memoryview(data)
        with self._writing:
            while view:
                left = end - time.monotonic()
                try:
                    if left <= 0 or not self._writable.poll(1000.0 * left):
                        raise ConnectionLost(f"{self.name} takes no more data.")
                    written = os.write(self._input, view)
                except BlockingIOError:
                    continue
                except (OSError, ValueError) as error:
                    raise self._lost() from error
                view = view[written:]
            self._sent_s = time.monotonic()

    def _answer(self, number: int) -> tuple[dict[str, Any], bytes]:
        while True:
            header, body = self._next(self._silence_s)
            if header.get("id") == number:
                break
        if "error" in header:
            raise self._refusal(header)
        return header, body

    def _refusal(self, header: dict[str, Any]) -> Exception:
        kind, text = str(header["error"]), printable(str(header.get("message", "")))
        if kind == "retry":
            return RetryUpload(text)
        if kind == "no_space":
            return NoSpace(
                f"{self.name}: no space left on the device: {text}.",
                hint="Free some space there, or name a folder on another disk in the address. "
                "What was sent before is kept; nothing is left half written.",
            )
        hints = {
            "not_ours": "Name an empty folder, or one that does not exist, in the address.",
            "folder": "Name another folder in the address, for example ssh://user@host/tmp/edgekit.",
            "no_run": "It has been fetched and removed already, or was started on another device.",
            "busy": "Wait until the other work on the device is over.",
        }
        return BadInput(f"{self.name}: {text}.", hint=hints.get(kind, ""))

    def _next(self, silence_s: float, alive_is_enough: bool = True) -> tuple[dict[str, Any], bytes]:
        """The next frame that is no heartbeat; ConnectionLost after `silence_s` without any."""
        started = time.monotonic()
        while True:
            since = max(started, self._heard_s if alive_is_enough else 0.0)
            left = min(since + silence_s, self._end_s) - time.monotonic()
            if self._stop.is_set():
                raise Cancelled(f"{self.name}: given up.")
            try:
                item = self._inbox.get(timeout=max(0.01, min(left, 0.5)))
            except queue.Empty:
                left = min(since + silence_s, self._end_s) - time.monotonic()
                if left <= 0 and since + silence_s > time.monotonic():
                    raise OutOfTime(f"{self.name}: the time is over.") from None
                if left <= 0:
                    raise ConnectionLost(
                        f"{self.name} has not answered for {time.monotonic() - since:.0f} s.",
                        hint="Is it switched on, and reachable from here?",
                    ) from None
                continue
            if isinstance(item, EdgekitError):
                self._inbox.put(item)
                raise item
            return item

    def _lost(self) -> EdgekitError:
        """Why the connection ended, from what the carrier said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        if len(self._threads) > 1 and self._threads[1] is not threading.current_thread():
            self._threads[1].join(timeout=0.5)
        last = [line.strip() for line in self.messages().splitlines() if line.strip()][-1:]
        return ConnectionLost(
            f"The connection to {self.name} ended" + (f": {last[0]}" if last else "") + ".",
        )

    def _listen(self) -> None:
        """Put every frame into the inbox, and at the end the reason why there are no more."""
        assert self._process.stdout is not None
        try:
            self._greeting()
            read = self._process.stdout.read
            while True:
                lengths = read(8)
                if len(lengths) < 8:
                    break
                header_size, body_size = struct.unpack(">II", lengths)
                if header_size + body_size > _LIMIT:
                    break
                text, body = read(header_size), read(body_size)
                if len(text) < header_size or len(body) < body_size:
                    break
                header = json.loads(text)
                if not isinstance(header, dict):
                    break
                self._heard_s = time.monotonic()
                if not header.get("alive"):
                    self._inbox.put((header, body))
            self._inbox.put(self._lost())
        except EdgekitError as error:
            self._inbox.put(error)
        except (OSError, ValueError):
            self._inbox.put(self._lost())

    def _greeting(self) -> None:
        """Read past what a login shell prints, up to the agent's first line."""
        assert self._process.stdout is not None
        seen = 0
        while True:
            line = self._process.stdout.readline(8192)
            seen += len(line)
            if not line:
                raise self._lost()
            if seen > _MOST_BANNER:
                raise ConnectionLost(
                    f"{self.name} prints without end before it runs a command.",
                    hint="Look at what the login shell's start files print there.",
                )
            if bootstrap.NO_PYTHON in line:
                raise PythonMissing(
                    f"{self.name} has no python3.",
                    hint="Install Python 3.8 or newer there; bundles for ncnn that carry the native "
                    "runner need none.",
                )
            if bootstrap.GREETING in line:
                version = line.rpartition(bootstrap.GREETING)[2].decode("ascii", "replace").strip()
                if _version(version) < bootstrap.LEAST_PYTHON:
                    raise PythonMissing(
                        f"{self.name} has Python {version}; 3.8 or newer is needed.",
                        hint="Install a newer python3 there and put it first in PATH.",
                        version=version,
                    )
                return

    def _collect(self) -> None:
        """Keep the end of what the carrier says on its error output."""
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._process.stderr.fileno(), 4096):
                self._messages = (self._messages + chunk)[-_MOST_MESSAGES:]

    def _beat(self) -> None:
        """Tell the agent that we are here; one that hears nothing gives up the connection."""
        while not self._closed.wait(min(5.0, self._silence_s / 2.0)):
            with contextlib.suppress(ConnectionLost):
                if time.monotonic() - self._sent_s > self._silence_s / 4.0:
                    self._send({"op": "ping"}, wait_s=0.1)


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(int(part) for part in parts[:2]) if all(map(str.isdigit, parts[:2])) else (0,)
