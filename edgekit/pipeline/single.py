"""An ONNX model on its own, for the commands that run one stage: contract, images, input tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.filehash import FileHashes
from edgekit.pipeline.inputs import CalibrationImages
from edgekit.preprocess import Preprocess
from edgekit.stages import contract as contracts
from edgekit.types import Checkpoint, OnnxModel, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its contract and input tensors of a few images; `warning` when it was assumed."""

    model: OnnxModel
    contract: Preprocess
    feeds: list[NDArray[Any]]
    warning: str = ""


def open_for_parity(path: Path, images: Path | None, overrides: Mapping[str, Any]) -> Subject:
    """Describe the model, settle its contract and prepare the inputs of its parity checks.

    Raises BadInput for a file that is no ONNX model, UsageError when its input size is open.
    """
    from edgekit.cache import cache_folder

    model = onnx_file.describe(path)
    spec = onnx_file.main_input(model)
    shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape[:1]) + tuple(
        spec.shape[1:]
    )
    static = all(isinstance(size, int) for size in shape)
    own = onnx_file.read_contract(model)
    described = Checkpoint(
        path=path,
        sha256=model.sha256,
        kind="onnx",
        onnx=path,
        input_shape=tuple(int(size) for size in shape) if static else None,
        preprocess=own,
    )
    if own is not None:
        described_contract = own.replace(**dict(overrides)) if overrides else own
        warning = ""
    else:
        resolved = contracts.resolve(described, overrides, None)
        described_contract, warning = resolved.contract, resolved.warning
    with FileHashes(cache_folder() / "hashes.json") as hashes:
        sources = CalibrationImages.collect(images, hashes, no_progress)
    return Subject(
        model=model,
        contract=described_contract,
        feeds=sources.feeds(described_contract),
        warning=warning,
    )
