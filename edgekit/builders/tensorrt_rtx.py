"""TensorRT-RTX on a machine without a GPU: a real parser and builder that show what a graph becomes.

TensorRT-RTX has the ONNX parser and the compiler of TensorRT 11 and builds ahead of time for a compute
capability that need not be there. Its engines are not those of a Jetson; what it shows is that a
graph parses in a strongly typed network, and in which type each layer computes. It runs in a process
of its own, because a native library can crash the interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import BuildFailed, MissingDependency
from edgekit.require import version_of

MODULE = "tensorrt_rtx_bindings"
TIME_LIMIT_S = 600.0

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), (?P<rest>.*)$")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# what RTX calls the kernels that convolve and multiply; the rest moves, scales and activates
_PRODUCTS = frozenset({"correlation", "convolution", "conv", "deconv", "gemm", "matmul", "fc"})


@dataclass(frozen=True, kw_only=True)
class RtxLayer:
    """One layer of the built engine: kind of kernel, type of its first input ("Int8", "Half",
    "Float"), and the ONNX nodes that went into it."""

    name: str
    kind: str
    datatype: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RtxReport:
    """What TensorRT-RTX `version` made of a graph for compute capability `sm`.

    `errors` are the parser's, each with its node; then nothing was built.
    """

    version: str
    sm: str
    parsed: bool
    built: bool
    errors: tuple[str, ...]
    layers: tuple[RtxLayer, ...]
    engine_bytes: int = 0

    def datatypes(self) -> dict[str, str]:
        """ONNX node → type in which its products are computed."""
        found: dict[str, str] = {}
        for layer in self.layers:
            if layer.kind in _PRODUCTS:
                for node in layer.nodes:
                    found.setdefault(node, layer.datatype)
        return found


def available() -> bool:
    """Whether TensorRT-RTX's bindings are installed."""
    return importlib.util.find_spec(MODULE) is not None


def inspect(model: Path, sm: str = "8.6") -> RtxReport:
    """Parse `model` and build it ahead of time for `sm`.

    Raises MissingDependency without TensorRT-RTX, BuildFailed when its process crashes.
    """
    if not available():
        raise MissingDependency(
            "TensorRT-RTX is not installed.", hint="pip install 'edgekit[tensorrt-rtx]'"
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-rtx-") as folder:
        out = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "edgekit.builders.tensorrt_rtx_child"]
        try:
            done = subprocess.run(
                [*command, str(model), sm, str(out)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(
                f"TensorRT-RTX did not finish {model.name} within {TIME_LIMIT_S:.0f} s."
            ) from error
        if done.returncode or not out.is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise BuildFailed(f"TensorRT-RTX failed on {model.name}: {lines[-1]}")
        answer = json.loads(out.read_text(encoding="utf-8"))
    return RtxReport(
        version=version_of(MODULE) or answer["version"],
        sm=sm,
        parsed=answer["parsed"],
        built=answer["built"],
        errors=tuple(answer["errors"]),
        layers=read_layers(answer["log"]),
        engine_bytes=answer["engine_bytes"],
    )


def read_layers(log: str) -> tuple[RtxLayer, ...]:
    """The engine's layers from the builder's verbose log."""
    layers = []
    for line in log.splitlines():
        match = _LAYER.match(line)
        if match is None:
            continue
        types = _DATATYPE.findall(match["rest"])
        layers.append(
            RtxLayer(
                name=match["name"],
                kind=match["type"],
                datatype=types[0] if types else "",
                nodes=tuple(_ONNX_LAYER.findall(match["rest"])),
            )
        )
    return tuple(layers)
