"""A small bundle with a real model, and ways to tamper with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit import onnx_file
from edgekit.block import Block
from edgekit.bundle import BundleContents, BundleModel, ChainStep, ExtraFile, GoldenSample
from edgekit.manifest import MANIFEST, SUMS
from edgekit.preprocess import Preprocess, apply
from edgekit.require import version_of
from edgekit.runtimes import open_session
from edgekit.types import Engine, OnnxModel

CONTRACT = Preprocess(height=24, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def small_model(path: Path, contract: Preprocess = CONTRACT, seed: int = 0) -> OnnxModel:
    """Conv → boxes and scores, joined into one output [1, 7, 192]; the contract in its metadata."""
    random = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["images", "w0"], ["x"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Conv", ["y", "w_box"], ["box"], name="box"),
        helper.make_node("Conv", ["y", "w_score"], ["logit"], name="score"),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
        helper.make_node("Mul", ["box", "stride"], ["pixels"]),
        helper.make_node("Concat", ["pixels", "score"], ["joined"], axis=1),
        helper.make_node("Reshape", ["joined", "shape"], ["output"]),
    ]
    initializers = [
        weight("w0", 8, 3, 3, 3),
        weight("w_box", 4, 8, 1, 1),
        weight("w_score", 3, 8, 1, 1),
        numpy_helper.from_array(np.float32(100), "stride"),
        numpy_helper.from_array(np.array([1, 7, -1]), "shape"),
    ]
    shape = list(contract.input_shape)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 7, 192])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    entries = onnx_file.contract_metadata(contract, "detect", None, ("a", "b", "c"))
    onnx_file.set_metadata(model, entries)
    return onnx_file.save(model, path)


def contents(folder: Path, contract: Preprocess = CONTRACT, **changes: Any) -> BundleContents:
    """Everything for a bundle of the small model, made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = small_model(folder / "model.onnx", contract)
    random = np.random.default_rng(3)
    samples = []
    with open_session("onnxruntime", model.path) as session:
        for height, width in ((40, 60), (24, 32)):
            image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            tensor, _ = apply(image, contract)
            outputs = session.run({"images": tensor})
            samples.append(GoldenSample(image=image, input=tensor, outputs=outputs))
    np.savez(folder / "statistics.npz", ranges=np.arange(4.0))
    (folder / "table.txt").write_text("conv 1.0\n")
    checkpoint = hashlib.sha256(b"checkpoint").hexdigest()
    values: dict[str, Any] = {
        "name": "small",
        "target": {"name": "x86-fp32", "runtime": {"name": "onnxruntime"}},
        "checkpoint": {"sha256": checkpoint, "file": "best.pt"},
        "chain": (
            ChainStep(name="export", input_sha256=(checkpoint,), output_sha256=(model.sha256,)),
        ),
        "models": (
            BundleModel(
                engine=Engine(
                    runtime="onnxruntime",
                    files=(model.path,),
                    precision="fp32",
                    sha256=model.sha256,
                ),
                inputs=model.inputs,
                outputs=model.outputs,
            ),
        ),
        "preprocess": contract,
        "golden": tuple(samples),
        "golden_runtime": "onnxruntime",
        "golden_runtime_version": version_of("onnxruntime") or "",
        "blocks": (
            Block(name="boxes", output="output", axes=((), ((0, 4, 1),))),
            Block(name="scores", output="output", axes=((), ((4, 7, 1),))),
        ),
        "verdict": "The float model, as asked.",
        "task": "detect",
        "names": ("a", "b", "c"),
        "calibration": folder / "statistics.npz",
        "calibration_method": "minmax",
        "calibration_sha256": ("0" * 64, "1" * 64),
        "validation_sha256": ("2" * 64,),
        "extra": (
            ExtraFile(
                path="tables/conv.txt", source=folder / "table.txt", what="a table for a test"
            ),
        ),
    }
    return BundleContents(**{**values, **changes})


def fix_hashes(bundle: Path) -> None:
    """Set every size and hash right again, as somebody would who tampers on purpose."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        data = (bundle / name).read_bytes()
        entry.update(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    names = sorted([*manifest["files"], MANIFEST])
    lines = [f"{hashlib.sha256((bundle / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (bundle / SUMS).write_text("".join(lines))


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest with `edit`, and set the hashes right."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    edit(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    fix_hashes(bundle)


def set_contract(bundle: Path, contract: Preprocess) -> None:
    """Write `contract` into all its places: manifest, preprocess.json, every ONNX model."""
    for path in bundle.rglob("*.onnx"):
        model = onnx_file.load(path)
        onnx_file.set_metadata(model, {"edgekit.preprocess": contract.to_json()})
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        onnx_file.save(model, path)
        after = hashlib.sha256(path.read_bytes()).hexdigest()
        text = (bundle / MANIFEST).read_text()
        (bundle / MANIFEST).write_text(text.replace(before, after))
    (bundle / "preprocess.json").write_text(json.dumps(contract.to_dict()))
    edit_manifest(bundle, lambda manifest: manifest.update(preprocess=contract.to_dict()))
