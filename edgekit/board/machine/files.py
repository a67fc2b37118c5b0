"""Reading the small files of /proc and /sys, which may vanish or refuse at any time."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")
"""Where /proc and /sys are found; tests give a recorded tree instead."""


def text(path: Path) -> str | None:
    """The file's content without surrounding blanks and nulls; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except (OSError, ValueError):
        return None


def number(path: Path) -> float | None:
    """The number in the file; None where there is none."""
    found = text(path)
    try:
        return None if not found else float(found)
    except ValueError:
        return None


def matches(root: Path, pattern: str) -> list[Path]:
    """Paths below `root` that match the glob, in the order of their numbers."""
    try:
        found = list(root.glob(pattern))
    except OSError:
        return []
    return sorted(found, key=lambda path: (len(str(path)), str(path)))


class Missing:
    """What is not available, by name, and why."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def note(self, what: str, why: str) -> None:
        self.reasons.setdefault(what, why)
