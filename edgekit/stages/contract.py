"""Which preprocessing contract a model gets: flags over file over checkpoint over assumption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import UsageError
from edgekit.preprocess import Preprocess
from edgekit.types import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The contract, where it came from ("the checkpoint", "flags", "assumed") and a warning or ""."""

    contract: Preprocess
    origin: str
    warning: str = ""


def resolve(
    checkpoint: Checkpoint,
    overrides: Mapping[str, Any],
    size: tuple[int, int] | None,
) -> Resolved:
    """Settle the contract of `checkpoint`.

    `overrides` are fields set by flags or a file; `size` (height, width) is asked for by the user.
    The size comes from `size`, else `overrides`, else the checkpoint; UsageError when none says.
    """
    own = checkpoint.preprocess
    height, width = _size(checkpoint, overrides, size)
    fields = {key: value for key, value in overrides.items() if key not in ("height", "width")}
    if own is not None:
        contract = own.replace(height=height, width=width, **fields)
        return Resolved(
            contract=contract, origin="flags over the checkpoint" if fields else "the checkpoint"
        )
    channels = _channels(checkpoint)
    if channels == 1 and "color" not in fields:
        fields = {"color": "gray", **fields}
    if fields.get("color") == "gray":
        fields = {"mean": (0.0,), "std": (1.0,), **fields}
    contract = Preprocess(height=height, width=width, **fields)
    decisive = {"color", "resize", "scale", "mean", "std"}
    missing = sorted(decisive - set(fields))
    if not missing:
        return Resolved(contract=contract, origin="flags")
    return Resolved(
        contract=contract,
        origin="assumed",
        warning="The checkpoint does not say how its images are preprocessed; assumed: "
        f"{describe(contract)}. A wrong guess costs accuracy without a word: set "
        + " ".join("--" + name for name in missing)
        + " or --preprocess FILE.",
    )


def describe(contract: Preprocess) -> str:
    """One line for people: RGB, letterbox 114 centred, 640x640, (v/255 - mean) / std."""
    parts = [contract.color.upper(), f"{contract.resize} to {contract.height}x{contract.width}"]
    if contract.resize == "letterbox":
        parts[-1] += f" padded with {contract.pad_value}, {contract.pad_place.replace('_', ' ')}"
    scale = f"1/{1 / contract.scale:g}" if 0 < contract.scale < 1 else f"{contract.scale:g}"
    parts.append(f"pixel x {scale}")
    if any(contract.mean):
        parts.append("minus " + "/".join(f"{value:g}" for value in contract.mean))
    if any(value != 1 for value in contract.std):
        parts.append("over " + "/".join(f"{value:g}" for value in contract.std))
    return ", ".join(parts)


def _size(
    checkpoint: Checkpoint, overrides: Mapping[str, Any], size: tuple[int, int] | None
) -> tuple[int, int]:
    if size is not None:
        return size
    if "height" in overrides and "width" in overrides:
        return int(overrides["height"]), int(overrides["width"])
    shape = checkpoint.input_shape
    if shape is not None and len(shape) == 4:
        layout = overrides.get("layout") or (
            checkpoint.preprocess.layout if checkpoint.preprocess else "nchw"
        )
        return (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])
    raise UsageError(
        "The checkpoint does not say the size of its input.",
        hint="Give --imgsz N, --imgsz HxW or --input-shape 1,3,H,W.",
    )


def _channels(checkpoint: Checkpoint) -> int | None:
    shape = checkpoint.input_shape
    return shape[1] if shape is not None and len(shape) == 4 else None
