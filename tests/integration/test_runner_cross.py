"""The native runner built for ARM, run under qemu: bundles exported here prove themselves there.

Three kinds of 64-bit cores (Raspberry Pi 3 and 5, and all that qemu knows) choose different kernels of
ncnn: plain NEON, dot-product with fp16, bf16 with i8mm and SVE. Emulated times mean nothing and are
not looked at.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.cli import run
from edgekit.errors import MissingDependency
from edgekit.metrics.datasets import open_dataset
from edgekit.metrics.detection import ImageResult, evaluate
from edgekit.metrics.postprocess import Detections
from edgekit.stages import runner_build
from edgekit.stages.native_build import configure_and_build, only_one
from edgekit.stages.ncnn_library import cmake_folder, library
from edgekit.stages.toolchain import cpp_folder, toolchain
from edgekit.types import no_progress
from tests.integration.test_export_assets import _folder_of
from tests.integration.test_ncnn_export import CIFAR

pytest.importorskip("ncnn")
pytestmark = pytest.mark.slow

CORES = [
    ("aarch64", "cortex-a53"),
    ("aarch64", "cortex-a76"),
    ("aarch64", "max"),
    ("armhf", "cortex-a7"),
    ("armhf", "max"),
]


EMULATORS = {"aarch64": "qemu-aarch64", "armhf": "qemu-arm"}


@dataclass(frozen=True)
class Board:
    """An emulated board: the runner for its architecture and the core that qemu plays."""

    program: Path
    emulator: str
    core: str

    def ask(self, *arguments: str | Path, code: int = 0) -> Any:
        """The runner's JSON answer; the exit code must be `code`."""
        command = [self.emulator, "-cpu", self.core, self.program, *arguments, "--threads", "1"]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout[-3000:]}{done.stderr}"
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def runners() -> dict[str, Path]:
    """The static runner for each architecture, from the cache where it is built already."""
    for arch, emulator in EMULATORS.items():
        if shutil.which(emulator) is None:
            pytest.skip(f"{emulator} is not installed (qemu-user)")
        try:
            toolchain(arch)
        except MissingDependency as error:
            pytest.skip(error.message)
    return {arch: runner_build.build(arch) for arch in EMULATORS}


def _board(runners: dict[str, Path], arch: str, core: str) -> Board:
    return Board(runners[arch], EMULATORS[arch], core)


@pytest.fixture(params=CORES, ids=[f"{arch}-{core}" for arch, core in CORES])
def board(runners: dict[str, Path], request: pytest.FixtureRequest) -> Board:
    return _board(runners, *request.param)


@pytest.fixture(scope="module")
def bundles(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Bundles of ResNet-20 (ReLU) in float and INT8, and of the pruned detector (SiLU) in INT8."""
    pytest.importorskip("ultralytics")
    folder = tmp_path_factory.mktemp("bundles")
    resnet = [str(assets / "models" / "resnet20-12fca82f.th"), *CIFAR]
    resnet += ["--images", str(assets / "cifar10" / "calib.npz")]
    cells = _folder_of(assets / "txl_pbc" / "images" / "train", 24, folder / "cells")
    detector = [str(assets / "models" / "yolo11n_cells_p50.pt"), "--images", str(cells)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(folder / "cache"))
        for name, arguments in (
            ("relu-arm-fp32", [*resnet, "-t", "arm-fp32"]),
            ("relu-arm-int8", [*resnet, "-t", "arm-int8", "--method", "mse"]),
            ("silu-arm-int8", [*detector, "-t", "arm-int8", "--method", "mse"]),
        ):
            assert run(["export", *arguments, "-o", str(folder / name)]) == 0
    yield {path.name: path for path in folder.glob("*-arm-*")}
    shutil.rmtree(folder, ignore_errors=True)


def _golden(board: Board, bundle: Path, out: Path) -> list[tuple[Any, Any]]:
    """(expected, found) for every golden output, as the emulated board computes it."""
    board.ask(bundle, "--golden", "--raw", "--save-outputs", out)
    manifest = json.loads((bundle / "manifest.json").read_text())
    pairs = []
    for number, sample in enumerate(manifest["golden"]["samples"]):
        for place, output in enumerate(sample["outputs"]):
            found = np.load(out / f"{number:03d}_output_{place}.npy")
            pairs.append((np.load(bundle / output["file"]), found))
    assert pairs
    return pairs


def test_bundles_test_themselves(board: Board, bundles: dict[str, Path]) -> None:
    for bundle in bundles.values():
        answer = board.ask(bundle, "--self-test")
        assert answer["ok"] is True
        names = [check["name"] for check in answer["checks"]]
        assert "golden outputs (ncnn)" in names
        assert all(check["ok"] and not check.get("skipped") for check in answer["checks"])


def test_a_float_model_gives_the_same_numbers(
    board: Board, bundles: dict[str, Path], tmp_path: Path
) -> None:
    for expected, found in _golden(board, bundles["relu-arm-fp32"], tmp_path):
        assert found.shape == expected.shape
        # measured: 3e-6; kernels of other cores sum in another order
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def test_an_int8_model_with_relu_gives_the_same_bits(
    board: Board, bundles: dict[str, Path], tmp_path: Path
) -> None:
    for expected, found in _golden(board, bundles["relu-arm-int8"], tmp_path):
        assert np.array_equal(found, expected)


def test_a_changed_bundle_does_not_pass(
    board: Board, bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundles["relu-arm-int8"], bundle)
    weights = bytearray((bundle / "ncnn" / "model.bin").read_bytes())
    weights[len(weights) // 2] ^= 0x40
    (bundle / "ncnn" / "model.bin").write_bytes(weights)
    answer = board.ask(bundle, "--self-test", code=9)
    assert "model.bin" in json.dumps(answer)


def test_a_detector_with_silu_finds_what_it_finds_here(
    runners: dict[str, Path],
    bundles: dict[str, Path],
    assets: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SiLU is computed in float between INT8 layers, and its last bit may flip a level: the task decides."""
    bundle, data = bundles["silu-arm-int8"], assets / "txl_pbc" / "data.yaml"
    assert run(["evaluate", str(bundle), "--data", str(data), "--limit", "32", "--json"]) == 0
    here = json.loads(capsys.readouterr().out)["map50_95"]

    dataset = open_dataset(data, limit=32)
    board = _board(runners, "aarch64", "cortex-a76")
    paths = [sample.path for sample in dataset.samples]
    answer = board.ask(bundle, *paths, "--score-threshold", "0.001", "--multi-label")
    results = []
    for sample, image in zip(dataset.samples, answer["images"], strict=True):
        assert image["image"] == str(sample.path)
        found = image["detections"]
        results.append(
            ImageResult(
                found=Detections(
                    boxes=np.array([f["box"] for f in found], np.float32).reshape(-1, 4),
                    scores=np.array([f["score"] for f in found], np.float32),
                    classes=np.array([f["class_id"] for f in found], np.int64),
                ),
                truth=sample.truth(image["height"], image["width"]),
            )
        )
    there = evaluate(results, dataset.names).map50_95
    assert here > 0.6
    assert abs(there - here) <= 0.01


def test_a_built_runner_is_not_built_again(runners: dict[str, Path]) -> None:
    start_s = time.process_time()
    assert runner_build.build("aarch64") == runners["aarch64"]
    assert time.process_time() - start_s < 5
    described = {runner.path for runner in runner_build.built()}
    assert set(runners.values()) <= described


@pytest.mark.parametrize("arch", ["aarch64", "armhf"])
def test_a_static_runner_needs_no_library(runners: dict[str, Path], arch: str) -> None:
    done = subprocess.run(
        ["readelf", "--program-headers", "--sections", "--wide", str(runners[arch])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "INTERP" not in done.stdout
    # stripped: a board's disk and its radio link are small
    assert ".symtab" not in done.stdout
    assert 1e6 < runners[arch].stat().st_size < 12e6


def test_the_unit_tests_pass_on_32_bit_arm(runners: dict[str, Path], tmp_path: Path) -> None:
    """Sizes of 32 bits, unsigned char: ctest runs them through the toolchain file's emulator."""
    tools = toolchain("armhf")
    work = tmp_path / "build"
    with only_one(work, "the unit tests", no_progress) as held:
        configure_and_build(
            cpp_folder(),
            work,
            tools,
            [f"-Dncnn_DIR={cmake_folder(library('armhf'))}", "-DEDGEKIT_TESTS=ON"],
            target="edgekit-ncnn-tests",
            what="the unit tests",
            held=held,
            progress=no_progress,
        )
    done = subprocess.run(
        ["ctest", "--test-dir", str(work), "--output-on-failure", "--no-tests=error"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "100% tests passed" in done.stdout
