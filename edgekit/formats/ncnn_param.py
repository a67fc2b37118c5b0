"""ncnn's `.param`: the graph as text, one layer a line.

    7767517
    LAYERS BLOBS
    TYPE NAME N_INPUTS N_OUTPUTS input… output… id=value…

A value is an integer, a float, a string, or an array: `-23300-id=LENGTH,v,v…` (what pnnx writes) or
`id=v,v,` (newer). Values are kept as the text they were, so that a file that pnnx wrote comes back
byte for byte. Source: ncnn 1.0.20261020, src/net.cpp (Net::load_param) and src/paramdict.cpp.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.atomic import write_bytes
from edgekit.errors import BadInput

MAGIC = "7767517"

MAX_FILE_BYTES = 64 << 20
MAX_LAYERS = 1 << 20
_MAX_NAME = 255
_MAX_ID = 32
_OLD_ARRAY = -23300

_KEY = re.compile(r"[+-]?[0-9]{1,9}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")
_FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_STRING = re.compile(r'[A-Za-z][\x21\x23-\x7e]{0,254}|"[\x20\x21\x23-\x7e]{0,254}"')


class _Problem(Exception):
    """What is wrong with a line; the caller adds file and line number."""


@dataclass(frozen=True, kw_only=True)
class NcnnLayer:
    """One layer: `inputs` and `outputs` name blobs, `params` maps ids to the text of their values.

    An array written the old way (`-23310=2,…`) is found under its id (10) by `integers` and
    `numbers`, and keeps its old key in `params`.
    """

    type: str
    name: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    params: Mapping[int, str] = field(default_factory=dict)

    def integer(self, key: int, default: int = 0) -> int:
        """The integer `key`. Raises BadInput when its value is something else."""
        text = self.params.get(key)
        if text is None:
            return default
        if not _INTEGER.fullmatch(text):
            raise BadInput(f"ncnn layer '{self.name}': {key}={text} is not an integer.")
        return int(text)

    def number(self, key: int, default: float = 0.0) -> float:
        """The number `key`. Raises BadInput when its value is something else."""
        text = self.params.get(key)
        if text is None:
            return default
        if not _FLOAT.fullmatch(text):
            raise BadInput(f"ncnn layer '{self.name}': {key}={text} is not a number.")
        return float(text)

    def numbers(self, key: int) -> tuple[float, ...]:
        """The array `key`, () where there is none. Raises BadInput when it is something else."""
        old, new = self.params.get(_OLD_ARRAY - key), self.params.get(key)
        text = old if old is not None else new
        if text is None:
            return ()
        parts = [part for part in text.split(",") if part]
        if not all(_FLOAT.fullmatch(part) for part in parts):
            raise BadInput(f"ncnn layer '{self.name}': {key}={text} is not an array of numbers.")
        values = tuple(float(part) for part in parts)
        return values if old is None else values[1:]

    def integers(self, key: int) -> tuple[int, ...]:
        """The array `key` of integers."""
        return tuple(int(value) for value in self.numbers(key))

    def with_params(self, changes: Mapping[int, int | float | str | None]) -> NcnnLayer:
        """A copy with these values set; None takes one out. A new one goes behind the others."""
        params = dict(self.params)
        for key, value in changes.items():
            if value is None:
                params.pop(key, None)
            else:
                params[key] = f"{value:e}" if isinstance(value, float) else str(value)
        return dataclasses.replace(self, params=params)


@dataclass(frozen=True, kw_only=True)
class NcnnGraph:
    """A `.param`: its layers in the order in which they run and in which the `.bin` holds them.

    Names of layers need not be unique (pnnx repeats those of Split layers); a layer is its place.
    """

    layers: tuple[NcnnLayer, ...]

    @property
    def blobs(self) -> tuple[str, ...]:
        """Every blob, by the layer that makes it."""
        return tuple(name for layer in self.layers for name in layer.outputs)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Blobs that are fed: what the Input layers make."""
        return tuple(n for layer in self.layers if layer.type == "Input" for n in layer.outputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Blobs that no layer takes, in the order of the file (which is not that of the ONNX model)."""
        taken = {name for layer in self.layers for name in layer.inputs}
        return tuple(name for name in self.blobs if name not in taken)

    def producer(self, blob: str) -> NcnnLayer | None:
        """The layer that makes `blob`."""
        return next((layer for layer in self.layers if blob in layer.outputs), None)

    def consumers(self, blob: str) -> tuple[NcnnLayer, ...]:
        """The layers that take `blob`."""
        return tuple(layer for layer in self.layers if blob in layer.inputs)

    def replaced(self, changes: Mapping[int, NcnnLayer]) -> NcnnGraph:
        """A copy with the layers at these places replaced."""
        layers = (changes.get(place, layer) for place, layer in enumerate(self.layers))
        return NcnnGraph(layers=tuple(layers))


def parse(text: str, where: str = "param") -> NcnnGraph:
    """Parse the text of a `.param`.

    Raises BadInput, with the line, for everything that ncnn would refuse or misread: another magic,
    counts that do not fit, blobs that nothing before makes or that two layers make, values that are
    none.
    """
    lines = text.split("\n")
    try:
        if lines[0].strip() != MAGIC:
            raise _Problem(f"the first line is not {MAGIC}")
        counts = lines[1].split() if len(lines) > 1 else []
        if len(counts) != 2 or not all(_INTEGER.fullmatch(part) for part in counts):
            raise _Problem("the second line is not 'LAYERS BLOBS'")
        layer_count, blob_count = (int(part) for part in counts)
        if not 0 < layer_count <= MAX_LAYERS or not 0 < blob_count <= 4 * MAX_LAYERS:
            raise _Problem(f"{layer_count} layers and {blob_count} blobs cannot be")
    except _Problem as problem:
        raise _refused(where, str(problem)) from None
    layers: list[NcnnLayer] = []
    made: set[str] = set()
    for number, line in enumerate(lines[2:], start=3):
        if not line.strip():
            continue
        try:
            layer = _layer(line)
            missing = [name for name in layer.inputs if name not in made]
            if missing:
                raise _Problem(f"layer '{layer.name}' takes '{missing[0]}', which nothing has made")
            for name in layer.outputs:
                if name in made:
                    raise _Problem(f"layer '{layer.name}' makes '{name}' a second time")
                made.add(name)
        except _Problem as problem:
            raise _refused(where, f"line {number}: {problem}") from None
        layers.append(layer)
        if len(layers) > layer_count:
            break
    if len(layers) != layer_count:
        more = "more" if len(layers) > layer_count else "only " + str(len(layers))
        raise _refused(where, f"it says {layer_count} layers, there are {more}")
    if len(made) != blob_count:
        raise _refused(where, f"it says {blob_count} blobs, there are {len(made)}")
    return NcnnGraph(layers=tuple(layers))


def _refused(where: str, problem: str) -> BadInput:
    return BadInput(
        f"{where} is not a valid ncnn graph: {problem}.",
        hint="It is cut off, edited wrongly, or no .param in text form: export it again.",
    )


def _layer(line: str) -> NcnnLayer:
    fields = _fields(line)
    if len(fields) < 4:
        raise _Problem("a layer needs a type, a name and two counts")
    kind, name = fields[0], fields[1]
    counts = fields[2:4]
    if not all(_INTEGER.fullmatch(part) and 0 <= int(part) <= MAX_LAYERS for part in counts):
        raise _Problem(f"the numbers of inputs and outputs are '{counts[0]}' and '{counts[1]}'")
    inputs, outputs = (int(part) for part in counts)
    if len(fields) < 4 + inputs + outputs:
        raise _Problem(f"layer '{name}' is cut off")
    words = fields[: 4 + inputs + outputs]
    if any(len(word) > _MAX_NAME or "=" in word for word in words):
        raise _Problem(f"layer '{name}' has a name that is too long or holds '='")
    params: dict[int, str] = {}
    for item in fields[4 + inputs + outputs :]:
        text, equals, value = item.partition("=")
        if not equals or not _KEY.fullmatch(text):
            raise _Problem(f"layer '{name}': '{item}' is not 'id=value'")
        key = int(text)
        plain = _OLD_ARRAY - key if key <= _OLD_ARRAY else key
        if not 0 <= plain < _MAX_ID or key in params:
            raise _Problem(f"layer '{name}': the id {text} cannot be, or stands twice")
        _check_value(name, key, value)
        params[key] = value
    return NcnnLayer(
        type=kind,
        name=name,
        inputs=tuple(fields[4 : 4 + inputs]),
        outputs=tuple(fields[4 + inputs : 4 + inputs + outputs]),
        params=params,
    )


def _fields(line: str) -> list[str]:
    """The words of a line; a quoted value may hold spaces."""
    if not line.isascii() or any(ord(sign) < 32 and sign not in "\t\r" for sign in line):
        raise _Problem("it holds signs that are not ASCII")
    return re.findall(r'[^\s"]+"[^"]*"?|[^\s]+', line)


def _check_value(name: str, key: int, value: str) -> None:
    if key > _OLD_ARRAY and (_FLOAT.fullmatch(value) or _STRING.fullmatch(value)):
        return
    if key > _OLD_ARRAY and "," not in value:
        raise _Problem(f"layer '{name}': {key}={value} is not a value")
    parts = value.split(",")
    if key > _OLD_ARRAY and parts[-1] == "":
        parts.pop()  # a trailing comma marks an array of one
    if not all(_FLOAT.fullmatch(part) for part in parts):
        raise _Problem(f"layer '{name}': {key}={value} is not an array of numbers")
    if key <= _OLD_ARRAY and parts[0] != str(len(parts) - 1):
        raise _Problem(f"layer '{name}': the array {key}={value} has {len(parts) - 1} elements")


def text_of(graph: NcnnGraph) -> str:
    """The `.param` as pnnx lays it out: type and name padded to 24 signs."""
    lines = [MAGIC, f"{len(graph.layers)} {len(graph.blobs)}"]
    for layer in graph.layers:
        head = f"{layer.type:<24} {layer.name:<24} {len(layer.inputs)} {len(layer.outputs)}"
        values = [f"{key}={value}" for key, value in layer.params.items()]
        lines.append(" ".join([head, *layer.inputs, *layer.outputs, *values]))
    return "\n".join(lines) + "\n"


def read(path: Path) -> NcnnGraph:
    """Read a `.param` file. Raises BadInput as `parse`, and when it cannot be read."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refused(str(path), f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"The model {path} does not exist.") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        return parse(data.decode("ascii"), str(path))
    except UnicodeDecodeError as error:
        raise _refused(str(path), "it is not text") from error


def write(graph: NcnnGraph, path: Path) -> None:
    """Write `graph` to `path`, atomically."""
    write_bytes(path, text_of(graph).encode("ascii"))


def sorted_outputs(names: Sequence[str]) -> list[str]:
    """pnnx's outputs `out0`, `out1`, … in the order of the model they were made from.

    Raises BadInput when the names are not of that form.
    """
    numbers: dict[int, str] = {}
    for name in names:
        match = re.fullmatch(r"out([0-9]{1,6})", name)
        if match is None:
            raise BadInput(f"The blob '{name}' is an output that pnnx did not name.")
        numbers[int(match[1])] = name
    return [numbers[number] for number in sorted(numbers)]
