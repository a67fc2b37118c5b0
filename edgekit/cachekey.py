"""Keys of the stage cache, and what to say when one is not found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgekit.atomic import sha256_json

_FORMAT = 1  # part of every key: a new layout of entries starts from nothing
_ABSENT = object()


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` as JSON reads it back: what is hashed is what is stored and compared later.

    Raises TypeError for what is not a JSON value (a path is not content), ValueError for nan, inf.
    """
    value: dict[str, Any] = json.loads(json.dumps(dict(fields), allow_nan=False))
    return value


def cache_key(stage: str, fields: Mapping[str, Any]) -> str:
    """ "STAGE-" and 40 hex digits of the sha256 over stage and fields."""
    if not stage.replace("_", "").isalnum() or not stage.isascii():
        raise ValueError(f"a stage's name is letters, digits and '_', not {stage!r}")
    digest = sha256_json({"format": _FORMAT, "stage": stage, "fields": plain(fields)})
    return f"{stage}-{digest[:40]}"


def differences(earlier: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line for each field in which two sets of key fields differ; nested names are dotted."""
    old, new = _flat(earlier), _flat(wanted)
    return [
        _difference(name, old, new)
        for name in sorted(old.keys() | new.keys())
        # as text, because 8 == 8.0 and True == 1 here but not in the key
        if repr(old.get(name, _ABSENT)) != repr(new.get(name, _ABSENT))
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level with dotted names; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(_flat(item, f"{prefix}{name}."))
        else:
            flat[prefix + name] = item
    return flat


def _difference(name: str, earlier: dict[str, Any], wanted: dict[str, Any]) -> str:
    """One line on how a field changed."""
    if name not in earlier:
        return f"{name} is new ({_short(wanted[name])})"
    if name not in wanted:
        return f"{name} is gone (was {_short(earlier[name])})"
    old, new = earlier[name], wanted[name]
    if isinstance(old, list) and isinstance(new, list) and max(len(old), len(new)) > 4:
        if len(old) != len(new):
            return f"{name}: {len(new)} values, were {len(old)}"
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        return f"{name}: {changed} of {len(new)} differ"
    return f"{name}: {_short(new)}, was {_short(old)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
