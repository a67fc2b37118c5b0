"""The manifest of a bundle as the board reads it (docs/bundle.md), and the checks before it is used.

A bundle may come from anywhere, so nothing in its manifest is believed: types, sizes and paths are
checked while reading, and a path that leaves the folder is never opened.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Tuple

from edgekit.board.contract import Contract
from edgekit.board.errors import BadInput, DeviceError

SCHEMA = 1
FORMAT = "edgekit-bundle"
MANIFEST, SUMS, PREPROCESS, README = "manifest.json", "SHA256SUMS", "preprocess.json", "README.txt"
BUILT = "built"
"""The folder of what was made on the board; see edgekit.board.built."""

MAX_MANIFEST_BYTES = 64 << 20
MAX_FILE_BYTES = 16 << 30
MAX_FILES = 10_000

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Span = Tuple[int, int, int]


@dataclass(frozen=True)
class File:
    """One file of the bundle: path with "/", size in bytes, hex sha256."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Model:
    """The model as one runtime loads it; `files` are bundle paths, the first is the one to open.

    `inputs` and `outputs`: {"name", "shape", "dtype"}; a size may be a name where it is free.
    """

    runtime: str
    precision: str
    files: tuple[str, ...]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Sample:
    """One golden sample: bundle paths of image and input, and (name, path) of each output."""

    image: str
    input: str
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Block:
    """The part of `output` that is compared by itself: for each axis its spans, none for all of it."""

    name: str
    output: str
    axes: tuple[tuple[Span, ...], ...] = ()


@dataclass(frozen=True)
class Limits:
    """How far a block may be from its golden values: max|a-b| / max|a| and cosine."""

    max_rel_error: float
    min_cosine: float


@dataclass(frozen=True)
class Golden:
    """The golden samples, what made them, and how near they must be reproduced."""

    runtime: str
    runtime_version: str
    cpu: str
    same: Limits
    other: Limits
    samples: tuple[Sample, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Manifest:
    """A checked manifest; `raw` is the whole object, `folder` the bundle's."""

    folder: Path
    name: str
    target: str
    models: tuple[Model, ...]
    golden: Golden
    contract: Contract
    files: dict[str, File]
    raw: dict[str, Any]

    def path(self, name: str) -> Path:
        """The listed file `name`."""
        return self.folder / self.files[name].path


def path_problem(name: str) -> str | None:
    """Why `name` cannot be a path inside a bundle; None when it can."""
    if not name or len(name) > 200:
        return "is empty or longer than 200 characters"
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        return "is not a relative path with '/'"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "leaves the folder or is not in its plain form"
    if not all(_NAME.fullmatch(part) for part in name.split("/")):
        return "has a character that is not allowed (letters, digits, . _ + -)"
    return None


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the bundle at `folder`; the files it lists are not opened.

    Raises BadInput, saying what is wrong.
    """
    folder = Path(folder)
    reader = _Reader(folder / MANIFEST)
    raw = reader.object(_load(folder), MANIFEST)
    if raw.get("format") != FORMAT:
        raise BadInput(f"{folder / MANIFEST} is not the manifest of an edgekit bundle.")
    schema = raw.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise BadInput(
            f"{folder / MANIFEST} has schema {schema!r}; this program reads {SCHEMA}.",
            hint="Run the program that came with the bundle: python3 edgekit-device.pyz verify .",
        )
    files = reader.files(raw)
    models = tuple(reader.model(item) for item in reader.objects(raw, "models"))
    if not models:
        raise BadInput(f"{folder / MANIFEST} names no model.")
    try:
        contract = Contract.from_value(raw.get("preprocess"))
    except DeviceError as error:
        raise reader.fail(error.message.rstrip(".")) from error
    reader.text(reader.object(raw.get("versions"), "versions"), "edgekit")
    reader.text(raw, "verdict")
    reader.texts(raw, "names")
    for key in ("task", "head"):
        if raw.get(key) is not None:
            reader.text(raw, key)
    manifest = Manifest(
        folder=folder,
        name=reader.text(raw, "name"),
        target=reader.text(reader.object(raw.get("target"), "target"), "name"),
        models=models,
        golden=reader.golden(reader.object(raw.get("golden"), "golden")),
        contract=contract,
        files=files,
        raw=raw,
    )
    reader.check_named(manifest)
    return manifest


def _load(folder: Path) -> Any:
    """The JSON value in manifest.json; object keys may not repeat, nan and inf are refused."""
    file = folder / MANIFEST

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return value

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BadInput(f"{file} is larger than {MAX_MANIFEST_BYTES >> 20} MiB.")
        text = file.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadInput(
            f"{folder} is not a bundle: it has no {MANIFEST}.",
            hint="Name the bundle's folder: python3 edgekit-device.pyz verify FOLDER",
        ) from error
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid JSON: {error}.") from error


class _Reader:
    """Typed access to the parts of one manifest; everything wrong is a BadInput that names it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def fail(self, text: str) -> BadInput:
        return BadInput(f"{self._file}: {text}.", hint="Copy the bundle again, or export it again.")

    def object(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(f"{what} must be an object")
        return value

    def text(self, value: Mapping[str, Any], key: str) -> str:
        item = value.get(key)
        if not isinstance(item, str):
            raise self.fail(f"'{key}' must be a string")
        return item

    def objects(self, value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        items = value.get(key)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise self.fail(f"'{key}' must be a list of objects")
        return items

    def texts(self, value: Mapping[str, Any], key: str) -> tuple[str, ...]:
        items = value.get(key, [])
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self.fail(f"'{key}' must be a list of strings")
        return tuple(items)

    def number(self, value: Mapping[str, Any], key: str) -> float:
        item = value.get(key)
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            raise self.fail(f"'{key}' must be a number")
        return float(item)

    def files(self, raw: Mapping[str, Any]) -> dict[str, File]:
        listed = self.object(raw.get("files"), "files")
        if len(listed) > MAX_FILES:
            raise self.fail(f"it lists {len(listed)} files; {MAX_FILES} is the most")
        entries: dict[str, File] = {}
        seen: set[str] = {MANIFEST.lower(), SUMS.lower()}
        for name, item in listed.items():
            problem = path_problem(name)
            if problem is not None:
                raise self.fail(f"the path {name!r} {problem}")
            if name.split("/")[0].lower() == BUILT:
                raise self.fail(f"the path {name!r} lies in the folder of what the board makes")
            if name.lower() in seen:
                raise self.fail(f"the path {name!r} stands twice")
            seen.add(name.lower())
            size, digest = self.object(item, name).get("size"), item.get("sha256")
            if isinstance(size, bool) or not isinstance(size, int):
                raise self.fail(f"the size of {name} must be a whole number")
            if not 0 <= size <= MAX_FILE_BYTES:
                raise self.fail(f"the size of {name} is {size}")
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise self.fail(f"the sha256 of {name} must be 64 hex digits")
            entries[name] = File(name, size, digest)
        return entries

    def specs(self, value: Mapping[str, Any], key: str) -> tuple[dict[str, Any], ...]:
        specs = []
        for item in self.objects(value, key):
            shape = item.get("shape")
            if not isinstance(shape, list) or not all(
                isinstance(size, (int, str)) and not isinstance(size, bool) for size in shape
            ):
                raise self.fail(f"a shape in '{key}' must be a list of numbers and names")
            name, dtype = self.text(item, "name"), self.text(item, "dtype")
            specs.append({"name": name, "shape": shape, "dtype": dtype})
        return tuple(specs)

    def model(self, value: Mapping[str, Any]) -> Model:
        files = self.texts(value, "files")
        if not files:
            raise self.fail("a model without files")
        self.texts(value, "notes")
        return Model(
            runtime=self.text(value, "runtime"),
            precision=self.text(value, "precision"),
            files=files,
            inputs=self.specs(value, "inputs"),
            outputs=self.specs(value, "outputs"),
        )

    def limits(self, value: Any) -> Limits:
        limits = self.object(value, "golden limits")
        return Limits(self.number(limits, "max_rel_error"), self.number(limits, "min_cosine"))

    def block(self, value: Mapping[str, Any]) -> Block:
        axes = []
        try:
            for spans in value["axes"]:
                axes.append(tuple((_index(a), _index(b), _index(c)) for a, b, c in spans))
        except (TypeError, KeyError, ValueError) as error:
            raise self.fail(f"golden: not a block: {value!r}") from error
        return Block(self.text(value, "name"), self.text(value, "output"), tuple(axes))

    def golden(self, value: Mapping[str, Any]) -> Golden:
        samples = tuple(
            Sample(
                image=self.text(item, "image"),
                input=self.text(item, "input"),
                outputs=tuple(
                    (self.text(output, "name"), self.text(output, "file"))
                    for output in self.objects(item, "outputs")
                ),
            )
            for item in self.objects(value, "samples")
        )
        return Golden(
            runtime=self.text(value, "runtime"),
            runtime_version=self.text(value, "runtime_version"),
            cpu=self.text(value, "cpu"),
            same=self.limits(value.get("same")),
            other=self.limits(value.get("other")),
            samples=samples,
            blocks=tuple(self.block(item) for item in self.objects(value, "blocks")),
        )

    def check_named(self, manifest: Manifest) -> None:
        """Every file that a part of the manifest speaks of must stand in its list of files."""
        calibration = self.object(manifest.raw.get("calibration") or {}, "calibration").get("file")
        named = [PREPROCESS, README, *([str(calibration)] if calibration is not None else [])]
        named += [name for model in manifest.models for name in model.files]
        for sample in manifest.golden.samples:
            named += [sample.image, sample.input, *(file for _, file in sample.outputs)]
        for name in named:
            if name not in manifest.files:
                raise self.fail(f"{name} is spoken of but not listed under 'files'")


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value
