"""The native runner against ncnn's own Python wheel, and from its start to its first result.

    make bench-runner
    python benchmarks/runner.py [BUNDLE ...]

Without a bundle two models of the assets are exported first: YOLO11n at 320x320 and the blood-cell
detector pruned by half, both INT8.

Latency: the same model and input, one thread, both programs in turns within one run: a block of the
runner's timed runs in a process of its own, then a block through the wheel in this process, and so on.
The figure is the ratio of medians (runner / wheel, below 1 is faster) with its interval over the blocks.
Start: the wall time of the whole process for one image, hashes checked and JSON written, beside a bare
warm inference. Times are of this machine; ratios carry further.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import cpu
from edgekit.bundle import open_model, read_manifest
from edgekit.golden import read_npy
from edgekit.metrics.latency import speed_up
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.stages import runner_build

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "yolo11n-320": ["yolo11n_w8.pt", "--imgsz", "320"],
    "cells-p50-320": ["yolo11n_cells_p50.pt"],
}
IMAGES = {"yolo11n-320": "coco/calib", "cells-p50-320": "txl_pbc/images/train"}


def export(name: str, assets: Path, folder: Path) -> Path:
    """One of MODELS as an INT8 bundle, 16 calibration images, no search."""
    out = folder / name
    images = folder / f"{name}-images"
    images.mkdir()
    for image in sorted((assets / IMAGES[name]).iterdir())[:16]:
        (images / image.name).symlink_to(image)
    model, *more = MODELS[name]
    # a target that is not timed here keeps its INT8; the runner and the wheel run it alike
    command = [sys.executable, "-m", "edgekit", "export", str(assets / "models" / model), *more]
    command += ["--target", "rpi5-int8", "--images", str(images), "--method", "minmax"]
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    return out


def run(program: Path, *arguments: str | Path) -> Any:
    done = subprocess.run(
        [program, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def latency(program: Path, bundle: Path, blocks: int, runs: int) -> dict[str, Any]:
    """Ratio of medians, runner / wheel, of `blocks` pairs of `runs` runs each."""
    manifest = read_manifest(bundle)
    _, files, _ = open_model(bundle, "ncnn")
    tensor = read_npy(manifest.path(manifest.golden.samples[0].input))
    native, wheel = [], []
    with open_session("ncnn", files, SessionOptions(threads=1)) as session:
        feeds = {session.inputs[0].name: tensor}
        for _ in range(10):
            session.run(feeds)
        for block in range(blocks):
            options = ["--bench", "--threads", "1", "--warmup", "5", "--runs", str(runs)]
            options += ["--cooldown-s", "0"]
            answer = run(program, bundle, *options, "--samples")
            native.append(answer["samples_ms"])
            samples = []
            for _ in range(runs):
                begun = time.perf_counter()
                session.run(feeds)
                samples.append(1e3 * (time.perf_counter() - begun))
            wheel.append(samples)
            print(f"  block {block + 1}/{blocks}", end="\r", file=sys.stderr)
    # the other's median over this one's: wheel is "this", so that above 1 the runner is slower
    ratio = speed_up(wheel, native)
    flat = [statistics.median([s for block in side for s in block]) for side in (native, wheel)]
    return {
        "runner_p50_ms": flat[0],
        "wheel_p50_ms": flat[1],
        "ratio": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
    }


def start(program: Path, bundle: Path, times: int, warm_ms: float) -> dict[str, Any]:
    """Wall time of the process for one golden image; beside it the inference within, and a warm one."""
    image = bundle / read_manifest(bundle).golden.samples[0].image
    walls, inferences, loads = [], [], []
    for _ in range(times):
        begun = time.perf_counter()
        answer = run(program, bundle, image, "--threads", "1")
        walls.append(1e3 * (time.perf_counter() - begun))
        inferences.append(answer["images"][0]["inference_ms"])
        loads.append(answer["load_ms"])
    wall, inference = statistics.median(walls), statistics.median(inferences)
    return {
        "first_result_ms": wall,
        "load_ms": statistics.median(loads),
        "first_inference_ms": inference,
        "ratio_to_warm_inference": wall / warm_ms,
        "largest_ms": float(np.max(walls)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--assets", type=Path, default=ROOT.parent / "shared" / "assets")
    parser.add_argument("--program", type=Path, help="a runner that is built already")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--starts", type=int, default=15)
    arguments = parser.parse_args()
    program = arguments.program or runner_build.build(cpu.detect().arch)
    with tempfile.TemporaryDirectory() as folder:
        bundles = arguments.bundles or [
            export(name, arguments.assets, Path(folder)) for name in MODELS
        ]
        for bundle in bundles:
            timed = latency(program, bundle, arguments.blocks, arguments.runs)
            found = {
                "bundle": bundle.name,
                "program_mb": program.stat().st_size / 1e6,
                "latency": timed,
                "start": start(program, bundle, arguments.starts, timed["runner_p50_ms"]),
            }
            print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
