"""ncnn's source: fetched once by its hash, unpacked once, kept outside the checkout.

The wheel of ncnn carries the Python binding only; C++ needs the source archive of the same version.
It comes through pip's configuration (edgekit.stages.sdist_child), or from the file that
EDGEKIT_NCNN_SDIST names on a machine without a network.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from edgekit.atomic import replacing, replacing_folder, sha256_file
from edgekit.errors import BadInput, BuildFailed, MissingDependency
from edgekit.types import Progress, no_progress

NCNN_VERSION = "1.0.20261020"
"""The version of ncnn that the runner is built with: the wheel's that constraints.txt pins."""

NCNN_SHA256 = "ad8cdd63e9755cfa8e23b9b6d9ce46156077d80298a89e7c3ba325ffccfca200"
"""sha256 of its source archive."""


def native_cache() -> Path:
    """Where sources, libraries and runners are kept: EDGEKIT_NATIVE_CACHE, else edgekit-native/ in
    the user's cache folder (XDG)."""
    if chosen := os.environ.get("EDGEKIT_NATIVE_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "edgekit-native"


def ncnn_date() -> str:
    """The version as ncnn itself counts it, for example "20261020"."""
    return NCNN_VERSION.rpartition(".")[2]


def archive(progress: Progress = no_progress) -> Path:
    """The source archive, fetched unless it is there; its hash is checked every time.

    Raises MissingDependency without pip, BadInput when EDGEKIT_NCNN_SDIST names a wrong file,
    BuildFailed when the package indexes do not offer the archive.
    """
    if chosen := os.environ.get("EDGEKIT_NCNN_SDIST"):
        file = Path(chosen).expanduser()
        if not file.is_file():
            raise BadInput(
                f"EDGEKIT_NCNN_SDIST names {file}, which is not a file.",
                hint=f"Give the path of ncnn-{NCNN_VERSION}.tar.gz.",
            )
        if (found := sha256_file(file)) != NCNN_SHA256:
            raise BadInput(
                f"{file} (EDGEKIT_NCNN_SDIST) has sha256 {found}, expected {NCNN_SHA256}.",
                hint=f"It must be the source archive of ncnn {NCNN_VERSION}, unchanged.",
            )
        return file
    kept = native_cache() / f"ncnn-{NCNN_VERSION}.tar.gz"
    if kept.is_file() and sha256_file(kept) == NCNN_SHA256:
        return kept
    progress(0, 1, f"fetch the source of ncnn {NCNN_VERSION}")
    with replacing(kept) as temporary:
        child = [sys.executable, "-m", "edgekit.stages.sdist_child"]
        done = subprocess.run(
            [*child, "ncnn", NCNN_VERSION, NCNN_SHA256, str(temporary)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            line = lines[-1] if lines else f"pip's process ended with {done.returncode}"
            kind = MissingDependency if done.returncode == 3 else BuildFailed
            raise kind(
                f"The source of ncnn {NCNN_VERSION} could not be fetched: {line}.",
                hint="It comes through pip's configuration (`pip config list`). Without a network, "
                f"name the file: EDGEKIT_NCNN_SDIST=ncnn-{NCNN_VERSION}.tar.gz",
            )
        if sha256_file(temporary) != NCNN_SHA256:
            raise BuildFailed(
                f"The source of ncnn {NCNN_VERSION} arrived damaged.", hint="Try again."
            )
    progress(1, 1, f"fetch the source of ncnn {NCNN_VERSION}")
    return kept


def source(progress: Progress = no_progress) -> Path:
    """The folder of the unpacked source (CMakeLists.txt, src/, cmake/), unpacked unless it is there."""
    folder = native_cache() / f"ncnn-{NCNN_VERSION}-{NCNN_SHA256[:8]}"
    if (folder / "CMakeLists.txt").is_file():
        return folder
    file = archive(progress)
    with replacing_folder(folder) as temporary:
        unpack(file, temporary)
    return folder


def unpack(file: Path, into: Path) -> None:
    """Unpack a source archive (.tar.gz with one top folder) into `into`, without that top folder.

    Only plain files and folders inside it are taken; raises BadInput for an archive that leads out.
    """
    root = into.resolve()
    with tarfile.open(file, "r:gz") as tar:
        for member in tar:
            _, _, name = member.name.partition("/")
            if not name or not (member.isfile() or member.isdir()):
                continue
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise BadInput(f"{file} has a member that leads out of its folder: {member.name}.")
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            path.write_bytes(content.read())
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
