"""Dynamically quantized ONNX → float ONNX, which can be calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import UsageError
from edgekit.quantization import dynamic
from edgekit.runtimes import open_session
from edgekit.stages.parity import INT8_LIMITS, compare_sessions, demand
from edgekit.types import OnnxModel, StageOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    import onnx


def is_dynamic(model: onnx.ModelProto) -> bool:
    """Whether the graph quantizes its activations while it runs."""
    return any(node.op_type in dynamic.FLOAT_OPERATOR for node in model.graph.node)


def to_float(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The float graph, and how many layers were turned.

    Raises UsageError when there is none to turn, NotPossible for a layer of another form.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    if not is_dynamic(model):
        raise UsageError(
            "The model has no dynamically quantized layers, so there is nothing to dequantize.",
            hint="Leave out --dequantize.",
        )
    graph = ir.from_proto(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    common.RemoveInitializersFromInputsPass()(graph)
    common.NameFixPass()(graph)
    count = dynamic.to_float(graph)
    return ir.to_proto(graph), count


def run(model: OnnxModel, feeds: Sequence[NDArray[Any]], out: Path) -> StageOutput:
    """Write the float graph of `model` to `out`, with its parity on `feeds`.

    The weights are those of the integers exactly; the activations are no longer rounded, so the
    outputs differ by what that rounding cost. Raises VerificationFailed where they differ by more
    than quantization does.
    """
    proto, count = to_float(onnx_file.load(model.path))
    onnx_file.set_metadata(proto, model.metadata)
    written = onnx_file.save(proto, out)
    with (
        open_session("onnxruntime", model.path) as reference,
        open_session("onnxruntime", written.path) as candidate,
    ):
        name = onnx_file.main_input(model).name
        named = [{name: feed} for feed in feeds]
        head = model.metadata.get(onnx_file.HEAD_KEY)
        parity = compare_sessions(reference, candidate, named, written.path, head)
    demand(parity, INT8_LIMITS, "dequantize")
    return StageOutput(
        model=written, parity=parity, notes=(f"{count} dynamic INT8 layers turned into float",)
    )
