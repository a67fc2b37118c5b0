"""Checkpoints: every kind that training and compression leave behind, loaded safely.

`load` recognizes the kind from the file itself (never from its name alone), and returns a module
that is ready to run, or the path of a checked ONNX file.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekit.errors import BadInput, UsageError
from edgekit.types import Checkpoint

# kind → module with `sniff(head) -> bool` and `load(head, options) -> Checkpoint`, in the order of
# asking; a new kind is a module and a line here
KINDS: dict[str, str] = {
    "onnx": "edgekit.checkpoint.onnx_file",
    "safetensors": "edgekit.checkpoint.safetensors_file",
    "exported_program": "edgekit.checkpoint.exported_program",
    "torchscript": "edgekit.checkpoint.torchscript",
    "ultralytics": "edgekit.checkpoint.ultralytics",
    "state_dict": "edgekit.checkpoint.state_dict",
    "whole_module": "edgekit.checkpoint.whole_module",
}
_WITH_ARCH = ("safetensors", "state_dict")
_WITH_EMA = ("ultralytics", "state_dict", "whole_module")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What a checkpoint does not say about itself.

    arch: "package.module:factory", a function that builds the architecture of a state_dict, and
    arch_args its keyword arguments (Python literals, else text). code: folders to import from.
    trust: unpickle whatever the file asks for. weights: "auto" (EMA where there is one), "ema" or
    "model". dtype: "float32" converts weights of mixed float types, which are refused otherwise.
    input_shape: NCHW, to try a pruned network with when the checkpoint names none.
    """

    arch: str | None = None
    arch_args: Mapping[str, str] = field(default_factory=dict)
    code: tuple[Path, ...] = ()
    trust: bool = False
    weights: str = "auto"
    dtype: str | None = None
    input_shape: tuple[int, ...] | None = None


def recognize(path: Path) -> tuple[str, ModuleType, Any]:
    """Kind of the file at `path`, the module that loads it, and what was seen of the file.

    Raises BadInput for files that are missing, empty, damaged or of no known kind.
    """
    from edgekit.checkpoint.sniff import sniff

    head = sniff(path)
    for kind, name in KINDS.items():
        module = importlib.import_module(name)
        if module.sniff(head):
            return kind, module, head
    raise BadInput(
        f"{path} is of no known kind of checkpoint.",
        hint="edgekit reads ONNX, TorchScript, torch.export (.pt2), safetensors, Ultralytics .pt, "
        "and what torch.save writes: a state_dict (with --arch) or a whole module.",
    )


def load(path: Path, options: LoadOptions | None = None) -> Checkpoint:
    """Load a checkpoint of any kind.

    The module is in eval mode, float32, on the CPU and without gradients; an ONNX file is checked
    and stays where it is. Raises BadInput (unusable file, or one that would run code), UsageError
    (options that do not fit), MissingDependency.
    """
    from edgekit.atomic import sha256_file

    path = Path(path)
    options = options or LoadOptions()
    kind, module, head = recognize(path)
    if options.weights == "ema" and kind not in _WITH_EMA:
        raise UsageError(f"--weights ema: {path} ({kind}) has one set of weights only.")
    loaded: Checkpoint = module.load(head, options)
    notes = loaded.notes
    if options.arch is not None and kind not in _WITH_ARCH:
        notes += ("--arch is not used: the checkpoint holds its network",)
    return dataclasses.replace(loaded, kind=kind, path=path, sha256=sha256_file(path), notes=notes)


def options_key(options: LoadOptions) -> dict[str, Any]:
    """What of the options decides about the loaded model, as plain JSON values for a content key.

    The architecture enters by the sha256 of its source files, found without importing them.
    """
    from edgekit.checkpoint.sources import source_hashes

    module = options.arch.partition(":")[0] if options.arch else ""
    return {
        "arch": options.arch,
        "arch_args": dict(sorted(options.arch_args.items())),
        "code": [str(folder) for folder in options.code],
        "sources": source_hashes(module, options.code) if module else {},
        "trust": options.trust,
        "weights": options.weights,
        "dtype": options.dtype,
        "input_shape": list(options.input_shape) if options.input_shape else None,
    }
