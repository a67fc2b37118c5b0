"""A board as the stages see it: put bundles there, run their program, bring the answer back.

Connections come and go; the work does not depend on them. What was sent stays by its hash, a cut
upload goes on where it was, a run goes on without us and is found again by its name.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from edgekit.errors import BadInput, DeviceUnreachable, EdgekitError
from edgekit.transports.board_answers import Facts, Outcome, facts_of, missing_of, state_of
from edgekit.transports.board_files import BoardFile, bundle_files, bundle_key
from edgekit.transports.bootstrap import PythonMissing
from edgekit.transports.carriers import carrier_argv, explain, unreachable
from edgekit.transports.channel import (
    CHUNK,
    Cancelled,
    Channel,
    ConnectionLost,
    OutOfTime,
    RetryUpload,
    printable,
)
from edgekit.transports.settings import Device
from edgekit.types import Progress, no_progress

T = TypeVar("T")

_POLL_S = 2.0
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0)
_UPLOAD_TRIES = 4
_CONNECT_S = 30.0
# the time to cancel a run when we are interrupted or our limit is reached
_LEAVING_S = 10.0


def new_run_name() -> str:
    """A name that no other run has."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


class Board:
    """A board within a time limit. Use it as a context manager.

    Every method connects when it must, and again when the connection is lost, until the limit is
    reached. Raises DeviceUnreachable then; PythonMissing, NoSpace, BadInput where trying again cannot
    help. `stop` ends any waiting with Cancelled.
    """

    def __init__(
        self,
        device: Device,
        *,
        limit_s: float | None = None,
        stop: threading.Event | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.device = device
        self.sent_bytes = 0
        self.connections = 0
        self.facts: Facts | None = None
        self._progress = progress
        self._limit_s = limit_s if limit_s is not None else device.limit_s
        self._end_s = time.monotonic() + self._limit_s
        self._stop = stop or threading.Event()
        self._channel: Channel | None = None
        self._run: str | None = None
        self._messages = ""

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection. A run that is left in the middle is cancelled, if we still can."""
        if self._run is not None and self._channel is not None and self._channel.usable:
            self._channel.extend(_LEAVING_S)
            with contextlib.suppress(EdgekitError, RetryUpload):
                self._channel.ask("remove", run=self._run)
        self._drop()

    @property
    def left_s(self) -> float:
        """Seconds until the limit."""
        return self._end_s - time.monotonic()

    def connect(self) -> Facts:
        """What the board says of itself."""
        self._again(lambda channel: None)
        assert self.facts is not None
        return self.facts

    def send(self, files: Sequence[BoardFile], key: str | None = None) -> str:
        """Put `files` into a folder on the board; only what is not there is sent.

        Returns the folder's name there, by default that of the bundle.
        """
        key = key or bundle_key(files)
        objects = {item.sha256: item for item in files}
        asked = [[item.sha256, item.size_bytes] for item in objects.values()]
        placed = [[item.path, item.sha256] for item in files]
        for _ in range(_UPLOAD_TRIES):
            try:
                self._again(lambda channel: self._send_missing(channel, asked, objects))
                self._again(lambda channel: channel.ask("place", key=key, files=placed))
                return key
            except RetryUpload as retry:
                reason = str(retry)
        raise DeviceUnreachable(
            f"{self.device.name}: an upload failed again and again: {reason}.",
            hint="Is the network or the device's disk damaged?",
        )

    def _send_missing(
        self, channel: Channel, asked: list[list[Any]], objects: Mapping[str, BoardFile]
    ) -> None:
        missing = self._understood(missing_of, channel.ask("missing", objects=asked), objects)
        total = sum(objects[sha].size_bytes - offset for sha, offset in missing)
        sent = 0

        def chunks(item: BoardFile, offset: int) -> Iterator[bytes]:
            nonlocal sent
            with open(item.source, "rb") as file:
                file.seek(offset)
                left = item.size_bytes - offset
                while left > 0:
                    self._check_limit()
                    chunk = file.read(min(CHUNK, left))
                    if not chunk:
                        raise BadInput(f"{item.source} has become shorter while it was read.")
                    left -= len(chunk)
                    yield chunk
                    sent += len(chunk)
                    self.sent_bytes += len(chunk)
                    self._progress(sent, total, f"{self.device.name}: sending")

        for sha, offset in missing:
            item = objects[sha]
            channel.upload(sha, item.size_bytes, offset, chunks(item, offset))

    def run(
        self,
        argv: Sequence[str | Mapping[str, Any]],
        *,
        name: str | None = None,
        alone: bool = True,
        keep: bool = False,
    ) -> Outcome:
        """Run a program and wait for its end; it is not tied to the connection.

        An argument is text, {"python": True}, or {"bundle": KEY, "path": P} for a file of a bundle.
        `alone`: wait until no other such program runs on the board. The time limit holds there, too.
        """
        run = name or new_run_name()
        self._check_limit()
        request = {
            "run": run,
            "argv": list(argv),
            # a little less than ours, so that the board's own word of it arrives in time
            "limit_s": max(0.5, self.left_s - min(5.0, 0.1 * self.left_s)),
            "alone": alone,
            "env": dict(self.device.environment),
        }
        self._again(lambda channel: channel.ask("start", **request))
        return self.pick_up(run, keep=keep)

    def pick_up(self, run: str, *, keep: bool = False) -> Outcome:
        """Wait for the run of that name, started by us or by an earlier command; fetch what it printed.

        Its folder on the board is removed then, unless `keep`.
        """
        self._run = None if keep else run
        while True:
            wait_s = max(0.1, min(_POLL_S, self.left_s, self.device.silence_s / 2))
            answer = self._again(partial(Channel.ask, op="poll", run=run, wait_s=wait_s))
            state = self._understood(state_of, answer)
            if state["state"] in ("done", "lost"):
                break
            doing = "waiting for its turn"
            if state["state"] == "running":
                doing = printable(state["said"]).strip()[:80] or "running"
            self._progress(0, 0, f"{self.device.name}: {doing}")
        outcome = Outcome(
            run=run,
            exit_code=state["exit"],
            stdout=self._output(run, "stdout", state["stdout"]),
            stderr=self._output(run, "stderr", state["stderr"]).decode("utf-8", "replace"),
        )
        if not keep:
            self._again(lambda channel: channel.ask("remove", run=run))
            self._run = None
        self._check_outcome(state)
        return outcome

    def _check_outcome(self, state: Mapping[str, Any]) -> None:
        name = self.device.name
        if state["state"] == "lost":
            raise DeviceUnreachable(
                f"{name}: the run was broken off there: the device was restarted, or its process was "
                "killed.",
                hint="Is there enough memory? Run the same command again.",
            )
        if state["why"] == "timed_out":
            raise self._too_late()
        if state["why"] == "cancelled":
            raise DeviceUnreachable(f"{name}: the run was cancelled there.")
        if state["why"] == "too_much_output":
            raise BadInput(f"{name}: the program printed more than 64 MiB.")

    def _output(self, run: str, name: str, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part: dict[str, Any] = {"run": run, "name": name, "offset": len(data), "limit": 1 << 20}
            _, body = self._again(partial(Channel.ask_bytes, op="read", **part))
            if not body:
                break
            data += body
        return data

    def purge(self) -> list[str]:
        """Remove everything that edgekit put on the board; returns names of others' files left there."""
        left = self._again(lambda channel: channel.ask("purge")).get("left")
        return [str(name) for name in left] if isinstance(left, list) else []

    def _too_late(self) -> DeviceUnreachable:
        return DeviceUnreachable(
            f"{self.device.name} did not finish within {self._limit_s:.0f} s.",
            hint="Give it more time with --device-limit, or limit_s in devices.toml.",
        )

    def _check_limit(self) -> None:
        if self._stop.is_set():
            raise Cancelled(f"{self.device.name}: given up.")
        if self.left_s <= 0:
            raise self._too_late()

    def _again(self, request: Callable[[Channel], T]) -> T:
        """Do `request`, with a new connection whenever the old one is lost, until the limit."""
        failures = 0
        lost: EdgekitError | None = None
        while True:
            self._check_limit()
            try:
                if self._channel is None:
                    self._channel = self._connected()
                answer = request(self._channel)
            except OutOfTime as error:
                raise (self._lost_for_good(lost) if lost else self._too_late()) from error
            except ConnectionLost as error:
                lost = error
                messages = self._channel.messages() if self._channel is not None else ""
                never = self.connections == 0
                self._drop(at_once=True)
                final = explain(self.device, error, self._messages or messages)
                if final is not None:
                    raise final from error
                if never:
                    raise unreachable(self.device, error, self._messages or messages) from error
                pause_s = _PAUSES_S[min(failures, len(_PAUSES_S) - 1)]
                failures += 1
                self._progress(0, 0, f"{self.device.name}: connection lost, trying again")
                self._stop.wait(max(0.0, min(pause_s, self.left_s)))
                if self.left_s <= 0:
                    raise self._lost_for_good(error) from error
            except BaseException:
                # a request may be half answered: this connection is of no more use
                if self._channel is not None and not self._channel.usable:
                    self._drop(at_once=True)
                raise
            else:
                return answer

    def _lost_for_good(self, error: EdgekitError) -> DeviceUnreachable:
        """The connection could not be made again; the run on the board is left to itself."""
        run, self._run = self._run, None
        return DeviceUnreachable(
            f"{self.device.name}: the connection was lost and could not be made again within "
            f"{self._limit_s:.0f} s. {error.message}",
            hint=f"The run may go on there. Its result can be fetched with --pick-up {run}."
            if run is not None
            else "",
        )

    def _connected(self) -> Channel:
        channel = Channel(
            carrier_argv(self.device),
            self.device.name,
            silence_s=self.device.silence_s,
            end_s=self._end_s,
            stop=self._stop,
        )
        self._messages = ""
        try:
            # again sooner the next time: what is lost on the way back up is waited for in vain
            most_s = max(4.0, 1.5 * self.device.silence_s) if self.connections else _CONNECT_S
            limit_s = max(0.1, min(self.left_s, most_s))
            hello = channel.open(self.device.address.folder, limit_s)
        except BaseException:
            self._messages = channel.messages()
            channel.kill()
            raise
        self.connections += 1
        self.facts = self._understood(facts_of, hello)
        return channel

    def _understood(self, read: Callable[..., T], *values: Any) -> T:
        """`read(*values)`; an answer that is not what it should be is an error of the board's."""
        try:
            return read(*values)
        except (KeyError, TypeError, ValueError) as error:
            raise DeviceUnreachable(
                f"{self.device.name} answers in a way that is not understood ({error!r})."
            ) from error

    def _drop(self, at_once: bool = False) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        if at_once:
            channel.kill()
        else:
            channel.close()


__all__ = [
    "Board",
    "BoardFile",
    "Cancelled",
    "Facts",
    "Outcome",
    "PythonMissing",
    "bundle_files",
    "bundle_key",
    "new_run_name",
    "printable",
]
