"""Any two models held against each other on the same inputs: checkpoints, ONNX files, bundles.

For two ONNX models `verify_models` tells more (interfaces, and the node where they part). Here only
what goes in and what comes out is compared, block by block where one of the two is an ONNX graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import images as reader
from edgekit.block import Block, whole
from edgekit.errors import VerificationFailed
from edgekit.images import check_bad_share
from edgekit.preprocess import apply
from edgekit.runtimes.base import Session, SessionOptions
from edgekit.stages.blocks import find_blocks
from edgekit.stages.opening import NamedModel
from edgekit.stages.parity import FLOAT_LIMITS, INT8_LIMITS, ParityLimits, ParityMeter
from edgekit.stages.verify import Check
from edgekit.types import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.preprocess import Preprocess

_NOISE_SAMPLES = 2
_BAD_IMAGES = 0.1


def is_onnx(model: NamedModel) -> bool:
    """Whether the model is an ONNX graph in ONNX Runtime."""
    return model.runtime == "onnxruntime"


def verify_any(
    candidate: NamedModel,
    reference: NamedModel,
    *,
    images: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    limit: int = 8,
    limits: ParityLimits | None = None,
    progress: Progress = no_progress,
) -> list[Check]:
    """Compare two models on the first `limit` images of the folder `images`, else on noise.

    The contract is the reference's, else the candidate's, with `overrides` on top. `limits` defaults
    to FLOAT_LIMITS, to INT8_LIMITS when exactly one of the two is INT8. Outputs are paired by their
    order. Raises what opening and running the models raises.
    """
    contract = _contract(candidate, reference, overrides or {}, size)
    if limits is None:
        mixed = (candidate.precision == "int8") != (reference.precision == "int8")
        limits = INT8_LIMITS if mixed else FLOAT_LIMITS
    tensors, origin = _inputs(contract, images, limit)
    checks = [Check(name="inputs", ok=True, detail=origin)]
    options = SessionOptions(threads=1)
    meter: ParityMeter | None = None
    try:
        with (
            reference.open(contract, options) as one,
            candidate.open(contract, options) as other,
        ):
            for number, tensor in enumerate(tensors):
                progress(number, len(tensors), "compare")
                ours, theirs = _run(one, tensor), _run(other, tensor)
                names = _names(candidate, reference, ours, theirs)
                ours, theirs = _named(ours, names), _named(theirs, names)
                if meter is None:
                    meter = ParityMeter(_blocks(candidate, reference, tensor, names))
                meter.add(ours, theirs)
    except VerificationFailed as error:
        return [*checks, Check(name="outputs", ok=False, detail=error.message)]
    assert meter is not None
    for block in meter.report().blocks:
        problem = limits.problem(block)
        detail = (
            f"cosine {block.cosine:.6f}, SQNR {block.sqnr_db:.1f} dB, "
            f"max_rel_error {block.max_rel_error:.1e}"
        )
        if problem is not None:
            detail += f": {problem}"
        checks.append(Check(name=f"block {block.name}", ok=problem is None, detail=detail))
    return checks


def _contract(
    candidate: NamedModel,
    reference: NamedModel,
    overrides: Mapping[str, Any],
    size: tuple[int, int] | None,
) -> Preprocess:
    first, second = (
        (reference, candidate)
        if reference.checkpoint.preprocess is not None
        else (candidate, reference)
    )
    if first.checkpoint.preprocess is None and first.checkpoint.input_shape is None:
        first = second
    return first.contract(overrides, size).contract


def _inputs(
    contract: Preprocess, images: Path | None, limit: int
) -> tuple[list[NDArray[Any]], str]:
    if images is None:
        import numpy as np

        random = np.random.default_rng(0)
        shape = (contract.height, contract.width, 3)
        pixels = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(_NOISE_SAMPLES)]
        exact = contract.replace(resize="stretch")
        return [apply(image, exact)[0] for image in pixels], (
            "random pixels: real images show more (--images DIR)"
        )
    paths = reader.list_images(images)[:limit]
    bad: list[str] = []
    tensors = [apply(image, contract)[0] for _, image in reader.read_all(paths, bad)]
    check_bad_share(bad, len(paths), _BAD_IMAGES)
    return tensors, f"{len(tensors)} images of {images}"


def _run(session: Session, tensor: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return session.run({session.inputs[0].name: tensor})


def _names(
    candidate: NamedModel,
    reference: NamedModel,
    ours: Mapping[str, NDArray[Any]],
    theirs: Mapping[str, NDArray[Any]],
) -> Sequence[str]:
    """Output names that both go by: those of the ONNX graph, whose blocks are looked for."""
    if len(ours) != len(theirs):
        raise VerificationFailed(
            f"{candidate.name} has {len(theirs)} outputs, {reference.name} {len(ours)}."
        )
    return list(theirs if is_onnx(candidate) and not is_onnx(reference) else ours)


def _named(outputs: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return dict(zip(names, outputs.values(), strict=True))


def _blocks(
    candidate: NamedModel,
    reference: NamedModel,
    tensor: NDArray[Any],
    names: Sequence[str],
) -> Sequence[Block]:
    """The blocks of the ONNX graph's outputs; whole outputs where neither model is one."""
    from edgekit import onnx_file

    for model in (candidate, reference):
        if is_onnx(model):
            feed = onnx_file.main_input(onnx_file.describe(model.files[0])).name
            head = reference.checkpoint.head or candidate.checkpoint.head
            found = find_blocks(model.files[0], head, {feed: tensor})
            known = {block.output for block in found}
            return [*found, *whole([name for name in names if name not in known])]
    return whole(list(names))
