"""Where an exported graph parts from the torch module it was made of.

The two have no tensor names in common, so tensors are matched by value: an ONNX tensor that equals
the output of some submodule is still right. From an output that broke, the graph is followed
upstream to the nearest right tensors; the first node behind them is where the parting begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import BadInput
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.observe import ObservedModel

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_RELATIVE = 1e-3  # of the largest value: two tensors this near are the same
_AT_ONCE = 32  # tensors of the ONNX graph in memory at a time


def where(
    module: Any, candidate: Path, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> str:
    """A sentence that names the node at which `candidate` parts from `module`; "" when none is found.

    `outputs` are the graph outputs that broke.
    """
    modules = _module_outputs(module, next(iter(feed.values())))
    graph = onnx_file.load(candidate, external_data=False).graph
    producers = {name: node for node in graph.node for name in node.output if name}
    upstream = _upstream(producers, outputs)
    made = [name for node in graph.node for name in node.output if name in upstream]
    try:
        right = _right(candidate, feed, [name for name in made if name not in outputs], modules)
    except BadInput:
        return ""
    # nodes between the right tensors and the broken outputs, in graph order
    between = _upstream(producers, outputs, stop=set(right))
    constants = {item.name for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" or not any(name in between for name in node.output):
            continue
        reads = [name for name in node.input if name and name not in constants]
        known = [right[name] for name in reads if name in right]
        if not known and not any(name in feed for name in reads):
            continue
        name = node.name or next(iter(node.output))
        behind = f", behind the module '{known[0]}', which is still right" if known else ""
        return f"It begins at or behind the {node.op_type} node '{name}'{behind}."
    return ""


def _module_outputs(module: Any, feed: NDArray[Any]) -> list[tuple[str, NDArray[Any]]]:
    """(path, output) of every submodule that gives a tensor, in the order of execution."""
    import torch

    found: list[tuple[str, NDArray[Any]]] = []
    handles = []

    def keep(path: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                found.append((path, output.detach().float().cpu().numpy().copy()))

        return hook

    for path, part in module.named_modules():
        if path and hasattr(part, "register_forward_hook"):
            try:
                handles.append(part.register_forward_hook(keep(path)))
            except RuntimeError:
                continue  # parts of a TorchScript module take no hooks
    try:
        with torch.inference_mode():
            module(torch.from_numpy(feed.copy()))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _right(
    candidate: Path,
    feed: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    modules: Sequence[tuple[str, NDArray[Any]]],
) -> dict[str, str]:
    """ONNX tensor → the submodule whose output it equals."""
    import numpy as np

    by_shape: dict[tuple[int, ...], list[tuple[str, NDArray[Any]]]] = {}
    for path, array in modules:
        by_shape.setdefault(array.shape, []).append((path, array))
    found: dict[str, str] = {}
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        with ObservedModel(candidate, some, SessionOptions(optimize=False)) as observed:
            given = dict(zip((spec.name for spec in observed.inputs), feed.values(), strict=True))
            for name, array in observed.run(given).items():
                for path, other in by_shape.get(array.shape, []):
                    limit = _RELATIVE * max(float(np.abs(other).max(initial=0.0)), 1e-12)
                    if np.isfinite(array).all() and float(np.abs(array - other).max()) <= limit:
                        found[name] = path
                        break
    return found


def _upstream(
    producers: Mapping[str, onnx.NodeProto], outputs: Sequence[str], stop: set[str] | None = None
) -> set[str]:
    """Tensors that `outputs` are computed from, themselves included; nothing beyond `stop`."""
    found: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name in found or name not in producers or (stop and name in stop):
            continue
        found.add(name)
        waiting.extend(producers[name].input)
    return found
