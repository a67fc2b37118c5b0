"""`built/`: what was made on the board, such as a TensorRT engine. Not part of the manifest.

Each file built/NAME has a sidecar built/NAME.json, an object with at least

    format    "edgekit-built"
    schema    1
    sha256    of built/NAME, 64 lower-case hex digits
    size      of built/NAME, bytes
    from      {path in the bundle: its sha256} of what it was made from
    device    what it was made on and holds for (plain values, chosen by its maker)
    versions  {"tensorrt": …, "edgekit": …}

A file without its sidecar, a sidecar without its file, a link or a folder is reported by `verify`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Iterator, Mapping

from edgekit.board.errors import BadInput, NoSpace
from edgekit.board.manifest import BUILT, Manifest, path_problem

FORMAT = "edgekit-built"
SCHEMA = 1
SIDECAR = ".json"
_MAX_SIDECAR_BYTES = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for part in iter(lambda: stream.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary path beside `path`; renamed to it when the block ends well.

    Removed when it fails or is interrupted. A full disk is a NoSpace, every other refusal a BadInput.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=str(path.parent))
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(f"No space left while writing {path}.", "Free some space.") from error
        raise BadInput(
            f"Cannot write {path}: {error.strerror}.",
            hint="Choose a place that can be written to.",
        ) from error


def add(
    manifest: Manifest,
    name: str,
    data: bytes,
    *,
    made_from: list[str],
    device: Mapping[str, Any],
    versions: Mapping[str, str],
    **more: Any,
) -> Path:
    """Write built/NAME and its sidecar, atomically each; the sidecar comes last. Returns the path.

    `made_from` are bundle paths; `more` goes into the sidecar as it is. Raises NoSpace, BadInput.
    """
    problem = path_problem(name)
    if problem is not None or "/" in name or name.endswith(SIDECAR):
        raise ValueError(f"{name!r} cannot be a file in {BUILT}/")
    path = manifest.folder / BUILT / name
    sidecar = path.with_name(name + SIDECAR)
    with contextlib.suppress(OSError):  # where it cannot be removed, writing says why
        sidecar.unlink()
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    value = {
        **more,
        "format": FORMAT,
        "schema": SCHEMA,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "from": {item: manifest.files[item].sha256 for item in made_from},
        "device": dict(device),
        "versions": dict(versions),
    }
    with replacing(sidecar) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def read_sidecar(folder: Path, name: str) -> dict[str, Any]:
    """The sidecar of built/NAME in the bundle at `folder`, checked. Raises BadInput."""
    path = folder / BUILT / (name + SIDECAR)
    try:
        if path.stat().st_size > _MAX_SIDECAR_BYTES:
            raise BadInput(f"{path} is too large.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"{BUILT}/{name} has no sidecar {name}{SIDECAR}: nothing says what it is.",
            hint="Remove it, and build again: python3 edgekit-device.pyz build .",
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BadInput(f"{path} does not describe a file of edgekit.")
    if value.get("schema") != SCHEMA or isinstance(value.get("schema"), bool):
        raise BadInput(f"{path} has schema {value.get('schema')!r}; this program reads {SCHEMA}.")
    digest, size = value.get("sha256"), value.get("size")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise BadInput(f"{path} gives no sha256.")
    if isinstance(size, bool) or not isinstance(size, int):
        raise BadInput(f"{path} gives no size.")
    return value


def problems(manifest: Manifest) -> list[str]:
    """What is wrong in built/, one sentence each; nothing when there is no such folder.

    Beside the rules above: a file made from files of the bundle that have changed since is stale.
    """
    folder = manifest.folder / BUILT
    if folder.is_symlink():
        return [f"{BUILT} is a link"]
    if not folder.is_dir():
        return [f"{BUILT} is no folder"] if folder.exists() else []
    found = []
    names = sorted(entry.name for entry in folder.iterdir())
    for name in names:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            found.append(f"{BUILT}/{name} is not a plain file")
        elif path_problem(name) is not None:
            found.append(f"{BUILT}/{name!r} is not a name that may stand there")
        elif name.endswith(SIDECAR) and name[: -len(SIDECAR)] in names:
            continue
        elif name.endswith(SIDECAR) and name + SIDECAR not in names:
            found.append(f"{BUILT}/{name} belongs to no file")
        else:
            problem = _file_problem(manifest, name)
            if problem is not None:
                found.append(problem)
    return found


def _file_problem(manifest: Manifest, name: str) -> Any:
    try:
        sidecar = read_sidecar(manifest.folder, name)
    except BadInput as error:
        return error.message.rstrip(".")
    path = manifest.folder / BUILT / name
    try:
        size = path.stat().st_size
        if size != sidecar["size"]:
            return f"{BUILT}/{name} has {size} bytes, not {sidecar['size']}"
        digest = sha256_of(path)
    except OSError as error:
        return f"{BUILT}/{name} cannot be read: {error.strerror}"
    if digest != sidecar["sha256"]:
        return f"{BUILT}/{name} has changed: sha256 {digest[:12]}…, not {sidecar['sha256'][:12]}…"
    made_from = sidecar.get("from", {})
    if not isinstance(made_from, dict):
        return f"{BUILT}/{name}{SIDECAR}: 'from' must be an object"
    for source, expected in made_from.items():
        entry = manifest.files.get(source)
        if entry is None or entry.sha256 != expected:
            return f"{BUILT}/{name} was made from another {source}: build again"
    return None
