"""Throughput of `edgekit evaluate` against bare inference of the same model, as a ratio.

    python benchmarks/evaluate_throughput.py --model yolov5n.onnx --data instances_val2017.json

Both run in this process with one inference thread, in turns: a round is bare inference of N
preprocessed images, then the evaluation of N images from their files (reading, preprocessing,
inference, decoding, NMS, mAP), then bare inference again. 1.0 means that everything but the model
is hidden behind it. Reading and decoding need a second core: on one core, or on a machine that is
busy with something else, the ratio falls. There, look at the CPU times instead: what the inferring
thread spends per image, bare against evaluating, and how much of a second core the rest needs.

Without --model and --data, yolov5n and its labelled photos are taken from EDGEKIT_ASSETS.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
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
    parser.add_argument("--images", type=int, default=128, help="images per round")
    parser.add_argument("--rounds", type=int, default=3)
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


@dataclass(frozen=True, kw_only=True)
class Took:
    """One block of images: wall-clock, CPU of the thread that infers, CPU of all other threads."""

    images: int
    wall_s: float
    own_cpu_s: float
    other_cpu_s: float


def timed(images: int, work: Callable[[], object]) -> Took:
    wall, own, whole = time.perf_counter(), time.thread_time(), time.process_time()
    work()
    own_cpu_s = time.thread_time() - own
    return Took(
        images=images,
        wall_s=time.perf_counter() - wall,
        own_cpu_s=own_cpu_s,
        other_cpu_s=max(0.0, time.process_time() - whole - own_cpu_s),
    )


def bare(session: Session, tensors: list[NDArray[Any]], count: int) -> Took:
    """Nothing but the model."""
    name = session.inputs[0].name

    def work() -> None:
        for index in range(count):
            session.run({name: tensors[index % len(tensors)]})

    return timed(count, work)


def evaluated(session: Session, dataset: Dataset, contract: Preprocess) -> Took:
    """The whole evaluation, mAP included."""
    return timed(len(dataset), lambda: evaluate.run(session, dataset, contract, EvaluateOptions()))


def decoded(session: Session, dataset: Dataset, contract: Preprocess) -> Took:
    """Everything per image: reading, preprocessing, inference, decoding and NMS."""

    def work() -> None:
        for _ in evaluate.predictions(session, dataset, contract):
            pass

    return timed(len(dataset), work)


def summary(plain: list[Took], whole: list[Took], per_image: list[Took]) -> dict[str, float]:
    def per(blocks: list[Took], field: str) -> float:
        return float(statistics.median(getattr(block, field) / block.images for block in blocks))

    around = [(before.wall_s + after.wall_s) / 2 for before, after in pairwise(plain)]
    ratios = [base / block.wall_s for base, block in zip(around, whole, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "evaluate_fps": 1 / per(whole, "wall_s"),
        "bare_fps": 1 / per(plain, "wall_s"),
        "own_cpu_ratio": per(plain, "own_cpu_s") / per(per_image, "own_cpu_s"),
        "second_core_use": per(per_image, "other_cpu_s") / per(per_image, "own_cpu_s"),
    }


def main() -> None:
    args = arguments()
    contract = contract_of(args.model)
    dataset = open_dataset(args.data).limited(args.images)
    count = len(dataset)
    whole, per_image = [], []
    with open_session("onnxruntime", args.model, SessionOptions(threads=1)) as session:
        tensors = [
            preprocess.apply(sample.image(), contract)[0] for sample in dataset.samples[:_INPUTS]
        ]
        bare(session, tensors, 10)
        evaluated(session, dataset.limited(8), contract)
        meter, used = LoadMeter(), time.process_time()
        plain = [bare(session, tensors, count)]
        for _ in range(args.rounds):
            whole.append(evaluated(session, dataset, contract))
            plain.append(bare(session, tensors, count))
            per_image.append(decoded(session, dataset, contract))
        load = meter.share(time.process_time() - used)
    result: dict[str, float] = {
        **summary(plain, whole, per_image),
        "images": count,
        "rounds": len(whole),
        "other_load": load,
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"evaluate {result['evaluate_fps']:.1f} images/s, bare inference "
        f"{result['bare_fps']:.1f} images/s: ratio {result['ratio']:.3f} "
        f"({result['lowest']:.3f} to {result['highest']:.3f} in {len(whole)} rounds of {count} "
        f"images); other load {load:.0%}\n"
        f"CPU time of the inferring thread: bare / evaluate {result['own_cpu_ratio']:.3f}; the "
        f"other threads need {result['second_core_use']:.0%} of a second core"
    )


if __name__ == "__main__":
    main()
