"""A fake device for the real adb: it speaks adbd's side of the protocol over TCP, and is no Android.

Messages as in AOSP's packages/modules/adb/protocol.txt: six little-endian uint32 (command, arg0, arg1,
length, checksum, magic) and the data. Services: shell,v2 (SHELL_PROTOCOL of shell_protocol.h), run by
the sh of this machine with a PATH of the test's choice; and sync (SYNC.TXT) with STAT, SEND, DATA, DONE.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

A_CNXN, A_OPEN, A_OKAY, A_CLSE, A_WRTE = 0x4E584E43, 0x4E45504F, 0x59414B4F, 0x45534C43, 0x45545257
VERSION, MOST = 0x01000001, 256 * 1024
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Stream:
    """One opened service: bytes in, bytes out, one unacknowledged write at a time."""

    def __init__(self, device: FakeAdbd, ours: int, theirs: int) -> None:
        self.device, self.ours, self.theirs = device, ours, theirs
        self.inbox: Queue[bytes | None] = Queue()
        self.acknowledged = threading.Semaphore(0)
        self.buffer = b""
        self.writing = threading.Lock()

    def write(self, data: bytes) -> None:
        with self.writing:
            for start in range(0, len(data), MOST):
                part = data[start : start + MOST]
                self.device.send(A_WRTE, self.ours, self.theirs, part)
                self.acknowledged.acquire(timeout=30)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; EOFError when the other side has closed."""
        while len(self.buffer) < size:
            data = self.inbox.get()
            if data is None:
                raise EOFError
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def close(self) -> None:
        self.device.send(A_CLSE, self.ours, self.theirs, b"")


class FakeAdbd:
    """The device's side of one connection."""

    def __init__(self, connection: socket.socket, environment: dict[str, str]) -> None:
        self.connection, self.environment = connection, environment
        self.sending = threading.Lock()
        self.streams: dict[int, Stream] = {}
        self.number = 0

    def send(self, command: int, arg0: int, arg1: int, data: bytes) -> None:
        header = struct.pack("<6I", command, arg0, arg1, len(data), sum(data), command ^ 0xFFFFFFFF)
        with self.sending, contextlib.suppress(OSError):
            self.connection.sendall(header + data)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def serve(self) -> None:
        try:
            while True:
                command, arg0, arg1, length, _, _ = struct.unpack("<6I", self.exactly(24))
                data = self.exactly(length)
                if command == A_CNXN:
                    banner = b"device::ro.product.name=fake;ro.product.model=fake;features=shell_v2"
                    self.send(A_CNXN, VERSION, MOST, banner)
                elif command == A_OPEN:
                    self.open(arg0, data.rstrip(b"\0").decode())
                elif command == A_OKAY and arg1 in self.streams:
                    self.streams[arg1].acknowledged.release()
                elif command == A_WRTE and arg1 in self.streams:
                    self.streams[arg1].inbox.put(data)
                    self.send(A_OKAY, arg1, arg0, b"")
                elif command == A_CLSE and arg1 in self.streams:
                    self.streams.pop(arg1).inbox.put(None)
        except (EOFError, OSError):
            pass
        finally:
            for stream in self.streams.values():
                stream.inbox.put(None)

    def open(self, theirs: int, service: str) -> None:
        handlers: dict[str, Callable[[Stream, str], None]] = {
            "shell,v2": self.shell,
            "sync": self.sync,
        }
        name, _, rest = service.partition(":")
        handler = next((one for kind, one in handlers.items() if name.startswith(kind)), None)
        if handler is None:
            self.send(A_CLSE, 0, theirs, b"")
            return
        self.number += 1
        stream = self.streams[self.number] = Stream(self, self.number, theirs)
        self.send(A_OKAY, stream.ours, theirs, b"")
        threading.Thread(target=self.run, args=(handler, stream, rest), daemon=True).start()

    @staticmethod
    def run(handler: Callable[[Stream, str], None], stream: Stream, rest: str) -> None:
        with contextlib.suppress(EOFError, OSError):
            handler(stream, rest)
        stream.close()

    def shell(self, stream: Stream, command: str) -> None:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment, start_new_session=True,
        )  # fmt: skip
        assert process.stdin and process.stdout and process.stderr

        def forward(file: int, kind: int) -> None:
            while part := os.read(file, 32768):
                stream.write(struct.pack("<BI", kind, len(part)) + part)

        def feed() -> None:
            assert process.stdin is not None
            with contextlib.suppress(EOFError, OSError):
                while True:
                    kind, length = struct.unpack("<BI", stream.read(5))
                    data = stream.read(length)
                    if kind == STDIN:
                        process.stdin.write(data)
                        process.stdin.flush()
                    elif kind == CLOSE_STDIN:
                        process.stdin.close()
            with contextlib.suppress(OSError):
                process.stdin.close()

        threads = [
            threading.Thread(target=forward, args=(file.fileno(), kind), daemon=True)
            for file, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
        ]
        threading.Thread(target=feed, daemon=True).start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.write(struct.pack("<BIB", EXIT, 1, process.wait() & 0xFF))

    def sync(self, stream: Stream, rest: str) -> None:
        while True:
            kind, length = struct.unpack("<4sI", stream.read(8))
            if kind == b"QUIT":
                return
            path = stream.read(length).decode()
            if kind == b"STAT":
                try:
                    facts = Path(path).stat()
                    answer = (facts.st_mode, facts.st_size & 0xFFFFFFFF, int(facts.st_mtime))
                except OSError:
                    answer = (0, 0, 0)
                stream.write(struct.pack("<4s3I", b"STAT", *answer))
            elif kind == b"SEND":
                self.take(stream, path.rpartition(",")[0])
            else:
                return

    @staticmethod
    def take(stream: Stream, path: str) -> None:
        problem = ""
        try:
            file = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            file, problem = open(os.devnull, "wb"), os.strerror(error.errno or 0)  # noqa: SIM115
        with file:
            while True:
                kind, length = struct.unpack("<4sI", stream.read(8))
                if kind != b"DATA":
                    break
                data = stream.read(length)
                try:
                    if not problem:
                        file.write(data)
                        file.flush()
                except OSError as error:
                    problem = os.strerror(error.errno or 0)
        if problem:
            text = problem.encode()
            stream.write(struct.pack("<4sI", b"FAIL", len(text)) + text)
        else:
            stream.write(struct.pack("<4sI", b"OKAY", 0))


@contextlib.contextmanager
def fake_device(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A fake device that the real adb is connected to; yields its serial number.

    The adb server is one of its own, on a free port that ANDROID_ADB_SERVER_PORT names meanwhile.
    """
    if shutil.which("adb") is None:
        pytest.skip("no adb: apt-get install adb")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    connections: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                device = FakeAdbd(connection, environment)
                threading.Thread(target=device.serve, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server_port = str(probe.getsockname()[1])
    before = {key: os.environ.get(key) for key in ("ANDROID_ADB_SERVER_PORT", "HOME")}
    os.environ |= {"ANDROID_ADB_SERVER_PORT": server_port, "HOME": str(folder)}
    serial = f"127.0.0.1:{port}"
    try:
        subprocess.run(["adb", "start-server"], check=True, capture_output=True, timeout=60)
        done = subprocess.run(
            ["adb", "connect", serial], check=True, capture_output=True, text=True, timeout=60
        )
        assert "connected" in done.stdout, done.stdout
        yield serial
    finally:
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True, timeout=60)
        listener.close()
        for connection in connections:
            connection.close()
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
