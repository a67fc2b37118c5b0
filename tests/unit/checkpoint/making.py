"""Small models and hostile files, made where they are needed."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def small(seed: int = 0) -> nn.Sequential:
    """[N, 3, 8, 8] → [N, 5]: convolution, normalization, Linear; torch.nn classes alone."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    model[1].running_mean.uniform_(-0.5, 0.5)
    model[1].running_var.uniform_(0.5, 1.5)
    return model.eval()


def image(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class OwnNet(nn.Module):
    """A class that no list of known classes holds."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


def factory(width: int = 4) -> nn.Module:
    """The architecture of `small`, `width` channels wide."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * width, 5),
    )


def raises() -> nn.Module:
    raise RuntimeError("weights of 1999 not found")


def returns_text() -> str:
    return "no module"


not_callable = 3
ARCH = "tests.unit.checkpoint.making:factory"


class RunsCommand:
    """Unpickling it runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


class CallsGlobal:
    """Pickles as a call of `module.name(*args)`, whatever these are."""

    def __init__(self, module: str, name: str, *args: Any) -> None:
        self.module, self.name, self.args = module, name, args


class Forger(pickle._Pickler):  # type: ignore[name-defined,misc]  # the Python one can be extended
    """Writes `CallsGlobal` objects without importing what they name."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, CallsGlobal):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            super().save(obj.args)
            self.write(pickle.REDUCE)
            return
        super().save(obj, save_persistent_id)


def forged(obj: Any) -> bytes:
    """`obj` pickled with protocol 2, calls included."""
    stream = io.BytesIO()
    Forger(stream, 2).dump(obj)
    return stream.getvalue()


def torch_zip(path: Path, pickled: bytes, records: dict[str, bytes] | None = None) -> Path:
    """A file as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        for name, data in (records or {}).items():
            archive.writestr(f"archive/{name}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def rewritten(source: Path, target: Path, member: str, change: Any) -> Path:
    """A copy of the zip `source` with `change(bytes)` of the member whose name ends so."""
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith(member) else data)
    return target
