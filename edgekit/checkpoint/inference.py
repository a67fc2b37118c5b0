"""The last step of every torch kind: a module that is ready to run, and whose weights are sound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput

_RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True)
class Ready:
    """A module in eval mode and float32, its count of unique parameters, and what was done to it."""

    module: Any
    parameters: int
    notes: tuple[str, ...]


def ready(module: Any, path: Path) -> Ready:
    """Bring `module` to eval mode, CPU, float32, without gradients.

    Raises BadInput for weights that are not finite (named), that are neither float nor an integer
    buffer, or that mix float types within one layer.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise BadInput(f"{path} holds a {type(module).__name__}, not a module.")
    notes = widen(module, path)
    module.train(False)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    check_finite(module.named_parameters(), module.named_buffers(), path)
    return Ready(module=module, parameters=count_parameters(module), notes=notes)


def count_parameters(module: Any) -> int:
    """Elements of all parameters, shared ones counted once."""
    return sum({id(p): int(p.numel()) for p in module.parameters()}.values())


def widen(module: Any, path: Path) -> tuple[str, ...]:
    """Turn every float tensor of `module` into float32 and say so.

    float16 and bfloat16 widen exactly, float64 is rounded. Raises BadInput for complex or 8-bit
    floats, for integer parameters, for meta tensors (no data), and for a layer of mixed types.
    """
    import torch

    widened: dict[str, int] = {}
    for layer, child in module.named_modules():
        types = set()
        for name, parameter in child.named_parameters(recurse=False):
            full = f"{layer}.{name}" if layer else name
            check_dtype(full, parameter, path)
            types.add(str(parameter.dtype).removeprefix("torch."))
        if len(types) > 1:
            raise BadInput(
                f"{path}: layer '{layer}' mixes {' and '.join(sorted(types))} weights, so it could "
                "not have run as it was saved.",
                hint="Convert the model to one type (model.float()) and save it again.",
            )
        for name, tensor in [
            *child.named_parameters(recurse=False),
            *child.named_buffers(recurse=False),
        ]:
            if tensor.device.type != "cpu":
                raise BadInput(f"{path}: the tensor '{layer}.{name}' has no data.")
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                kind = str(tensor.dtype).removeprefix("torch.")
                widened[kind] = widened.get(kind, 0) + 1
    module.float()
    words = {
        "float16": "half precision",
        "bfloat16": "bfloat16",
        "float64": "double precision",
    }
    return tuple(
        f"{count} {words.get(kind, kind)} tensors "
        + ("rounded to float32" if kind == "float64" else "widened to float32")
        for kind, count in sorted(widened.items())
    )


def check_dtype(name: str, tensor: Any, path: Path) -> None:
    """Raises BadInput when `tensor` is no plain float16, bfloat16, float32 or float64."""
    import torch

    if tensor.layout != torch.strided:
        raise BadInput(f"{path}: the tensor '{name}' is sparse ({tensor.layout}).")
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise BadInput(
            f"{path}: the weight '{name}' is {str(tensor.dtype).removeprefix('torch.')}, and nothing "
            "in the checkpoint says how to read it as a real number.",
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
