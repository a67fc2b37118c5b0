"""What is asked of a comparison, and the models that the arguments name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.checkpoint import LoadOptions
from edgekit.errors import BadInput, UsageError, nearest
from edgekit.manifest import is_bundle
from edgekit.target import TargetProfile

PRESETS = ("default", "pruning", "compression", "deployment", "ablation")

SUFFIXES = frozenset(
    {".pt", ".pth", ".th", ".ckpt", ".pt2", ".ts", ".torchscript", ".safetensors", ".onnx"}
)
"""What a folder of checkpoints is searched for; bundles in it count, too."""


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """One comparison.

    `target` says how models are exported and measured; with an INT8 one and `images` every float
    model gets a second row, its INT8 form. `baseline` None: the first model (in the preset
    "compression" the first of each architecture). `method` and `search_seconds`: see ExportRequest.
    `batches`: batch sizes to time, the first is the
    one that latencies are shown for. `threads` and `runs` None follow the target. `fresh` does
    everything again although the cache knows it.
    """

    models: tuple[Path, ...]
    target: TargetProfile
    preset: str = "default"
    baseline: Path | None = None
    data: Path | None = None
    split: str = "val"
    data_images: Path | None = None
    limit: int | None = None
    images: Path | None = None
    size: tuple[int, int] | None = None
    batches: tuple[int, ...] = (1,)
    threads: int | None = None
    runs: int | None = None
    resamples: int = 1000
    load: LoadOptions = field(default_factory=LoadOptions)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    method: str = "auto"
    search_seconds: float = 120.0
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"Unknown preset '{self.preset}'.", hint=nearest(self.preset, PRESETS))
        if not self.batches or min(self.batches) < 1:
            raise UsageError("--batch takes sizes of 1 and more, such as 1,2,4,8,16.")
        if self.preset == "ablation" and len(self.models) != 1:
            raise UsageError(
                f"The preset 'ablation' takes one model, not {len(self.models)}.",
                hint="It compares that model with each optimization switched off.",
            )


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A model to compare: its path, and a name that no other one has."""

    path: Path
    name: str


def listed(models: tuple[Path, ...], baseline: Path | None) -> list[Listed]:
    """The models that the arguments name, folders of checkpoints opened, the baseline first.

    Raises BadInput for an argument that does not exist, or a folder with nothing to compare.
    """
    paths: list[Path] = []
    for model in ([baseline] if baseline is not None else []) + list(models):
        paths += _models_of(model)
    unique: dict[Path, Path] = {}
    for path in paths:
        unique.setdefault(path.resolve(), path)
    names: dict[str, int] = {}
    result = []
    for path in unique.values():
        name = path.stem if path.is_file() else path.name
        if any(other is not path and _stem(other) == name for other in unique.values()):
            name = f"{path.parent.name}/{path.name}" if path.parent.name else path.name
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name} ({names[name]})"
        result.append(Listed(path=path, name=name))
    return result


def _stem(path: Path) -> str:
    return path.stem if path.is_file() else path.name


def _models_of(path: Path) -> list[Path]:
    if not path.exists():
        raise BadInput(f"{path} does not exist.", hint="Give checkpoints, ONNX files or bundles.")
    if path.is_file() or is_bundle(path):
        return [path]
    found = [
        item
        for item in path.iterdir()
        if not item.name.startswith(".")
        and (item.suffix.lower() in SUFFIXES if item.is_file() else is_bundle(item))
    ]
    if not found:
        raise BadInput(
            f"The folder {path} holds no checkpoint and no bundle.",
            hint="Known suffixes: " + " ".join(sorted(SUFFIXES)),
        )
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key in which p9 comes before p10."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part.lower())
        for part in re.split(r"(\d+)", path.name)
        if part
    ]
