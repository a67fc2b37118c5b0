"""Prepared ONNX → ncnn in float: rewrites, pnnx, and the gate that only a faithful model passes.

pnnx ends well with models that ncnn cannot load, that give NaN, or that compute something else. So
what it writes counts only when every layer is known to ncnn, every output of the ONNX model is there
in its order, and real images give the same numbers as ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.builders import ncnn as builder
from edgekit.builders.ncnn_rewrites import REWRITES, Rewrite
from edgekit.builders.pnnx import NcnnModel
from edgekit.errors import BuildFailed, EdgekitError, NotPossible, VerificationFailed
from edgekit.runtimes import open_session
from edgekit.runtimes.ncnn import unknown_layers
from edgekit.stages import ncnn_probe
from edgekit.stages.blocks import find_blocks
from edgekit.stages.parity import FLOAT_LIMITS, ParityLimits, ParityMeter, broken_block
from edgekit.types import Engine, OnnxModel, ParityReport, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1

NCNN_LIMITS = ParityLimits(max_rel_error=1e-3, negligible=1e-5)
"""A float32 ncnn model against ONNX Runtime. Measured: 2e-7 to 5e-6 on YOLO and CIFAR networks, up to
8e-5 where a tanh is approximated."""

# absolute: ONNX Runtime's sigmoid is off by 1e-3 of its value at -11 and by four times it at -18, so
# the scores of a scale that sees nothing differ by more than the limit without meaning anything
_UNFELT = 1e-6

HALF_LIMITS = ParityLimits(max_rel_error=0.05, min_cosine=0.999, negligible=0.02)
"""The same with weights (and, where the CPU can, activations) of 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """An ncnn model on disk, proved: its parity with the ONNX model, and what was done to get it."""

    engine: Engine
    parity: ParityReport
    notes: tuple[str, ...]


def run(model: OnnxModel, feeds: Sequence[NDArray[Any]], precision: str, out: Path) -> Converted:
    """Write model.json, model.param and model.bin for `model` into the folder `out`.

    `feeds` are input tensors of real images; `precision` is "fp32", "fp16" or "bf16" (storage).
    Raises NotPossible for what ncnn cannot have (QDQ among it), BuildFailed, naming the layer or the
    block, when no proposal of the converter passes the gate.
    """
    inputs = builder.static_inputs(model)
    if any(n.op_type == "QuantizeLinear" for n in onnx_file.load(model.path).graph.node):
        raise NotPossible(
            f"{model.path.name} carries quantization of its own (QDQ), which ncnn does not read.",
            hint="Take it off with --dequantize: ncnn's INT8 is calibrated anew.",
        )
    if len(inputs) != 1:
        raise NotPossible(
            f"{model.path.name} has {len(inputs)} inputs; edgekit takes models with one image input."
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-convert-") as folder:
        rewritten, rewrites = _rewritten(model, inputs, feeds, Path(folder) / "model.onnx")
        with open_session("onnxruntime", model.path) as session:
            expected = [session.run({inputs[0].name: feed}) for feed in feeds]
        for name, array in expected[0].items():
            if array.dtype != "float32":
                raise NotPossible(f"The output '{name}' is {array.dtype}; ncnn gives float32.")
        gate = _Gate(model, inputs, feeds, expected)
        problems: list[str] = []
        for proposal in builder.proposals(rewritten, inputs):
            try:
                parity, engine = gate.passed(proposal.model, precision, out)
            except (BuildFailed, VerificationFailed) as error:
                problems.append(error.message)
                continue
            done = ((proposal.note,) if proposal.note else ()) + rewrites
            return Converted(engine=engine, parity=parity, notes=builder.pair_notes() + tuple(done))
    raise BuildFailed(
        f"{model.path.name} cannot be converted to ncnn: {problems[0]}",
        hint="Replace that part of the model, or use an ONNX Runtime target (arm-ort-int8).",
    )


class _Gate:
    """Holds proposals against what ONNX Runtime computes."""

    def __init__(
        self,
        model: OnnxModel,
        inputs: tuple[TensorSpec, ...],
        feeds: Sequence[NDArray[Any]],
        expected: list[dict[str, NDArray[Any]]],
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._feeds = feeds
        self._expected = expected
        head = model.metadata.get(onnx_file.HEAD_KEY)
        self._blocks = find_blocks(model.path, head, {inputs[0].name: feeds[0]})

    def passed(self, model: NcnnModel, precision: str, out: Path) -> tuple[ParityReport, Engine]:
        """Write the model to `out` and prove it. Raises BuildFailed or VerificationFailed."""
        unknown = unknown_layers(model.graph)
        if unknown:
            nodes = _nodes_named(self._model, unknown)
            raise BuildFailed(
                f"ncnn has no layer {', '.join(unknown)}"
                + (
                    f" (nodes {', '.join(nodes[:4])}{', …' if nodes[4:] else ''})."
                    if nodes
                    else "."
                )
            )
        shapes = {name: tuple(array.shape) for name, array in self._expected[0].items()}
        limits = NCNN_LIMITS
        if precision in ("fp16", "bf16"):
            # the float32 model first: it tells a wrong conversion from the rounding of 16 bits
            with tempfile.TemporaryDirectory(prefix="edgekit-convert-") as folder:
                self._proved(self._write(model, shapes, "fp32", Path(folder)), limits)
            model, limits = builder.with_storage(model, precision), HALF_LIMITS
        engine = self._write(model, shapes, precision, out)
        return self._proved(engine, limits), engine

    def _write(
        self, model: NcnnModel, shapes: dict[str, tuple[int, ...]], precision: str, out: Path
    ) -> Engine:
        inputs = builder.input_tensors(model, self._inputs)
        return builder.write(model, inputs, builder.output_tensors(model, shapes), precision, out)

    def _proved(self, engine: Engine, limits: ParityLimits) -> ParityReport:
        meter = ParityMeter(self._blocks)
        found = ncnn_probe.run(engine.files[0], self._feeds)
        for expected, outputs in zip(self._expected, found, strict=True):
            meter.add(expected, outputs)
        report = meter.report()
        felt = [block for block in report.blocks if not block.max_abs_error <= _UNFELT]
        broken = broken_block(dataclasses.replace(report, blocks=tuple(felt)), limits)
        if broken is not None:
            block, problem = broken
            raise BuildFailed(f"ncnn computes something else: block '{block.name}' has {problem}.")
        return report


# pnnx's words for operators that it writes down without ncnn knowing them
_WORDS = {"gt": "greater", "lt": "less", "ge": "greaterorequal", "le": "lessorequal", "eq": "equal"}


def _nodes_named(model: OnnxModel, types: Sequence[str]) -> list[str]:
    """The ONNX nodes that layers of these types, as pnnx calls them, probably come from."""
    words = {kind.rpartition(".")[2].lower().replace("_", "") for kind in types}
    words = {_WORDS.get(word, word) for word in words}
    graph = onnx_file.load(model.path).graph
    return [f"'{node.name}'" for node in graph.node if node.op_type.lower() in words]


def _rewritten(
    model: OnnxModel, inputs: tuple[TensorSpec, ...], feeds: Sequence[NDArray[Any]], out: Path
) -> tuple[Path, tuple[str, ...]]:
    """The model with static inputs and without what pnnx cannot take, in one file; what was done.

    Each rewrite is held against the graph before it; one that changes the outputs is left out.
    """
    import onnx

    current = _static(onnx_file.load(model.path), inputs)
    notes: list[str] = []
    for what, rewrite in REWRITES:
        after, count = _apply(rewrite, current)
        if not count:
            continue
        problem = _difference(current, after, inputs[0].name, feeds[:1])
        if problem:
            notes.append(f"{what}: not done, {problem}")
            continue
        current = after
        notes.append(f"{what} ({count})")
    onnx.save(current, str(out))
    return out, tuple(notes)


def _static(model: Any, inputs: tuple[TensorSpec, ...]) -> Any:
    """`model` with its inputs' shapes fixed, and the shapes behind them inferred anew."""
    import onnx

    sizes = {spec.name: spec.shape for spec in inputs}
    for value in model.graph.input:
        if value.name in sizes:
            for dimension, size in zip(
                value.type.tensor_type.shape.dim, sizes[value.name], strict=True
            ):
                dimension.dim_value = int(size)
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _apply(rewrite: Rewrite, model: Any) -> tuple[Any, int]:
    """(the rewritten copy of `model`, how many nodes were rewritten)."""
    import onnx
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    graph = ir.from_proto(model)
    count = rewrite(graph)
    if not count:
        return model, 0
    common.RemoveUnusedNodesPass()(graph)
    proto = ir.to_proto(graph)
    del proto.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(proto, data_prop=True), count


def _difference(before: Any, after: Any, name: str, feeds: Sequence[NDArray[Any]]) -> str:
    """What a rewrite changed, "" when the outputs are the same."""
    from edgekit.runtimes.base import SessionOptions
    from edgekit.runtimes.onnxruntime import open_bytes

    try:
        with (
            open_bytes(before.SerializeToString(), SessionOptions()) as reference,
            open_bytes(after.SerializeToString(), SessionOptions()) as candidate,
        ):
            meter = ParityMeter(find_blocks(before, None, {name: feeds[0]}))
            for feed in feeds:
                meter.add(reference.run({name: feed}), candidate.run({name: feed}))
    except EdgekitError as error:
        return error.message
    broken = broken_block(meter.report(), FLOAT_LIMITS)
    return "" if broken is None else f"block '{broken[0].name}' has {broken[1]}"
