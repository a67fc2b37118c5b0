"""From inert stand-ins to torch modules: only data is carried over, and only known classes are made.

A module's state is its dictionary. What may stand in it: numbers, text, containers, tensors, other
modules of known classes, and a few named activation functions. Hooks would run with every forward
pass and a value under the name of a method would replace it, so both are refused, with two
exceptions that real checkpoints need: pruning masks (torch.nn.utils.prune), which are folded into
the weight, and `forward = self.forward_fuse` of Ultralytics' fused layers.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import Any

from edgekit.checkpoint import vetting
from edgekit.checkpoint.torch_file import StandIn
from edgekit.errors import BadInput, MissingDependency
from edgekit.require import require

_MAX_DEPTH = 300
_PRUNING = "torch.nn.utils.prune."
_DROP = object()


class Reviver:
    """Makes modules from the stand-ins of one file; shared objects stay shared."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._folded = 0
        self._made: dict[int, Any] = {}
        self._keep: list[Any] = []
        self._depth = 0

    @property
    def notes(self) -> list[str]:
        """What was folded on the way."""
        return [f"{self._folded} pruning masks folded into their weights"] if self._folded else []

    def module(self, value: Any) -> Any:
        """The torch module that `value` stands for. Raises BadInput when it stands for none."""
        made = self.value(value)
        if not isinstance(made, _module_base()):
            raise BadInput(f"{self.path} holds a {type(made).__name__} where a module should be.")
        return made

    def value(self, value: Any) -> Any:
        """`value` with every stand-in revived, or `_DROP` for dead data."""
        if value is None or isinstance(value, (str, bytes, bool, int, float, complex)):
            return value
        if id(value) in self._made:
            return self._made[id(value)]
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._refuse("its modules are nested too deep")
        try:
            return self._value(value)
        finally:
            self._depth -= 1

    def _value(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            return self._stand_in(value)
        if isinstance(value, (dict, OrderedDict)):
            mapping: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
            self._remember(value, mapping)
            for key, item in value.items():
                revived = self.value(item)
                if revived is not _DROP:
                    mapping[key] = revived
            return mapping
        if type(value) is list:
            items: list[Any] = []
            self._remember(value, items)
            items.extend(item for item in map(self.value, value) if item is not _DROP)
            return items
        if type(value) is tuple:
            return self._remember(
                value, tuple(item for item in map(self.value, value) if item is not _DROP)
            )
        if isinstance(value, type) and issubclass(value, StandIn):
            return self._named(value.path)
        return value  # tensors, torch.Size, dtypes, sets of plain values

    def _remember(self, value: Any, made: Any) -> Any:
        self._made[id(value)] = made
        self._keep.append(value)  # an id is only good while its object lives
        return made

    def _named(self, path: str) -> Any:
        """A class or function that a module holds as a value."""
        if vetting.is_function(path):
            import torch

            found: Any = torch
            for part in path.split(".")[1:]:
                found = getattr(found, part)
            return found
        return _DROP

    def _stand_in(self, value: StandIn) -> Any:
        path, args = value.path, value.args
        if path == "copyreg._reconstructor" and args and isinstance(args[0], type):
            path, args = getattr(args[0], "path", ""), ()
        if vetting.is_module_class(path):
            return self._module(path, value)
        if path == vetting.GETATTR:
            owner, name = self.value(args[0]), args[1]
            method = getattr(type(owner), name, None)
            if not isinstance(owner, _module_base()) or not callable(method):
                raise self._refuse(f"it looks up '{name}' of a {type(owner).__name__}")
            return getattr(owner, name)
        return self._remember(value, _plain(value))

    def _module(self, path: str, value: StandIn) -> Any:
        cls = module_class(path, self.path)
        state = value.state
        if not isinstance(state, dict):
            raise self._refuse(f"a {path} without its state")
        made = cls.__new__(cls)
        self._remember(value, made)
        state, folded = self._without_hooks(path, state)
        # names with two underscores belong to Python (torch.jit.script leaves __overloads__)
        plain = {k: v for k, v in state.items() if isinstance(k, str) and not k.startswith("__")}
        fields = {key: self.value(item) for key, item in plain.items()}
        fields = {key: item for key, item in fields.items() if item is not _DROP}
        self._check_fields(path, cls, made, fields)
        try:
            made.__setstate__(fields)
        # the class's own repairs of old states work on whatever the file brought
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise self._refuse(f"the state of a {path} does not fit ({error})") from error
        for name in folded:
            fold_mask(made, name)
        self._folded += len(folded)
        return made

    def _without_hooks(self, path: str, state: dict[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
        """The state without hooks, and the names of the tensors that carry pruning masks."""
        kept, masked = dict(state), []
        for key in [k for k in state if isinstance(k, str) and "hooks" in k]:
            hooks = state[key]
            if not isinstance(hooks, dict):
                if hooks not in (None, ()):
                    raise self._refuse(f"a {path} with unknown hooks")
                continue
            for hook in hooks.values():
                if not isinstance(hook, StandIn):
                    continue  # flags such as "with keyword arguments", without a hook of their own
                if not hook.path.startswith(_PRUNING):
                    raise self._refuse(f"a {path} carries a hook of {hook.path}")
                masked += _masked_names(state)
            kept[key] = type(hooks)()
        return kept, sorted(set(masked))

    def _check_fields(self, path: str, cls: Any, made: Any, fields: dict[str, Any]) -> None:
        import torch

        kinds = {
            "_parameters": (torch.nn.Parameter, type(None)),
            "_buffers": (torch.Tensor, type(None)),
            "_modules": (torch.nn.Module, type(None)),
        }
        for key, kind in kinds.items():
            table = fields.get(key)
            if not isinstance(table, dict):
                raise self._refuse(f"a {path} without its table {key}")
            for name, item in table.items():
                if not isinstance(name, str) or not isinstance(item, kind):
                    raise self._refuse(f"a {path} with {type(item).__name__} '{name}' in {key}")
        if not isinstance(fields.get("training", False), bool):
            raise self._refuse(f"a {path} with a strange training flag")
        for key, item in fields.items():
            # plain data under a method's name happens (Ultralytics keeps text in `type`)
            if callable(item) and callable(getattr(cls, key, None)):
                bound = getattr(item, "__self__", None) is made and key == "forward"
                if not bound:
                    raise self._refuse(f"a {path} whose method '{key}' is replaced")

    def _refuse(self, reason: str) -> BadInput:
        return BadInput(
            f"{self.path} is refused: {reason}.",
            hint="If you trust the file, add --trust-checkpoint; if not, ask for a state_dict.",
        )


def _module_base() -> type:
    import torch

    base: type = torch.nn.Module
    return base


def _masked_names(state: dict[Any, Any]) -> list[str]:
    buffers = state.get("_buffers")
    names = buffers if isinstance(buffers, dict) else {}
    return [n[: -len("_mask")] for n in names if isinstance(n, str) and n.endswith("_mask")]


def fold_mask(module: Any, name: str) -> None:
    """Make `name`_orig x `name`_mask the parameter `name` again, as torch.nn.utils.prune.remove does.

    Raises BadInput when the two tensors do not have one shape.
    """
    import torch

    original = module._parameters.pop(f"{name}_orig", None)
    mask = module._buffers.pop(f"{name}_mask", None)
    if original is None or mask is None or original.shape != mask.shape:
        raise BadInput(
            f"The pruning mask of '{name}' in a {type(module).__name__} does not fit it."
        )
    module.__dict__.pop(name, None)
    module.register_parameter(
        name, torch.nn.Parameter((original * mask).detach(), requires_grad=False)
    )


def module_class(path: str, file: str) -> Any:
    """Import the class `path` ("torch.nn.modules.conv.Conv2d"), which vetting must know.

    Raises MissingDependency without the package, BadInput when this version lacks the class.
    """
    if not vetting.is_module_class(path):
        raise BadInput(f"{file} names {path}, which is no known module class.")
    module, _, name = path.rpartition(".")
    if path.startswith("ultralytics."):
        from edgekit.checkpoint.ultralytics import import_ultralytics

        import_ultralytics()
    import torch

    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise MissingDependency(f"{path} does not import: {error}") from error
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        package = module.partition(".")[0]
        version = getattr(require(package, "Loading it"), "__version__", "?")
        raise BadInput(
            f"{file} needs the class {path}, which {package} {version} does not have.",
            hint=f"The checkpoint was saved with another version of {package}; install that one, or "
            "export the model to ONNX with it.",
        )
    return cls


def _plain(value: StandIn) -> Any:
    """Dead data as plain values where that is easy (numpy scalars, paths, namespaces), else _DROP."""
    name, args, state = value.path.rpartition(".")[2], value.args, value.state
    if name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
        return str(PurePosixPath(*[part for part in args if isinstance(part, str)]))
    if name == "scalar" and len(args) == 2 and isinstance(args[1], (bytes, str)):
        return _numpy_scalar(args[0], args[1])
    if name in ("Namespace", "SimpleNamespace", "IterableSimpleNamespace") and isinstance(
        state, dict
    ):
        return {
            k: v for k, v in state.items() if isinstance(v, (str, int, float, bool, type(None)))
        }
    return _DROP


def _numpy_scalar(dtype: Any, data: bytes | str) -> Any:
    import numpy as np

    code = dtype.args[0] if isinstance(dtype, StandIn) and dtype.args else None
    raw = data.encode("latin1", "ignore") if isinstance(data, str) else data
    if isinstance(code, str) and code in ("f8", "f4", "f2", "i8", "i4", "u8", "u4", "b1"):
        kind = np.dtype(code)
        if len(raw) == kind.itemsize:
            return np.frombuffer(raw, dtype=kind)[0].item()
    return _DROP


def plain_fields(value: Any) -> dict[str, Any]:
    """Namespaces and dictionaries of a checkpoint (training arguments) as one plain dictionary."""
    if isinstance(value, StandIn):
        value = value.state
    if not isinstance(value, dict):
        return {}
    return {
        key: item
        for key, item in value.items()
        if isinstance(key, str)
        and isinstance(item, (str, int, float, bool, list, tuple, type(None)))
    }
