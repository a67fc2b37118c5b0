"""Whole pickled modules: torch.nn classes safely, the user's own with --trust-checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint import torch_file
from edgekit.checkpoint.described import describe
from edgekit.checkpoint.inference import ready
from edgekit.checkpoint.revive import Reviver
from edgekit.checkpoint.sniff import Sniff
from edgekit.checkpoint.weights import EMA_KEYS, MODEL_KEYS
from edgekit.errors import BadInput, UsageError
from edgekit.types import Checkpoint

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions


def sniff(head: Sniff) -> bool:
    """The last kind to be asked: anything of torch.save that the others left."""
    return head.is_legacy_torch or head.has("data.pkl")


def load(head: Sniff, options: LoadOptions) -> Checkpoint:
    """Load the module that was pickled bare, or under a key such as `model` or `ema`.

    Without trust only torch.nn's and Ultralytics' classes are made. Raises BadInput for others.
    """
    notes: list[str] = []
    if options.trust:
        found = torch_file.read_trusted(head, options)
        chosen = _choose(found, options.weights, head, notes)
    else:
        found = torch_file.read(head)
        reviver = Reviver(str(head.path))
        chosen = reviver.module(_choose(found, options.weights, head, notes))
        notes += reviver.notes
    module = _unwrapped(chosen, notes)
    notes += _made_float(module)
    made = ready(module, head.path, options.dtype)
    said = describe(found, head.path)
    return Checkpoint(
        path=head.path,
        sha256="",
        kind="whole_module",
        module=made.module,
        input_shape=said.input_shape,
        preprocess=said.preprocess,
        task=said.task,
        head=said.head,
        names=said.names,
        parameters=made.parameters,
        notes=(*notes, *made.notes),
    )


def _is_module(value: Any) -> bool:
    import torch

    return isinstance(value, (torch_file.StandIn, torch.nn.Module))


def _choose(found: Any, weights: str, head: Sniff, notes: list[str]) -> Any:
    """The module in `found`: itself, or under a key; EMA before model when "auto"."""
    if _is_module(found):
        if weights == "ema":
            raise UsageError(f"{head.path} has no EMA weights.", hint="Leave out --weights.")
        return found
    if not isinstance(found, Mapping):
        raise BadInput(
            f"{head.path} holds a {type(found).__name__}, neither a module nor a state_dict.",
            hint="Save the model (torch.save(model, …)) or its state_dict.",
        )
    groups = {
        "ema": [key for key in EMA_KEYS if _is_module(found.get(key))],
        "model": [key for key in MODEL_KEYS if _is_module(found.get(key))],
    }
    wanted = ["ema", "model"] if weights == "auto" else [weights]
    key = next((keys[0] for name in wanted if (keys := groups[name])), None)
    if key is None:
        known = ", ".join(f"'{name}'" for name in list(found)[:12]) or "none"
        raise BadInput(
            f"{head.path} holds no model"
            + (f" under a key for '{weights}'" if weights != "auto" else "")
            + f"; its keys are {known}.",
            hint="Save the model (torch.save(model, …)) or its state_dict.",
        )
    notes.append(f"module found under '{key}'")
    if key in EMA_KEYS:
        notes.append("EMA weights used")
    return found[key]


def _unwrapped(module: Any, notes: list[str]) -> Any:
    """The module inside of DataParallel and its like."""
    import torch

    while isinstance(module, torch.nn.DataParallel) or type(module).__name__ in (
        "DistributedDataParallel",
        "AveragedModel",
        "OptimizedModule",
    ):
        inner = getattr(module, "module", None) or getattr(module, "_orig_mod", None)
        if not isinstance(inner, torch.nn.Module):
            break
        notes.append(f"{type(module).__name__} taken off")
        module = inner
    return module


def _made_float(module: Any) -> list[str]:
    """Fold pruning masks that are still attached, and turn dynamic int8 layers into float ones."""
    import torch
    from torch.nn.utils import prune

    from edgekit.checkpoint import fold

    notes: list[str] = []
    if not isinstance(module, torch.nn.Module):
        return notes
    masks = 0
    for layer in module.modules():
        for hook in list(layer._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(layer, hook._tensor_name)
                masks += 1
    if masks:
        notes.append(f"{masks} pruning masks folded into their weights")
    return notes + fold.dequantize_layers(module)
