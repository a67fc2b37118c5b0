"""The manifest of a bundle: what is read from it, and the checks before any of it is used.

A bundle may come from anywhere, so nothing in its manifest is believed: types, sizes and paths are
checked while reading, and a path that leaves the folder is never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.block import Block
from edgekit.errors import BadInput, EdgekitError
from edgekit.preprocess import Preprocess
from edgekit.types import TensorSpec

SCHEMA = 1
FORMAT = "edgekit-bundle"
MANIFEST, SUMS, PREPROCESS, README = "manifest.json", "SHA256SUMS", "preprocess.json", "README.txt"
BUILT = "built"
"""The folder of what was made on the board; not part of the manifest (docs/bundle.md)."""

MAX_MANIFEST_BYTES = 64 << 20
MAX_FILE_BYTES = 16 << 30
MAX_FILES = 10_000

# letters every file system, shell and C++ program takes as they are; no leading dash or dot
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the bundle: path relative to the folder, with "/", size in bytes, hex sha256."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """The model as one runtime loads it; `files` are bundle paths, the first is the one to open."""

    runtime: str
    precision: str
    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GoldenEntry:
    """One golden sample: bundle paths of image and input, and of each output by its name."""

    image: str
    input: str
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class GoldenLimits:
    """How far a block may be from its golden values: max|a-b| / max|a| and cosine."""

    max_rel_error: float
    min_cosine: float


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The golden samples, what made them, and how near they must be reproduced.

    `same` holds for the CPU and the runtime version named here, `other` for all others. `blocks`
    are what is compared one by one.
    """

    runtime: str
    runtime_version: str
    cpu: str
    same: GoldenLimits
    other: GoldenLimits
    samples: tuple[GoldenEntry, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked manifest. `raw` is the whole object, with chain, versions, latency, accuracy."""

    folder: Path
    name: str
    edgekit: str
    target: str
    task: str | None
    head: str | None
    names: tuple[str, ...]
    preprocess: Preprocess
    models: tuple[ModelEntry, ...]
    golden: Golden
    files: dict[str, FileEntry]
    calibration: str | None
    verdict: str
    raw: dict[str, Any]

    def path(self, name: str) -> Path:
        """The file `name` of the bundle."""
        return self.folder / self.files[name].path

    def model(self, runtime: str | None = None) -> ModelEntry:
        """The model for `runtime` (default: the bundle's main one). BadInput when it has none."""
        for entry in self.models:
            if runtime in (None, entry.runtime):
                return entry
        raise BadInput(
            f"The bundle {self.folder} has no model for {runtime}.",
            hint="It has: " + ", ".join(entry.runtime for entry in self.models),
        )


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a manifest (which may still be damaged)."""
    return (Path(path) / MANIFEST).is_file()


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


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of the bundle at `path`.

    Raises BadInput, saying what is wrong, when there is none, when it is not valid, or when it was
    written by a newer edgekit. The files it lists are not opened: see `integrity`.
    """
    folder = Path(path)
    raw = _object(_load(folder), MANIFEST)
    if raw.get("format") != FORMAT:
        raise BadInput(f"{folder / MANIFEST} is not the manifest of an edgekit bundle.")
    schema = raw.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise BadInput(
            f"{folder / MANIFEST} has schema {schema!r}; this edgekit reads {SCHEMA}.",
            hint="Update edgekit, or export the bundle again.",
        )
    reader = _Reader(folder)
    files = reader.files(raw)
    golden = _object(raw.get("golden"), "golden")
    calibration = _object(raw.get("calibration") or {}, "calibration").get("file")
    models = tuple(reader.model(item) for item in reader.list(raw, "models"))
    manifest = Manifest(
        folder=folder,
        name=reader.text(raw, "name"),
        edgekit=reader.text(_object(raw.get("versions"), "versions"), "edgekit"),
        target=reader.text(_object(raw.get("target"), "target"), "name"),
        task=reader.optional_text(raw, "task"),
        head=reader.optional_text(raw, "head"),
        names=reader.texts(raw, "names"),
        preprocess=reader.contract(raw.get("preprocess")),
        models=models,
        golden=reader.golden(golden),
        files=files,
        calibration=None if calibration is None else str(calibration),
        verdict=reader.text(raw, "verdict"),
        raw=raw,
    )
    if not models:
        raise BadInput(f"{folder / MANIFEST} names no model.")
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
            hint="Make one with `edgekit export CHECKPOINT --target TARGET --images DIR`.",
        ) from error
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid JSON: {error}.") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"manifest: {what} must be an object.")
    return value


class _Reader:
    """Typed access to the parts of one manifest; everything wrong is a BadInput that names it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / MANIFEST

    def fail(self, text: str) -> BadInput:
        return BadInput(f"{self._file}: {text}.", hint="Copy the bundle again, or export it again.")

    def text(self, value: Mapping[str, Any], key: str) -> str:
        item = value.get(key)
        if not isinstance(item, str):
            raise self.fail(f"'{key}' must be a string")
        return item

    def optional_text(self, value: Mapping[str, Any], key: str) -> str | None:
        return None if value.get(key) is None else self.text(value, key)

    def list(self, value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
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

    def contract(self, value: Any) -> Preprocess:
        try:
            return Preprocess.from_dict(value, "preprocess")
        except EdgekitError as error:
            raise self.fail(error.message.rstrip(".")) from error

    def files(self, raw: Mapping[str, Any]) -> dict[str, FileEntry]:
        entries: dict[str, FileEntry] = {}
        listed = _object(raw.get("files"), "files")
        if len(listed) > MAX_FILES:
            raise self.fail(f"it lists {len(listed)} files; {MAX_FILES} is the most")
        seen: set[str] = {MANIFEST.lower(), SUMS.lower()}
        for name, item in listed.items():
            problem = path_problem(name)
            if problem is not None:
                raise self.fail(f"the path {name!r} {problem}")
            if name.split("/")[0].lower() == BUILT:
                raise self.fail(f"the path {name!r} lies in the folder of what the board makes")
            # a board's FAT file system takes A and a for one name
            if name.lower() in seen:
                raise self.fail(f"the path {name!r} stands twice")
            seen.add(name.lower())
            size, digest = _object(item, name).get("size"), item.get("sha256")
            if isinstance(size, bool) or not isinstance(size, int):
                raise self.fail(f"the size of {name} must be a whole number")
            if not 0 <= size <= MAX_FILE_BYTES:
                raise self.fail(f"the size of {name} is {size}")
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise self.fail(f"the sha256 of {name} must be 64 hex digits")
            entries[name] = FileEntry(path=name, size_bytes=size, sha256=digest)
        return entries

    def specs(self, value: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
        specs = []
        for item in self.list(value, key):
            shape = item.get("shape")
            if not isinstance(shape, list) or not all(
                isinstance(size, (int, str)) and not isinstance(size, bool) for size in shape
            ):
                raise self.fail(f"a shape in '{key}' must be a list of numbers and names")
            name, dtype = self.text(item, "name"), self.text(item, "dtype")
            specs.append(TensorSpec(name=name, shape=tuple(shape), dtype=dtype))
        return tuple(specs)

    def model(self, value: Mapping[str, Any]) -> ModelEntry:
        files = self.texts(value, "files")
        if not files:
            raise self.fail("a model without files")
        return ModelEntry(
            runtime=self.text(value, "runtime"),
            precision=self.text(value, "precision"),
            files=files,
            inputs=self.specs(value, "inputs"),
            outputs=self.specs(value, "outputs"),
            notes=self.texts(value, "notes"),
        )

    def limits(self, value: Any) -> GoldenLimits:
        limits = _object(value, "golden limits")
        return GoldenLimits(
            max_rel_error=self.number(limits, "max_rel_error"),
            min_cosine=self.number(limits, "min_cosine"),
        )

    def golden(self, value: Mapping[str, Any]) -> Golden:
        samples = tuple(
            GoldenEntry(
                image=self.text(item, "image"),
                input=self.text(item, "input"),
                outputs=tuple(
                    (self.text(output, "name"), self.text(output, "file"))
                    for output in self.list(item, "outputs")
                ),
            )
            for item in self.list(value, "samples")
        )
        try:
            blocks = tuple(Block.from_json(item) for item in self.list(value, "blocks"))
        except ValueError as error:
            raise self.fail(f"golden: {error}") from error
        return Golden(
            runtime=self.text(value, "runtime"),
            runtime_version=self.text(value, "runtime_version"),
            cpu=self.text(value, "cpu"),
            same=self.limits(value.get("same")),
            other=self.limits(value.get("other")),
            samples=samples,
            blocks=blocks,
        )

    def check_named(self, manifest: Manifest) -> None:
        """Every file that a part of the manifest speaks of must stand in its list of files."""
        named = [PREPROCESS, README, *([manifest.calibration] if manifest.calibration else [])]
        named += [name for model in manifest.models for name in model.files]
        for sample in manifest.golden.samples:
            named += [sample.image, sample.input, *(file for _, file in sample.outputs)]
        for name in named:
            if name not in manifest.files:
                raise self.fail(f"{name} is spoken of but not listed under 'files'")
