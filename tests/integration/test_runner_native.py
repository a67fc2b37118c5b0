"""The native runner's own tests and its fuzzer, under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit import cpu
from edgekit.atomic import sha256_json
from edgekit.stages.native_build import configure_and_build, only_one, put_in_place
from edgekit.stages.ncnn_library import cmake_folder, library, library_key
from edgekit.stages.ncnn_source import native_cache
from edgekit.stages.runner_build import sources_hash
from edgekit.stages.toolchain import cpp_folder, toolchain
from edgekit.types import no_progress
from tests.ncnn_bundles import write_bundle

pytest.importorskip("ncnn")
pytestmark = pytest.mark.slow

PROGRAMS = ("edgekit-ncnn", "tests/edgekit-ncnn-tests", "fuzz/edgekit-ncnn-fuzz")


@pytest.fixture(scope="module")
def sanitized() -> Path:
    """A folder with the runner, its unit tests and its fuzzer; built once for each state of cpp/."""
    tools = toolchain(cpu.detect().arch)
    key = sha256_json({"sources": sources_hash(cpp_folder()), "library": library_key(tools)})[:12]
    folder = native_cache() / f"sanitized-{tools.arch}-{key}"
    prefix = library(tools.arch)
    with only_one(folder, "the sanitized runner", no_progress) as held:
        if folder.is_dir():
            return folder
        work, finished = (folder.with_name(f".{folder.name}.{part}") for part in ("work", "done"))
        options = [f"-Dncnn_DIR={cmake_folder(prefix)}"]
        options += [f"-DEDGEKIT_{name}=ON" for name in ("SANITIZE", "TESTS", "FUZZ", "WERROR")]
        configure_and_build(
            cpp_folder(), work, tools, options,
            target="all", what="the sanitized runner", held=held, progress=no_progress,
        )  # fmt: skip
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        for program in PROGRAMS:
            shutil.copy2(work / program, finished / Path(program).name)
        put_in_place(finished, folder)
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _run(program: Path, *arguments: str | Path) -> str:
    # ncnn asks for what it may not get; that must be an answer and no end
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1"}
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    return done.stdout


def test_unit_tests(sanitized: Path) -> None:
    out = _run(sanitized / "edgekit-ncnn-tests")
    count, _, rest = out.partition(" tests, ")
    assert int(count) > 25 and rest.startswith("0 failures")


def test_a_real_bundle(sanitized: Path, cells_ncnn: dict[str, Path], tmp_path: Path) -> None:
    for precision, bundle in cells_ncnn.items():
        _run(sanitized / "edgekit-ncnn", bundle, "--self-test")
        _run(sanitized / "edgekit-ncnn", bundle, "--golden", "--draw", tmp_path / precision)
        _run(sanitized / "edgekit-ncnn", bundle, "--bench", "--runs", "2", "--threads", "2")


def test_mutated_bundles_neither_crash_nor_hang(
    sanitized: Path, cells_ncnn: dict[str, Path], many_layers: Path
) -> None:
    out = _run(
        sanitized / "edgekit-ncnn-fuzz", *cells_ncnn.values(), many_layers,
        "--cases", "1500", "--seed", "7",
    )  # fmt: skip
    answer = json.loads(out)
    assert answer["cases"] == 1500 and answer["past_header"] == 750
    # it gets to ncnn and past it often enough to mean something
    assert answer["ran"] > 100 and answer["refused"] > 500


@pytest.fixture(scope="module")
def many_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose small graph has the layers that the example's detector has not."""
    import numpy as np

    from edgekit.preprocess import Preprocess

    contract = Preprocess(height=16, width=16)
    param = """7767517
27 33
Input in0 0 1 in0
Convolution c1 1 1 in0 c1 0=8 1=3 3=2 4=1 5=1 6=216 9=1
Split s1 1 3 c1 c1a c1b c1c
Pooling p1 1 1 c1a p1 0=0 1=2 2=2
Interp i1 1 1 p1 i1 0=1 1=2.0 2=2.0
ConvolutionDepthWise d1 1 1 c1b d1 0=8 1=3 4=1 5=1 6=72 7=8
Swish sw 1 1 d1 sw
BinaryOp add 2 1 i1 sw add 0=0
Slice sl 1 2 add sl1 sl2 -23300=2,4,4 1=0
Concat cat 3 1 sl1 sl2 c1c cat 0=0
Permute pe 1 1 cat pe 0=3
Padding pad 1 1 pe pad 0=1 1=1 2=1 3=1 4=0 5=0.0
HardSwish hs 1 1 pad hs
Reshape re 1 1 hs re 0=-1 1=8
Split s2 1 2 re ra rb
Permute pt 1 1 rb pt 0=1
MatMul mm 2 1 ra pt mm
Softmax sm 1 1 mm sm 0=1 1=1
MemoryData md 0 1 md 0=8 1=8
BinaryOp mul 2 1 sm md mul 0=2
Flatten fl 1 1 mul fl
InnerProduct ip 1 1 fl ip 0=12 1=1 2=768
Sigmoid sg 1 1 ip sg
Reshape r2 1 1 sg r2 0=3 1=2 2=2
PixelShuffle ps 1 1 r2 ps 0=1
BatchNorm bn 1 1 ps bn 0=2
Flatten out 1 1 bn out0
"""
    random = np.random.default_rng(4)

    def tagged(count: int) -> bytes:
        return bytes(4) + random.normal(0, 0.1, count).astype("<f4").tobytes()

    def plain(count: int) -> bytes:
        return random.uniform(0.5, 1, count).astype("<f4").tobytes()

    weights = tagged(216) + plain(8) + tagged(72) + plain(8) + plain(64) + tagged(768) + plain(12)
    weights += plain(8)
    lines = param.strip().split("\n")
    blobs = sum(int(line.split()[3]) for line in lines[2:])
    lines[1] = f"{len(lines) - 2} {blobs}"
    return write_bundle(
        tmp_path_factory.mktemp("many") / "bundle",
        contract,
        ("\n".join(lines) + "\n", {"output0": (1, 12)}),
        weights=weights,
        task="classify",
        head="logits",
    )
