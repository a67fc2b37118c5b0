"""The last step of every torch kind: a module that is ready to run, and whose weights are sound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput

_RUNNING = ("running_mean", "running_var")
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WORDS = {"float16": "half precision", "float64": "double precision"}


@dataclass(frozen=True)
class Ready:
    """A module in eval mode and float32, its count of unique parameters, and what was done to it."""

    module: Any
    parameters: int
    notes: tuple[str, ...]


def ready(module: Any, path: Path, dtype: str | None = None) -> Ready:
    """Bring `module` to eval mode, CPU, float32, without gradients.

    Raises BadInput for weights that are not finite or no floats (named), and for mixed float types
    unless `dtype` is "float32".
    """
    import torch

    from edgekit.checkpoint import qat

    if not isinstance(module, torch.nn.Module):
        raise BadInput(f"{path} holds a {type(module).__name__}, not a module.")
    notes = widen(module, path, dtype)
    qat.demand_converted(module, path)
    module.train(False)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    check_finite(module.named_parameters(), module.named_buffers(), path)
    parameters = count_parameters(module)
    module, frozen = qat.freeze(module, path)
    return Ready(module=module, parameters=parameters, notes=(*notes, *frozen))


def count_parameters(module: Any) -> int:
    """Elements of all parameters, shared ones counted once."""
    return sum({id(p): int(p.numel()) for p in module.parameters()}.values())


def widen(module: Any, path: Path, dtype: str | None = None) -> tuple[str, ...]:
    """Turn every float tensor of `module` into float32; notes on what was not.

    Raises BadInput as `check_types` does.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    notes = check_types(parameters, buffers, path, dtype)
    module.float()
    return notes


def check_types(
    parameters: Mapping[str, Any],
    buffers: Mapping[str, Any],
    path: Path,
    dtype: str | None = None,
    made: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Notes on the float types that become float32: 16 bits widen exactly, 64 are rounded.

    A network is saved in one type. Where weights and running statistics have several, part of the
    file was converted by hand or comes from another training, so it is refused unless `dtype` is
    "float32"; tensors named in `made` do not count. Raises BadInput for that, and for weights that
    are complex, integers, 8-bit floats, sparse or without data; named.
    """
    import torch

    kinds: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for name, tensor in [*parameters.items(), *buffers.items()]:
        if tensor.device.type != "cpu":
            raise BadInput(f"{path}: the tensor '{name}' has no data.")
        kind = str(tensor.dtype).removeprefix("torch.")
        if name in parameters:
            _check_weight(name, tensor, kind, path)
        if not tensor.is_floating_point():
            continue
        if (name in parameters or name.rpartition(".")[2] in _RUNNING) and name not in made:
            kinds.setdefault(kind, []).append(name)
        if tensor.dtype != torch.float32:
            counts[kind] = counts.get(kind, 0) + 1
    if len(kinds) > 1 and dtype != "float32":
        raise _mixed(kinds, path)
    return tuple(
        f"{count} {_WORDS.get(kind, kind)} tensors "
        + ("rounded to float32" if kind == "float64" else "widened to float32")
        for kind, count in sorted(counts.items())
    )


def _mixed(kinds: Mapping[str, list[str]], path: Path) -> BadInput:
    parts = [f"{len(names)} are {kind} ('{names[0]}')" for kind, names in sorted(kinds.items())]
    return BadInput(
        f"{path} mixes float types: of its weights and running statistics {', '.join(parts)}.",
        hint="If that is meant (half precision with normalization kept in float32, say), add "
        "--dtype float32: everything is then computed in float32.",
    )


def _check_weight(name: str, tensor: Any, kind: str, path: Path) -> None:
    import torch

    if tensor.layout != torch.strided:
        raise BadInput(f"{path}: the weight '{name}' is sparse ({tensor.layout}).")
    if kind not in _FLOATS:
        raise BadInput(
            f"{path}: the weight '{name}' is {kind}, and nothing in the checkpoint says how to read "
            "it as a real number.",
            hint="Save the weights as float32, or together with their scales.",
        )


def check_finite(
    parameters: Iterable[tuple[str, Any]], buffers: Iterable[tuple[str, Any]], path: Path
) -> None:
    """Raises BadInput, naming the tensor, for NaN or infinity in weights or running statistics.

    Other buffers may hold infinities: attention masks do.
    """
    import torch

    for kind, tensors in (("weight", parameters), ("buffer", buffers)):
        for name, tensor in tensors:
            if not tensor.is_floating_point() or tensor.numel() == 0:
                continue
            strict = kind == "weight" or name.rpartition(".")[2] in _RUNNING
            # min and max carry a NaN through and cost no second copy of the tensor
            low, high = torch.aminmax(tensor.detach())
            if torch.isnan(low) or (strict and not (torch.isfinite(low) and torch.isfinite(high))):
                bad = int((~torch.isfinite(tensor)).sum())
                raise BadInput(
                    f"{path}: the {kind} '{name}' holds {bad} values that are NaN or infinite, of "
                    f"{tensor.numel()}.",
                    hint="The training diverged or the file is damaged; use an earlier checkpoint.",
                )
