"""Throughput of `edgekit evaluate` against bare inference of the same model, as a ratio.

    python benchmarks/evaluate_throughput.py --model yolov5n.onnx --data instances_val2017.json

Both run in this process with one inference thread, in turns: a round is bare inference of N
preprocessed images, then the evaluation of N images from their files (reading, preprocessing,
inference, decoding, NMS), then bare inference again. 1.0 means that everything but the model is
hidden behind it. Reading and decoding need a second core: on one core, or on a machine that is busy
with something else, the ratio falls.

Without --model and --data, yolov5n and its labelled photos are taken from EDGEKIT_ASSETS.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file, preprocess
from edgekit.metrics.datasets import Dataset, open_dataset
from edgekit.preprocess import Preprocess
from edgekit.runtimes import open_session
from edgekit.runtimes.base import Session, SessionOptions
from edgekit.stages import evaluate
from edgekit.stages.evaluate import EvaluateOptions
from edgekit.stages.machine_load import LoadMeter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INPUTS = 8


def arguments() -> argparse.Namespace:
    assets = Path(os.environ.get("EDGEKIT_ASSETS", "../shared/assets"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=assets / "models" / "yolov5n.onnx")
    parser.add_argument("--data", type=Path, default=assets / "coco" / "instances_val2017.json")
    parser.add_argument("--images", type=int, default=64, help="images per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def contract_of(model: Path) -> Preprocess:
    """The model's own contract, or a letterbox of its input's size."""
    described = onnx_file.describe(model)
    own = onnx_file.read_contract(described)
    if own is not None:
        return own
    height, width = onnx_file.main_input(described).shape[2:]
    return Preprocess(height=int(height), width=int(width))


def bare(session: Session, tensors: list[NDArray[Any]], count: int) -> float:
    """Images per second of nothing but the model."""
    name = session.inputs[0].name
    started = time.perf_counter()
    for index in range(count):
        session.run({name: tensors[index % len(tensors)]})
    return count / (time.perf_counter() - started)


def evaluated(session: Session, dataset: Dataset, contract: Preprocess) -> float:
    """Images per second of the whole evaluation."""
    started = time.perf_counter()
    report = evaluate.run(session, dataset, contract, EvaluateOptions())
    return report.images / (time.perf_counter() - started)


def main() -> None:
    args = arguments()
    contract = contract_of(args.model)
    dataset = open_dataset(args.data).limited(args.images)
    count = len(dataset)
    rounds = []
    with open_session("onnxruntime", args.model, SessionOptions(threads=1)) as session:
        tensors = [
            preprocess.apply(sample.image(), contract)[0] for sample in dataset.samples[:_INPUTS]
        ]
        bare(session, tensors, 10)
        evaluated(session, dataset.limited(8), contract)
        meter, used = LoadMeter(), time.process_time()
        before = bare(session, tensors, count)
        for _ in range(args.rounds):
            whole = evaluated(session, dataset, contract)
            after = bare(session, tensors, count)
            rounds.append((whole, 2 / (1 / before + 1 / after)))
            before = after
        load = meter.share(time.process_time() - used)
    ratios = [whole / plain for whole, plain in rounds]
    result = {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "evaluate_fps": statistics.median(whole for whole, _ in rounds),
        "bare_fps": statistics.median(plain for _, plain in rounds),
        "images": count,
        "rounds": len(rounds),
        "other_load": load,
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"evaluate {result['evaluate_fps']:.1f} images/s, bare inference "
        f"{result['bare_fps']:.1f} images/s: ratio {result['ratio']:.3f} "
        f"({result['lowest']:.3f} to {result['highest']:.3f} in {len(rounds)} rounds of {count} "
        f"images); other load {load:.0%}"
    )


if __name__ == "__main__":
    main()
