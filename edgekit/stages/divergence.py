"""Where two graphs begin to differ: the first tensor of the same name whose values part.

Passes that rewrite a graph keep most tensor names, and so does QDQ insertion; the shared ones are
the places where a float graph can be held against its successor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.block import Block, whole
from edgekit.errors import BadInput, VerificationFailed
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.stages.blocks import find_blocks
from edgekit.stages.parity import (
    ParityLimits,
    broken_block,
    compare,
    compare_sessions,
    demand,
)
from edgekit.types import BlockParity, ParityReport

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_AT_ONCE = 24  # tensors held in memory at a time, of each model


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first node whose output parts from the reference.

    `parity` is that tensor's; None when it holds nan or inf or has another shape, as `problem` says.
    """

    node: str
    op_type: str
    tensor: str
    problem: str
    parity: BlockParity | None = None

    def __str__(self) -> str:
        return f"It begins at the {self.op_type} node '{self.node}' ({self.problem})."


def first_divergence(
    reference: Path | onnx.ModelProto,
    candidate: Path | onnx.ModelProto,
    feeds: Mapping[str, NDArray[Any]],
    limits: ParityLimits,
    head: str | None = None,
) -> Divergence | None:
    """Compare the tensors that both graphs name, in the candidate's order, on one sample.

    Outputs are compared by their blocks (`head` as in `find_blocks`), other tensors as a whole.

    Returns the first that breaks `limits`; None when none does, or when nothing can be compared.
    Both models run several times, with their intermediate tensors as outputs.
    """
    import onnx

    models = [
        m if isinstance(m, onnx.ModelProto) else onnx.load(str(m)) for m in (reference, candidate)
    ]
    made = [{name for node in model.graph.node for name in node.output} for model in models]
    producers = {name: node for node in models[1].graph.node for name in node.output}
    shared = [
        name
        for node in models[1].graph.node
        for name in node.output
        if name and name in made[0] and node.op_type != "Constant"
    ]
    blocks: dict[str, list[Block]] = {name: [] for name in shared}
    for block in find_blocks(models[0], head, feeds):
        blocks.setdefault(block.output, []).append(block)
    for start in range(0, len(shared), _AT_ONCE):
        names = shared[start : start + _AT_ONCE]
        try:
            ours, theirs = (_run(model, names, feeds) for model in models)
        except BadInput:
            return None
        for name in names:
            found = _parts(name, ours, theirs, blocks[name], limits)
            if found is not None:
                node = producers[name]
                problem, parity = found
                return Divergence(
                    node=node.name or name,
                    op_type=node.op_type,
                    tensor=name,
                    problem=problem,
                    parity=parity,
                )
    return None


def checked_parity(
    stage: str,
    reference: Path,
    candidate: Path,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    limits: ParityLimits | None,
    *,
    blocks_of: Path,
    head: str | None = None,
) -> ParityReport:
    """Parity of two ONNX files on `feeds`, which must keep `limits` (None: whatever it is).

    The blocks are those of the file `blocks_of`. Raises VerificationFailed that names the stage, the
    block, and the node at which the parting begins; only then are the graphs run a second time.
    """
    try:
        with (
            open_session("onnxruntime", reference) as one,
            open_session("onnxruntime", candidate) as other,
        ):
            report = compare_sessions(one, other, feeds, blocks_of, head)
        if limits is not None:
            demand(report, limits, stage)
    except VerificationFailed as error:
        found = first_divergence(reference, candidate, feeds[0], limits or ParityLimits(), head)
        if found is None:
            raise
        message = (
            error.message if error.message.startswith("Parity") else f"{stage}: {error.message}"
        )
        raise VerificationFailed(f"{message} {found}", hint=error.hint) from error
    return report


def _parts(
    name: str,
    reference: Mapping[str, NDArray[Any]],
    candidate: Mapping[str, NDArray[Any]],
    blocks: Sequence[Block],
    limits: ParityLimits,
) -> tuple[str, BlockParity | None] | None:
    """(what is wrong, parity) where the tensor `name` parts; None where it does not."""
    import numpy as np

    array = reference[name]
    if array.dtype.kind not in "fiu" or not array.size:
        return None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return None  # masks hold inf on purpose; the outputs are checked on their own
    try:
        report = compare(reference, candidate, blocks or whole([name]))
    except VerificationFailed as error:
        return error.message.rstrip("."), None
    broken = broken_block(report, limits)
    return (broken[1], broken[0]) if broken is not None else None


def _run(
    model: onnx.ModelProto, names: list[str], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The values of the tensors `names`."""
    import onnx

    from edgekit.runtimes.onnxruntime import open_bytes

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with open_bytes(copy.SerializeToString(), SessionOptions(optimize=False)) as session:
        given = dict(feeds)
        if len(given) == len(session.inputs) == 1:
            given = {session.inputs[0].name: next(iter(given.values()))}
        return session.run(given)
