"""Bundles of real models that several tests look at; each is exported once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgekit import cli, cpu

ROOT = Path(__file__).resolve().parent.parent.parent

RESNET20 = [
    "--arch", "tests.architectures:resnet20", "--code", str(ROOT), "--imgsz", "32",
    "--resize", "none", "--color", "rgb", "--scale", "1/255",
    "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225",
]  # fmt: skip
"""How the published CIFAR ResNet-20 is loaded and fed."""


@dataclass(frozen=True)
class Exported:
    """A bundle, the stage cache of its export, and the calibration images."""

    bundle: Path
    cache: Path
    images: Path


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """The stage cache lies in `folder` within the block."""
    before = os.environ.get("EDGEKIT_CACHE")
    os.environ["EDGEKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["EDGEKIT_CACHE"]
        else:
            os.environ["EDGEKIT_CACHE"] = before


@pytest.fixture(scope="session")
def resnet_bundle(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """ResNet-20 for x86-int8: 64 calibration images, accuracy on 200."""
    folder = tmp_path_factory.mktemp("resnet20")
    with np.load(assets / "cifar10" / "calib.npz") as archive:
        np.savez(folder / "calib.npz", images=archive["images"][:64], labels=archive["labels"][:64])
    arguments = [
        "export", str(assets / "models" / "resnet20-12fca82f.th"), *RESNET20,
        "--target", "x86-int8", "--images", str(folder / "calib.npz"), "--method", "minmax",
        "--data", str(assets / "cifar10" / "test.npz"), "--limit", "200",
        "--out", str(folder / "resnet20-x86-int8"), "--json",
    ]  # fmt: skip
    with cache_in(folder / "cache"):
        assert cli.run(arguments) == 0
    return Exported(folder / "resnet20-x86-int8", folder / "cache", folder / "calib.npz")


@pytest.fixture(scope="session")
def cells_bundle(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The blood-cell YOLO11n, pruned by half, for x86-int8: 8 calibration images, accuracy on 12."""
    folder = tmp_path_factory.mktemp("cells")
    (folder / "calib").mkdir()
    for image in sorted((assets / "txl_pbc" / "images" / "train").iterdir())[:8]:
        (folder / "calib" / image.name).symlink_to(image)
    arguments = [
        "export", str(assets / "models" / "yolo11n_cells_p50.pt"), "--target", "x86-int8",
        "--images", str(folder / "calib"), "--method", "minmax",
        "--data", str(assets / "txl_pbc" / "data.yaml"), "--limit", "12",
        "--out", str(folder / "cells-x86-int8"), "--json",
    ]  # fmt: skip
    with cache_in(folder / "cache"):
        assert cli.run(arguments) == 0
    return Exported(folder / "cells-x86-int8", folder / "cache", folder / "calib")


@pytest.fixture(scope="session")
def ncnn_bundle(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The blood-cell YOLO11n, pruned by half, for x86-ncnn-int8: 8 calibration images, no search."""
    folder = tmp_path_factory.mktemp("ncnn")
    (folder / "calib").mkdir()
    for image in sorted((assets / "txl_pbc" / "images" / "train").iterdir())[:8]:
        (folder / "calib" / image.name).symlink_to(image)
    arguments = [
        "export", str(assets / "models" / "yolo11n_cells_p50.pt"), "--target", "x86-ncnn-int8",
        "--images", str(folder / "calib"), "--method", "minmax",
        "--out", str(folder / "cells-ncnn"), "--json",
    ]  # fmt: skip
    with cache_in(folder / "cache"):
        assert cli.run(arguments) == 0
    return Exported(folder / "cells-ncnn", folder / "cache", folder / "calib")


@pytest.fixture(scope="session")
def runner() -> Path:
    """The native NCNN runner for this machine, static; built once into the native cache."""
    from edgekit.stages import runner_build

    return runner_build.build(cpu.detect().arch)


@pytest.fixture(scope="session")
def cells_ncnn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example's small detector as ncnn bundles: "int8" and "fp32"."""
    pytest.importorskip("ncnn")
    folder = tmp_path_factory.mktemp("cells-ncnn")
    example = ROOT / "examples" / "cells"
    arguments = [
        "export", str(example / "cells_pruned.pt"), "--arch", "model:detector",
        "--code", str(example), "--imgsz", "192", "--images", str(ROOT / "calib"),
        "--color", "rgb", "--resize", "letterbox", "--scale", "1/255",
        "--mean", "0,0,0", "--std", "1,1,1", "--json",
    ]  # fmt: skip
    # what is not timed here keeps its INT8 whether it pays or not
    foreign = "x86-ncnn" if cpu.detect().arch == "aarch64" else "arm"
    found = {}
    with cache_in(folder / "cache"):
        for precision, more in (("int8", ["--method", "minmax"]), ("fp32", [])):
            target, out = f"{foreign}-{precision}", folder / precision
            assert cli.run([*arguments, "--target", target, *more, "--out", str(out)]) == 0
            found[precision] = out
    return found
