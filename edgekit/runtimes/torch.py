"""PyTorch modules as a runtime: the reference that exports are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput
from edgekit.require import require
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TorchSession:
    """A torch module in eval mode, run without gradients on the CPU.

    Output names are `output_names` where given, else `output0`, `output1`, …; nested tuples, lists
    and dicts of tensors are flattened in order.
    """

    def __init__(
        self, module: Any, inputs: tuple[TensorSpec, ...], output_names: tuple[str, ...] = ()
    ) -> None:
        self._torch = require("torch", "Running a torch checkpoint")
        self._module = module
        self.inputs = inputs
        self._output_names = output_names
        self.outputs: tuple[TensorSpec, ...] = ()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `Session.run`."""
        torch = self._torch
        tensors = [torch.from_numpy(feeds[spec.name].copy()) for spec in self.inputs]
        try:
            with torch.inference_mode():
                result = self._module(*tensors)
        except (RuntimeError, ValueError, TypeError) as error:
            shapes = [list(tensor.shape) for tensor in tensors]
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise BadInput(
                f"The checkpoint's forward pass fails on inputs {shapes}: {lines[-1]}",
                hint="Check --imgsz or --input-shape, and the layout the model was trained with.",
            ) from error
        flat = flatten(result, torch)
        if not flat:
            raise BadInput("The checkpoint's forward pass returns no tensor.")
        names = self._output_names or tuple(f"output{index}" for index in range(len(flat)))
        if len(names) != len(flat):
            raise BadInput(f"The checkpoint returns {len(flat)} tensors, expected {len(names)}.")
        arrays = {name: tensor.numpy() for name, tensor in zip(names, flat, strict=True)}
        self.outputs = tuple(
            TensorSpec(name=name, shape=array.shape, dtype=str(array.dtype))
            for name, array in arrays.items()
        )
        return arrays

    def close(self) -> None:
        self._module = None

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def flatten(value: Any, torch: Any) -> list[Any]:
    """Every tensor in a nest of tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in flatten(item, torch)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in flatten(item, torch)]
    return []
