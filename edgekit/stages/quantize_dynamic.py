"""Prepared ONNX → INT8 weights with activations quantized by each input's own range; no calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import BadInput, NotPossible, UsageError
from edgekit.quantization import dynamic_insert
from edgekit.stages.divergence import checked_parity
from edgekit.stages.parity import INT8_LIMITS
from edgekit.stages.quantize import (
    OLDEST_OPSET,
    Quantized,
    QuantizeOptions,
    check_opset,
    rules_of,
    scheme_of,
)
from edgekit.target import TargetProfile
from edgekit.types import OnnxModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def run(
    model: OnnxModel,
    profile: TargetProfile,
    feeds: Sequence[NDArray[Any]],
    out: Path,
    options: QuantizeOptions,
) -> Quantized:
    """Write the dynamically quantized model to `out`.

    `feeds`, input tensors of real images, are for the parity with the float graph; empty leaves it
    out. Raises NotPossible where the target does not run ONNX Runtime or no layer can be INT8,
    UsageError for bias correction, which needs a calibration.
    """
    import onnx
    import onnx_ir as ir

    rules = rules_of(profile)
    if profile.runtime.name != "onnxruntime":
        raise NotPossible(
            f"{profile.runtime.name} has no dynamic quantization.",
            hint="Use --mode static, or a target of ONNX Runtime.",
        )
    if options.bias_correction:
        raise UsageError("Bias correction needs a calibration, which --mode dynamic does without.")
    check_opset(model, OLDEST_OPSET)
    graph = ir.load(str(model.path))
    known = {node.name for node in graph.graph}
    for name in options.keep_float:
        if name not in known:
            raise BadInput(f"No node '{name}' in {model.path.name}, asked to stay float.")
    scheme = scheme_of(profile, options)
    placement = dynamic_insert.place(graph, rules, options.keep_float)
    if not placement.compute:
        reasons = "; ".join(sorted(set(placement.floats.values())))
        raise NotPossible(
            f"No layer of {model.path.name} can be INT8 for {profile.name}: {reasons}."
        )
    dynamic_insert.insert(graph, placement, scheme)
    proto = ir.to_proto(graph)
    onnx_file.set_metadata(proto, model.metadata)
    onnx.checker.check_model(proto)
    quantized = onnx_file.save(proto, out)
    parity = None
    if feeds:
        name = onnx_file.main_input(model).name
        parity = checked_parity(
            "quantize",
            model.path,
            quantized.path,
            [{name: feed} for feed in feeds],
            INT8_LIMITS,
            blocks_of=model.path,
            head=model.metadata.get(onnx_file.HEAD_KEY),
        )
    total = len(placement.compute) + len(placement.floats)
    notes = (
        f"{len(placement.compute)} of {total} layers, {placement.int8_mac_share:.1%} of the MACs in INT8",
        f"{scheme.weight_bits}-bit weights per {'channel' if scheme.per_channel else 'tensor'}, "
        "uint8 activations by the range of every input",
    )
    return Quantized(
        model=quantized, placement=placement, scheme=scheme, parity=parity, notes=notes
    )
