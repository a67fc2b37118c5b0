"""What collecting calibration statistics costs: time against bare inference, and memory.

    python benchmarks/calibration.py --model yolo11n.onnx --images calib/ [--count 128] [--threads 1]
        [--cpus 0] [--peer 8] [--json]

Every figure comes from a fresh process. Bare inference (the float model on the same decoded images,
same threads, decoding not timed) and collecting (`edgekit.stages.calibrate.run`, everything in it:
decoding, opening the model, counting, writing) take turns, and the ratio of the medians is printed,
in wall-clock time and in CPU time. Where others use the machine only the CPU ratio means something.
With `--threads 1` collecting counts on a thread of its own beside the one that infers; `--cpus 0`
pins both programs to one core and shows what it costs without a second one.

Sets of tensors: "convolutions" is what Conv, Gemm, MatMul, Concat and Add read (114 tensors or so in
a YOLO11n); "target" what `--target` may quantize; "all" every float activation. `--peer N` runs
onnxruntime's entropy calibrator on N and N/2 images for comparison; it keeps every activation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOBS = ("bare", "collect", "ranges", "peer")
_READERS = frozenset({"Conv", "Gemm", "MatMul", "Concat", "Add"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=128, help="images [128]")
    parser.add_argument("--few", type=int, default=32, help="images of the memory comparison [32]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sets", default="convolutions,all", help="convolutions, target, all")
    parser.add_argument("--target", default="x86-int8")
    parser.add_argument("--cpus", default="", help="pin every process: 0 or 0,1")
    parser.add_argument("--peer", type=int, default=0, help="images for onnxruntime's calibrator")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--set", default="all", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    if arguments.job:
        print(json.dumps(WORK[arguments.job](arguments)))
        return
    result = compare(arguments)
    print(json.dumps(result, indent=2) if arguments.json else table(result))


# --- the parent -------------------------------------------------------------------------------


def child(arguments: argparse.Namespace, job: str, **changes: Any) -> dict[str, Any]:
    """Run one job in a fresh process."""
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
    command = [sys.executable, __file__]
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
        few = child(arguments, "collect", set=name, count=arguments.few)
        figures["peak_rss_mb_few"] = few["peak_rss_mb"]
        figures["few"] = few["images"]
        result["sets"][name] = figures
    result["ranges"] = child(arguments, "ranges", count=min(16, arguments.count))
    if arguments.peer:
        one = child(arguments, "peer", count=max(2, arguments.peer // 2))
        two = child(arguments, "peer", count=arguments.peer)
        images = two["images"] - one["images"]
        two["seconds_per_image"] = (two["seconds"] - one["seconds"]) / images
        two["mb_per_image"] = (two["peak_rss_mb"] - one["peak_rss_mb"]) / images
        two["ratio"] = (
            two["seconds"] / two["images"] / result["bare"]["seconds"] * bare[0]["images"]
        )
        result["peer"] = two
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
            f"{figures['peak_rss_mb_few']:.0f} MB at {figures['few']}, "
            f"{figures['peak_rss_mb']:.0f} MB at {images} images"
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
    return "\n".join(lines)


# --- the jobs ---------------------------------------------------------------------------------


def _subject(arguments: argparse.Namespace) -> tuple[Any, Any, list[Path]]:
    from edgekit import onnx_file
    from edgekit.images import list_images
    from edgekit.preprocess import Preprocess

    model = onnx_file.describe(arguments.model)
    contract = onnx_file.read_contract(model)
    if contract is None:
        height, width = (
            size if isinstance(size, int) else 640 for size in model.inputs[0].shape[2:]
        )
        contract = Preprocess(height=height, width=width)
    return model, contract, list_images(arguments.images)[: arguments.count]


def _peak_rss_mb() -> float:
    from edgekit.stages.timing_worker import peak_rss_mb

    return peak_rss_mb()


def bare(arguments: argparse.Namespace) -> dict[str, Any]:
    import cv2

    from edgekit.images import read
    from edgekit.preprocess import apply
    from edgekit.runtimes import open_session
    from edgekit.runtimes.base import SessionOptions

    cv2.setNumThreads(1)
    model, contract, paths = _subject(arguments)
    seconds = cpu = 0.0
    name = model.inputs[0].name
    with open_session(
        "onnxruntime", model.path, SessionOptions(threads=arguments.threads)
    ) as session:
        for number, path in enumerate(paths):
            tensor, _ = apply(read(path), contract)
            if number == 0:
                session.run({name: tensor})
            started, cpu_started = time.perf_counter(), time.process_time()
            session.run({name: tensor})
            seconds += time.perf_counter() - started
            cpu += time.process_time() - cpu_started
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "images": len(paths),
        "peak_rss_mb": _peak_rss_mb(),
    }


def tensors_of(arguments: argparse.Namespace, model: Any) -> tuple[str, ...] | None:
    if arguments.set == "all":
        return None
    if arguments.set == "target":
        from edgekit.stages.quantize import observed_tensors
        from edgekit.target import load_target

        return observed_tensors(model, load_target(arguments.target))
    import onnx

    from edgekit.runtimes.observe import float_activations

    graph = onnx.load(str(model.path))
    activations = set(float_activations(graph))
    read = (name for n in graph.graph.node if n.op_type in _READERS for name in n.input)
    return tuple(dict.fromkeys(name for name in read if name in activations))


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    from edgekit.stages import calibrate

    model, contract, paths = _subject(arguments)
    tensors = tensors_of(arguments, model)
    with tempfile.TemporaryDirectory() as folder:
        started, cpu_started = time.perf_counter(), time.process_time()
        made = calibrate.run(
            model,
            paths,
            contract,
            Path(folder) / "calibration.npz",
            calibrate.CalibrateOptions(
                tensors=tensors,
                threads=arguments.threads,
                partial=Path(folder) / "partial",
                time_inference=False,
            ),
        )
        return {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_started,
            "images": made.images,
            "tensors": len(made.ranges),
            "peak_rss_mb": _peak_rss_mb(),
        }


def ranges(arguments: argparse.Namespace) -> dict[str, Any]:
    from edgekit.calibration import store
    from edgekit.calibration.methods import METHODS, choose
    from edgekit.stages import calibrate

    model, contract, paths = _subject(arguments)
    with tempfile.TemporaryDirectory() as folder:
        made = calibrate.run(
            model,
            paths,
            contract,
            Path(folder) / "calibration.npz",
            calibrate.CalibrateOptions(threads=arguments.threads, time_inference=False),
        )
        statistics_, _ = store.read(made.path)
    seconds = {}
    for name in METHODS:
        started = time.process_time()
        choose(statistics_, name, symmetric=False)
        seconds[name] = time.process_time() - started
    return {"tensors": len(made.ranges), "methods": seconds, "seconds": sum(seconds.values())}


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    """onnxruntime's entropy calibrator over the tensors it chooses itself."""
    import onnxruntime as ort
    from onnxruntime.quantization.calibrate import (
        CalibrationDataReader,
        CalibrationMethod,
        create_calibrator,
    )

    from edgekit.images import read
    from edgekit.preprocess import apply

    model, contract, paths = _subject(arguments)
    name = model.inputs[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._paths = iter(paths)

        def get_next(self) -> dict[str, Any] | None:
            path = next(self._paths, None)
            return None if path is None else {name: apply(read(path), contract)[0]}

    started, cpu_started = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            str(model.path),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Entropy,
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        calibrator.infer_session = ort.InferenceSession(
            calibrator.augmented_model_path, options, providers=["CPUExecutionProvider"]
        )
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "images": len(paths),
        "tensors": len(found.data),
        "peak_rss_mb": _peak_rss_mb(),
    }


WORK: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "bare": bare,
    "collect": collect,
    "ranges": ranges,
    "peer": peer,
}

if __name__ == "__main__":
    main()
