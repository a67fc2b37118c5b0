"""A run on the board as its host sees it: started once, looked at, read, cancelled, removed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from edgekit.transports.agent.files import Refused, no_space, safe, take, write_file
from edgekit.transports.agent.store import MARKER, Store

STATE_BYTES = 4096
KEPT_DAYS = 30.0


class Run:
    """One program run, in its folder runs/ID."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, safe(name)
        self.folder = store.at("runs", self.name)

    def at(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def write_state(self, **state: Any) -> None:
        data = json.dumps(state).encode("utf-8").ljust(STATE_BYTES)
        descriptor = os.open(self.at("state.json"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, data[:STATE_BYTES], 0)
        finally:
            os.close(descriptor)

    def alive(self) -> bool:
        """Whether the process that minds the run is there: it holds the lock as long as it lives."""
        try:
            descriptor = os.open(self.at("lock"), os.O_RDWR)
        except OSError:
            return False
        try:
            return not take(descriptor)
        finally:
            os.close(descriptor)

    def state(self) -> dict[str, Any]:
        """state waiting, running, done or lost, with its outcome and the output's sizes."""
        if not os.path.isdir(self.folder):
            raise Refused("no_run", f"there is no run {self.name} here")
        alive = self.alive()
        try:
            with open(self.at("state.json"), "rb") as file:
                state: dict[str, Any] = json.loads(file.read().decode("utf-8"))
        except (OSError, ValueError):
            state = {"state": "waiting"}
        if not alive and state["state"] != "done":
            state["state"] = "lost"
        for name in ("stdout", "stderr"):
            path = self.at(name)
            state[name] = os.path.getsize(path) if os.path.isfile(path) else 0
        state["said"] = self.last_line("stderr", state["stderr"])
        return state

    def last_line(self, name: str, size: int) -> str:
        """The last line of an output, at most 200 bytes of it: how far the program is."""
        lines = self.read(name, max(0, size - 200), 200).decode("utf-8", "replace").splitlines()
        return lines[-1] if lines else ""

    def start(self, request: dict[str, Any], program: str) -> dict[str, Any]:
        """Start the run, once: asked again, it answers what has become of it."""
        if os.path.isdir(self.folder):
            return self.state()
        argv = [self.resolve(item) for item in request["argv"]]
        final, self.folder = self.folder, self.store.at("runs", f".{self.name}.{os.getpid()}")
        try:
            os.makedirs(self.at("work"))
            write_file(self.at("agent.py"), program.encode("utf-8"))
            job = {
                "argv": argv,
                "limit_s": float(request["limit_s"]),
                "alone": bool(request.get("alone")),
                "env": {str(key): str(value) for key, value in request.get("env", {}).items()},
            }
            write_file(self.at("job.json"), json.dumps(job).encode("utf-8"))
            self.write_state(state="waiting")
            # the lock is taken here and handed on, so that there is no moment without a holder
            lock = os.open(self.at("lock"), os.O_RDWR | os.O_CREAT, 0o600)
            take(lock)
            os.rename(self.folder, final)
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            kind = "no_space" if no_space(error) else "folder"
            raise Refused(kind, f"{self.store.root}: {error.strerror}") from error
        finally:
            self.folder = final
        try:
            subprocess.Popen(
                [sys.executable, "-I", self.at("agent.py"), "mind", self.store.root, self.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(lock,),
                cwd=self.folder,
                start_new_session=True,
            )
        finally:
            os.close(lock)
        return self.state()

    def resolve(self, item: Any) -> str:
        """An argument: text as it is, {"bundle": KEY, "path": P}, or {"python": true} for our own."""
        if isinstance(item, str):
            return item
        if item.get("python"):
            return sys.executable
        path = self.store.at("bundles", safe(item["bundle"]))
        for part in [part for part in item.get("path", "").split("/") if part]:
            path = os.path.join(path, safe(part))
        if item.get("executable"):
            os.chmod(path, 0o700)
        return path

    def wait(self, wait_s: float) -> dict[str, Any]:
        """The state, as soon as the run is over or `wait_s` have passed."""
        end = time.monotonic() + wait_s
        while True:
            state = self.state()
            if state["state"] in ("done", "lost") or time.monotonic() >= end:
                return state
            time.sleep(0.05)

    def read(self, name: str, offset: int, limit: int) -> bytes:
        if name not in ("stdout", "stderr"):
            raise Refused("bad_request", f"there is no output {name!r}")
        try:
            with open(self.at(name), "rb") as file:
                file.seek(offset)
                return file.read(min(limit, 4 << 20))
        except OSError:
            return b""

    def cancel(self) -> dict[str, Any]:
        """End the run and all its processes."""
        end = time.monotonic() + 12.0
        while self.alive() and time.monotonic() < end:
            pid = self.state().get("minder")
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
            time.sleep(0.1)
        return self.state()

    def remove(self) -> dict[str, Any]:
        if os.path.isdir(self.folder):
            if self.alive():
                self.cancel()
            shutil.rmtree(self.folder, ignore_errors=True)
        return {}


def trim(store: Store) -> None:
    """Remove what nobody has used for a month."""
    old = time.time() - KEPT_DAYS * 86400.0
    for kind in ("bundles", "runs", "objects"):
        for name in os.listdir(store.at(kind)):
            path = store.at(kind, name)
            try:
                if os.lstat(path).st_mtime >= old:
                    continue
                if kind == "objects":
                    os.unlink(path)
                elif kind == "bundles" or name.startswith(".") or not Run(store, name).alive():
                    shutil.rmtree(path, ignore_errors=True)
            except (OSError, Refused):
                continue


def purge(store: Store) -> dict[str, Any]:
    """Remove all that was ever put here; refused while a run goes on."""
    for name in os.listdir(store.at("runs")):
        if not name.startswith(".") and Run(store, name).alive():
            raise Refused("busy", f"the run {name} is going on")
    for kind in ("objects", "bundles", "runs"):
        shutil.rmtree(store.at(kind), ignore_errors=True)
    for name in (MARKER, "turn"):
        if os.path.isfile(store.at(name)):
            os.unlink(store.at(name))
    left = os.listdir(store.root)
    if not left:
        os.rmdir(store.root)
    return {"left": left}
