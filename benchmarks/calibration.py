"""What collecting activation statistics costs, beside bare inference of the same images.

    python benchmarks/calibration.py [--model prepared.onnx --images calib/] [--count 256] [--threads 1]
        [--few 32 --many 512] [--cpus 0] [--peer 8] [--json]

Without --model it takes YOLO11n at 640 x 640 from the assets (EDGEKIT_ASSETS), exported and prepared,
and their calibration photos. Where there are fewer files than images asked for, they are taken again
mirrored, so that every image is a different one.

Every figure comes from a fresh process. Bare inference (the float model on the same decoded images,
same threads, decoding not timed) and collecting (`edgekit.stages.calibrate.run`, everything in it:
decoding, opening the model, counting, writing) take turns, and the ratio of the medians is printed,
in wall-clock time and in CPU time. Where others use the machine only the CPU ratio means something.
With `--threads 1` collecting counts on a thread of its own beside the one that infers; `--cpus 0`
pins both programs to one core and shows what it costs without a second one.

Sets of tensors: "placement" what the ONNX Runtime target may quantize, with the channel means that bias
correction wants; "convolutions" what Conv, Gemm, MatMul, Concat and Add read (114 tensors or so in a
YOLO11n); "all" every float activation. Peak RSS is compared between --few and --many images; 0 leaves
that out. `--peer N` runs onnxruntime's entropy calibrator on N and N/2 images for comparison (it keeps
every activation), and NNCF and ModelOpt on N images where they are installed (the extra `peers`); those
two quantize the model as well, and cannot be told to stop before.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
JOBS = Path(__file__).with_name("calibration_jobs.py")
ASSETS = Path(os.environ.get("EDGEKIT_ASSETS", str(ROOT.parent / "shared" / "assets")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=256, help="images [256]")
    parser.add_argument("--few", type=int, default=32, help="images of the memory comparison [32]")
    parser.add_argument("--many", type=int, default=512, help="and so many beside them [512]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sets", default="placement,all", help="placement, convolutions, all")
    parser.add_argument("--target", default="x86-int8")
    parser.add_argument("--cpus", default="", help="pin every process: 0 or 0,1")
    parser.add_argument("--peer", type=int, default=0, help="images for onnxruntime's calibrator")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        if arguments.model is None:
            arguments.model = default_model(Path(folder))
        if arguments.images is None:
            arguments.images = ASSETS / "coco" / "calib"
        result = compare(arguments)
    print(json.dumps(result, indent=2) if arguments.json else table(result))


def child(arguments: argparse.Namespace, job: str, **changes: Any) -> dict[str, Any]:
    """Run one job of calibration_jobs.py in a fresh process."""
    options = {
        "model": arguments.model,
        "images": arguments.images,
        "count": arguments.count,
        "threads": arguments.threads,
        "target": arguments.target,
        "cpus": arguments.cpus,
        "job": job,
        **changes,
    }
    command = [sys.executable, str(JOBS)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    sets = arguments.sets.split(",")
    bare: list[dict[str, Any]] = []
    collected: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    for _ in range(arguments.repeat):
        bare.append(child(arguments, "bare"))
        for name in sets:
            collected[name].append(child(arguments, "collect", set=name))
    result: dict[str, Any] = {
        "model": arguments.model.name,
        "images": bare[0]["images"],
        "threads": arguments.threads,
        "cpus": arguments.cpus or "all",
        "load": os.getloadavg()[0],
        "bare": _medians(bare),
        "sets": {},
    }
    for name, runs in collected.items():
        figures = _medians(runs)
        figures["ratio"] = figures["seconds"] / result["bare"]["seconds"]
        figures["cpu_ratio"] = figures["cpu_seconds"] / result["bare"]["cpu_seconds"]
        if arguments.few and arguments.many and name == sets[0]:
            for label in ("few", "many"):
                done = child(arguments, "collect", set=name, count=getattr(arguments, label))
                figures[label], figures[f"peak_rss_mb_{label}"] = (
                    done["images"],
                    done["peak_rss_mb"],
                )
        result["sets"][name] = figures
    result["ranges"] = child(arguments, "ranges", count=min(16, arguments.count))
    if arguments.peer:
        one = child(arguments, "peer", count=max(1, arguments.peer // 2))
        two = child(arguments, "peer", count=arguments.peer)
        images = two["images"] - one["images"]
        two["seconds_per_image"] = (two["seconds"] - one["seconds"]) / images
        two["mb_per_image"] = (two["peak_rss_mb"] - one["peak_rss_mb"]) / images
        two["ratio"] = (
            two["seconds"] / two["images"] / result["bare"]["seconds"] * bare[0]["images"]
        )
        result["peer"] = two
        for name in ("nncf", "modelopt"):
            if importlib.util.find_spec(name) is not None:
                result[name] = child(arguments, name, count=arguments.peer)
    return result


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(result: dict[str, Any]) -> str:
    images, bare = result["images"], result["bare"]
    lines = [
        f"{result['model']}, {images} images, {result['threads']} thread(s), CPUs {result['cpus']}, "
        f"load {result['load']:.1f}",
        f"bare inference        {bare['seconds']:8.2f} s  {bare['cpu_seconds']:8.2f} s CPU",
    ]
    for name, figures in result["sets"].items():
        lines.append(
            f"collect {name:13} {figures['seconds']:8.2f} s  {figures['cpu_seconds']:8.2f} s CPU  "
            f"{figures['tensors']:.0f} tensors: {figures['ratio']:.2f} x bare "
            f"({figures['cpu_ratio']:.2f} x in CPU time); peak RSS "
            + "".join(
                f"{figures[f'peak_rss_mb_{label}']:.0f} MB at {figures[label]}, "
                for label in ("few", "many")
                if label in figures
            )
            + f"{figures['peak_rss_mb']:.0f} MB at {images} images"
        )
    ranges = result["ranges"]
    lines.append(
        f"ranges of {ranges['tensors']} tensors: "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in ranges["methods"].items())
        + f"; all {ranges['seconds']:.2f} s"
    )
    if "peer" in result:
        peer = result["peer"]
        lines.append(
            f"onnxruntime entropy   {peer['seconds']:8.2f} s for {peer['images']} images: "
            f"{peer['ratio']:.1f} x bare; {peer['seconds_per_image']:.2f} s and "
            f"{peer['mb_per_image']:.0f} MB more per image, peak RSS {peer['peak_rss_mb']:.0f} MB"
        )
    for name, title in (("nncf", "NNCF"), ("modelopt", "ModelOpt")):
        if name in result:
            peer = result[name]
            lines.append(
                f"{title:20}  {peer['seconds']:8.2f} s for {peer['images']} images, quantization "
                f"included; peak RSS {peer['peak_rss_mb']:.0f} MB"
            )
        elif "peer" in result:
            lines.append(f"{title}: not installed (pip install 'edgekit[peers]')")
    return "\n".join(lines)


def default_model(folder: Path) -> Path:
    """YOLO11n from the assets, exported at 640 x 640 and prepared."""
    import numpy as np

    from edgekit.checkpoint import load
    from edgekit.preprocess import Preprocess
    from edgekit.stages import export, prepare, simplify

    contract = Preprocess(height=640, width=640)
    checkpoint = load(ASSETS / "models" / "yolo11n_w8.pt")
    feeds = [np.random.default_rng(0).random((1, 3, 640, 640), dtype=np.float32)]
    exported = export.run(
        checkpoint, contract, feeds, folder / "e.onnx", export.ExportOptions()
    ).model
    simple = simplify.run(exported, feeds, folder / "s.onnx", simplify.SimplifyOptions()).model
    return prepare.run(simple, feeds, folder / "yolo11n.onnx").model.path


if __name__ == "__main__":
    main()
