"""ONNX → a simpler ONNX: a ladder of simplifiers, each in a child process, each proved by parity.

Simplifiers fold constants and fuse nodes with native code that can crash or hang on unusual graphs;
in a child, a crash costs that rung and nothing else. The last rung is the graph as it is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import BadInput, VerificationFailed
from edgekit.quantization import existing
from edgekit.stages.divergence import checked_parity
from edgekit.stages.parity import FLOAT_LIMITS, ROUNDING_LIMITS, ParityLimits
from edgekit.types import OnnxModel, ParityReport, StageOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
LADDER = ("onnxsim", "onnxslim")


@dataclass(frozen=True, kw_only=True)
class SimplifyOptions:
    """`ladder` names the simplifiers to try in order; each may run for `time_limit_s` seconds."""

    ladder: tuple[str, ...] = LADDER
    time_limit_s: float = 300.0


def run(
    model: OnnxModel, feeds: Sequence[NDArray[Any]], out: Path, options: SimplifyOptions
) -> StageOutput:
    """Write the simplified `model` to `out`; its metadata, inputs and outputs stay.

    `feeds` are input tensors of real images. A rung that fails, or whose graph computes something
    else (a block beyond FLOAT_LIMITS, or ROUNDING_LIMITS where the graph rounds activations), or
    that touches the scales of quantization in the graph, is noted and the next one is tried.
    """
    notes: list[str] = []
    source = onnx_file.load(model.path)
    before = len(source.graph.node)
    scales = existing.signature(source)
    limits = ROUNDING_LIMITS if existing.rounds(source) else FLOAT_LIMITS
    with tempfile.TemporaryDirectory(prefix="edgekit-simplify-") as folder:
        for tool in options.ladder:
            candidate = Path(folder) / f"{tool}.onnx"
            problem = _in_child(tool, model.path, candidate, options.time_limit_s)
            if problem:
                notes.append(f"{tool} not used: {problem}")
                continue
            try:
                parsed = onnx_file.load(candidate)
                problem = _changed_face(model, onnx_file.describe(candidate, parsed))
                if existing.signature(parsed) != scales:
                    problem = "it changed the scales of quantization that the graph carries"
                parity = _parity(tool, model, candidate, feeds, limits)
            except (BadInput, VerificationFailed) as error:
                problem = error.message
            if problem:
                notes.append(f"{tool} not used: {problem}")
                continue
            onnx_file.set_metadata(parsed, model.metadata)
            notes.insert(0, f"{tool}: {before} → {len(parsed.graph.node)} nodes")
            return StageOutput(model=onnx_file.save(parsed, out), parity=parity, notes=tuple(notes))
    kept = onnx_file.save(source, out)
    notes.insert(0, f"the graph as it is: {before} nodes")
    return StageOutput(
        model=kept, parity=_parity("simplify", model, kept.path, feeds, None), notes=tuple(notes)
    )


def _changed_face(model: OnnxModel, candidate: OnnxModel) -> str:
    """What differs in names or types of inputs and outputs, "" when nothing does."""
    for kind in ("inputs", "outputs"):
        want = [(spec.name, spec.dtype) for spec in getattr(model, kind)]
        have = [(spec.name, spec.dtype) for spec in getattr(candidate, kind)]
        if want != have:
            return f"its {kind} are {have}, not {want}"
    return ""


def _parity(
    tool: str,
    model: OnnxModel,
    candidate: Path,
    feeds: Sequence[NDArray[Any]],
    limits: ParityLimits | None,
) -> ParityReport:
    name = onnx_file.main_input(model).name
    named = [{name: feed} for feed in feeds]
    head = model.metadata.get(onnx_file.HEAD_KEY)
    return checked_parity(
        tool, model.path, candidate, named, limits, blocks_of=candidate, head=head
    )


def _in_child(tool: str, source: Path, out: Path, time_limit_s: float) -> str:
    """Run one simplifier in a process of its own; return what went wrong, "" when nothing did."""
    command = [sys.executable, "-m", "edgekit.stages.simplify_child", tool, str(source), str(out)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it did not finish within {time_limit_s:.0f} s"
    if done.returncode < 0:
        return f"it crashed with signal {-done.returncode}"
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        return f"it failed: {lines[-1]}"
    if not out.is_file():
        return "it wrote nothing"
    return ""
