"""INT8 latency against FP32 and against onnxruntime's own quantize_static, as ratios of one run.

    python benchmarks/int8.py [NAME ...] [--seconds 6]

Networks with random weights (speed does not depend on them): resnet50, mobilenet_v2,
efficientnet_b0, mobilenet_v3_small, and yolo11n from the assets. For each the float graph, edgekit's
INT8 graph (after the part of the search that leaves float what is faster so) and onnxruntime's graph
with all operators quantized (U8S8, per channel, QDQ, min-max) are timed two at a time, taking turns,
one thread. Where the interval of INT8's speed-up lies below 1.0, float is what an export would carry,
and what is compared with the peer; it is said. Printed are ratios of medians with 95 % intervals; the
machine should be quiet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgekit.checkpoint import load
from edgekit.preprocess import Preprocess, apply
from edgekit.stages import (
    calibrate,
    export,
    prepare,
    quantize,
    search,
    search_int8,
    simplify,
)
from edgekit.stages.measure import MeasureOptions, ModelToTime, measure_against
from edgekit.target import TargetProfile
from edgekit.target_files import load_target
from edgekit.types import Calibration, Checkpoint, OnnxModel, SpeedUp

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("EDGEKIT_ASSETS", str(ROOT.parent / "shared" / "assets")))
SIZES = {
    "yolo11n": 640,
    "resnet50": 224,
    "mobilenet_v2": 224,
    "efficientnet_b0": 224,
    "mobilenet_v3_small": 224,
}


def _checkpoint(name: str) -> Checkpoint:
    if name == "yolo11n":
        return load(ASSETS / "models" / "yolo11n_w8.pt")
    import torch

    # they are networks of the tests, which are no installed package
    sys.path.insert(0, str(ROOT))
    from tests.unit.checkpoint import networks

    torch.manual_seed(0)
    factory: Any = getattr(networks, name)
    module = factory().eval()
    return Checkpoint(path=Path(name), sha256="", kind="state_dict", module=module)


def _pictures(size: int, count: int = 8) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        small = rng.integers(0, 256, (size // 16, size // 16, 3), np.uint8)
        yield cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)


def _peer(model: Path, out: Path, feeds: list[np.ndarray], name: str) -> None:
    """onnxruntime's quantize_static with its defaults for all operators."""
    from onnxruntime.quantization import (
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader:
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self._left, None)
            return None if feed is None else {name: feed}

    quantize_static(
        str(model),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def _left_float(
    graph: OnnxModel,
    calibration: Calibration,
    profile: TargetProfile,
    contract: Preprocess,
    pictures: list[np.ndarray],
) -> tuple[str, ...]:
    """The layers that the search of an export leaves float for speed."""
    subject = search_int8.Int8Search(
        graph, calibration, profile, contract, pictures[:2], quantize.QuantizeOptions()
    )
    return subject.faster_float(search.Choice(method=calibration.method), search.SearchOptions())


def _shown(speed: SpeedUp) -> str:
    return f"{speed.ratio:.2f} ({speed.low:.2f}-{speed.high:.2f})"


def _timed(file: Path, contract: Preprocess) -> ModelToTime:
    return ModelToTime(name=file.name, runtime="onnxruntime", files=(file,), contract=contract)


def _make(name: str, folder: Path, profile: TargetProfile) -> None:
    """Write p.onnx (float), ours.onnx, theirs.onnx and facts.json of a network into `folder`."""
    size = SIZES[name]
    contract = Preprocess(height=size, width=size)
    pictures = list(_pictures(size))
    feeds = [apply(picture, contract)[0] for picture in pictures]
    exported = export.run(
        _checkpoint(name), contract, feeds[:2], folder / "e.onnx", export.ExportOptions()
    ).model
    simple = simplify.run(exported, feeds[:2], folder / "s.onnx", simplify.SimplifyOptions()).model
    graph = prepare.run(simple, feeds[:2], folder / "p.onnx").model
    np.savez(folder / "images.npz", images=np.stack(pictures))
    calibration = calibrate.run(
        graph,
        folder / "images.npz",
        contract,
        folder / "c.npz",
        calibrate.CalibrateOptions(
            method="percentile", tensors=quantize.observed_tensors(graph, profile)
        ),
    )
    keep = _left_float(graph, calibration, profile, contract, pictures)
    options = quantize.QuantizeOptions(keep_float=keep)
    made = quantize.run(graph, calibration, profile, [], folder / "ours.onnx", options)
    _peer(graph.path, folder / "theirs.onnx", feeds, graph.inputs[0].name)
    facts = {"share": made.placement.int8_mac_share, "left_float": len(keep)}
    (folder / "facts.json").write_text(json.dumps(facts))


def main() -> None:
    """Print one line per network and the geometric mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SIZES), help=", ".join(SIZES))
    parser.add_argument("--seconds", type=float, default=6.0, help="timed seconds per pair")
    parser.add_argument("--folder", type=Path, help="keep the graphs there, and time those it has")
    parser.add_argument("--make-only", action="store_true", help="make the graphs, time nothing")
    arguments = parser.parse_args()
    profile = load_target("x86-int8")
    with tempfile.TemporaryDirectory() as text:
        root: Path = arguments.folder or Path(text)
        for name in arguments.names:
            if not (root / name / "facts.json").is_file():
                (root / name).mkdir(parents=True, exist_ok=True)
                _make(name, root / name, profile)
        if not arguments.make_only:
            _time(arguments.names, root, MeasureOptions(seconds=arguments.seconds))


def _time(names: list[str], root: Path, options: MeasureOptions) -> None:
    ratios = []
    print(
        "network                MACs INT8   ours vs FP32         theirs vs FP32       ours / theirs"
    )
    for name in names:
        contract = Preprocess(height=SIZES[name], width=SIZES[name])
        facts = json.loads((root / name / "facts.json").read_text())
        plain, own, other = (
            _timed(root / name / file, contract) for file in ("p.onnx", "ours.onnx", "theirs.onnx")
        )
        _, _, fast = measure_against(own, plain, options)
        _, _, peer = measure_against(other, plain, options)
        carried = plain if fast.high < 1.0 else own
        _, _, between = measure_against(other, carried, options)
        ratios.append(between.ratio)
        told = [f"{facts['left_float']} layers float for speed"] if facts["left_float"] else []
        told += ["float is carried"] if carried is plain else []
        print(
            f"{name:22} {facts['share']:7.1%}    {_shown(fast):20} "
            f"{_shown(peer):20} {_shown(between):18} {', '.join(told)}",
            flush=True,
        )
    mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    print(f"geometric mean of ours / theirs: {mean:.3f} (below 1: ours is faster)")


if __name__ == "__main__":
    main()
