"""Boards without Python: a bundle's native ncnn runner, packed for the board's architecture."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from edgekit.errors import NotPossible
from edgekit.manifest import Manifest
from edgekit.transports.board import BoardFile, Facts, Outcome
from edgekit.transports.bootstrap import PythonMissing
from edgekit.transports.settings import Device
from edgekit.transports.shell_board import ShellBoard
from edgekit.types import Progress

RUNNER = "edgekit-ncnn"
ARCHES = {
    "x86_64": "x86_64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
    # a 64-bit kernel may have 32-bit programs only, but then uname says armv8l
    "armv8l": "armhf",
    "armv7l": "armhf",
}
"""uname -m → the runner's folder in the bundle."""

# the device program's options and the runner's
_OPTIONS = {"--threads": "--threads", "--runs": "--runs", "--warmup": "--warmup",
            "--cooldown": "--cooldown-s"}  # fmt: skip
_JOBS = {"verify": "--self-test", "bench": "--bench"}


def work_natively(
    device: Device,
    command: str,
    options: Sequence[str],
    run: str,
    manifest: Manifest,
    files: Sequence[BoardFile],
    missing: PythonMissing,
    *,
    comparing: bool,
    limit_s: float,
    keep: bool,
    progress: Progress,
    stop: threading.Event | None,
    announce: Callable[[str, str], None] | None,
) -> tuple[Outcome, Facts, int]:
    """Verify or measure with the runner; (what it printed, what the board is, bytes sent).

    Raises `missing` when the bundle has no runner for the board's architecture, NotPossible for what
    the runner cannot do.
    """
    if not any(name.startswith("runner/") for name in manifest.files):
        raise missing
    if command not in _JOBS or comparing:
        raise NotPossible(
            f"{device.name} has no Python 3.8: the native runner there can verify and bench, "
            f"but not {'compare two bundles' if comparing else command}.",
            hint="Install python3 there.",
        )
    words = [_JOBS[command], *translated(device.name, options)]
    with ShellBoard(device, limit_s=limit_s, stop=stop, progress=progress) as board:
        facts = board.connect()
        arch = device.arch or ARCHES.get(facts.machine, facts.machine)
        program = f"runner/{arch}/{RUNNER}"
        if program not in manifest.files:
            has = sorted(
                name.split("/")[1] for name in manifest.files if name.startswith("runner/")
            )
            raise NotPossible(
                f"{device.name} has no Python 3.8, and the bundle carries no runner for "
                f"{arch}; it has {', '.join(has)}.",
                hint="Install python3 there, or export the bundle with a runner for it.",
            )
        key = board.send(files)
        if announce is not None:
            announce(device.name, run)
        outcome = board.run(
            f"bundles/{key}/{program}", [*words, f"{{root}}/bundles/{key}"], run, keep=keep
        )
        return outcome, facts, board.sent_bytes


def pick_up_natively(
    device: Device, run: str, *, limit_s: float, keep: bool, progress: Progress
) -> Outcome:
    """What a run of the runner printed that an earlier command has started."""
    with ShellBoard(device, limit_s=limit_s, progress=progress) as board:
        board.connect()
        return board.pick_up(run, keep=keep)


def translated(device: str, options: Sequence[str]) -> list[str]:
    """The runner's words for the device program's options. NotPossible for one that it lacks."""
    words = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "--runtime" and value in ("ncnn", RUNNER):
            continue
        if name not in _OPTIONS:
            raise NotPossible(
                f"{device} has no Python 3.8: its native runner takes no {name}.",
                hint=f"It takes {', '.join(_OPTIONS)}.",
            )
        words.append(f"{_OPTIONS[name]}={value}")
    return words


def as_answer(command: str, outcome: Outcome) -> Outcome:
    """The runner's answer with the keys that every answer of the device program has."""
    try:
        answer: Any = json.loads(outcome.stdout)
    except ValueError:
        return outcome
    if not isinstance(answer, dict):
        return outcome
    answer = {"format": "edgekit-device", "schema": 1, "command": command, **answer}
    lacking = answer.get("not_available")
    if isinstance(lacking, list):
        answer["conditions"] = {"not_available": {str(name): "not available" for name in lacking}}
    return Outcome(
        run=outcome.run,
        exit_code=outcome.exit_code,
        stdout=json.dumps(answer).encode(),
        stderr=outcome.stderr,
    )
