"""Frames over two descriptors, and the heartbeat that tells each side that the other one lives."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from typing import Any

MAX_HEADER, MAX_BODY = 16 << 20, 16 << 20


class Link:
    """The framed connection with the host, over two descriptors."""

    def __init__(self, source: int, sink: int, silence_s: float) -> None:
        self.source, self.sink, self.silence_s = source, sink, silence_s
        self.buffer = b""
        self.writing = threading.Lock()
        # since when the other side has kept us waiting; None while we are at work ourselves
        self.blocked_s: float | None = None

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        text = json.dumps(header).encode("utf-8")
        data = memoryview(struct.pack(">II", len(text), len(body)) + text + body)
        with self.writing:
            while data:
                self.blocked_s = time.monotonic()
                data = data[os.write(self.sink, data) :]
            self.blocked_s = None

    def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self.blocked_s = time.monotonic()
            chunk = os.read(self.source, 1 << 20)
            self.blocked_s = None
            if not chunk:
                raise EOFError
            self.buffer += chunk
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def receive(self) -> tuple[dict[str, Any], bytes]:
        header_size, body_size = struct.unpack(">II", self.exactly(8))
        if header_size > MAX_HEADER or body_size > MAX_BODY:
            raise EOFError
        header = json.loads(self.exactly(header_size).decode("utf-8"))
        return header, self.exactly(body_size)

    def beat(self) -> None:
        """Tell the host that we live; end when the host has been silent for too long."""
        while True:
            time.sleep(min(1.0, self.silence_s / 4.0))
            blocked_s = self.blocked_s
            if blocked_s is not None and time.monotonic() - blocked_s > self.silence_s:
                os._exit(0)
            if self.writing.acquire(timeout=0.1):
                try:
                    text = b'{"alive":true}'
                    os.write(self.sink, struct.pack(">II", len(text), 0) + text)
                except OSError:
                    os._exit(0)
                finally:
                    self.writing.release()
