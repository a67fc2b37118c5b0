"""Does the gate tell 10 % more work from none? The same model, and one with about 10 % more work.

    python benchmarks/regression_gate.py [--tries 20] [--work FOLDER] [--log FILE]

The example's pruned detector is exported twice: as it is, and with convolutions added to its graph that
change nothing (3x3, a one in the middle) until there are 10 % more multiplications. Each try is a run
of the device program on its own, `bench BUNDLE --against BASELINE`, and its decision: the first must
pass ("within" or "undecided"), the second must fail ("slower"). Every try is printed and, with --log,
appended to a file as a JSON line; tries found there already count, so that the benchmark can be run in
pieces. Ends with 1 when a decision was wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/cells"
CONTRACT = "--color rgb --resize letterbox --scale 1/255 --mean 0,0,0 --std 1,1,1 --imgsz 192"
MORE_WORK = 0.10


def export(checkpoint: Path, out: Path, *more: str) -> None:
    """`edgekit export` to a float bundle for this machine."""
    command = [sys.executable, "-m", "edgekit", "export", str(checkpoint), "--target", "x86-fp32"]
    command += ["--images", str(ROOT / "calib"), "--out", str(out), *CONTRACT.split(), *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiplications of each convolution, by its output."""
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.output)
    }
    weights = {item.name: list(item.dims) for item in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            kernel, output = weights[node.input[1]], shapes[node.output[0]]
            found[node.output[0]] = int(np.prod(kernel) * np.prod(output[2:]))
    return found


def heavier(source: Path, target: Path) -> float:
    """Write the model with added convolutions that pass their input on; the share of work added."""
    model = shape_inference.infer_shapes(onnx.load(source))
    work = macs(model)
    total, added = sum(work.values()), 0
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    # the widest first: there the time goes into the multiplications
    candidates = sorted((name for name in work if name in shapes), key=lambda n: -shapes[n][1])
    for name in candidates:
        cost = int(9 * shapes[name][1] ** 2 * np.prod(shapes[name][2:]))
        if added + cost > total * (MORE_WORK + 0.005):
            continue
        channels = shapes[name][1]
        kernel = np.zeros((channels, channels, 3, 3), np.float32)
        kernel[np.arange(channels), np.arange(channels), 1, 1] = 1.0
        model.graph.initializer.append(numpy_helper.from_array(kernel, f"{name}_more"))
        for node in model.graph.node:
            for place, used in enumerate(node.input):
                if used == name:
                    node.input[place] = f"{name}_again"
        position = next(n for n, node in enumerate(model.graph.node) if name in node.output)
        node = helper.make_node(
            "Conv", [name, f"{name}_more"], [f"{name}_again"], pads=[1, 1, 1, 1], name=f"{name}_add"
        )
        model.graph.node.insert(position + 1, node)
        added += cost
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return added / total


def prepare(work: Path) -> tuple[Path, Path]:
    """The two bundles, made once."""
    baseline, slower = work / "baseline", work / "more-work"
    if not (baseline / "manifest.json").exists() or not (slower / "manifest.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        checkpoint = EXAMPLE / "cells_pruned.pt"
        export(checkpoint, baseline, "--arch", "model:detector", "--code", str(EXAMPLE))
        share = heavier(baseline / "onnxruntime/model.onnx", work / "more-work.onnx")
        export(work / "more-work.onnx", slower)
        (work / "share.json").write_text(json.dumps(share))
    same = work / "same"
    if not same.exists():
        shutil.copytree(baseline, same)
    print(f"work added: {100 * json.loads((work / 'share.json').read_text()):.1f} % of the MACs")
    return baseline, slower


def one_try(bundle: Path, baseline: Path, more: list[str]) -> dict[str, Any]:
    """One run of the device program; what it decided."""
    program = bundle / "edgekit-device.pyz"
    command = [sys.executable, str(program), "bench", str(bundle), "--against", str(baseline)]
    started = time.monotonic()
    done = subprocess.run([*command, "--quiet", *more], capture_output=True, check=False)
    answer = json.loads(done.stdout)
    if done.returncode:
        raise SystemExit(f"{answer['error']} {answer['hint']}")
    against = answer["against"]
    return {
        **against["regression"]["slower"],
        "decision": against["regression"]["decision"],
        "blocks": against["blocks"],
        "load": answer["load"],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--work", type=Path, default=ROOT / ".demo/regression-gate")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin no try after it")
    parser.add_argument("--prepare", action="store_true", help="make the bundles and stop")
    parser.add_argument("bench", nargs="*", help="options of the device program's bench, after --")
    options = parser.parse_args()
    started = time.monotonic()
    baseline, slower = prepare(options.work)
    if options.prepare:
        return
    tries: dict[str, list[dict[str, Any]]] = {"same": [], "more work": []}
    if options.log is not None and options.log.exists():
        for line in options.log.read_text().splitlines():
            value = json.loads(line)
            tries[value.pop("what")].append(value)
    bundles = {"same": options.work / "same", "more work": slower}
    while any(len(found) < options.tries for found in tries.values()):
        if time.monotonic() - started > options.limit_s:
            break
        what = min(tries, key=lambda name: len(tries[name]))
        value = one_try(bundles[what], baseline, options.bench)
        tries[what].append(value)
        if options.log is not None:
            with open(options.log, "a") as stream:
                stream.write(json.dumps({"what": what, **value}) + "\n")
        print(
            f"{what:9}  slower by {100 * (value['ratio'] - 1):+6.2f} %  "
            f"[{100 * (value['low'] - 1):+6.2f}, {100 * (value['high'] - 1):+6.2f}]  "
            f"{value['decision']:9}  {value['blocks']} blocks, {value['seconds']} s, "
            f"other load {100 * (value['load'] or 0):.0f} %",
            flush=True,
        )
    passed = sum(value["decision"] != "slower" for value in tries["same"])
    failed = sum(value["decision"] == "slower" for value in tries["more work"])
    print(f"the same model passes {passed} of {len(tries['same'])}")
    print(f"the one with more work fails {failed} of {len(tries['more work'])}")
    if passed < len(tries["same"]) or failed < len(tries["more work"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
