"""What each means of recovering accuracy brings by itself: an ablation on one prepared ONNX model.

    python benchmarks/recovery.py --model prepared.onnx --images calib/ --data data.yaml
        [--count 32] [--limit 150] [--judge 32] [--target x86-int8-vnni] [--method percentile] [--bits 4]

The statistics are collected once. For every row the model is quantized anew, the SQNR of the worst
output block is measured on images of --data (or of --images beyond --count), and accuracy on up to
--limit labelled images. Every layer that the target allows is in INT8; nothing is searched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nothing", {}),
    ("bias correction, fast", {"bias_correction": True}),
    ("bias correction, full", {"full_bias": True}),
    ("weight range by mse", {"weight_range": "mse"}),
    ("rounding adaround", {"rounding": "adaround"}),
    ("rounding gptq", {"rounding": "gptq"}),
    ("adaround + full bias correction", {"rounding": "adaround", "full_bias": True}),
    (
        "mse + adaround + full bias correction",
        {"weight_range": "mse", "rounding": "adaround", "full_bias": True},
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="calibration images")
    parser.add_argument("--data", type=Path, help="labelled data, none of it in --images")
    parser.add_argument("--count", type=int, default=32, help="calibration images used [32]")
    parser.add_argument("--limit", type=int, default=150, help="labelled images [150]")
    parser.add_argument("--judge", type=int, default=32, help="images of the SQNR [32]")
    parser.add_argument("--target", default="x86-int8-vnni")
    parser.add_argument("--method", default="percentile")
    parser.add_argument("--bits", type=int, help="weight bits [the target's]")
    parser.add_argument("--per-tensor", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", help="numbers of rows, from 0, separated by commas [all]")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = ablation(arguments)
    if arguments.json:
        print(json.dumps(rows, indent=2))


def ablation(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from edgekit.calibration.source import open_source
    from edgekit.metrics.datasets import open_dataset
    from edgekit.pipeline.collecting import observed, open_subject
    from edgekit.preprocess import apply
    from edgekit.stages import calibrate, quantize
    from edgekit.stages.recover import IMAGES, RecoverOptions
    from edgekit.target_files import load_target

    subject = open_subject(arguments.model, {})
    profile = load_target(arguments.target)
    source = open_source(arguments.images)
    used = list(range(0, len(source), max(1, len(source) // arguments.count)))[: arguments.count]
    pictures = [source.read(number)[1] for number in used]
    data = None
    if arguments.data is not None:
        data = open_dataset(arguments.data, limit=arguments.limit)
        judged = [sample.image() for sample in data.samples[: arguments.judge]]
    else:
        others = [number for number in range(len(source)) if number not in used]
        judged = [source.read(number)[1] for number in others[: arguments.judge]]
    contract = subject.contract
    feeds = [apply(picture, contract)[0] for picture in judged]
    looked_at = [apply(picture, contract)[0] for picture in pictures[:IMAGES]]
    tensors, channels = observed(subject.model, profile)
    symmetric = profile.quantize is not None and profile.quantize.symmetric_activations
    wanted = [int(n) for n in arguments.rows.split(",")] if arguments.rows else range(len(ROWS))
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = calibrate.CalibrateOptions(
            method=arguments.method,
            symmetric=symmetric,
            tensors=tensors,
            channels=channels,
            threads=arguments.threads,
            time_inference=False,
        )
        calibration = calibrate.run(
            subject.model, _Chosen(source, used), contract, folder / "c.npz", options
        )
        if data is not None:
            value = accuracy(subject.model.path, data, contract, subject.model, arguments.threads)
            print(f"float {100 * value:.2f} %, {len(pictures)} calibration images", flush=True)
        for label, settings in [ROWS[n] for n in wanted]:
            chosen = quantize.QuantizeOptions(
                per_channel=False if arguments.per_tensor else None,
                weight_bits=arguments.bits,
                bias_correction=settings.get("bias_correction", False),
                weight_range=settings.get("weight_range", "absmax"),
                recover=RecoverOptions(
                    rounding=settings.get("rounding", "nearest"),
                    full_bias=settings.get("full_bias", False),
                ),
            )
            started = time.process_time()
            done = quantize.run(
                subject.model, calibration, profile, [], folder / "q.onnx", chosen,
                recovery_feeds=looked_at, threads=arguments.threads,
            )  # fmt: skip
            seconds = time.process_time() - started
            worst = sqnr_db(subject.model, done.model, feeds)
            row: dict[str, Any] = {"means": label, "sqnr_db": worst, "cpu_seconds": seconds}
            text = f"{label:40} {worst:6.1f} dB  {seconds:6.1f} s CPU"
            if data is not None:
                row["accuracy"] = accuracy(
                    done.model.path, data, contract, subject.model, arguments.threads
                )
                text += f"  {100 * row['accuracy']:.2f} %"
            found.append(row)
            print(text, flush=True)
    return found


class _Chosen:
    """Some images of a source."""

    def __init__(self, source: Any, numbers: list[int]) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def name(self, index: int) -> str:
        return str(self._source.name(self._numbers[index]))

    def fingerprint(self, index: int, *hash_file: Any) -> str:
        return str(self._source.fingerprint(self._numbers[index], *hash_file))

    def read(self, index: int) -> Any:
        return self._source.read(self._numbers[index])


def sqnr_db(reference: Any, candidate: Any, feeds: list[Any]) -> float:
    """SQNR of the worst output block."""
    from edgekit import onnx_file
    from edgekit.runtimes import open_session
    from edgekit.stages.parity import compare_sessions

    name = onnx_file.main_input(reference).name
    head = reference.metadata.get(onnx_file.HEAD_KEY)
    with (
        open_session("onnxruntime", reference.path) as one,
        open_session("onnxruntime", candidate.path) as two,
    ):
        named = [{name: feed} for feed in feeds]
        report = compare_sessions(one, two, named, reference.path, head)
    return min(block.sqnr_db for block in report.blocks)


def accuracy(path: Path, data: Any, contract: Any, model: Any, threads: int) -> float:
    """mAP50-95 or top-1, a fraction of 1."""
    from edgekit import onnx_file
    from edgekit.runtimes import open_session
    from edgekit.runtimes.base import SessionOptions
    from edgekit.stages import evaluate

    options = evaluate.EvaluateOptions(head=model.metadata.get(onnx_file.HEAD_KEY))
    with open_session("onnxruntime", path, SessionOptions(threads=threads)) as session:
        return evaluate.run(session, data, contract, options).value


if __name__ == "__main__":
    main()
