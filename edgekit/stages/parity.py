"""Parity: how far a stage's outputs are from those of the stage before, block by block.

Per block of N elements, reference r and candidate c, over all samples seen:

    cosine        = sum(r c) / sqrt(sum(r^2) sum(c^2)); 1 when both are zero, 0 when one is
    sqnr_db       = 10 log10(sum(r^2) / sum((r - c)^2)); inf when equal
    max_abs_error = max |r - c|
    max_rel_error = max |r - c| / max |r|; inf when the reference is all zero and c is not

The sums are taken in float64. The worst block counts: see `edgekit.block`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.block import Block
from edgekit.errors import VerificationFailed
from edgekit.stages.blocks import find_blocks
from edgekit.types import BlockParity, ParityReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.runtimes.base import Session


@dataclass(frozen=True, kw_only=True)
class ParityLimits:
    """What every block must keep: max_rel_error at most, cosine and SQNR (dB) at least.

    A block whose largest error is at most `negligible` times the largest reference of its group
    passes: where a scale sees nothing, its scores are noise beside those of the others.
    """

    max_rel_error: float = math.inf
    min_cosine: float = -1.0
    min_sqnr_db: float = -math.inf
    negligible: float = 0.0

    def problem(self, block: BlockParity) -> str | None:
        """How `block` breaks the limits, None when it keeps them; a nan breaks every limit."""
        if block.max_abs_error <= self.negligible * block.group_max:
            return None
        if not block.max_rel_error <= self.max_rel_error:
            return f"max_rel_error {block.max_rel_error:.3g} (limit {self.max_rel_error:g})"
        if not block.cosine >= self.min_cosine:
            return f"cosine {block.cosine:.4f} (at least {self.min_cosine:g})"
        if not block.sqnr_db >= self.min_sqnr_db:
            return f"SQNR {block.sqnr_db:.1f} dB (at least {self.min_sqnr_db:g})"
        return None


FLOAT_LIMIT = 1e-4
FLOAT_LIMITS = ParityLimits(max_rel_error=FLOAT_LIMIT, negligible=1e-5)
"""Steps that must compute the same in float32: export, simplify, prepare."""

ROUNDING_LIMITS = ParityLimits(min_cosine=0.99, min_sqnr_db=20.0, negligible=0.02)
"""The same steps for a graph that rounds its activations: a value between two integers falls to one
side or the other by its last bit, and what reads it goes on from there."""

INT8_LIMITS = ParityLimits(min_cosine=0.8, min_sqnr_db=4.0, negligible=0.02)
"""Whether a quantized graph is still the same model; how good it is, the accuracy budget says.

Measured on real images with min-max ranges, worst block (cosine, SQNR):
YOLOv5n 0.975, 12.8 dB; YOLO11n 0.944, 9.6 dB; YOLO11n pruned by half 0.977, 13.2 dB; with 7-bit
weights 0.961, 11.0 dB; 0.908, 7.5 dB; 0.943, 9.2 dB. Broken ones: x and y of the boxes swapped 0.75,
3.0 dB; all operators quantized 0.72, 1.4 dB (YOLO11n pruned), 0 and 0 dB (every score zero); a layer
or a scale lost 0.33 or less and 0 dB or less. Red and blue swapped cannot be told from INT8 noise
here (0.89 to 0.98, 6.7 to 14 dB): the bundle's golden inputs are what tells it.
"""

_COLUMN_MIN_SIZE = 16  # fewer elements say nothing about whether a column is constant
_COLLAPSED_RANGE = 0.01  # of the reference's range in the same column
_SIGNIFICANT_RANGE = 0.2  # of the block's largest reference


class _Sums:
    """Running sums of one block, and the ranges of its columns."""

    def __init__(self) -> None:
        self.reference = self.candidate = self.product = self.error = 0.0
        self.max_error = self.max_reference = 0.0
        self.column_ranges: NDArray[Any] | None = None  # [4, columns]: -low, high of each model

    def add(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        import numpy as np

        if reference.size == 0:
            return
        wide_reference = reference.astype(np.float64)
        wide_candidate = candidate.astype(np.float64)
        difference = wide_reference - wide_candidate
        self.reference += float(np.vdot(wide_reference, wide_reference))
        self.candidate += float(np.vdot(wide_candidate, wide_candidate))
        self.product += float(np.vdot(wide_reference, wide_candidate))
        self.error += float(np.vdot(difference, difference))
        self.max_error = max(self.max_error, float(np.abs(difference).max()))
        self.max_reference = max(self.max_reference, float(np.abs(wide_reference).max()))
        axis = _column_axis(reference.shape)
        if axis is None or reference.size // reference.shape[axis] < _COLUMN_MIN_SIZE:
            return
        others = tuple(other for other in range(reference.ndim) if other != axis)
        ends = []
        for array in (wide_reference, wide_candidate):
            ends += [-array.min(axis=others), array.max(axis=others)]
        stacked = np.stack(ends)
        self.column_ranges = (
            stacked if self.column_ranges is None else np.maximum(self.column_ranges, stacked)
        )

    def collapsed(self) -> list[int]:
        """Columns that vary in the reference and stand still in the candidate: a dead class, say."""
        import numpy as np

        if self.column_ranges is None:
            return []
        reference = self.column_ranges[0] + self.column_ranges[1]
        candidate = self.column_ranges[2] + self.column_ranges[3]
        alive = reference > _SIGNIFICANT_RANGE * self.max_reference
        return [int(n) for n in np.flatnonzero(alive & (candidate < _COLLAPSED_RANGE * reference))]

    def parity(self, name: str, group_max: float) -> BlockParity:
        if self.error == 0.0:
            return BlockParity(
                name=name,
                cosine=1.0,
                sqnr_db=math.inf,
                max_abs_error=0.0,
                max_rel_error=0.0,
                group_max=group_max,
            )
        norm = math.sqrt(self.reference) * math.sqrt(self.candidate)
        return BlockParity(
            name=name,
            cosine=max(-1.0, min(1.0, self.product / norm)) if norm else 0.0,
            sqnr_db=10 * math.log10(self.reference / self.error) if self.reference else -math.inf,
            max_abs_error=self.max_error,
            max_rel_error=self.max_error / self.max_reference if self.max_reference else math.inf,
            group_max=group_max,
        )


def _column_axis(shape: tuple[int, ...]) -> int | None:
    """The shortest axis behind the batch axis: classes or coordinates beside cells or pixels."""
    axes = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    return min(axes, key=lambda axis: shape[axis]) if axes else None


class ParityMeter:
    """Parity of two models over several samples, in constant memory.

    `blocks` (see `find_blocks`) must name every output that is to be compared.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        if not blocks:
            raise ValueError("parity needs at least one block")
        self._blocks = tuple(blocks)
        self._sums = [_Sums() for _ in self._blocks]
        self._groups: list[Any] = [None] * len(self._blocks)
        self._samples = 0

    def add(
        self, reference: Mapping[str, NDArray[Any]], candidate: Mapping[str, NDArray[Any]]
    ) -> None:
        """Add one sample: outputs by name.

        Raises VerificationFailed, naming the output, when the candidate lacks one, has another
        shape or dtype, or when either holds nan or inf.
        """
        for name in dict.fromkeys(block.output for block in self._blocks):
            _check_output(name, reference, candidate)
        for number, (block, sums) in enumerate(zip(self._blocks, self._sums, strict=True)):
            array = reference[block.output]
            sums.add(block.take(array), block.take(candidate[block.output]))
            self._groups[number] = _group(block, array.shape)
        self._samples += 1

    def report(self) -> ParityReport:
        """Parity over the samples so far; ValueError before the first.

        Columns (classes, coordinates) of a block that vary in the reference and are constant in the
        candidate count as a block of their own that has nothing in common with its reference.
        """
        if not self._samples:
            raise ValueError("no sample was compared")
        largest: dict[Any, float] = {}
        for group, sums in zip(self._groups, self._sums, strict=True):
            largest[group] = max(largest.get(group, 0.0), sums.max_reference)
        blocks = []
        for block, group, sums in zip(self._blocks, self._groups, self._sums, strict=True):
            blocks.append(sums.parity(block.name, largest[group]))
            columns = sums.collapsed()
            if columns:
                shown = ", ".join(str(column) for column in columns[:5]) + (
                    " …" if columns[5:] else ""
                )
                blocks.append(
                    BlockParity(
                        name=f"{block.name} column {shown} (constant)",
                        cosine=0.0,
                        sqnr_db=0.0,
                        max_abs_error=sums.max_error,
                        max_rel_error=1.0,
                        group_max=largest[group],
                    )
                )
        return ParityReport(blocks=tuple(blocks), samples=self._samples)


def _group(block: Block, shape: tuple[int, ...]) -> Any:
    """What blocks of one meaning share: the output and the place on its shortest axis."""
    axis = _column_axis(shape)
    if axis is None or len(block.axes) <= axis:
        return block.output, block.name
    return block.output, block.axes[axis]


def _check_output(
    name: str, reference: Mapping[str, NDArray[Any]], candidate: Mapping[str, NDArray[Any]]
) -> None:
    import numpy as np

    for outputs, who in ((reference, "reference"), (candidate, "candidate")):
        if name not in outputs:
            raise VerificationFailed(
                f"The {who} has no output '{name}'; it has: {', '.join(outputs) or 'none'}."
            )
    one, other = reference[name], candidate[name]
    if one.shape != other.shape:
        raise VerificationFailed(
            f"Output '{name}' has the shape {list(other.shape)} instead of {list(one.shape)}."
        )
    if one.dtype != other.dtype:
        raise VerificationFailed(f"Output '{name}' is {other.dtype} instead of {one.dtype}.")
    for array, who in ((one, "reference"), (other, "candidate")):
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            what = "nan" if np.isnan(array).any() else "inf"
            raise VerificationFailed(
                f"Output '{name}' of the {who} holds {what} ({bad} of {array.size} values).",
                hint="Look for nan or inf in the weights, or for a division by zero; `edgekit "
                "inspect` lists the weights.",
            )


def compare(
    reference: Mapping[str, NDArray[Any]],
    candidate: Mapping[str, NDArray[Any]],
    blocks: Sequence[Block],
) -> ParityReport:
    """Parity of one sample's outputs; raises as `ParityMeter.add`."""
    meter = ParityMeter(blocks)
    meter.add(reference, candidate)
    return meter.report()


def compare_sessions(
    reference: Session,
    candidate: Session,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    model: Path,
    head: str | None = None,
) -> ParityReport:
    """Parity of two open models on `feeds`; the blocks are those of the ONNX file `model`.

    The first of `feeds` also serves to find the blocks. ValueError when there are none.
    """
    if not feeds:
        raise ValueError("parity needs at least one sample")
    meter = ParityMeter(find_blocks(model, head, feeds[0]))
    for feed in feeds:
        meter.add(reference.run(feed), candidate.run(feed))
    return meter.report()


def broken_block(report: ParityReport, limits: ParityLimits) -> tuple[BlockParity, str] | None:
    """The worst block (lowest SQNR) that breaks `limits`, and how; None when all keep them."""
    for block in sorted(report.blocks, key=lambda block: block.sqnr_db):
        problem = limits.problem(block)
        if problem is not None:
            return block, problem
    return None


def demand(
    report: ParityReport, limits: ParityLimits, stage: str, divergence: str | None = None
) -> None:
    """Raise VerificationFailed, naming stage and block, when `report` breaks `limits`.

    `divergence`, a text from `edgekit.stages.divergence`, says where in the graph it begins.
    """
    broken = broken_block(report, limits)
    if broken is None:
        return
    block, problem = broken
    where = f" {divergence}" if divergence else ""
    raise VerificationFailed(
        f"Parity breaks at {stage}: block '{block.name}' has {problem}.{where}",
        hint="The model before this stage is intact; `edgekit verify CANDIDATE REFERENCE` shows "
        "every block.",
    )
