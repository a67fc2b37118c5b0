"""Simplified ONNX → the graph that is calibrated and quantized.

The passes, in order, each leaving the computed function as it is (proved by parity afterwards):
constants become initializers, initializers stop being inputs, BatchNormalization is folded, channels
are evened out between convolutions where some are far larger than the others, every value and node
gets a name, shapes are inferred. The Calibration names the hash of this graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import BadInput
from edgekit.quantization import existing
from edgekit.quantization.equalization import equalize
from edgekit.quantization.folding import fold_batch_norms
from edgekit.stages.divergence import checked_parity
from edgekit.stages.parity import FLOAT_LIMITS, ROUNDING_LIMITS
from edgekit.types import OnnxModel, StageOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 2


def _lift_constants(model: Any) -> str:
    import onnx_ir.passes.common as common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    return ""


def _drop_identities(model: Any) -> str:
    import onnx_ir.passes.common as common

    common.IdentityEliminationPass()(model)
    return ""


def _fold(model: Any) -> str:
    count = fold_batch_norms(model)
    return f"{count} BatchNorm folded" if count else ""


def _equalize(model: Any) -> str:
    count = equalize(model)
    return f"channels of {count} pairs of convolutions equalized" if count else ""


def _sweep(model: Any) -> str:
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    return ""


def _name_everything(model: Any) -> str:
    import onnx_ir.passes.common as common

    common.NameFixPass()(model)
    return ""


BEFORE: tuple[Callable[[Any], str], ...] = (_lift_constants, _drop_identities, _fold)
AFTER: tuple[Callable[[Any], str], ...] = (_sweep, _name_everything)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """`equalize`: even out channels between uneven convolutions
    (`edgekit.quantization.equalization`); False leaves all weights as they are."""

    equalize: bool = True


def run(
    model: OnnxModel,
    feeds: Sequence[NDArray[Any]],
    out: Path,
    options: PrepareOptions | None = None,
) -> StageOutput:
    """Write the prepared graph to `out`. Raises VerificationFailed when a pass changed the function."""
    import onnx
    import onnx_ir as ir

    _refuse_bad_weights(onnx_file.load(model.path), model.path.name)
    graph = ir.load(str(model.path))
    asked = (_equalize,) if options is None or options.equalize else ()
    notes = tuple(filter(None, (step(graph) for step in (*BEFORE, *asked, *AFTER))))
    proto = ir.to_proto(graph)
    # shapes inferred by an earlier tool may be missing for tensors that a pass made
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    onnx_file.set_metadata(proto, model.metadata)
    prepared = onnx_file.save(proto, out)
    name = onnx_file.main_input(model).name
    parity = checked_parity(
        "prepare",
        model.path,
        prepared.path,
        [{name: feed} for feed in feeds],
        ROUNDING_LIMITS if existing.rounds(proto) else FLOAT_LIMITS,
        blocks_of=prepared.path,
        head=model.metadata.get(onnx_file.HEAD_KEY),
    )
    return StageOutput(
        model=prepared, parity=parity, notes=notes, holds_qdq=existing.holds_qdq(proto)
    )


def float_twin(model: OnnxModel, out: Path) -> OnnxModel:
    """Write the float network that a graph with quantization of its own belongs to.

    It is what the speed and accuracy of INT8 are compared with; see quantization.existing.to_float.
    """
    import onnx_ir as ir

    graph = ir.load(str(model.path))
    existing.to_float(graph)
    proto = ir.to_proto(graph)
    onnx_file.set_metadata(proto, model.metadata)
    return onnx_file.save(proto, out)


def _refuse_bad_weights(model: Any, name: str) -> None:
    import numpy as np
    import onnx

    for item in model.graph.initializer:
        if item.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            array = onnx.numpy_helper.to_array(item)
            if not np.isfinite(array).all():
                raise BadInput(
                    f"{name}: the weight '{item.name}' holds "
                    f"{int((~np.isfinite(array)).sum())} values that are NaN or infinite.",
                    hint="The training diverged or the file is damaged: use another checkpoint.",
                )
