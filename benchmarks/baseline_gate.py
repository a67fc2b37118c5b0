"""Does the baseline gate tell 10 % more work from none? 20 tries each, as `edgekit check` runs it.

    python benchmarks/baseline_gate.py [--tries 20] [--only same|more]

A small convolutional network is the baseline. Against it stand the same network again, and one with
about 10 % more multiplications: a further convolution, behind the others, of which nothing is lost by an
optimizer because the graph ends with it. Each try is a run of `edgekit check new --baseline
old --device local`. The first must pass every time, the second must fail every time. The ratios found
are printed: on a machine with other work on it they say little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgekit import bundle, onnx_file  # noqa: E402
from edgekit.block import Block  # noqa: E402
from edgekit.bundle import BundleContents, BundleModel, ChainStep, GoldenSample  # noqa: E402
from edgekit.preprocess import Preprocess, apply  # noqa: E402
from edgekit.require import version_of  # noqa: E402
from edgekit.runtimes import open_session  # noqa: E402
from edgekit.types import Engine, OnnxModel  # noqa: E402

# short runs: a median of them holds out against a busy machine
SIZE = 40
CONTRACT = Preprocess(height=SIZE, width=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
LAYERS, CHANNELS = 10, 32


def network(path: Path, layers: int) -> OnnxModel:
    """`layers` equal convolutions of 3x3 over [1, 32, 40, 40], behind one from 3 channels."""
    random = np.random.default_rng(1)
    nodes, weights, name = [], [], "images"
    for number in range(layers + 1):
        before = 3 if number == 0 else CHANNELS
        shape = (CHANNELS, before, 3, 3)
        values = (random.normal(0, 0.06, shape)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        last = number == layers
        conv, relu = f"c{number}", "output" if last else f"r{number}"
        nodes.append(helper.make_node("Conv", [name, f"w{number}"], [conv], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [conv], [relu]))
        name = relu
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(CONTRACT.input_shape))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx_file.set_metadata(model, onnx_file.contract_metadata(CONTRACT, "classify", None, ()))
    return onnx_file.save(model, path)


def make_bundle(folder: Path, name: str, layers: int) -> Path:
    """A bundle of the network in `folder`/`name`."""
    work = folder / f"{name}-sources"
    work.mkdir()
    model = network(work / "model.onnx", layers)
    image = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    tensor, _ = apply(image, CONTRACT)
    with open_session("onnxruntime", model.path) as session:
        outputs = session.run({"images": tensor})
    checkpoint = "0" * 64
    engine = Engine(
        runtime="onnxruntime", files=(model.path,), precision="fp32", sha256=model.sha256
    )
    contents = BundleContents(
        name=name,
        target={"name": "x86-fp32", "runtime": {"name": "onnxruntime"}},
        checkpoint={"sha256": checkpoint},
        chain=(
            ChainStep(name="export", input_sha256=(checkpoint,), output_sha256=(model.sha256,)),
        ),
        models=(BundleModel(engine=engine, inputs=model.inputs, outputs=model.outputs),),
        preprocess=CONTRACT,
        golden=(GoldenSample(image=image, input=tensor, outputs=outputs),),
        golden_runtime="onnxruntime",
        golden_runtime_version=version_of("onnxruntime") or "",
        blocks=(Block(name="output", output="output", axes=()),),
        verdict="For a benchmark.",
    )
    return bundle.write(folder / name, contents).folder


def gate(folder: Path, new: Path, old: Path) -> tuple[bool, str]:
    """Whether `edgekit check` let `new` pass, and what it found."""
    device = f"local://{folder}/device"
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "check", str(new), "--baseline", str(old),
         "--device", device, "--max-regression", "3%", "--no-history", "--json"],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    found = next(item for item in answer["gates"] if item["name"] == "baseline")
    return done.returncode == 0, str(found["detail"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--only", choices=("same", "more"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-gate-") as name:
        folder = Path(name)
        old = make_bundle(folder, "baseline", LAYERS)
        rivals = {
            "same": (make_bundle(folder, "same", LAYERS), True),
            "more": (make_bundle(folder, "more", LAYERS + 1), False),
        }
        for kind, (new, expected) in rivals.items():
            if options.only in (None, kind):
                right = 0
                for number in range(options.tries):
                    passed, detail = gate(folder, new, old)
                    right += passed is expected
                    print(
                        f"{kind} {number + 1}: {'passed' if passed else 'failed'}, {detail}",
                        flush=True,
                    )
                print(f"{kind}: {right} of {options.tries} as expected", flush=True)


if __name__ == "__main__":
    main()
