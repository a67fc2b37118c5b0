"""What a pickle may name and call, checked on its tree before torch sees the file.

Three circles:
1. CALLS: functions that a file may call, all of them torch's or Python's rebuilding of tensors and
   containers, each with its arguments checked (a size, a stride or an offset that reaches outside of
   its storage would be read by torch without asking).
2. Module classes: torch.nn's and Ultralytics' layers and models. They may be named and made without
   their constructor, never called: a constructor can do anything (Ultralytics' model class
   evaluates text of its configuration).
3. Dead data: numpy scalars, paths, optimizers and so on, which training leaves in a checkpoint.
   They are kept as inert records; no code of theirs runs.
Anything else is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from edgekit.checkpoint.pickle_scan import scan
from edgekit.checkpoint.pickle_tree import (
    Call,
    Global,
    Instance,
    Persistent,
    PickleError,
    walk,
)
from edgekit.checkpoint.sniff import Sniff
from edgekit.checkpoint.stored_bytes import StoredBytes, counts, is_count
from edgekit.errors import BadInput

_MODULE_CLASS = re.compile(
    r"torch\.nn\.modules\.\w+\.[A-Z]\w*"
    r"|torch\.nn\.parallel\.data_parallel\.DataParallel"
    r"|ultralytics\.nn\.modules(\.\w+)?\.[A-Z]\w*|ultralytics\.nn\.modules\.head\.v10Detect"
    r"|ultralytics\.nn\.tasks\.[A-Z]\w*Model"
    r"|ultralytics\.nn\.tasks\.Ensemble"
)
_FUNCTION = re.compile(
    r"torch\.nn\.functional\.(relu|relu6|gelu|silu|sigmoid|tanh|hardswish|hardsigmoid|leaky_relu"
    r"|elu|selu|mish|softplus|log_softmax|softmax)"
    r"|torch\._C\._nn\.(gelu|silu|hardsigmoid|hardswish|leaky_relu)"
    r"|torch\.(relu|sigmoid|tanh)"
)
_DEAD_DATA = re.compile(
    r"numpy(\.\w+)*\.(scalar|dtype|ndarray|_reconstruct|_frombuffer|generic|float64|float32|int64"
    r"|int32|bool_|str_)"
    r"|numpy\.dtypes\.\w+"
    r"|pathlib(\._local)?\.(Path|PosixPath|WindowsPath|PurePath|PurePosixPath|PureWindowsPath)"
    r"|datetime\.(datetime|date|time|timedelta|timezone)"
    r"|argparse\.Namespace|types\.SimpleNamespace|collections\.(defaultdict|deque|Counter)"
    r"|builtins\.(dict|list|tuple|set|frozenset|int|float|bool|str|bytes|object|type|slice|complex)"
    r"|torch\.optim(\.\w+)*\.[A-Z]\w*"
    r"|torch\.(cuda\.)?amp\.grad_scaler\.GradScaler"
    r"|torch\.nn\.utils\.prune\.[A-Z]\w*"
    r"|torch\.(Generator|memory_format|contiguous_format|channels_last|preserve_format|strided)"
    r"|torch\.serialization\._get_layout|torch\.(qscheme|finfo|iinfo)"
    r"|torch\.utils\.data(\.\w+)*\.\w+"
    r"|ultralytics\.utils(\.\w+)*\.[A-Z]\w*|ultralytics\.utils\.loss\.v8\w+"
    r"|ultralytics\.yolo\.utils(\.\w+)*\.[A-Z]\w*"
    r"|omegaconf(\.\w+)*\.\w+|typing\.(Any|Dict|List|Tuple|Union|Optional)"
)
_TENSOR_TYPES = re.compile(
    r"torch\.(\w+Storage|\w+Tensor|Tensor|Size|device|dtype)"
    r"|torch\.storage\.(UntypedStorage|TypedStorage)"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\.(float|double|half|bfloat16|int|long|short|bool|uint|complex|cfloat|cdouble|quint|qint"
    r"|bits|float8_|float4_)\w*"
    r"|torch\.per_(tensor|channel)_\w+"
)
_REBUILD = "torch._utils._rebuild_"
GETATTR = "builtins.getattr"


def is_module_class(path: str) -> bool:
    """Whether `path` ("torch.nn.modules.conv.Conv2d") names a class of the second circle."""
    return _MODULE_CLASS.fullmatch(path) is not None


def is_function(path: str) -> bool:
    """Whether `path` names an activation function that a module may hold as an attribute."""
    return _FUNCTION.fullmatch(path) is not None


def is_dead_data(path: str) -> bool:
    return _DEAD_DATA.fullmatch(path) is not None


def is_known(name: Global) -> bool:
    """Whether the file may name it at all; what it may do with it is `_check_call`'s matter."""
    path = name.path
    return (
        path in CALLS
        or path == GETATTR
        or _TENSOR_TYPES.fullmatch(path) is not None
        or is_module_class(path)
        or is_function(path)
        or is_dead_data(path)
    )


def vet(file: Sniff) -> None:
    """Check the whole pickle of `file`. Raises BadInput, naming the class or the damage."""
    found = file.pickle
    if found is None:
        raise BadInput(f"{file.path} is no file of torch.save.")
    unknown = [name for name in found.globals if not is_known(name)]
    if unknown:
        raise unknown_class(file, unknown)
    if file.is_legacy_torch and any(_is_old_module(node) for node in found.made):
        raise BadInput(
            f"{file.path} is a whole module in the format of torch before 1.6, which cannot be read "
            "without running it.",
            hint="If you trust it, add --trust-checkpoint, or save it once more with a newer torch.",
        )
    try:
        walk(found.tree)  # for its depth: what follows recurses
        stored = StoredBytes(file, "data/")
        for node in found.made:
            if isinstance(node, Call):
                _check_call(node, stored)
            elif isinstance(node, Instance):
                _check_instance(node)
            elif isinstance(node, Persistent):
                stored.check(node)
    except PickleError as error:
        raise tampered(file, error) from error


def vet_tensors(file: Sniff, record: str, folder: str) -> None:
    """Check the tensors alone of the pickle `record`, whose storages lie in `folder` of the zip.

    For TorchScript, whose classes are torch's own business. Raises BadInput.
    """
    try:
        stored = StoredBytes(file, folder)
        for node in scan(file.record(record)).made:
            if isinstance(node, Persistent):
                stored.check(node)
            elif isinstance(node, Call) and node.path.startswith(_REBUILD):
                if node.path not in CALLS:
                    raise PickleError(f"it calls {node.path}")
                CALLS[node.path](node, stored)
    except PickleError as error:
        raise tampered(file, error) from error


def tampered(file: Sniff, error: PickleError) -> BadInput:
    return BadInput(
        f"{file.path} is damaged or was tampered with: {error}.",
        hint="Copy or download the file again, or save the checkpoint anew.",
    )


def _is_old_module(node: Any) -> bool:
    return (
        isinstance(node, Persistent) and isinstance(node.id, tuple) and node.id[:1] == ("module",)
    )


def unknown_class(file: Sniff, names: list[Global]) -> BadInput:
    """The refusal of a file that names something outside of the three circles."""
    shown = ", ".join(f"'{name.path}'" for name in names[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    one = len(names) == 1
    return BadInput(
        f"{file.path} wants to load {shown}{more}, which {'is' if one else 'are'} not on the list "
        "of known classes: unpickling could run any code. Nothing of it was run.",
        hint="If you made this file or trust whoever did, add --trust-checkpoint (and --code DIR "
        "with the folder of its classes). Better: save model.state_dict() and give --arch.",
    )


def _tensor(call: Call, stored: StoredBytes) -> None:
    # _rebuild_tensor(storage, offset, size, stride), _v2 and _v3 append what concerns autograd
    if len(call.args) < 4:
        raise PickleError("a tensor without its shape")
    stored.fits(call.args[1], call.args[2], call.args[3], call.args[0])


def _qtensor(call: Call, stored: StoredBytes) -> None:
    _tensor(call, stored)
    if len(call.args) < 5 or not isinstance(call.args[4], tuple):
        raise PickleError("a quantized tensor without its scales")


def _parameter(call: Call, stored: StoredBytes) -> None:
    data = call.args[0] if call.args else None
    if not isinstance(data, Call) or not data.path.startswith(_REBUILD):
        raise PickleError("a parameter that is no tensor")


def _subclass(call: Call, stored: StoredBytes) -> None:
    # _rebuild_from_type_v2(function, type, args, state): a tensor with attributes of its own
    if (
        len(call.args) != 4
        or not isinstance(call.args[0], Global)
        or call.args[0].path not in (_REBUILD + "tensor_v2", _REBUILD + "tensor_v3")
        or not isinstance(call.args[1], Global)
        or call.args[1].path not in ("torch.Tensor", "torch.nn.parameter.Parameter")
        or not isinstance(call.args[2], tuple)
    ):
        raise PickleError("a tensor subclass")
    _tensor(Call(call.args[0], call.args[2]), stored)


def _plain_items(call: Call, stored: StoredBytes) -> None:
    # hashing nested tuples that share their parts takes 2^depth steps
    for argument in call.args:
        if not isinstance(argument, (list, tuple, dict, set)):
            raise PickleError(f"{call.path} of something that is no container")
        for item in argument:
            key = item[0] if isinstance(item, (list, tuple)) and item else item
            if not isinstance(key, (str, bytes, int, float, bool, type(None))):
                raise PickleError(f"{call.path} with a key that is no plain value")


def _plain_scalars(call: Call, stored: StoredBytes) -> None:
    for argument in call.args:
        if not isinstance(argument, (str, bytes, float, bool)) and not is_count(argument):
            raise PickleError(f"{call.path} of something that is no plain value")
        if call.path == "builtins.bytearray" and isinstance(argument, int):
            raise PickleError("a bytearray of a mere length")


def _size(call: Call, stored: StoredBytes) -> None:
    if len(call.args) != 1:
        raise PickleError("torch.Size without a shape")
    counts(call.args[0])


CALLS: dict[str, Callable[[Call, StoredBytes], None]] = {
    _REBUILD + "tensor": _tensor,
    _REBUILD + "tensor_v2": _tensor,
    _REBUILD + "tensor_v3": _tensor,
    _REBUILD + "qtensor": _qtensor,
    _REBUILD + "parameter": _parameter,
    _REBUILD + "parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _size,
    "torch.device": _plain_scalars,
    "torch.serialization._get_layout": _plain_scalars,
    "collections.OrderedDict": _plain_items,
    "collections.Counter": _plain_items,
    "builtins.set": _plain_items,
    "builtins.frozenset": _plain_items,
    "builtins.complex": _plain_scalars,
    "builtins.bytearray": _plain_scalars,
    "_codecs.encode": _plain_scalars,
    "copyreg._reconstructor": lambda call, stored: _check_reconstructor(call),
}


def _check_reconstructor(call: Call) -> None:
    # protocols 0 and 1 write cls.__new__ this way: (cls, object, None)
    if not (
        len(call.args) == 3
        and isinstance(call.args[0], Global)
        and isinstance(call.args[1], Global)
        and call.args[1].path == "builtins.object"
        and call.args[2] is None
    ):
        raise PickleError("an object with a base class of its own")


def _check_call(call: Call, stored: StoredBytes) -> None:
    if not isinstance(call.function, Global):
        raise PickleError("it calls something that is no named function")
    path = call.path
    if path in CALLS:
        # BUILD on a tensor gives it another storage and geometry
        if call.state is not None and path != "collections.OrderedDict":
            raise PickleError(f"it changes what {path} made")
        CALLS[path](call, stored)
    elif path == GETATTR:
        # a bound method: Ultralytics' fused layers hold self.forward = self.forward_fuse
        if not (
            len(call.args) == 2
            and isinstance(call.args[0], (Instance, Call))
            and isinstance(call.args[1], str)
            and call.args[1].startswith("forward")
        ):
            raise PickleError("it looks up an attribute that is no forward method")
    elif not is_dead_data(path):
        raise PickleError(f"it calls {path}, which may only be named")


def _check_instance(node: Instance) -> None:
    if not isinstance(node.cls, Global):
        raise PickleError("an object of something that is no named class")
    path = node.path
    if is_module_class(path) or is_dead_data(path) or path == "collections.OrderedDict":
        return
    raise PickleError(f"an object of {path}")
