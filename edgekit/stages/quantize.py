"""Prepared ONNX + Calibration → QDQ ONNX, by the placement rules of the target profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import BadInput, NotPossible
from edgekit.quantization import assemble, existing
from edgekit.quantization.bias_correction import input_channels
from edgekit.quantization.forms import FOLLOWED, take
from edgekit.quantization.placement import Placement, every_activation, observed
from edgekit.quantization.rules import Rules, compute_nodes
from edgekit.quantization.scheme import Scheme
from edgekit.quantization.weight_range import ABSMAX, MSE
from edgekit.stages import recover
from edgekit.stages.divergence import checked_parity
from edgekit.stages.parity import INT8_LIMITS, ParityLimits
from edgekit.stages.recover import RecoverOptions
from edgekit.target import TargetProfile
from edgekit.types import Calibration, OnnxModel, ParityReport, Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.calibration.statistics import Statistics

OLDEST_OPSET = 13
"""QuantizeLinear and DequantizeLinear have a channel axis from this opset on."""

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """`keep_float` names nodes of the prepared graph that stay float; `per_channel` and
    `weight_bits` None follow the profile. `bias_correction` takes what rounding the weights adds to
    the mean outputs off the biases; the calibration must hold the channel means of
    `observed_channels`. `weight_range` "mse" clips weights where that lowers their squared error;
    `recover` holds what looks at images again: rounding and full bias correction."""

    keep_float: tuple[str, ...] = ()
    per_channel: bool | None = None
    weight_bits: int | None = None
    bias_correction: bool = False
    weight_range: str = ABSMAX
    recover: RecoverOptions = field(default_factory=RecoverOptions)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A QDQ model, what was placed where, and its parity with the float graph."""

    model: OnnxModel
    placement: Placement
    scheme: Scheme
    parity: ParityReport | None
    notes: tuple[str, ...]


def rules_of(profile: TargetProfile) -> Rules:
    """The profile's placement rules. Raises NotPossible for a float profile."""
    if profile.quantize is None:
        raise NotPossible(
            f"The target {profile.name} is not an INT8 target.",
            hint="Choose one whose name ends in int8 (`edgekit targets list`).",
        )
    section = profile.quantize
    formed = [name for form in section.forms for name in FOLLOWED.get(form, ())]
    return Rules(
        operators=section.operators,
        follow=(*section.follow, *formed),
        keep_float=section.keep_float,
        min_channels=section.min_channels,
        max_range_ratio=section.max_range_ratio,
        forms=section.forms,
        small_share=section.small_share,
        operands_only=section.operands_only,
    )


def scheme_of(profile: TargetProfile, options: QuantizeOptions) -> Scheme:
    """The profile's integers, with the options' overrides; "auto" range reduction asks the CPU."""
    section = profile.quantize
    assert section is not None
    bits = options.weight_bits or (7 if profile.reduces_range() else 8)
    per_channel = section.per_channel if options.per_channel is None else options.per_channel
    return Scheme(
        activation_type=section.activation_type,
        symmetric_activations=section.symmetric_activations,
        per_channel=per_channel,
        weight_bits=bits,
        integer_bias=section.bias == "int32",
        explicit_weights=profile.runtime.name == "tensorrt",
        weight_range=options.weight_range,
    )


def observed_tensors(model: OnnxModel, profile: TargetProfile) -> tuple[str, ...]:
    """Names of the tensors whose statistics this profile's placement may need.

    For TensorRT every activation: its calibration caches give each tensor of the network a scale.
    Raises NotPossible where nothing can be INT8.
    """
    import onnx_ir as ir

    ir_model = ir.load(str(model.path))
    graph = ir_model.graph
    rules = rules_of(profile)
    take(ir_model, rules.forms)
    names = observed(ir_model, rules)
    if names and profile.runtime.name == "tensorrt":
        names = tuple(dict.fromkeys((*every_activation(ir_model).values(), *names)))
    if not names and any(existing.is_quantized(node) for node in graph):
        # all scales are there already; an output is observed so that there is a calibration
        return (graph.outputs[0].name,)
    if not names:
        kinds = {node.op_type for node in graph}
        hint = "Use a float target."
        if kinds & {"ConvInteger", "MatMulInteger"}:
            hint = "It is dynamically quantized: turn it into float first, --dequantize."
        elif kinds & {"QLinearConv", "QLinearMatMul", "QGemm"}:
            hint = "It is in integers already (QLinear): a float target takes it as it is."
        raise NotPossible(
            f"{model.path.name} has nothing that {profile.name} computes in INT8.", hint=hint
        )
    return names


def needs_calibration(model: OnnxModel, profile: TargetProfile) -> bool:
    """Whether any tensor lacks the scale that this profile may want; False for a graph full of them."""
    import onnx_ir as ir

    loaded, rules = ir.load(str(model.path)), rules_of(profile)
    if not any(existing.is_quantized(node) for node in loaded.graph):
        return True
    take(loaded, rules.forms)
    return bool(observed(loaded, rules))


def uncalibrated_layers(model: OnnxModel, profile: TargetProfile) -> tuple[str, ...]:
    """Names of the layers that would stay float for want of a calibration."""
    import onnx_ir as ir

    graph, rules = ir.load(str(model.path)), rules_of(profile)
    existing.share(graph.graph, rules.operators)
    with_nothing = assemble.placed(graph, rules, {})
    chosen, _ = compute_nodes(graph.graph, rules, (), with_nothing.macs)
    return tuple(node.name for node in chosen if node.name in with_nothing.floats)


def no_calibration(model: OnnxModel) -> Calibration:
    """What stands for the calibration of `model` where nothing has to be calibrated."""
    return Calibration(
        path=Path(), sha256="", graph_sha256=model.sha256, method="none", ranges={}, images=0
    )


def observed_channels(model: OnnxModel, profile: TargetProfile) -> dict[str, int]:
    """Tensor → channel axis of the inputs whose channel means bias correction needs."""
    import onnx_ir as ir

    return input_channels(ir.load(str(model.path)), rules_of(profile))


def channel_means(statistics: Statistics) -> dict[str, NDArray[Any]]:
    """Mean per channel, float64 [C], of every tensor that was observed by channel."""
    return {
        name: tensor.channels.mean
        for name, tensor in statistics.tensors.items()
        if tensor.channels is not None and tensor.channels.channels
    }


def _means(calibration: Calibration, options: QuantizeOptions) -> dict[str, NDArray[Any]]:
    if not options.bias_correction or not calibration.ranges:
        return {}
    from edgekit.calibration import store

    means = channel_means(store.read(calibration.path)[0])
    if not means:
        raise BadInput(
            f"{calibration.path} holds no channel means, which bias correction needs.",
            hint="Collect it again: `edgekit calibrate MODEL --images DIR --target T` keeps them.",
        )
    return means


def check_opset(model: OnnxModel, oldest: int) -> None:
    """Raise BadInput when the model's opset is older than its quantized operators."""
    if model.opset < oldest:
        raise BadInput(
            f"{model.path.name} is opset {model.opset}; what it would be quantized with exists from "
            f"opset {oldest} on.",
            hint=f"`edgekit export {model.path.name}` raises it on its way; so does "
            "onnx.version_converter.",
        )


def check_calibration(calibration: Calibration, model: OnnxModel) -> None:
    """Raise BadInput when the calibration was not collected on `model`."""
    if calibration.graph_sha256 != model.sha256:
        raise BadInput(
            f"The calibration was collected on another graph ({calibration.graph_sha256[:12]}…) "
            f"than {model.path.name} ({model.sha256[:12]}…).",
            hint="Calibrate this model: `edgekit calibrate`.",
        )


def run(
    model: OnnxModel,
    calibration: Calibration,
    profile: TargetProfile,
    feeds: Sequence[NDArray[Any]],
    out: Path,
    options: QuantizeOptions,
    *,
    recovery_feeds: Sequence[NDArray[Any]] = (),
    threads: int = 1,
    progress: Progress = no_progress,
    limits: ParityLimits | None = INT8_LIMITS,
) -> Quantized:
    """Write the QDQ model to `out`.

    `calibration` must be that of this very graph (BadInput otherwise). `feeds`, input tensors of
    real images, are for the parity with the float graph; empty leaves it out. Breaking `limits` is
    VerificationFailed; None only measures. `recovery_feeds` are what `options.recover` looks at
    (`feeds` where it is empty).
    """
    import onnx
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    check_calibration(calibration, model)
    check_opset(model, OLDEST_OPSET)
    graph = ir.load(str(model.path))
    known = {node.name for node in graph.graph}
    for name in options.keep_float:
        if name not in known:
            raise BadInput(f"No node '{name}' in {model.path.name}, asked to stay float.")
    rules = rules_of(profile)
    scheme = scheme_of(profile, options)
    kept = sum(existing.is_quantized(node) for node in graph.graph)
    if kept:
        existing.share(graph.graph, rules_of(profile).operators)
        common.TopologicalSortPass()(graph)
    means = _means(calibration, options)
    placement = assemble.quantized(
        graph,
        rules,
        calibration.ranges,
        scheme,
        options.keep_float,
        # weights that are rounded anew get their biases corrected after that
        means if options.recover.rounding == recover.NEAREST else {},
    )
    if not placement.compute:
        reasons = sorted(set(placement.floats.values()))
        raise NotPossible(
            f"No layer of {model.path.name} can be INT8 for {profile.name}: " + "; ".join(reasons),
        )
    recovered = recover.run(
        model,
        graph,
        recovery_feeds or feeds,
        options.recover,
        means=means,
        threads=threads,
        progress=progress,
    )
    if kept and not scheme.explicit_weights:
        existing.store_integers(graph.graph)
    if kept and scheme.activation_type == "uint8" and profile.runtime.name == "onnxruntime":
        existing.to_unsigned(graph.graph)
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
            limits,
            blocks_of=model.path,
            head=model.metadata.get(onnx_file.HEAD_KEY),
        )
    total = len(placement.compute) + len(placement.floats)
    notes = [
        f"{len(placement.compute)} of {total} layers, {placement.int8_mac_share:.1%} of the MACs in INT8",
        f"{scheme.weight_bits}-bit weights per {'channel' if scheme.per_channel else 'tensor'}, "
        f"{scheme.activation_type} activations"
        + (", biases corrected" if options.bias_correction else "")
        + (", weight ranges by mse" if scheme.weight_range == MSE else ""),
        *recovered,
    ]
    if kept:
        notes.append(f"{kept} layers were quantized already and keep their scales")
    return Quantized(
        model=quantized, placement=placement, scheme=scheme, parity=parity, notes=tuple(notes)
    )
