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
import hashlib
import importlib.util
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

JOBS = ("bare", "collect", "ranges", "peer", "nncf", "modelopt")
ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("EDGEKIT_ASSETS", str(ROOT.parent / "shared" / "assets")))
_READERS = frozenset({"Conv", "Gemm", "MatMul", "Concat", "Add"})


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
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--set", default="all", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    if arguments.job:
        print(json.dumps(WORK[arguments.job](arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        if arguments.model is None:
            arguments.model = default_model(Path(folder))
        if arguments.images is None:
            arguments.images = ASSETS / "coco" / "calib"
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


# --- the jobs ---------------------------------------------------------------------------------


class Mirrored:
    """The images of a folder, `count` of them: taken again mirrored where the files do not suffice.

    A source as `edgekit.calibration.source` has them; each mirroring is an image of its own.
    """

    def __init__(self, folder: Path, count: int) -> None:
        from edgekit.images import list_images

        self._files = list_images(folder)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"{self._files[index % len(self._files)]} ({index // len(self._files)})"

    def fingerprint(self, index: int, *hash_file: Any) -> str:
        data = self._files[index % len(self._files)].read_bytes()
        return hashlib.sha256(data + str(index // len(self._files)).encode()).hexdigest()

    def read(self, index: int) -> tuple[str, Any]:
        from edgekit.images import decode

        path, turn = self._files[index % len(self._files)], index // len(self._files)
        image = decode(path.read_bytes(), str(path))
        image = image[:: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]
        return self.fingerprint(index), image.copy()


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


def _subject(arguments: argparse.Namespace) -> tuple[Any, Any, Mirrored]:
    from edgekit import onnx_file
    from edgekit.preprocess import Preprocess

    model = onnx_file.describe(arguments.model)
    contract = onnx_file.read_contract(model)
    if contract is None:
        height, width = (
            size if isinstance(size, int) else 640 for size in model.inputs[0].shape[2:]
        )
        contract = Preprocess(height=height, width=width)
    return model, contract, Mirrored(arguments.images, arguments.count)


def _peak_rss_mb() -> float:
    from edgekit.stages.timing_worker import peak_rss_mb

    return peak_rss_mb()


def bare(arguments: argparse.Namespace) -> dict[str, Any]:
    import cv2

    from edgekit.preprocess import apply
    from edgekit.runtimes import open_session
    from edgekit.runtimes.base import SessionOptions

    cv2.setNumThreads(1)
    model, contract, source = _subject(arguments)
    seconds = cpu = 0.0
    name = model.inputs[0].name
    with open_session(
        "onnxruntime", model.path, SessionOptions(threads=arguments.threads)
    ) as session:
        for number in range(len(source)):
            tensor, _ = apply(source.read(number)[1], contract)
            if number == 0:
                session.run({name: tensor})
            started, cpu_started = time.perf_counter(), time.process_time()
            session.run({name: tensor})
            seconds += time.perf_counter() - started
            cpu += time.process_time() - cpu_started
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "images": len(source),
        "peak_rss_mb": _peak_rss_mb(),
    }


def tensors_of(arguments: argparse.Namespace, model: Any) -> tuple[str, ...] | None:
    if arguments.set == "all":
        return None
    if arguments.set == "placement":
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

    model, contract, source = _subject(arguments)
    tensors = tensors_of(arguments, model)
    channels: dict[str, int] = {}
    if arguments.set == "placement":
        from edgekit.stages.quantize import observed_channels
        from edgekit.target import load_target

        channels = observed_channels(model, load_target(arguments.target))
    with tempfile.TemporaryDirectory() as folder:
        started, cpu_started = time.perf_counter(), time.process_time()
        made = calibrate.run(
            model,
            source,
            contract,
            Path(folder) / "calibration.npz",
            calibrate.CalibrateOptions(
                tensors=tensors,
                channels=channels,
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

    model, contract, source = _subject(arguments)
    with tempfile.TemporaryDirectory() as folder:
        made = calibrate.run(
            model,
            source,
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

    from edgekit.preprocess import apply

    model, contract, source = _subject(arguments)
    name = model.inputs[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(range(len(source)))

        def get_next(self) -> dict[str, Any] | None:
            number = next(self._left, None)
            return None if number is None else {name: apply(source.read(number)[1], contract)[0]}

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
        "images": len(source),
        "tensors": len(found.data),
        "peak_rss_mb": _peak_rss_mb(),
    }


def nncf(arguments: argparse.Namespace) -> dict[str, Any]:
    """NNCF's quantize with its defaults: statistics, algorithms and insertion in one."""
    import nncf as peer_nncf
    import onnx

    from edgekit.preprocess import apply

    model, contract, source = _subject(arguments)
    name = model.inputs[0].name
    proto = onnx.load(str(model.path))
    started, cpu_started = time.perf_counter(), time.process_time()
    data = peer_nncf.Dataset(
        range(len(source)), lambda number: {name: apply(source.read(number)[1], contract)[0]}
    )
    peer_nncf.quantize(proto, data, subset_size=len(source))
    return _whole(started, cpu_started, source)


def modelopt(arguments: argparse.Namespace) -> dict[str, Any]:
    """ModelOpt's ONNX quantization by entropy, on the CPU; it takes all images as one array."""
    import numpy as np
    from modelopt.onnx.quantization import quantize

    from edgekit.preprocess import apply

    model, contract, source = _subject(arguments)
    started, cpu_started = time.perf_counter(), time.process_time()
    tensors = [apply(source.read(number)[1], contract)[0] for number in range(len(source))]
    with tempfile.TemporaryDirectory() as folder:
        quantize(
            onnx_path=str(model.path),
            quantize_mode="int8",
            calibration_data={model.inputs[0].name: np.concatenate(tensors)},
            calibration_method="entropy",
            calibration_eps=["cpu"],
            output_path=str(Path(folder) / "int8.onnx"),
        )
    return _whole(started, cpu_started, source)


def _whole(started: float, cpu_started: float, source: Mirrored) -> dict[str, Any]:
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "images": len(source),
        "peak_rss_mb": _peak_rss_mb(),
    }


WORK: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "bare": bare,
    "collect": collect,
    "ranges": ranges,
    "peer": peer,
    "nncf": nncf,
    "modelopt": modelopt,
}

if __name__ == "__main__":
    main()
