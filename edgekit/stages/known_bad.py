"""Installed packages that do not work together, as data: a new case is a new row.

Only what is on disk is read (metadata, and one shared library's text); nothing is imported.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit.require import satisfies


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong with what is installed: what, the next step, and where it is known from."""

    what: str
    fix: str
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Bad when every one of `packages` (distribution → versions, "" = any) is installed so."""

    packages: dict[str, str]
    what: str
    fix: str
    source: str


@dataclass(frozen=True, kw_only=True)
class SameFiles:
    """Distributions that install the same files: two of them overwrite each other.

    `same_version_works`: two of the same version do no harm until one is uninstalled.
    """

    packages: tuple[str, ...]
    same_version_works: bool
    fix: str
    source: str


@dataclass(frozen=True, kw_only=True)
class SameRelease:
    """Distributions released together, told by the last number of their version (a date)."""

    packages: tuple[str, str]
    fix: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A distribution that names the exact version of another in its own metadata."""

    package: str
    on: str
    fix: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Linked:
    """A distribution whose `library` was built against a library that the installed `on` lacks."""

    package: str
    library: str
    mentions: str
    on: str
    lacks: str
    what: str
    fix: str
    source: str


VERSIONS = (
    Versions(
        packages={"numpy": ">=2", "opencv-python-headless": "<4.10.0.84"},
        what="this OpenCV was built for NumPy 1 and does not import beside NumPy 2",
        fix="pip install -U opencv-python-headless",
        source="https://github.com/opencv/opencv-python/issues/997",
    ),
    Versions(
        packages={"numpy": ">=2", "opencv-python": "<4.10.0.84"},
        what="this OpenCV was built for NumPy 1 and does not import beside NumPy 2",
        fix="pip install -U opencv-python",
        source="https://github.com/opencv/opencv-python/issues/997",
    ),
    Versions(
        packages={"pnnx": "==20260704"},
        what="this pnnx crashes on YOLO26n",
        fix="pip install -U pnnx ncnn",
        source="https://github.com/Tencent/ncnn/issues/6804",
    ),
    Versions(
        packages={"tensorrt": ">=10.3,<10.4"},
        what="this TensorRT (JetPack 6) cannot build some INT8 YOLO26 graphs",
        fix="use --target jetson-fp16 for YOLO26, or JetPack 7",
        source="https://github.com/ultralytics/ultralytics/issues/24368",
    ),
)

SAME_FILES = (
    SameFiles(
        packages=(
            "opencv-python",
            "opencv-python-headless",
            "opencv-contrib-python",
            "opencv-contrib-python-headless",
        ),
        same_version_works=True,
        fix="pip uninstall the ones named, then pip install --force-reinstall opencv-python-headless",
        source="https://github.com/opencv/opencv-python/issues/467",
    ),
    SameFiles(
        packages=(
            "onnxruntime",
            "onnxruntime-gpu",
            "onnxruntime-openvino",
            "onnxruntime-directml",
        ),
        same_version_works=False,
        fix="pip uninstall all of them, then pip install the one you want",
        source="https://onnxruntime.ai/docs/get-started/with-python.html",
    ),
)

SAME_RELEASE = (
    SameRelease(
        packages=("ncnn", "pnnx"),
        fix="pip install -U ncnn pnnx",
        source="https://github.com/pnnx/pnnx",
    ),
)

PINNED = (
    Pinned(
        package="torchvision",
        on="torch",
        fix="install both from the same index at the same time",
        source="https://github.com/pytorch/vision#installation",
    ),
)

LINKED = (
    Linked(
        package="torchvision",
        library="torchvision/_C.so",
        mentions="libtorch_cuda",
        on="torch",
        lacks="torch/lib/libtorch_cuda.so",
        what="torchvision was built for CUDA, torch for the CPU only: importing torchvision fails "
        "with 'operator torchvision::nms does not exist'",
        fix="install both from the same index, e.g. "
        "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu",
        source="https://github.com/pytorch/vision/issues/9077",
    ),
)


class Installed:
    """What is installed here, read from the packages' metadata and files."""

    def version(self, package: str) -> str | None:
        """Version of a distribution, None when it is not installed."""
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def requirements(self, package: str) -> list[str]:
        """The distribution's own requirements, as its metadata writes them."""
        return importlib.metadata.requires(package) or []

    def path(self, package: str, file: str) -> Path:
        """Where a file of the distribution lies."""
        return Path(str(importlib.metadata.distribution(package).locate_file(file)))

    def mentions(self, package: str, file: str, text: str) -> bool:
        """Whether a binary file of the distribution contains `text`."""
        try:
            return text.encode() in self.path(package, file).read_bytes()
        except OSError:
            return False


def problems(installed: Installed) -> list[Problem]:
    """Every row of the tables above that applies."""
    return [
        *_versions(installed),
        *_same_files(installed),
        *_same_release(installed),
        *_pinned(installed),
        *_linked(installed),
    ]


def _versions(installed: Installed) -> Iterator[Problem]:
    for row in VERSIONS:
        have = {package: installed.version(package) for package in row.packages}
        if all(
            version is not None and satisfies(version, row.packages[package])
            for package, version in have.items()
        ):
            names = " and ".join(f"{package} {version}" for package, version in have.items())
            yield Problem(what=f"{names}: {row.what}.", fix=row.fix, source=row.source)


def _same_files(installed: Installed) -> Iterator[Problem]:
    for row in SAME_FILES:
        have = {p: v for p in row.packages if (v := installed.version(p)) is not None}
        if len(have) < 2 or (row.same_version_works and len(set(have.values())) == 1):
            continue
        names = " and ".join(f"{package} {version}" for package, version in have.items())
        yield Problem(
            what=f"{names} install the same files; what runs is a mixture of them.",
            fix=row.fix,
            source=row.source,
        )


def _same_release(installed: Installed) -> Iterator[Problem]:
    for row in SAME_RELEASE:
        first, second = (installed.version(package) for package in row.packages)
        if first is None or second is None or _last(first) == _last(second):
            continue
        yield Problem(
            what=f"{row.packages[0]} {first} and {row.packages[1]} {second} are of different "
            "releases: layers that one writes the other may not know.",
            fix=row.fix,
            source=row.source,
        )


def _last(version: str) -> str:
    return version.split("+")[0].split(".")[-1]


def _pinned(installed: Installed) -> Iterator[Problem]:
    for row in PINNED:
        own, other = installed.version(row.package), installed.version(row.on)
        if own is None or other is None:
            continue
        for requirement in installed.requirements(row.package):
            pin = re.match(rf"{re.escape(row.on)}\s*\(?\s*(==\s*[\d.]+)", requirement)
            if pin and not satisfies(other, pin[1]):
                yield Problem(
                    what=f"{row.package} {own} is made for {row.on}{pin[1]}, and {row.on} {other} "
                    "is installed.",
                    fix=row.fix,
                    source=row.source,
                )


def _linked(installed: Installed) -> Iterator[Problem]:
    for row in LINKED:
        own, other = installed.version(row.package), installed.version(row.on)
        if own is None or other is None:
            continue
        if not installed.path(row.on, row.lacks).exists() and installed.mentions(
            row.package, row.library, row.mentions
        ):
            yield Problem(
                what=f"{row.package} {own} and {row.on} {other}: {row.what}.",
                fix=row.fix,
                source=row.source,
            )
