"""Load a file of torch.save: weights only by default, as a real unpickling when it is trusted.

The safe way takes two looks. `vetting.vet` reads the pickle as data and refuses what it does not
know. Then torch's weights-only unpickler loads it, with inert stand-ins in the place of every class:
no constructor and no `__setstate__` of a module class runs while bytes of the file are in charge.
`revive` makes modules of the stand-ins afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint import vetting
from edgekit.checkpoint.pickle_tree import Global
from edgekit.checkpoint.sniff import Sniff
from edgekit.errors import BadInput
from edgekit.require import require

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions


class StandIn:
    """An object of a class that was not imported: its arguments and its state, and nothing else."""

    path = ""  # module.qualname of the class it stands for; each subclass has its own

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> StandIn:
        made = object.__new__(cls)
        made.args = args
        made.state = None
        return made

    def __init__(self, *args: Any) -> None:
        """Takes what the class would have taken; runs nothing."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def stand_in(name: Global) -> type[StandIn]:
    """A class of inert objects that torch's unpickler finds under `name`."""
    made = type(name.name, (StandIn,), {"path": name.path})
    made.__module__, made.__qualname__ = name.module, name.name
    return made


def read(file: Sniff) -> Any:
    """The object in `file`, tensors loaded, every foreign class a `StandIn`.

    Raises BadInput: an unknown class (named), tensors outside of their storage, damaged bytes.
    """
    vetting.vet(file)
    torch = require("torch", f"Loading {file.path.name}")
    from torch.serialization import safe_globals

    check_reader(file)
    assert file.pickle is not None  # vet has seen it
    # names that torch knows itself come first in its unpickler, so these never shadow them
    classes = [stand_in(name) for name in file.pickle.globals]
    try:
        with warnings.catch_warnings(), safe_globals(classes):
            warnings.simplefilter("ignore")
            return torch.load(file.path, map_location="cpu", weights_only=True)
    # What torch raises on damaged bytes is open-ended (its unpickler indexes, unpacks, asserts), and
    # nothing but reading this file happens here: whatever comes is the file's fault.
    except Exception as error:
        raise unreadable(file.path, error) from error


def check_reader(file: Sniff) -> None:
    """Raises BadInput when torch's zip reader sees other records than the ones that were vetted.

    A zip can be built so that two readers find two different listings in it.
    """
    if not file.is_zip:
        return
    import torch

    try:
        reader = torch._C.PyTorchFileReader(str(file.path))
        records = list(reader.get_all_records())
        # what decides: pickles and TorchScript sources byte by byte, the rest by its size
        decisive = [r for r in records if r.endswith((".pkl", ".py"))]
        same = all(reader.get_record(record) == file.record(record) for record in decisive)
        if hasattr(reader, "get_record_size"):
            sizes = {record: reader.get_record_size(record) for record in records}
            folder = file.folder or ""
            same = same and sizes == {n[len(folder) :]: m.size for n, m in file.members.items()}
    # torch's reader reports damage with RuntimeError and others
    except BadInput:
        raise
    except Exception as error:
        raise unreadable(file.path, error) from error
    if not same:
        raise BadInput(
            f"{file.path} is a zip archive with two different listings.",
            hint="No honest program writes such a file; do not use it.",
        )


def unreadable(path: Path, error: BaseException) -> BadInput:
    """The refusal of a file that torch's own reader gave up on, with the reason it gave."""
    text = str(error).strip() or type(error).__name__
    # torch puts a paragraph of advice around the reason; the advice (weights_only=False) is no use
    told = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    reason = (told.group(1) if told else text.splitlines()[0])[:300].rstrip(". ")
    return BadInput(
        f"{path} cannot be read as a checkpoint: {reason} ({type(error).__name__}).",
        hint="Copy or download the file again; when it is whole, save it anew with torch.save and "
        "its default pickle protocol.",
    )


def read_trusted(file: Sniff, options: LoadOptions) -> Any:
    """The object in `file` by an ordinary unpickling, which runs whatever the file asks for.

    Only for --trust-checkpoint. Raises BadInput when a class cannot be imported, naming it.
    """
    torch = require("torch", f"Loading {file.path.name}")
    with importable(options.code), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(
                file.path,
                map_location="cpu",
                weights_only=False,
                pickle_module=_Finder(options.code),
            )
        except (ModuleNotFoundError, AttributeError) as error:
            raise BadInput(
                f"{file.path} needs a class that cannot be imported: {error}.",
                hint="Name the folder that holds its source with --code DIR (the folder from which "
                "training was started).",
            ) from error
        # the file's own code ran, so anything can come
        except Exception as error:
            raise unreadable(file.path, error) from error


class _Finder:
    """What torch.load takes as a pickle module: pickle, with classes of `__main__` found in --code.

    A class defined in the training script itself is pickled as `__main__.Net`; here `__main__` is
    another program, so the scripts in the code folders are searched for it.
    """

    def __init__(self, code: tuple[Path, ...]) -> None:
        import pickle

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if module == "__main__" and not hasattr(sys.modules["__main__"], name):
                    return _from_script(name, code)
                return super().find_class(module, name)

        self.Unpickler = Unpickler
        self.load = pickle.load
        self.__name__ = "pickle"


def _from_script(name: str, code: tuple[Path, ...]) -> Any:
    """The class `name` from the one script in the code folders that defines it."""
    import ast

    for folder in code:
        for script in sorted(folder.glob("*.py")):
            try:
                tree = ast.parse(script.read_text(encoding="utf-8"))
            except (OSError, ValueError, SyntaxError):
                continue
            if any(
                isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name for n in tree.body
            ):
                return getattr(importlib.import_module(script.stem), name)
    raise AttributeError(f"class '{name}' of the training script ('__main__')")


@contextlib.contextmanager
def importable(code: tuple[Path, ...]) -> Iterator[None]:
    """Let modules be imported from the `code` folders, then from the current folder, in the block.

    Raises BadInput for a folder that does not exist.
    """
    for folder in code:
        if not folder.is_dir():
            raise BadInput(
                f"--code {folder} is not a folder.", hint="Name the folder that holds the modules."
            )
    added = [str(folder.resolve()) for folder in code] + [str(Path.cwd())]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for entry in added:
            if entry in sys.path:  # imported code may have changed the path itself
                sys.path.remove(entry)
