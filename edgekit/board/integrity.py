"""Whether a bundle's files are those of its manifest, and its parts fit each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from edgekit.board.built import SIDECAR, sha256_of
from edgekit.board.contract import Contract
from edgekit.board.errors import BadInput, VerificationFailed
from edgekit.board.manifest import BUILT, MANIFEST, SUMS, Manifest, Model

METADATA_KEY = "edgekit.preprocess"


def file_problem(manifest: Manifest, name: str) -> str | None:
    """What is wrong with the listed file `name`: missing, a link out, another size or content."""
    file, entry = manifest.path(name), manifest.files[name]
    try:
        real = file.resolve(strict=True)
    except FileNotFoundError:
        return "is missing"
    except (OSError, RuntimeError) as error:
        return f"cannot be read: {error}"
    home = manifest.folder.resolve()
    if home not in real.parents:
        return "is a link that leads out of the bundle"
    if not real.is_file():
        return "is not a plain file"
    try:
        size = real.stat().st_size
        if size != entry.size_bytes:
            return f"has {size} bytes, not {entry.size_bytes}"
        digest = sha256_of(real)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest != entry.sha256:
        return f"has changed: sha256 {digest[:12]}…, not {entry.sha256[:12]}…"
    return None


def demand_files(manifest: Manifest, model: Model) -> None:
    """Raise VerificationFailed unless the files of `model` are those of the manifest."""
    for name in model.files:
        problem = file_problem(manifest, name)
        if problem is not None:
            raise VerificationFailed(
                f"{manifest.folder}: {name} {problem}.",
                "`verify` checks the whole bundle; copy it again, or export it again.",
            )


def unlisted(manifest: Manifest) -> list[str]:
    """What lies in the folder without standing in the manifest.

    In built/ a file belongs there by its sidecar; edgekit.board.built looks at what that says.
    """
    known = {*manifest.files, MANIFEST, SUMS}
    made = manifest.folder / BUILT
    if made.is_dir() and not made.is_symlink():
        for entry in made.iterdir():
            sidecar = entry.with_name(entry.name + SIDECAR)
            if entry.is_file() and sidecar.is_file():
                known |= {f"{BUILT}/{entry.name}", f"{BUILT}/{sidecar.name}"}
    found = []
    root = str(manifest.folder)
    for place, folders, files in os.walk(root):
        relative = Path(place).relative_to(root)
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in (*files, *links):
            path = (relative / name).as_posix()
            if path not in known:
                found.append(path)
    return sorted(found)


def sums_problem(manifest: Manifest) -> str | None:
    """Whether manifest.json is what SHA256SUMS says, and SHA256SUMS what the manifest says."""
    try:
        found = (manifest.folder / SUMS).read_bytes()
        digest = sha256_of(manifest.folder / MANIFEST)
    except OSError as error:
        return f"{SUMS} cannot be read: {error.strerror}"
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
    hashes[MANIFEST] = digest
    expected = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()
    if found == expected:
        return None
    missing = set(expected.splitlines()) - set(found.splitlines())
    wrong = sorted(line.split()[-1].decode() for line in missing)
    if wrong == [MANIFEST]:
        return f"{MANIFEST} has changed (or its line in {SUMS} has)"
    return f"{SUMS} does not fit the manifest" + (f": {', '.join(wrong[:5])}" if wrong else "")


def chain_problem(manifest: Manifest) -> str | None:
    """Where the chain from checkpoint to main model breaks; None when it holds."""
    try:
        known = {str(manifest.raw["checkpoint"]["sha256"])}
        steps = [
            (str(step["name"]), tuple(step["input_sha256"]), tuple(step["output_sha256"]))
            for step in manifest.raw["chain"]
        ]
    except (KeyError, TypeError) as error:
        return f"{MANIFEST}: the chain lacks {error}"
    if not steps:
        return "it has no steps"
    for name, inputs, outputs in steps:
        for digest in inputs:
            if digest not in known:
                return f"{name} starts from {str(digest)[:12]}…, which no earlier step gave"
        known.update(outputs)
    model = manifest.files[manifest.models[0].files[0]].sha256
    return None if model in known else f"no step gave the model {model[:12]}…"


def contract_difference(manifest: Manifest, other: Contract) -> str:
    """The fields in which `other` differs from the manifest's contract; "" when in none."""
    ours, theirs = vars(manifest.contract), vars(other)
    return ", ".join(
        f"{name} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name]
    )


def onnx_metadata(path: Path) -> dict[str, str]:
    """The metadata entries of an ONNX file, read without onnx. Raises BadInput when it is damaged.

    The file is a protobuf message (ModelProto of onnx.proto): metadata_props is field 14, repeated
    StringStringEntryProto {key = 1, value = 2}. Everything else, the graph too, is skipped over.
    """
    entries = {}
    try:
        with open(path, "rb") as stream:
            end = os.fstat(stream.fileno()).st_size
            while stream.tell() < end:
                number, size = _field(stream, end)
                if number == 14:
                    body = stream.read(size)
                    if len(body) != size:
                        raise ValueError("it ends in the middle")
                    key, value = _entry(body)
                    entries[key] = value
                else:
                    stream.seek(size, os.SEEK_CUR)
            if stream.tell() != end:
                raise ValueError("it ends in the middle")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, IndexError) as error:
        raise BadInput(f"{path} is not an ONNX file: {error}.") from error
    return entries


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError("it ends in the middle")
        value |= int(byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number is too long")


def _field(stream: BinaryIO, end: int) -> tuple[int, int]:
    """Number of the next field and the bytes of its value, at whose beginning the stream then is.

    Wire types as in "Encoding" of the Protocol Buffers documentation.
    """
    tag = _varint(stream)
    kind = tag & 7
    if kind == 0:
        _varint(stream)
        return tag >> 3, 0
    size = {1: 8, 5: 4}.get(kind)
    if size is None:
        if kind != 2:
            raise ValueError(f"wire type {kind}")
        size = _varint(stream)
    if size > end - stream.tell():
        raise ValueError("it ends in the middle")
    return tag >> 3, size


def _entry(body: bytes) -> tuple[str, str]:
    import io

    stream, texts = io.BytesIO(body), {1: "", 2: ""}
    while stream.tell() < len(body):
        number, size = _field(stream, len(body))
        texts[number] = stream.read(size).decode("utf-8")
    return texts[1], texts[2]
