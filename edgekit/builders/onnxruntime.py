"""ONNX Runtime loads ONNX files, so building is proving: it must load, and fuse what was meant to be INT8."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

from edgekit.atomic import replacing
from edgekit.cpu import detect
from edgekit.errors import BuildFailed
from edgekit.require import require
from edgekit.target import TargetProfile
from edgekit.types import Engine, OnnxModel

VERSION = 1


def build(model: OnnxModel, profile: TargetProfile, out: Path) -> Engine:
    """Copy `model` to `out`/model.onnx after ONNX Runtime has optimized it once in memory.

    For this machine's architecture the notes say how many QLinearConv the optimizer made of the QDQ
    convolutions, and name those that it left in float.
    """
    target = out / "model.onnx"
    with replacing(target) as temporary:
        shutil.copyfile(model.path, temporary)
    notes: tuple[str, ...] = ()
    here = detect().arch
    if profile.build.precision == "int8" and profile.device.arch != here:
        # which pairs of types the optimizer fuses depends on the architecture: int8 with int8 on ARM only
        _fused(model.path)
        notes = (f"what {profile.device.arch} computes in integers is not counted on {here}",)
    elif profile.build.precision == "int8":
        intended = _quantized_convs(model.path)
        fused, left = _fused(model.path)
        notes = (f"ONNX Runtime computes {fused} of {intended} QDQ convolutions in integers",)
        if fused < intended:
            notes += (f"left in float by the runtime: {', '.join(left[:5])}",)
    return Engine(
        runtime="onnxruntime",
        files=(target,),
        precision=profile.build.precision,
        sha256=model.sha256,
        notes=notes,
    )


def _quantized_convs(path: Path) -> int:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    return sum(
        node.op_type == "Conv"
        and all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])
        for node in graph.node
    )


def _fused(path: Path) -> tuple[int, list[str]]:
    """(QLinearConv in the optimized graph, names of QDQ convolutions that stayed float)."""
    import onnx

    ort = require("onnxruntime", "Building for ONNX Runtime")
    with tempfile.TemporaryDirectory(prefix="edgekit-build-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = 1
        settings.optimized_model_filepath = str(optimized)
        # extended, not all: the layout passes behind it only matter when running
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        try:
            ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        # onnxruntime's exceptions have no public base of their own
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise BuildFailed(f"ONNX Runtime cannot build {path.name}: {error}") from error
        graph = onnx.load(str(optimized)).graph
    counts = Counter(node.op_type for node in graph.node)
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    left = [
        node.name
        for node in graph.node
        if node.op_type in ("Conv", "FusedConv")
        and made_by.get(node.input[0]) == "DequantizeLinear"
        and made_by.get(node.input[1]) == "DequantizeLinear"
    ]
    return counts["QLinearConv"], left
