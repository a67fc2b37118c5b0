"""Read a pickle without running it: a pickle machine on which nothing can be called.

A pickle is a program: GLOBAL names any function of any module, REDUCE calls it. This machine
executes the same opcodes (protocols 0 to 5, https://docs.python.org/3/library/pickletools.html) but
imports nothing and calls nothing. A name stays a `Global`, a call stays a `Call`, an object stays an
`Instance` with its state beside it, a storage stays `Persistent`. So the kind of a checkpoint, the
classes it wants and the geometry of its tensors are known before torch is asked to load it.

Two traps that need no call at all are stopped here too, because torch's own unpickler walks into
them: dictionary keys made of nested shared tuples (hashing them takes 2^depth steps), and memo
indices used before they are set.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgekit.checkpoint.pickle_tree import (
    Call,
    Global,
    Instance,
    Persistent,
    PickleError,
    is_simple,
)

# what Python 2 called its modules; torch.save's protocol 2 still writes these names
_RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}

_MARK = object()


@dataclass(frozen=True)
class Scan:
    """A pickle as data: its tree, every name and every object in the order of appearance.

    `made` holds each `Call`, `Instance` and `Persistent`, also those that the tree no longer reaches:
    an unpickler executes them all the same. `end` is where the pickle's bytes end.
    """

    tree: Any
    globals: tuple[Global, ...]
    made: tuple[Any, ...]
    end: int


class _Machine:
    """One run of the pickle machine."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[Global, None] = {}
        self.made: list[Any] = []

    def make(self, node: Any) -> None:
        self.made.append(node)
        self.stack.append(node)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("an opcode takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("an opcode works on an empty stack")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise PickleError("an opcode needs a MARK that is not there")

    def drop(self) -> None:
        # unlike `pop`, POP may take a MARK away
        if not self.stack:
            raise PickleError("POP on an empty stack")
        self.stack.pop()

    def drop_to_mark(self) -> None:
        self.pop_to_mark()

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("STACK_GLOBAL with a name that is no text")
        found = Global(_RENAMED_MODULES.get(module, module), name)
        self.globals.setdefault(found)
        self.stack.append(found)

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, (Call, Instance)):
            target.items.extend(items)
        else:
            raise PickleError(f"APPEND to a {type(target).__name__}")

    def add(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise PickleError(f"ADDITEMS to a {type(target).__name__}")
        for item in items:
            if not is_simple(item):
                raise PickleError("a set holds something other than plain values")
            target.add(item)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2:
            raise PickleError("SETITEMS with a key that has no value")
        pairs = list(zip(items[::2], items[1::2], strict=True))
        for key, _ in pairs:
            if not is_simple(key):
                raise PickleError("a dictionary key is something other than a plain value")
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, (Call, Instance)):
            target.items.extend(pairs)
        else:
            raise PickleError(f"SETITEM on a {type(target).__name__}")

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if not isinstance(target, (Call, Instance)):
            raise PickleError(f"BUILD on a {type(target).__name__}")
        if state is None or target.state is not None:
            raise PickleError("BUILD without a state, or twice on one object")
        target.state = state

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(args, tuple):
            raise PickleError("REDUCE without a tuple of arguments")
        self.make(Call(function, args))

    def instance(self, cls: Any, args: Any) -> None:
        if not isinstance(args, tuple):
            raise PickleError("NEWOBJ without a tuple of arguments")
        self.make(Instance(cls, args))

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError(f"memo {index} is used before it is set")
        self.stack.append(self.memo[index])


def _pair(machine: _Machine) -> tuple[Any, Any]:
    second = machine.pop()
    return machine.pop(), second


def _split(arg: str) -> tuple[str, str]:
    module, _, name = arg.partition(" ")
    return module, name


def _mark_object(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    if not items:
        raise PickleError("OBJ without a class")
    machine.make(Call(items[0], tuple(items[1:])))


def _tuple(machine: _Machine, count: int) -> None:
    items = [machine.pop() for _ in range(count)]
    machine.stack.append(tuple(reversed(items)))


def _new_with_keywords(machine: _Machine) -> None:
    keywords = machine.pop()
    cls, args = _pair(machine)
    if keywords:
        raise PickleError("NEWOBJ_EX with keyword arguments")
    machine.instance(cls, args)


def _refuse(what: str) -> Callable[[_Machine, Any], None]:
    def action(machine: _Machine, arg: Any) -> None:
        raise PickleError(f"opcode {what}, which torch.save does not write")

    return action


def _push(machine: _Machine, arg: Any) -> None:
    machine.stack.append(arg)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    def action(machine: _Machine, arg: Any) -> None:
        machine.stack.append(make())

    return action


def _remember(machine: _Machine, arg: Any) -> None:
    machine.memo[arg] = machine.top()


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "STOP": lambda m, a: None,
    "MARK": _constant(lambda: _MARK),
    "POP": lambda m, a: m.drop(),
    "POP_MARK": lambda m, a: m.drop_to_mark(),
    "DUP": lambda m, a: m.stack.append(m.top()),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, a: _tuple(m, 1),
    "TUPLE2": lambda m, a: _tuple(m, 2),
    "TUPLE3": lambda m, a: _tuple(m, 3),
    "LIST": lambda m, a: m.stack.append(m.pop_to_mark()),
    "DICT": lambda m, a: _mark_dict(m),
    "FROZENSET": lambda m, a: _frozenset(m),
    "APPEND": lambda m, a: m.extend([m.pop()]),
    "APPENDS": lambda m, a: m.extend(m.pop_to_mark()),
    "ADDITEMS": lambda m, a: m.add(m.pop_to_mark()),
    "SETITEM": lambda m, a: m.set_items(list(_pair(m))),
    "SETITEMS": lambda m, a: m.set_items(m.pop_to_mark()),
    "GLOBAL": lambda m, a: m.name(*_split(a)),
    "STACK_GLOBAL": lambda m, a: m.name(*_pair(m)),
    "REDUCE": lambda m, a: m.call(*_pair(m)),
    "NEWOBJ": lambda m, a: m.instance(*_pair(m)),
    "NEWOBJ_EX": lambda m, a: _new_with_keywords(m),
    "OBJ": lambda m, a: _mark_object(m),
    "INST": lambda m, a: _inst(m, a),
    "BUILD": lambda m, a: m.build(),
    "PERSID": lambda m, a: m.make(Persistent(a)),
    "BINPERSID": lambda m, a: m.make(Persistent(m.pop())),
    "GET": lambda m, a: m.recall(a),
    "BINGET": lambda m, a: m.recall(a),
    "LONG_BINGET": lambda m, a: m.recall(a),
    "PUT": _remember,
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": lambda m, a: m.memo.__setitem__(len(m.memo), m.top()),
    "EXT1": _refuse("EXT1"),
    "EXT2": _refuse("EXT2"),
    "EXT4": _refuse("EXT4"),
    "NEXT_BUFFER": _refuse("NEXT_BUFFER"),
    "READONLY_BUFFER": _refuse("READONLY_BUFFER"),
}
_PUSHED = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT "
    "BINFLOAT"
)
_ACTIONS.update(dict.fromkeys(_PUSHED.split(), _push))


def _mark_dict(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    machine.set_items(items)


def _frozenset(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.stack.append(set())
    machine.add(items)


def _inst(machine: _Machine, arg: str) -> None:
    items = machine.pop_to_mark()
    machine.name(*_split(arg))
    machine.make(Call(machine.stack.pop(), tuple(items)))


def scan(data: bytes | mmap.mmap, start: int = 0) -> Scan:
    """Read the pickle that begins at `start` of `data`; see the module's text.

    Raises PickleError for anything that is not a well-formed pickle.
    """
    machine = _Machine()
    stream: Any = io.BytesIO(data) if isinstance(data, bytes) else data
    stream.seek(start)
    try:
        for opcode, arg, _position in pickletools.genops(stream):
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise PickleError(f"unknown opcode {opcode.name}")
            action(machine, arg)
    except PickleError:
        raise
    # pickletools reports bad bytes with these; UnicodeDecodeError is a ValueError
    except (ValueError, IndexError, OverflowError, EOFError, MemoryError) as error:
        raise PickleError(str(error) or type(error).__name__) from error
    if len(machine.stack) != 1 or machine.stack[0] is _MARK:
        raise PickleError("the pickle ends with something left on its stack")
    return Scan(
        tree=machine.stack[0],
        globals=tuple(machine.globals),
        made=tuple(machine.made),
        end=stream.tell(),
    )
