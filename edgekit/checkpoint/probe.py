"""Try a module's forward pass: on shapes alone, so that nothing is computed and nothing can hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.errors import BadInput

_MAX_ELEMENTS = 1 << 31


def run_on_shapes(module: Any, shape: tuple[int, ...]) -> Any:
    """What `module` returns for an input of `shape`, as tensors without data (device "meta").

    Raises whatever the forward pass raises, and RuntimeError for a layer whose output would exceed
    2^31 elements.
    """
    import torch

    def guard(layer: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.numel() > _MAX_ELEMENTS:
            raise RuntimeError(f"a {type(layer).__name__} would make {list(output.shape)} values")

    handles = [layer.register_forward_hook(guard) for layer in module.modules()]
    state = {
        name: tensor.detach().to("meta")
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    try:
        with torch.no_grad():
            return torch.func.functional_call(
                module, state, (torch.empty(shape, device="meta"),), strict=False
            )
    finally:
        for handle in handles:
            handle.remove()


def check_forward(
    module: Any, shape: tuple[int, ...], path: Path, one_tensor: bool = True
) -> tuple[int, ...]:
    """Shape of the tensor that `module` returns for an input of `shape`; () for several tensors.

    Raises BadInput when the layers do not fit each other, or, with `one_tensor`, when the output is
    no single tensor.
    """
    import torch

    try:
        output = run_on_shapes(module, shape)
    # layers of unknown makers run here on shapes that the file decides: anything can be raised
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"{path}: the forward pass fails on an input of {list(shape)}: {lines[0]}"
        ) from error
    if not isinstance(output, torch.Tensor):
        if not one_tensor:
            return ()
        raise BadInput(f"{path}: the model returns a {type(output).__name__}, not one tensor.")
    return tuple(int(size) for size in output.shape)


# sizes of images that published networks take, the likeliest first
_SIDES = (
    224,
    32,
    96,
    28,
    64,
    128,
    192,
    256,
    320,
    416,
    512,
    640,
    160,
    299,
    240,
    384,
    48,
    40,
    36,
    16,
)


def first_shape(module: Any, path: Path) -> tuple[int, ...]:
    """An input shape that `module` accepts: its own `input_shape`, else common sizes are tried.

    The channels are those of its first convolution; a network without one takes [1, in_features] of
    its first Linear. Raises BadInput when none works.
    """
    import torch

    told = getattr(module, "input_shape", None)
    shapes: list[tuple[int, ...]] = []
    if isinstance(told, (tuple, list)) and all(isinstance(size, int) for size in told):
        shapes.append(tuple(told) if len(told) == 4 else (1, *told))
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            shapes += [(1, layer.in_channels, side, side) for side in _SIDES]
            break
        if isinstance(layer, torch.nn.Linear):
            shapes.append((1, layer.in_features))
            break
    training = module.training
    module.eval()
    try:
        for shape in shapes:
            try:
                run_on_shapes(module, shape)
            # a size that does not fit can fail in any way inside of the user's forward
            except Exception:
                continue
            return shape
    finally:
        module.train(training)
    raise BadInput(
        f"{path}: the shapes of the checkpoint differ from the architecture's, and no common input "
        "size could be run to check that they fit together.",
        hint="Say the input's shape with --input-shape 1,C,H,W, or store it in the checkpoint as "
        "'input_shape'.",
    )
