"""The values of a pickle that nobody ran, as a tree: names, calls and objects that were never made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 400
"""Deepest nesting of containers that is read; real checkpoints stay below 60."""


class PickleError(ValueError):
    """The bytes are no pickle that could be a checkpoint."""


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names; never imported here."""

    module: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """`function(*args)` that the pickle wants to be executed (opcode REDUCE)."""

    function: Any
    args: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.function.path if isinstance(self.function, Global) else ""


@dataclass(eq=False)
class Instance:
    """An object made without its constructor (NEWOBJ); `state` is what BUILD gives it."""

    cls: Any
    args: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.cls.path if isinstance(self.cls, Global) else ""


@dataclass(eq=False)
class Persistent:
    """What the pickle refers to outside of itself; torch keeps its storages there."""

    id: Any


def is_simple(key: Any, depth: int = 0) -> bool:
    """Whether hashing `key` is cheap: scalars, names, and flat tuples of them."""
    if key is None or isinstance(key, (str, bytes, int, float, complex, Global)):
        return True
    return (
        isinstance(key, tuple)
        and depth < 2
        and len(key) < 64
        and all(is_simple(item, depth + 1) for item in key)
    )


def children(node: Any) -> list[Any]:
    """The values directly inside `node`."""
    if isinstance(node, dict):
        return list(node.values())
    if isinstance(node, (list, tuple, set)):
        return list(node)
    if isinstance(node, Call):
        return [node.function, *node.args, node.state, *node.items]
    if isinstance(node, Instance):
        return [node.cls, *node.args, node.state, *node.items]
    if isinstance(node, Persistent):
        return [node.id]
    return []


def walk(tree: Any) -> list[Any]:
    """Every node reachable from `tree`, each once, shared ones too.

    Raises PickleError when containers are nested deeper than MAX_DEPTH: later steps recurse.
    """
    seen: set[int] = set()
    order: list[Any] = []
    level = [tree]
    for _depth in range(MAX_DEPTH):
        following: list[Any] = []
        for node in level:
            if isinstance(node, (str, bytes, int, float, type(None))) or id(node) in seen:
                continue
            seen.add(id(node))
            order.append(node)
            following.extend(children(node))
        if not following:
            return order
        level = following
    raise PickleError(f"containers are nested more than {MAX_DEPTH} deep")


def as_mapping(node: Any) -> dict[Any, Any] | None:
    """`node` as a dictionary when it is one: a dict, or an OrderedDict with its items; else None."""
    if isinstance(node, dict):
        return node
    if isinstance(node, (Call, Instance)) and node.path == "collections.OrderedDict":
        pairs = list(node.items)
        if node.args and isinstance(node.args[0], list):
            pairs = [tuple(p) for p in node.args[0] if isinstance(p, (list, tuple))] + pairs
        if all(isinstance(p, tuple) and len(p) == 2 and is_simple(p[0]) for p in pairs):
            return dict(pairs)
    return None
