"""A headless Chromium for tests of pages, driven over its DevTools protocol with the standard library.

https://chromedevtools.github.io/devtools-protocol/ ; the WebSocket is RFC 6455 as far as a local
browser needs it: text frames, masked on the way there.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PATIENCE_S = 60.0


def chromium() -> str | None:
    """The browser's program, None where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    return None


class _Socket:
    """The client's end of a WebSocket."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=_PATIENCE_S)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._unread = b""
        while b"\r\n\r\n" not in self._unread:
            self._unread += self._receive()
        answer, _, self._unread = self._unread.partition(b"\r\n\r\n")
        assert b" 101 " in answer.split(b"\r\n")[0], answer

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the browser closed the connection")
        return data

    def _take(self, count: int) -> bytes:
        while len(self._unread) < count:
            self._unread += self._receive()
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def send(self, text: str) -> None:
        data, mask = text.encode(), secrets.token_bytes(4)
        size = len(data)
        head = b"\x81" + (
            bytes([0x80 | size])
            if size < 126
            else struct.pack(">BH", 0x80 | 126, size)
            if size < 1 << 16
            else struct.pack(">BQ", 0x80 | 127, size)
        )
        stretched = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(data, "big") ^ int.from_bytes(stretched, "big")).to_bytes(
            size, "big"
        )
        self._socket.sendall(head + mask + masked)

    def receive(self) -> str:
        message = b""
        while True:
            first, size = self._take(2)
            size &= 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._take(8))
            data = self._take(size)
            if first & 0x0F in (0x0, 0x1):
                message += data
                if first & 0x80:
                    return message.decode()

    def close(self) -> None:
        self._socket.close()


class Page:
    """One open page. `problems` are console errors, exceptions, and requests that left the file."""

    def __init__(self, connection: _Socket) -> None:
        self._connection = connection
        self._number = 0
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its result."""
        self._number += 1
        number = self._number
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.receive())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._notice(message)

    def _notice(self, message: dict[str, Any]) -> None:
        method, found = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(found["exceptionDetails"])[:400])
        elif method == "Runtime.consoleAPICalled" and found["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.problems.append(json.dumps(found["args"])[:400])
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.problems.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = found["request"]["url"]
            if not url.startswith(("file:", "data:")):
                self.problems.append(f"request to {url}")

    def open(self, file: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window of that size, light or dark."""
        self.problems.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        deadline = time.monotonic() + _PATIENCE_S
        while (
            self.run("document.readyState") != "complete"
            or self.run("location.href") == "about:blank"
        ):
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, whole: bool = True) -> bytes:
        """The page as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def text(self, selector: str) -> list[str]:
        """Visible text of every element that `selector` finds."""
        return self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)"
        )


@contextlib.contextmanager
def browser(program: str) -> Iterator[Page]:
    """A fresh browser with one empty page; it is gone at the end of the block."""
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(
        prefix="edgekit-chromium-", ignore_cleanup_errors=True
    ) as folder:
        process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": folder},
            start_new_session=True,
        )
        try:
            port = _port(Path(folder) / "DevToolsActivePort", process)
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/json", timeout=_PATIENCE_S
            ) as answer:
                pages = [item for item in json.load(answer) if item["type"] == "page"]
            path = "/" + pages[0]["webSocketDebuggerUrl"].split("/", 3)[3]
            connection = _Socket("127.0.0.1", port, path)
            try:
                yield Page(connection)
            finally:
                connection.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that the browser chose; it writes it into a file of its profile."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the browser ended at once"
        if file.is_file():
            text = file.read_text()
            if "\n" in text:
                return int(text.splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("the browser does not open its DevTools port")
