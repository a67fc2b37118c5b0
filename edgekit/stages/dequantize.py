"""Quantized ONNX → float ONNX: dynamic quantization, which then can be calibrated, and QDQ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import UsageError
from edgekit.quantization import dynamic, existing
from edgekit.stages.divergence import checked_parity
from edgekit.stages.parity import INT8_LIMITS
from edgekit.types import OnnxModel, StageOutput

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray


def is_dynamic(model: onnx.ModelProto) -> bool:
    """Whether the graph quantizes its activations while it runs."""
    return any(node.op_type in dynamic.FLOAT_OPERATOR for node in model.graph.node)


def has_qdq(model: onnx.ModelProto) -> bool:
    """Whether the graph carries QDQ, of training or of another tool."""
    return any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def to_float(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The float graph, and what was turned.

    Raises UsageError when there is nothing to turn, NotPossible for a layer of another form.
    """
    import onnx
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    if not is_dynamic(model) and not has_qdq(model):
        raise UsageError(
            "The model is not quantized (dynamically, or by QDQ), so there is nothing to dequantize.",
            hint="Leave out --dequantize.",
        )
    graph = ir.from_proto(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    common.RemoveInitializersFromInputsPass()(graph)
    common.NameFixPass()(graph)
    common.IdentityEliminationPass()(graph)
    notes = []
    if is_dynamic(model):
        notes.append(f"{dynamic.to_float(graph)} dynamic INT8 layers turned into float")
    if has_qdq(model):
        notes.append(f"{existing.to_float(graph)} QDQ pairs taken off")
    proto = ir.to_proto(graph)
    # types and shapes of what is gone, and of what took its place
    del proto.graph.value_info[:]
    proto = onnx.shape_inference.infer_shapes(proto)
    onnx.checker.check_model(proto)
    return proto, ", ".join(notes)


def run(model: OnnxModel, feeds: Sequence[NDArray[Any]], out: Path) -> StageOutput:
    """Write the float graph of `model` to `out`, with its parity on `feeds`.

    The weights are those of the integers exactly; the activations are no longer rounded, so the
    outputs differ by what that rounding cost. Raises VerificationFailed where they differ by more
    than quantization does.
    """
    proto, note = to_float(onnx_file.load(model.path))
    onnx_file.set_metadata(proto, model.metadata)
    written = onnx_file.save(proto, out)
    name = onnx_file.main_input(model).name
    parity = checked_parity(
        "dequantize",
        model.path,
        written.path,
        [{name: feed} for feed in feeds],
        INT8_LIMITS,
        blocks_of=written.path,
        head=model.metadata.get(onnx_file.HEAD_KEY),
    )
    return StageOutput(model=written, parity=parity, notes=(note,))
