"""The types that travel, to plain JSON and back: what the stage cache and the manifest store."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgekit.errors import BadInput

T = TypeVar("T")

# JSON has no words for these; what is stored must come back as it was
_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_record(value: Any) -> Any:
    """Plain JSON values of a dataclass and what is in it; `from_json` gives the same value back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_record(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_record(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_record(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if hasattr(value, "item"):  # a numpy scalar
        return to_record(value.item())
    raise TypeError(f"{type(value).__name__} does not go into a record")


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    # names that the types import only for checking are not needed to decode what travels
    import edgekit.preprocess
    import edgekit.types

    scope = {"Preprocess": edgekit.preprocess.Preprocess, "np": None, "NDArray": Any}
    return typing.get_type_hints(kind, localns=scope)


def from_json(kind: type[T], value: Any) -> T:
    """Rebuild a dataclass from what `to_record` made of it.

    Raises BadInput when a field is missing or of another type.
    """
    if not isinstance(value, Mapping):
        raise BadInput(f"Expected the fields of {kind.__name__}, got {type(value).__name__}.")
    hints = _hints(kind)  # type: ignore[arg-type]  # a class is hashable
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        if item.name not in value:
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise BadInput(f"{kind.__name__}: '{item.name}' is missing.")
            continue
        arguments[item.name] = _decode(
            hints[item.name], value[item.name], f"{kind.__name__}.{item.name}"
        )
    return kind(**arguments)


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        real = [option for option in options if option is not type(None)]
        return _decode(real[0], value, where) if len(real) == 1 else value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise BadInput(f"{where}: expected a list, got {type(value).__name__}.")
        return tuple(_decode(typing.get_args(hint)[0], item, where) for item in value)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise BadInput(f"{where}: expected an object, got {type(value).__name__}.")
        return {
            str(key): _decode(typing.get_args(hint)[1], item, where) for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value)  # type: ignore[arg-type]
    if hint is float:
        if isinstance(value, str) and value in _WORDS:
            return _WORDS[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
    elif isinstance(value, hint):
        return value
    raise BadInput(f"{where}: unexpected {value!r}.")
