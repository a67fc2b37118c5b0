"""The jobs of calibration.py, each in a process of its own: JSON figures on the last line.

python benchmarks/calibration_jobs.py --job bare --model prepared.onnx --images calib/ --count 64
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_READERS = frozenset({"Conv", "Gemm", "MatMul", "Concat", "Add"})


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
        from edgekit.target_files import load_target

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
        from edgekit.target_files import load_target

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
        CalibrationMethod,
        create_calibrator,
    )

    from edgekit.preprocess import apply

    model, contract, source = _subject(arguments)
    name = model.inputs[0].name

    class Reader:
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", choices=list(WORK), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="x86-int8")
    parser.add_argument("--set", default="all", help="collect: placement, convolutions, all")
    parser.add_argument("--cpus", default="", help="pin the process: 0 or 0,1")
    arguments = parser.parse_args()
    if arguments.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    print(json.dumps(WORK[arguments.job](arguments)))


if __name__ == "__main__":
    main()
