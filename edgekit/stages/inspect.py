"""What a model is: its layers, their zeros, levels and precision, and what all that could save.

Everything is read from a graph. A torch checkpoint of any kind is exported for it without folding
BatchNorm into the convolutions, so that the weights are those of training (what a network computes
from its latent weights, ternary codes for one, is what counts and is what the graph holds).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import onnx_file
from edgekit.errors import BuildFailed, NotPossible
from edgekit.quantization.ternary import find_levels
from edgekit.require import require
from edgekit.stages import graph_layers, layer_macs
from edgekit.stages.export import INPUT_NAME
from edgekit.stages.graph_layers import GraphLayer

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from edgekit.stages.opening import NamedModel

_OPSET = 17
_TERNARY_BITS = 2
_SCALE_BITS = 32


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """One layer. `sparsity` is the share of exact zeros, `levels` the number of distinct values.

    `ternary` layers have Wp and Wn: one value, or (least, largest) over the channels. `weight_scale`
    and `input_scale` are the scales that the file carries, the weight's as (least, largest) where
    channels have their own. `bits` is what the weight takes in theory, its scales included.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None
    mac_share: float | None
    sparsity: float
    levels: int
    precision: str
    ternary: bool
    per_channel: bool = False
    wp: tuple[float, ...] = ()
    wn: tuple[float, ...] = ()
    weight_scale: tuple[float, ...] = ()
    input_scale: float | None = None
    bits: int = 0


@dataclass(frozen=True, kw_only=True)
class Against:
    """Beside a baseline: fractions of the baseline that are gone, and the ratio of theoretical bits."""

    parameters: int
    macs: int | None
    size_mb: float
    parameters_removed: float
    flops_reduction: float | None
    theoretical_compression: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The whole model. Shares are fractions of 1 of all parameters.

    `sparsity` counts the weights of layers. `size_mb` is the file on disk, `memory_mb` the parameters
    as they lie in memory. `bits` is the sum of theoretical bits of all parameters, and
    `theoretical_compression` 32 bits per parameter over that, or the baseline's bits over it.
    """

    name: str
    kind: str
    parameters: int
    macs: int | None
    size_mb: float
    memory_mb: float
    sparsity: float
    ternary_share: float
    int8_share: float
    float_share: float
    bits: int
    theoretical_compression: float
    layers: tuple[LayerFacts, ...]
    input_shape: tuple[int, ...] = ()
    against: Against | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def flops(self) -> int | None:
        """Two per MAC: a product and a sum."""
        return None if self.macs is None else 2 * self.macs


def run(model: NamedModel, size: tuple[int, int] | None = None) -> Inspection:
    """Look at `model`; `size` (height, width) where it does not say its input's.

    Raises UsageError when nobody says the input size, NotPossible for models that are no graph
    (files of other runtimes), BuildFailed when a checkpoint cannot be exported.
    """
    checkpoint = model.checkpoint
    shape: tuple[int, ...]
    if checkpoint.module is not None:
        contract = model.contract({}, size).contract
        shape = contract.input_shape
        if checkpoint.input_shape is None and contract.layout == "nchw":
            shape = (shape[0], _channels(checkpoint.module, shape[1]), *shape[2:])
        proto = graph_of(checkpoint.module, shape)
        count = checkpoint.parameters
    elif checkpoint.onnx is not None:
        proto = onnx_file.load(checkpoint.onnx)
        shape = checkpoint.input_shape or ()
        if size is not None and len(shape) != 4:
            shape = (1, 3, *size)
        count = 0
    else:
        raise NotPossible(
            f"{model.name} is a file of {model.runtime}, which edgekit does not look into.",
            hint="Inspect the checkpoint or the ONNX model that it was made of.",
        )
    return inspect_graph(
        proto,
        name=model.name,
        kind=checkpoint.kind,
        input_shape=shape,
        size_bytes=model.size_bytes,
        parameters=count,
        notes=checkpoint.notes,
    )


def inspect_graph(
    proto: onnx.ModelProto,
    *,
    name: str,
    kind: str,
    input_shape: tuple[int, ...],
    size_bytes: int,
    parameters: int = 0,
    notes: tuple[str, ...] = (),
) -> Inspection:
    """The inspection of a graph; `parameters` 0 counts those of the graph."""
    macs = layer_macs.count_macs(proto, input_shape or None)
    found = list(graph_layers.layers(proto, macs))
    total = sum(macs.values()) or None
    facts = tuple(_facts(layer, total) for layer in _distinct_names(found))
    counted, in_memory = graph_layers.parameters(proto)
    count = parameters or counted
    inside = sum(layer.weight.size for layer in found)
    zeros = sum(layer.weight.size - np.count_nonzero(layer.weight) for layer in found)
    ternary = sum(x.weight.size for x, f in zip(found, facts, strict=True) if f.ternary)
    integers = sum(
        x.weight.size
        for x, f in zip(found, facts, strict=True)
        if not f.ternary and x.integers is not None
    )
    # what is no layer's weight (biases, normalization) is counted as it is stored: 32 bits
    bits = sum(fact.bits for fact in facts) + 32 * max(count - inside, 0)
    share = 1.0 / count if count else 0.0
    return Inspection(
        name=name,
        kind=kind,
        parameters=count,
        macs=total,
        size_mb=size_bytes / 1e6,
        memory_mb=in_memory / 1e6,
        sparsity=zeros / inside if inside else 0.0,
        ternary_share=ternary * share,
        int8_share=integers * share,
        float_share=max(0.0, 1.0 - (ternary + integers) * share) if count else 0.0,
        bits=bits,
        theoretical_compression=32 * count / bits if bits else 1.0,
        layers=facts,
        input_shape=tuple(input_shape),
        notes=notes + _words(zeros / inside if inside else 0.0, ternary, total, found),
    )


def against(model: Inspection, baseline: Inspection) -> Inspection:
    """`model` with its comparison to `baseline`; its theoretical compression is then against it."""
    import dataclasses

    reduction = None
    if model.macs and baseline.macs:
        reduction = 1.0 - model.macs / baseline.macs
    compression = baseline.bits / model.bits if model.bits else 1.0
    return dataclasses.replace(
        model,
        theoretical_compression=compression,
        against=Against(
            parameters=baseline.parameters,
            macs=baseline.macs,
            size_mb=baseline.size_mb,
            parameters_removed=1.0 - model.parameters / max(baseline.parameters, 1),
            flops_reduction=reduction,
            theoretical_compression=compression,
        ),
    )


def _words(
    sparsity: float, ternary: int, macs: int | None, layers: Iterable[GraphLayer]
) -> tuple[str, ...]:
    """What the figures do not say by themselves."""
    said: list[str] = []
    layers = list(layers)
    if sparsity > 0.2 and not ternary and all(layer.integers is None for layer in layers):
        said.append(
            f"{100 * sparsity:.0f} % of the weights are zero, and no runtime that edgekit builds for "
            "gains from zeros: only removing whole channels makes a dense network faster"
        )
    if ternary:
        said.append(
            "2 bits per ternary weight are what they take in theory; runtimes store them as 8"
        )
    if macs is None and layers:
        said.append("the shapes are not known, so MACs are not counted (--imgsz)")
    return tuple(said)


def _distinct_names(layers: list[GraphLayer]) -> list[GraphLayer]:
    """Short module names where they are unique, the nodes' own where they are not."""
    import collections
    import dataclasses

    short = [_module_name(layer.name) for layer in layers]
    counts = collections.Counter(short)
    return [
        dataclasses.replace(layer, name=name if counts[name] == 1 else layer.name)
        for layer, name in zip(layers, short, strict=True)
    ]


def _module_name(node: str) -> str:
    """ "/layer1/layer1.0/conv1/Conv" → "layer1.0.conv1": torch's exporter names nodes by scopes.

    Each scope of a container's child repeats the container's name before its own.
    """
    scopes = [part for part in node.split("/") if part]
    if not node.startswith("/") or len(scopes) < 2:
        return node
    path = ""
    for scope in scopes[:-1]:
        inside = path and (scope == path or scope.startswith(path + "."))
        last = path.rpartition(".")[2]
        if inside:
            path = scope
        elif last and scope.startswith(last + "."):
            path = path[: len(path) - len(last)] + scope
        else:
            path = f"{path}.{scope}" if path else scope
    return path


def _facts(layer: GraphLayer, total: int | None) -> LayerFacts:
    weight = layer.weight
    levels = find_levels(weight, layer.axis)
    kind = layer.kind
    if kind == "Conv" and layer.groups > 1:
        kind = "Conv depthwise" if weight.shape[1] == 1 else f"Conv {layer.groups} groups"
    distinct = np.unique(weight if layer.integers is None else layer.integers).size
    return LayerFacts(
        name=layer.name,
        type=kind,
        shape=tuple(int(size) for size in weight.shape),
        parameters=int(weight.size) + layer.bias,
        macs=layer.macs,
        mac_share=layer.macs / total if layer.macs is not None and total else None,
        sparsity=1.0 - np.count_nonzero(weight) / weight.size if weight.size else 0.0,
        levels=int(distinct),
        precision=layer.precision,
        ternary=levels is not None,
        per_channel=levels is not None and levels.per_channel,
        wp=() if levels is None else _ends(levels.positive),
        wn=() if levels is None else _ends(levels.negative),
        weight_scale=() if layer.scale is None else _ends(layer.scale),
        input_scale=layer.input_scale,
        bits=_bits(layer, None if levels is None else int(levels.positive.size)),
    )


def _ends(values: NDArray[Any]) -> tuple[float, ...]:
    """The value, or (least, largest) of several."""
    flat = values.reshape(-1)
    low, high = float(flat.min()), float(flat.max())
    return (low,) if flat.size == 1 or low == high else (low, high)


def _bits(layer: GraphLayer, pairs: int | None) -> int:
    """Theoretical bits of the weight with its scales; `pairs` of levels when it is ternary."""
    size = int(layer.weight.size)
    if pairs is not None:
        return _TERNARY_BITS * size + 2 * _SCALE_BITS * pairs
    if layer.integers is not None:
        scales = 1 if layer.scale is None else int(layer.scale.size)
        return 8 * int(layer.integers.dtype.itemsize) * size + _SCALE_BITS * scales
    return 8 * int(layer.weight.dtype.itemsize) * size


def _channels(module: Any, assumed: int) -> int:
    """Input channels: those of the first convolution's weight, where there is one."""
    first = next((item for item in module.parameters() if item.dim() == 4), None)
    return assumed if first is None else int(first.shape[1])


def graph_of(module: Any, shape: tuple[int, ...]) -> onnx.ModelProto:
    """`module` as a graph with the weights that it computes with, BatchNorm left beside them."""
    torch = require("torch", "Inspecting a torch checkpoint")
    example = torch.zeros(shape)
    trouble: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-inspect-") as folder:
        for name, kwargs in (
            ("TorchScript exporter", {"dynamo": False, "do_constant_folding": True}),
            ("dynamo exporter", {"dynamo": True, "external_data": False, "verbose": False}),
        ):
            out = Path(folder) / "model.onnx"
            if not kwargs["dynamo"] and not isinstance(module, torch.jit.ScriptModule):
                # PRESERVE leaves out the folding of BatchNorm; the module is in eval mode already
                kwargs["training"] = torch.onnx.TrainingMode.PRESERVE
            printed = io.StringIO()
            try:
                with (
                    warnings.catch_warnings(),
                    contextlib.redirect_stdout(printed),
                    contextlib.redirect_stderr(printed),
                    torch.inference_mode(),
                ):
                    warnings.simplefilter("ignore")
                    torch.onnx.export(
                        module,
                        (example,),
                        str(out),
                        input_names=[INPUT_NAME],
                        opset_version=_OPSET,
                        **kwargs,
                    )
                return onnx_file.load(out)
            # an exporter is third-party code run on third-party modules: whatever it raises means
            # that it does not take this one, and the next is tried
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                trouble.append(f"{name}: {type(error).__name__}: {lines[0]}")
    raise BuildFailed(
        "No exporter took the checkpoint:\n  " + "\n  ".join(trouble),
        hint="Export it to ONNX yourself and inspect that file.",
    )
