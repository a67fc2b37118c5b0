"""The process that minds a run: it outlives the connection, keeps the limit, leaves nothing running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any

from edgekit.transports.agent.files import take
from edgekit.transports.agent.runs import Run

MAX_OUTPUT = 64 << 20
GRACE_S = 3.0


def linux_call(option: int, value: int) -> None:
    """prctl(2), where there is one."""
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError, TypeError):
        pass


def children_of(parent: int) -> list[int]:
    """Processes whose parent is `parent`, from /proc; none where there is no /proc."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if len(fields) > 1 and int(fields[1]) == parent:
                found.append(int(name))
    return found


def end_all(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """End the run's process, its group, and whatever it left behind."""
    end = time.monotonic() + grace_s
    try:
        os.killpg(child.pid, signal.SIGTERM)
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    child.wait()
    # orphans come to us (PR_SET_CHILD_SUBREAPER), generation after generation
    for _ in range(100):
        orphans = children_of(os.getpid())
        for pid in orphans:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, PermissionError, ChildProcessError):
                continue
        if not orphans:
            return


def mind(run: Run) -> None:
    """Carry out runs/ID/job.json and write down how it ended. The inherited lock says that we live."""
    with open(run.at("job.json"), "rb") as file:
        job = json.loads(file.read().decode("utf-8"))
    stop: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.append("cancelled"))
    linux_call(36, 1)  # PR_SET_CHILD_SUBREAPER
    facts: dict[str, Any] = {"minder": os.getpid(), "started": time.time()}
    run.write_state(state="waiting", **facts)
    end = time.monotonic() + job["limit_s"]
    turn = os.open(run.store.at("turn"), os.O_RDWR | os.O_CREAT, 0o600)
    while job["alone"] and not stop and not take(turn):
        # two programs at once would disturb each other's times
        if time.monotonic() >= end:
            stop.append("timed_out")
        time.sleep(0.1)
    code: int | None = None
    if not stop:
        code = carry_out(run, job, facts, stop, end)
    shutil.rmtree(run.at("work"), ignore_errors=True)
    run.write_state(
        state="done", exit=code, why=stop[0] if stop else "", ended=time.time(), **facts
    )


def carry_out(
    run: Run, job: dict[str, Any], facts: dict[str, Any], stop: list[str], end: float
) -> int | None:
    with open(run.at("stdout"), "wb") as out, open(run.at("stderr"), "wb") as err:
        try:
            child = subprocess.Popen(
                job["argv"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=run.at("work"),
                env=dict(os.environ, **job["env"]),
                start_new_session=True,
                # PR_SET_PDEATHSIG: without the one who minds it, a run does not go on
                preexec_fn=lambda: linux_call(1, int(signal.SIGKILL)),
            )
        except (OSError, ValueError) as error:
            err.write(f"{job['argv'][0]}: {error}\n".encode("utf-8", "replace"))
            return 127
        run.write_state(state="running", pid=child.pid, **facts)
        while child.poll() is None and not stop:
            if time.monotonic() >= end:
                stop.append("timed_out")
            elif os.fstat(out.fileno()).st_size + os.fstat(err.fileno()).st_size > MAX_OUTPUT:
                stop.append("too_much_output")
            time.sleep(0.02)
        end_all(child, GRACE_S if stop else 0.0)
        return child.returncode
