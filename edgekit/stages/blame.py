"""Where INT8 loses time: the layers and kinds of operators that take longer than in float.

Both models run under ONNX Runtime's profiler. Layers are matched by the node names that the
optimizer keeps; what has no counterpart (Sigmoid and Mul against one fused activation, conversions,
layout changes) is summed by kind.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.onnxruntime import OnnxRuntimeSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RUNS = 12
_WARMUP = 3
# what the optimizer appends to a node's name
_SUFFIX = re.compile(r"(_kernel_time|_token_\d+|_nchwc|_output_\d+|/QuickGeluFusion/|_quant)$")

_KINDS = {
    "activations and products": {
        *(
            "Sigmoid",
            "Mul",
            "QuickGelu",
            "HardSwish",
            "HardSigmoid",
            "Gelu",
            "Tanh",
            "Clip",
            "Relu",
        ),
        *(
            "LeakyRelu",
            "QLinearSigmoid",
            "QLinearMul",
            "QLinearLeakyRelu",
            "Softmax",
            "QLinearSoftmax",
        ),
    },
    "conversions between float and INT8": {"QuantizeLinear", "DequantizeLinear"},
    "layout changes": {"Transpose", "ReorderInput", "ReorderOutput"},
    "additions": {"Add", "QLinearAdd", "Sum"},
    "concatenations": {"Concat", "QLinearConcat"},
    "pooling": {"MaxPool", "NhwcMaxPool", "GlobalAveragePool", "QLinearGlobalAveragePool"}
    | {"AveragePool", "QLinearAveragePool"},
    "resizing": {"Resize", "Upsample"},
}
_LAYERS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "Gemm", "QGemm", "MatMul"}
)


def slower_in_int8(
    float_model: Path, int8_model: Path, feeds: Mapping[str, NDArray[Any]], count: int = 5
) -> tuple[str, ...]:
    """Lines such as "conversions between float and INT8 1.20 ms against 0.00 ms", worst first.

    At most `count` lines, each with the mean ms of a run in INT8 and in float; only what costs more
    than 1 % of the float model's time is named.
    """
    reference, candidate = _profile(float_model, feeds), _profile(int8_model, feeds)
    total = sum(reference.values())
    excess = {
        name: candidate.get(name, 0.0) - reference.get(name, 0.0)
        for name in reference.keys() | candidate.keys()
    }
    worst = sorted(
        (name for name in excess if excess[name] > 0.01 * total), key=lambda n: -excess[n]
    )
    return tuple(
        f"{name} {candidate.get(name, 0.0):.2f} ms against {reference.get(name, 0.0):.2f} ms"
        for name in worst[:count]
    )


def _profile(model: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Mean milliseconds per run, by layer name or kind."""
    with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
        options = SessionOptions(threads=1, profile_prefix=str(Path(folder) / "trace"))
        with OnnxRuntimeSession(model, options) as session:
            for _ in range(_WARMUP + _RUNS):
                session.run(feeds)
            events = json.loads(session.end_profiling().read_text())
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            times[_group(name, event["args"].get("op_name", ""))].append(event["dur"] / 1e3)
    return {group: _mean_run(samples) for group, samples in times.items()}


def _mean_run(samples: list[float]) -> float:
    """Sum per run, without the warm-up runs; events come in the order of the runs."""
    per_run = len(samples) // (_WARMUP + _RUNS) or 1
    return sum(samples[_WARMUP * per_run :]) / _RUNS


def _group(event: str, op_type: str) -> str:
    if op_type in _LAYERS:
        name = event
        while (shorter := _SUFFIX.sub("", name)) != name:
            name = shorter
        return f"layer {name}"
    for kind, types in _KINDS.items():
        if op_type in types:
            return kind
    return f"{op_type} operators"
