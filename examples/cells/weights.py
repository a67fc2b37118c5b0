"""Checkpoints of the example: tensors and plain Python values, nothing a pickle could run."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from model import DEFAULT_SIZE, Detector, detector
from scenes import CLASS_NAMES
from torch import Tensor


def save(path: Path, model: Detector, note: str) -> None:
    """Write `model` to `path`, whole or not at all.

    Keys: state_dict (float32, contiguous), widths (channels per group), names (classes),
    input_size ([height, width] in pixels), note (how it came about).
    """
    state: dict[str, Tensor] = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    content = {
        "state_dict": state,
        "widths": list(model.widths),
        "names": list(CLASS_NAMES),
        "input_size": [DEFAULT_SIZE, DEFAULT_SIZE],
        "note": note,
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        torch.save(content, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Detector:
    """The detector a checkpoint describes, in eval mode; no code in the file is run."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    model = detector(content["widths"], len(content["names"]), content["input_size"][0])
    model.load_state_dict(content["state_dict"])
    return model.eval()
