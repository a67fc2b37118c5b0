"""Requests of the host, answered one by one."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from edgekit.transports.agent.files import Refused, no_space
from edgekit.transports.agent.link import Link
from edgekit.transports.agent.mind import mind
from edgekit.transports.agent.runs import Run, purge, trim
from edgekit.transports.agent.store import Store

PROTOCOL = 1


def serve(link: Link, program: str) -> None:
    """Answer requests until the host says goodbye; EOFError when it is gone."""
    store: Store | None = None

    def hello(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal store
        link.silence_s = float(request["silence_s"])
        store = Store(request["root"])
        trim(store)
        return {
            "protocol": PROTOCOL,
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
            "host": socket.gethostname(),
            "root": store.root,
            "free": store.free_bytes(),
            "runs": sorted(os.listdir(store.at("runs"))),
        }

    def ready() -> Store:
        if store is None:
            raise Refused("bad_request", "hello comes first")
        return store

    def run(request: dict[str, Any]) -> Run:
        return Run(ready(), request["run"])

    operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "hello": hello,
        "missing": lambda request: ready().missing(request["objects"]),
        "put": lambda request: ready().put(link, request),
        "place": lambda request: ready().place(request["key"], request["files"]),
        "start": lambda request: run(request).start(request, program),
        "poll": lambda request: run(request).wait(float(request["wait_s"])),
        "cancel": lambda request: run(request).cancel(),
        "remove": lambda request: run(request).remove(),
        "purge": lambda request: purge(ready()),
    }
    while True:
        request, _ = link.receive()
        operation = request.get("op")
        if operation in ("ping", "data"):
            continue
        if operation == "bye":
            return
        body = b""
        try:
            if operation == "read":
                body = run(request).read(request["name"], request["offset"], request["limit"])
                answer: dict[str, Any] = {}
            elif operation in operations:
                answer = operations[operation](request)
            else:
                raise Refused("bad_request", f"unknown request {operation!r}")
        except Refused as error:
            answer = error.answer
        except OSError as error:
            kind = "no_space" if no_space(error) else "folder"
            answer = {"error": kind, "message": str(error)}
        link.send(dict(answer, id=request.get("id")), body)


def main(program: str) -> None:
    """Serve on stdin and stdout, or mind the run that the command line names.

    `program` is the text of all of this, kept with each run for the process that minds it.
    """
    if sys.argv[1:2] == ["mind"]:
        mind(Run(Store(sys.argv[2]), sys.argv[3]))
        return
    # moved away, so that nothing else can write between frames
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    link = Link(source, sink, 60.0)
    link.send({"ready": PROTOCOL})
    threading.Thread(target=link.beat, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        serve(link, program)
    os._exit(0)
