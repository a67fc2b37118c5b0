"""`model.json` beside an ncnn model: what `.param` and `.bin` do not say.

A `.param` holds neither the input's size (another size gives garbage and no error) nor the names and
shapes of the model that it was made from. One object, made to be read by a small program too:

    format    "edgekit-ncnn"
    schema    1
    param     {"file": name in the same folder, "size": bytes, "sha256": hex}
    bin       the same
    inputs    list of {"blob": ncnn's name, "name": the model's name, "shape": [1, 3, 640, 640]}
    outputs   the same, in the model's order; shapes include the batch, which ncnn leaves out
    precision "fp32", "fp16", "bf16" or "int8"
    options   ncnn::Option fields and their values, true or false; to be set before loading
    versions  {"ncnn": version, "pnnx": version} of the pair that made it

All tensors are float32. The axes of ncnn's Mat are those of the shape without the batch, innermost
first: [1, 3, 640, 480] is w = 480, h = 640, c = 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.atomic import sha256_file, write_json
from edgekit.errors import BadInput

FORMAT = "edgekit-ncnn"
SCHEMA = 1
MAX_FILE_BYTES = 1 << 20

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_OPTION = re.compile(r"use_[a-z0-9_]{1,40}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,120}")
_MAX_RANK = 5


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output: ncnn's blob, the model's name, the shape with its batch of 1."""

    blob: str
    name: str
    shape: tuple[int, ...]

    @property
    def inner(self) -> tuple[int, ...]:
        """The shape as ncnn has it, outermost first: without the batch."""
        return self.shape[1:] if len(self.shape) > 1 else self.shape


@dataclass(frozen=True, kw_only=True)
class File:
    """A file in the same folder."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The content of a `model.json`."""

    param: File
    bin: File
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    precision: str
    options: Mapping[str, bool]
    versions: Mapping[str, str]


def describe(path: Path) -> File:
    """The entry of the file `path`."""
    return File(file=path.name, size=path.stat().st_size, sha256=sha256_file(path))


def write(sidecar: Sidecar, path: Path) -> None:
    """Write `sidecar` to `path`, atomically and with sorted keys."""

    def tensors(items: tuple[Tensor, ...]) -> list[dict[str, Any]]:
        return [{"blob": t.blob, "name": t.name, "shape": list(t.shape)} for t in items]

    def file(item: File) -> dict[str, Any]:
        return {"file": item.file, "size": item.size, "sha256": item.sha256}

    write_json(
        path,
        {
            "format": FORMAT,
            "schema": SCHEMA,
            "param": file(sidecar.param),
            "bin": file(sidecar.bin),
            "inputs": tensors(sidecar.inputs),
            "outputs": tensors(sidecar.outputs),
            "precision": sidecar.precision,
            "options": dict(sidecar.options),
            "versions": dict(sidecar.versions),
        },
    )


def read(path: Path) -> Sidecar:
    """Read and check a `model.json`. Raises BadInput, saying what is wrong."""
    path = Path(path)
    reader = _Reader(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise reader.fail("is too large")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"{path} does not exist; it says what the ncnn model's inputs are.",
            hint="Keep model.json, model.param and model.bin together.",
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise reader.fail(f"is not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise reader.fail("does not describe an ncnn model of edgekit")
    if value.get("schema") != SCHEMA or isinstance(value.get("schema"), bool):
        raise reader.fail(f"has schema {value.get('schema')!r}, this edgekit reads {SCHEMA}")
    precision = value.get("precision")
    if precision not in PRECISIONS:
        raise reader.fail(f"has the unknown precision {precision!r}")
    return Sidecar(
        param=reader.file(value, "param"),
        bin=reader.file(value, "bin"),
        inputs=reader.tensors(value, "inputs"),
        outputs=reader.tensors(value, "outputs"),
        precision=precision,
        options=reader.options(value),
        versions=reader.texts(value, "versions"),
    )


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def fail(self, text: str) -> BadInput:
        return BadInput(f"{self._path} {text}.", hint="Export the model again.")

    def _object(self, value: Any, key: str) -> dict[str, Any]:
        item = value.get(key)
        if not isinstance(item, dict):
            raise self.fail(f"has no object '{key}'")
        return item

    def file(self, value: Any, key: str) -> File:
        item = self._object(value, key)
        name, size, digest = (item.get(part) for part in ("file", "size", "sha256"))
        if not isinstance(name, str) or not _FILE.fullmatch(name):
            raise self.fail(f"names no plain file under '{key}'")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise self.fail(f"gives no size under '{key}'")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise self.fail(f"gives no sha256 under '{key}'")
        return File(file=name, size=size, sha256=digest)

    def tensors(self, value: Any, key: str) -> tuple[Tensor, ...]:
        items = value.get(key)
        if not isinstance(items, list) or not items:
            raise self.fail(f"lists no '{key}'")
        found = []
        for item in items:
            blob, name, shape = (
                item.get(part) if isinstance(item, dict) else None
                for part in ("blob", "name", "shape")
            )
            if not isinstance(blob, str) or not isinstance(name, str):
                raise self.fail(f"has an entry of '{key}' without blob or name")
            if (
                not isinstance(shape, list)
                or not 0 < len(shape) <= _MAX_RANK
                or not all(
                    isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**31 for n in shape
                )
            ):
                raise self.fail(f"gives '{name}' the shape {shape!r}")
            found.append(Tensor(blob=blob, name=name, shape=tuple(shape)))
        return tuple(found)

    def options(self, value: Any) -> dict[str, bool]:
        options = self._object(value, "options")
        for name, item in options.items():
            if not _OPTION.fullmatch(name) or not isinstance(item, bool):
                raise self.fail(f"has the option {name!r}: {item!r}")
        return options

    def texts(self, value: Any, key: str) -> dict[str, str]:
        items = self._object(value, key)
        if not all(isinstance(item, str) for item in items.values()):
            raise self.fail(f"has a value under '{key}' that is no text")
        return items
