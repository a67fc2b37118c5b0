"""Checkpoint → ONNX: a ladder of exporters, each accepted only when it computes what the checkpoint does."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import (
    BadInput,
    BuildFailed,
    EdgekitError,
    NotPossible,
    VerificationFailed,
)
from edgekit.preprocess import Preprocess
from edgekit.quantization import existing
from edgekit.require import require
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.torch import TorchSession
from edgekit.stages import dequantize, torch_divergence
from edgekit.stages.divergence import checked_parity
from edgekit.stages.parity import (
    FLOAT_LIMIT,
    FLOAT_LIMITS,
    INT8_LIMITS,
    ROUNDING_LIMITS,
    compare_sessions,
    demand,
)
from edgekit.types import Checkpoint, OnnxModel, ParityReport, StageOutput, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
INPUT_NAME = "images"
# QuantizeLinear got its channel axis in opset 13; older graphs are converted up
OLDEST_OPSET = 13
# what lies between a stored weight and the layer when a checkpoint was trained with quantization
_AROUND_WEIGHTS = ("DequantizeLinear", "QuantizeLinear", "Identity")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """`opset` for torch checkpoints; `dynamic_batch` leaves the batch axis free. `dequantize` turns
    dynamically quantized layers into float ones, and takes off existing QDQ."""

    opset: int = 17
    dynamic_batch: bool = False
    dequantize: bool = False


def run(
    checkpoint: Checkpoint,
    contract: Preprocess,
    feeds: Sequence[NDArray[Any]],
    out: Path,
    options: ExportOptions,
) -> StageOutput:
    """Write `checkpoint` as one ONNX file `out` that carries `contract` in its metadata.

    `feeds` are preprocessed real images, each of the contract's `input_shape`; every rung of the
    ladder is compared with the checkpoint on them, block by block.
    Raises BuildFailed when no exporter works, VerificationFailed when none is right.
    """
    if checkpoint.onnx is not None:
        return _take_onnx(checkpoint, contract, feeds, out, options)
    return _export_torch(checkpoint, contract, feeds, out, options)


def _metadata(checkpoint: Checkpoint, contract: Preprocess) -> dict[str, str]:
    return onnx_file.contract_metadata(contract, checkpoint.task, checkpoint.head, checkpoint.names)


def _take_onnx(
    checkpoint: Checkpoint,
    contract: Preprocess,
    feeds: Sequence[NDArray[Any]],
    out: Path,
    options: ExportOptions,
) -> StageOutput:
    """An ONNX checkpoint: fix its input shape, raise an old opset, add the contract."""
    import onnx

    assert checkpoint.onnx is not None
    model = onnx_file.load(checkpoint.onnx)
    notes: list[str] = []
    opset = onnx_file.opset_of(model)
    source = onnx_file.main_input(onnx_file.describe(checkpoint.onnx, model))
    if options.dequantize:
        model, turned = dequantize.to_float(model)
        notes.append(turned)
    fixed = fix_input_shape(model, contract, options.dynamic_batch)
    if fixed:
        notes.append(fixed)
    if opset < OLDEST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, options.opset)
        except (RuntimeError, onnx.checker.ValidationError) as error:
            raise NotPossible(
                f"{checkpoint.path.name} is opset {opset}, and onnx cannot raise it to "
                f"{options.opset}: {str(error).splitlines()[0]}",
                hint=f"Export the model again with opset {OLDEST_OPSET} or newer.",
            ) from error
        notes.append(f"opset {opset} raised to {options.opset}")
    onnx_file.set_metadata(model, _metadata(checkpoint, contract))
    exported = onnx_file.save(model, out)
    limits = ROUNDING_LIMITS if existing.rounds(model) else FLOAT_LIMITS
    parity = checked_parity(
        "export",
        checkpoint.onnx,
        exported.path,
        [{source.name: feed} for feed in feeds],
        INT8_LIMITS if options.dequantize else limits,
        blocks_of=exported.path,
        head=checkpoint.head,
    )
    return StageOutput(model=exported, parity=parity, notes=tuple(notes))


def fix_input_shape(model: Any, contract: Preprocess, dynamic_batch: bool) -> str:
    """Set the free dimensions of the image input to the contract's; return what was done, "" if nothing.

    Raises BadInput when a fixed dimension contradicts the contract.
    """
    initializers = {item.name for item in model.graph.initializer}
    (value,) = [v for v in model.graph.input if v.name not in initializers]
    dims = value.type.tensor_type.shape.dim
    wanted = contract.input_shape
    if len(dims) != len(wanted):
        raise BadInput(
            f"The model's input '{value.name}' has rank {len(dims)}; images need rank 4 "
            f"({contract.layout.upper()})."
        )
    changed = []
    for axis, (dim, size) in enumerate(zip(dims, wanted, strict=True)):
        if axis == 0 and (dynamic_batch or dim.dim_value == 1):
            continue
        if dim.HasField("dim_value") and dim.dim_value > 0:
            if axis == 0:
                raise NotPossible(
                    f"The model's batch is fixed to {dim.dim_value}.",
                    hint="Export the checkpoint with batch 1 or a dynamic batch.",
                )
            if dim.dim_value != size:
                shape = [d.dim_value or d.dim_param or "?" for d in dims]
                raise BadInput(
                    f"The model's input is fixed to {shape}, but the preprocessing makes {list(wanted)}.",
                    hint="Leave out --imgsz/--input-shape, or give the model's own size.",
                )
            continue
        dim.Clear()
        dim.dim_value = size
        changed.append(f"axis {axis} = {size}")
    if not changed:
        return ""
    # shapes that were inferred for the free dimension no longer hold
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.type.tensor_type.HasField("shape"):
            for index, dim in enumerate(output.type.tensor_type.shape.dim):
                if dim.dim_param and not (index == 0 and dynamic_batch):
                    dim.Clear()
    return "input shape fixed: " + ", ".join(changed)


def _rung_torchscript(
    torch: Any, module: Any, example: Any, out: Path, names: tuple[str, ...], options: ExportOptions
) -> None:
    axes = {name: {0: "batch"} for name in (INPUT_NAME, *names)} if options.dynamic_batch else None
    torch.onnx.export(
        module,
        (example,),
        str(out),
        input_names=[INPUT_NAME],
        output_names=list(names),
        opset_version=options.opset,
        dynamic_axes=axes,
        do_constant_folding=True,
        dynamo=False,
    )


def _rung_dynamo(
    torch: Any, module: Any, example: Any, out: Path, names: tuple[str, ...], options: ExportOptions
) -> None:
    require("onnxscript", "The dynamo exporter")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("torch.export does not take TorchScript modules")
    shapes = ({0: torch.export.Dim("batch")},) if options.dynamic_batch else None
    # torch.export specializes a batch of 1, so a free batch is traced with 2
    sample = torch.cat([example, example]) if options.dynamic_batch else example
    torch.onnx.export(
        module,
        (sample,),
        str(out),
        input_names=[INPUT_NAME],
        output_names=list(names),
        opset_version=options.opset,
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


# the TorchScript-based exporter first: on plain CNNs it gives the graphs that simplifiers and
# converters know best
LADDER: tuple[tuple[str, Callable[..., None]], ...] = (
    ("TorchScript exporter", _rung_torchscript),
    ("dynamo exporter", _rung_dynamo),
)


def _export_torch(
    checkpoint: Checkpoint,
    contract: Preprocess,
    feeds: Sequence[NDArray[Any]],
    out: Path,
    options: ExportOptions,
) -> StageOutput:
    torch = require("torch", "Exporting a torch checkpoint")
    module = checkpoint.module
    example = torch.from_numpy(feeds[0].copy())
    spec = TensorSpec(name=INPUT_NAME, shape=tuple(feeds[0].shape), dtype=str(feeds[0].dtype))
    with TorchSession(module, (spec,)) as session:
        first = session.run({INPUT_NAME: feeds[0]})
    names = tuple(first)
    trouble: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-export-") as folder:
        for name, rung in LADDER:
            candidate = Path(folder) / f"{name.split()[0].lower()}.onnx"
            printed = io.StringIO()
            try:
                # exporters print to stdout, which belongs to results
                with (
                    warnings.catch_warnings(),
                    contextlib.redirect_stdout(printed),
                    contextlib.redirect_stderr(printed),
                    torch.inference_mode(),
                ):
                    warnings.simplefilter("ignore")
                    rung(torch, module, example, candidate, names, options)
            except EdgekitError:
                raise
            # a rung is third-party code run on third-party modules: whatever it raises means that
            # this exporter does not take this model, and the next one is tried
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                trouble.append(f"{name}: {type(error).__name__}: {lines[0]}")
                continue
            model = onnx_file.load(candidate)
            _drop_newer_attributes(model)
            onnx_file.set_metadata(model, _metadata(checkpoint, contract))
            staged = onnx_file.save(model, candidate)
            try:
                parity = _compare_torch(module, spec, names, staged, feeds, checkpoint.head)
                if options.dynamic_batch:
                    _check_batch(module, spec, names, staged, feeds)
                limits = ROUNDING_LIMITS if existing.rounds(model) else FLOAT_LIMITS
                demand(parity, limits, f"export ({name})")
            except VerificationFailed as error:
                place = torch_divergence.where(module, candidate, {INPUT_NAME: feeds[0]}, names)
                trouble.append(f"{name}: {error.message} {place}".rstrip())
                continue
            except BadInput as error:
                trouble.append(f"{name}: {error.message}")
                continue
            turned = ""
            if options.dequantize:
                model, turned = dequantize.to_float(model)
                staged = onnx_file.save(model, candidate)
                parity = _compare_torch(module, spec, names, staged, feeds, checkpoint.head)
                demand(parity, INT8_LIMITS, f"dequantize ({name})")
            exported = onnx_file.save(model, out)
            notes = (
                f"exported by the {name}, opset {exported.opset}",
                *_kept_shapes(module, model),
            )
            if turned:
                notes += (turned,)
            if trouble:
                notes += tuple(f"not used: {line}" for line in trouble)
            return StageOutput(model=exported, parity=parity, notes=notes)
    wrong = [line for line in trouble if "Parity" in line]
    kind = VerificationFailed if wrong else BuildFailed
    raise kind(
        "No exporter took the checkpoint:\n  " + "\n  ".join(trouble),
        hint="Export it to ONNX or TorchScript yourself and give that file.",
    )


def _drop_newer_attributes(model: Any) -> None:
    """Take off what onnx's version converter leaves behind: Split knows `num_outputs` from opset 18 on."""
    if onnx_file.opset_of(model) >= 18:
        return
    for node in model.graph.node:
        if node.op_type == "Split" and node.domain in ("", "ai.onnx"):
            kept = [item for item in node.attribute if item.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _compare_torch(
    module: Any,
    spec: TensorSpec,
    names: tuple[str, ...],
    model: OnnxModel,
    feeds: Sequence[NDArray[Any]],
    head: str | None,
) -> ParityReport:
    # integers are compared as the graph says, not as kernels that saturate or fuse compute them
    plain = SessionOptions(optimize=not existing.rounds(onnx_file.load(model.path)))
    with (
        TorchSession(module, (spec,), names) as reference,
        open_session("onnxruntime", model.path, plain) as candidate,
    ):
        named = [{INPUT_NAME: feed} for feed in feeds]
        return compare_sessions(reference, candidate, named, model.path, head)


def _check_batch(
    module: Any,
    spec: TensorSpec,
    names: tuple[str, ...],
    model: OnnxModel,
    feeds: Sequence[NDArray[Any]],
) -> None:
    """A free batch axis must really be free: two images at once give what each gives alone."""
    import numpy as np

    pair = np.concatenate([feeds[0], feeds[-1]])
    with (
        TorchSession(module, (spec,), names) as reference,
        open_session("onnxruntime", model.path) as candidate,
    ):
        expected, got = reference.run({INPUT_NAME: pair}), candidate.run({INPUT_NAME: pair})
    for name, array in expected.items():
        limit = FLOAT_LIMIT * max(float(np.abs(array).max()), 1e-12)
        if got[name].shape != array.shape or float(np.abs(got[name] - array).max()) > limit:
            raise VerificationFailed(f"Parity: a batch of 2 gives another {name}.")


def _kept_shapes(module: Any, model: Any) -> tuple[str, ...]:
    """Say how many Conv/Linear weights of the graph have the shape they have in the checkpoint."""
    from collections import Counter

    wanted = Counter(
        tuple(parameter.shape) for _, parameter in module.named_parameters() if parameter.ndim >= 2
    )
    producers = {name: node for node in model.graph.node for name in node.output}
    used = set()
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            name = node.input[1]
            while name in producers and producers[name].op_type in _AROUND_WEIGHTS:
                name = producers[name].input[0]
            used.add(name)
    kept = total = 0
    for item in model.graph.initializer:
        if item.name not in used or len(item.dims) < 2:
            continue
        total += 1
        for shape in (tuple(item.dims), tuple(reversed(item.dims))):
            if wanted[shape] > 0:
                wanted[shape] -= 1
                kept += 1
                break
    return (f"{kept} of {total} Conv/Linear weights keep the checkpoint's shape",)
