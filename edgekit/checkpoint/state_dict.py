"""A state_dict of torch.save, bare or nested beside training state, with `--arch` for its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint import pickle_tree, torch_file, weights
from edgekit.checkpoint.described import Description, describe
from edgekit.checkpoint.sniff import Sniff
from edgekit.errors import UsageError
from edgekit.types import Checkpoint

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions


def sniff(head: Sniff) -> bool:
    return _holds_tensors(head.tree, 0)


def _holds_tensors(node: Any, depth: int) -> bool:
    mapping = pickle_tree.as_mapping(node)
    if mapping is None or depth > 3:
        return False
    for key, value in mapping.items():
        if isinstance(value, pickle_tree.Call) and value.path.startswith("torch._utils._rebuild_"):
            return True
        if not weights.is_training_state(key) and _holds_tensors(value, depth + 1):
            return True
    return False


def load(head: Sniff, options: LoadOptions) -> Checkpoint:
    """Build the network with the factory and fill it; see `assemble.fill` for what is checked."""
    demand_arch(head, options)
    found = torch_file.read_trusted(head, options) if options.trust else torch_file.read(head)
    return from_mapping(head, found, options, "state_dict")


def demand_arch(head: Sniff, options: LoadOptions) -> None:
    """Raises UsageError when there is no --arch."""
    if options.arch is None:
        raise UsageError(
            f"{head.path} is a state_dict: weights without their network.",
            hint="Name the function or class that builds the network: --arch package.module:factory "
            "(with --arch-arg key=value for its arguments, --code DIR for its folder).",
        )


def from_mapping(
    head: Sniff, found: Mapping[Any, Any], options: LoadOptions, kind: str
) -> Checkpoint:
    """A checkpoint from the loaded dictionary `found` and the architecture of the options."""
    from edgekit.checkpoint import assemble, factory

    chosen = weights.choose(found, options.weights, head.path)
    description: Description = describe(found, head.path)
    module = factory.build(options)
    shape = description.input_shape or options.input_shape
    filled = assemble.fill(module, chosen.tensors, head.path, shape, options.dtype)
    return Checkpoint(
        path=head.path,
        sha256="",
        kind=kind,
        module=filled.module,
        input_shape=description.input_shape,
        preprocess=description.preprocess,
        task=description.task,
        head=description.head,
        names=description.names,
        parameters=filled.parameters,
        notes=chosen.notes + filled.notes,
        architecture=(options.arch or "").rpartition(":")[2],
    )
