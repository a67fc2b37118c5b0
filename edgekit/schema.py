"""Checking plain values (from TOML or JSON) against the fields of a dataclass, with errors that name
the file, the section and the key.

A field's type hint says what is taken: str, bool, int, float (an int will do), tuple[str, ...] and
tuple[int, ...] (a list in the file), and `| None` of these. Its metadata may narrow that: `choices`,
`minimum`, `above` (exclusive), `maximum`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from edgekit.errors import UsageError, nearest

_WORDS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def check_keys(given: Mapping[str, Any], known: list[str], what: str, where: str) -> None:
    """Raise UsageError for the first key of `given` that is not `known`, with the nearest one."""
    for key in given:
        if key not in known:
            raise UsageError(f"{where}: unknown {what} '{key}'.", hint=nearest(key, known))


def check_section(kind: type[Any], given: Any, where: str) -> dict[str, Any]:
    """Return `given` as arguments for the dataclass `kind`; absent fields stay absent.

    `where` names file and section in errors, e.g. "my.toml: [build]". Raises UsageError for what is
    not a table, an unknown key, a wrong type, and a value outside the field's choices or limits.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} must be a table of keys and values, not {_shown(given)}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    check_keys(given, list(fields), "key", where)
    hints = typing.get_type_hints(kind)
    return {
        key: _limited(_typed(value, hints[key], f"{where} {key}"), fields[key], f"{where} {key}")
        for key, value in given.items()
    }


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    options = _options(hint)
    for option in options:
        if option is type(None):
            if value is None:
                return None
        elif typing.get_origin(option) is tuple:
            if isinstance(value, (list, tuple)):
                item_type = typing.get_args(option)[0]
                return tuple(
                    _typed(item, item_type, f"{where}[{index}]") for index, item in enumerate(value)
                )
        elif option is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if not math.isfinite(value):
                    raise UsageError(f"{where} must be finite, not {value}.")
                return float(value)
        # bool is a subclass of int: true must not pass for 1
        elif isinstance(value, option) and (option is bool or not isinstance(value, bool)):
            return value
    wanted = " or ".join(_word(option) for option in options if option is not type(None))
    raise UsageError(f"{where} must be {wanted}, not {_shown(value)}.")


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _word(option: Any) -> str:
    if typing.get_origin(option) is tuple:
        item = typing.get_args(option)[0]
        return "a list of " + ("strings" if item is str else "whole numbers")
    return _WORDS[option]


def _limited(value: Any, field: dataclasses.Field[Any], where: str) -> Any:
    if value is None:
        return value
    limits = field.metadata
    for item in value if isinstance(value, tuple) else (value,):
        choices = limits.get("choices")
        # `in` would take 1 for true
        if choices and not any(
            item is choice or (item == choice and type(item) is type(choice)) for choice in choices
        ):
            words = [str(choice).lower() for choice in choices]
            hint = nearest(str(item), words)
            raise UsageError(
                f"{where} is {item!r}; it takes {', '.join(words)}.",
                hint=hint if hint.startswith("Did") else "",
            )
        if "minimum" in limits and item < limits["minimum"]:
            raise UsageError(f"{where} is {item}; it must be {limits['minimum']} or more.")
        if "above" in limits and item <= limits["above"]:
            raise UsageError(f"{where} is {item}; it must be above {limits['above']}.")
        if "maximum" in limits and item > limits["maximum"]:
            raise UsageError(f"{where} is {item}; it must be {limits['maximum']} or less.")
    return value
