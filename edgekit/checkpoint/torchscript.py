"""TorchScript archives (torch.jit.save), as they stand: their code is interpreted by torch alone."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint import pickle_scan, pickle_tree, vetting
from edgekit.checkpoint.described import Description, describe
from edgekit.checkpoint.inference import ready
from edgekit.checkpoint.sniff import Sniff
from edgekit.checkpoint.torch_file import check_reader, unreadable
from edgekit.errors import BadInput
from edgekit.require import require
from edgekit.types import Checkpoint

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions

# operators with which a script reaches files or other processes
_REACHING = re.compile(
    rb"\b(?:aten|prim|dist_rpc|distributed|_c10d_functional|c10d)[.:]*"
    rb"(?:save|from_file|read_file|rpc_\w+|all_reduce|broadcast)\b|torch\.(?:save|from_file)\b"
)


def sniff(head: Sniff) -> bool:
    has_code = any("/code/" in name for name in head.members)
    return has_code and head.has("constants.pkl") and head.has("data.pkl")


def load(head: Sniff, options: LoadOptions) -> Checkpoint:
    """Load the script in eval mode, float32. Raises BadInput when it is damaged or reaches outside."""
    _check_code(head)
    for name in ("constants", "data"):  # traced inputs are stored without their values
        if head.has(f"{name}.pkl"):
            vetting.vet_tensors(head, f"{name}.pkl", f"{name}/")
    torch = require("torch", "Loading TorchScript")
    check_reader(head)
    try:
        module = torch.jit.load(str(head.path), map_location="cpu")
    # torch's reader is C++ and reports damage with RuntimeError mostly, but also with others
    except Exception as error:
        raise unreadable(head.path, error) from error
    made = ready(module, head.path, options.dtype)
    said = _description(head)
    return Checkpoint(
        path=head.path,
        sha256="",
        kind="torchscript",
        module=made.module,
        input_shape=said.input_shape or _traced_shape(head),
        preprocess=said.preprocess,
        task=said.task,
        head=said.head,
        names=said.names,
        parameters=made.parameters,
        notes=made.notes,
    )


def _check_code(head: Sniff) -> None:
    """Raises BadInput for a script that reads or writes files when it runs."""
    for name in head.members:
        if "/code/" in name and name.endswith(".py"):
            found = _REACHING.search(head.member(name))
            if found:
                raise BadInput(
                    f"{head.path} is refused: its script calls {found.group().decode()}, which reaches "
                    "outside of the model.",
                    hint="Trace the model again without it.",
                )


def _traced_shape(head: Sniff) -> tuple[int, ...] | None:
    """Shape of the image that the module was traced with, batch 1; None for a scripted one."""
    if not head.has("traced_inputs.pkl"):
        return None
    try:
        nodes = pickle_tree.walk(pickle_scan.scan(head.record("traced_inputs.pkl")).tree)
    except pickle_tree.PickleError:
        return None  # torch does not read this record either
    shapes = [
        node.args[2]
        for node in nodes
        if isinstance(node, pickle_tree.Call)
        and node.path == "torch._utils._rebuild_tensor_v2"
        and len(node.args) > 2
    ]
    shape = shapes[0] if len(shapes) == 1 else None
    if not isinstance(shape, tuple) or len(shape) != 4:
        return None
    sizes = [size for size in shape[1:] if isinstance(size, int) and 0 < size <= 1 << 16]
    return (1, *sizes) if len(sizes) == 3 else None


def _description(head: Sniff) -> Description:
    """What Ultralytics' TorchScript export says of itself in extra/config.txt."""
    name = f"{head.folder}extra/config.txt"
    if name not in head.members:
        return Description()
    try:
        fields: Any = json.loads(head.member(name))
    except (ValueError, RecursionError):
        return Description()
    if not isinstance(fields, dict):
        return Description()
    names = fields.get("names")
    if isinstance(names, dict):  # JSON has turned the indices into text
        fields["names"] = {int(k): v for k, v in names.items() if str(k).isdigit()}
    return describe(fields, head.path)
