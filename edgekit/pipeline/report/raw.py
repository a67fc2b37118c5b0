"""Reading the free parts of a manifest: whatever is not as expected is simply not there.

`read_manifest` has checked what edgekit relies on; what is only shown (figures, notes, parities) may
come from another version, or from anywhere.
"""

from __future__ import annotations

import math
from typing import Any


def part(value: Any, *keys: str) -> Any:
    """What lies under `keys`, one object inside the other; None where the way ends."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def number(value: Any, *keys: str) -> float | None:
    """A finite number, else None."""
    found = part(value, *keys)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    return float(found) if math.isfinite(found) else None


def text(value: Any, *keys: str) -> str:
    """A string, else ""."""
    found = part(value, *keys)
    return found if isinstance(found, str) else ""


def objects(value: Any, *keys: str) -> list[dict[str, Any]]:
    """The objects of a list, else nothing."""
    found = part(value, *keys)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def texts(value: Any, *keys: str) -> tuple[str, ...]:
    """The strings of a list, else nothing."""
    found = part(value, *keys)
    return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list) else ()


def numbers(value: Any, *keys: str) -> tuple[float, ...]:
    """The finite numbers of a list, else nothing."""
    found = part(value, *keys)
    if not isinstance(found, list):
        return ()
    return tuple(
        float(item)
        for item in found
        if isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item)
    )
