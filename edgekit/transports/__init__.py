"""Carrying a bundle to a board and bringing the answer back: local, ssh, adb."""

from __future__ import annotations

__all__: list[str] = []
