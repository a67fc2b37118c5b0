"""What a board says, read with care: KeyError, TypeError or ValueError for what is not understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.transports.board_files import BoardFile


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: exit status (negative: the signal), and what it printed."""

    run: str
    exit_code: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a board says of itself; `machine` as uname -m, `python` is empty where there is none."""

    system: str
    machine: str
    python: str
    host: str
    free_bytes: int


def facts_of(hello: Mapping[str, Any]) -> Facts:
    """What a greeting tells of the board."""
    return Facts(
        system=str(hello["system"]),
        machine=str(hello["machine"]),
        python=str(hello["python"]),
        host=str(hello["host"]),
        free_bytes=int(hello["free"]),
    )


def missing_of(
    answer: Mapping[str, Any], objects: Mapping[str, BoardFile]
) -> list[tuple[str, int]]:
    """Hashes that must be sent, each with the byte to begin at."""
    found = [(str(sha), int(offset)) for sha, offset in answer["missing"]]
    for sha, offset in found:
        if not 0 <= offset <= objects[sha].size_bytes:
            raise ValueError(f"offset {offset}")
    return found


def state_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A run's state with every key of the right type."""
    ended = answer.get("exit")
    return {
        "state": str(answer["state"]),
        "exit": int(ended) if ended is not None else -1,
        "why": str(answer.get("why", "")),
        "said": str(answer.get("said", "")),
        "stdout": int(answer["stdout"]),
        "stderr": int(answer["stderr"]),
    }
