"""What can be seen of a file without loading it: first bytes, zip listing, and its pickle as data."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekit.checkpoint import pickle_scan
from edgekit.checkpoint.pickle_scan import Scan
from edgekit.checkpoint.pickle_tree import PickleError
from edgekit.errors import BadInput

HEAD_BYTES = 4096
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First value of torch.save's format before zips (torch/serialization.py, MAGIC_NUMBER)."""
_MAX_PICKLE_BYTES = 256 << 20
_DAMAGED_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    ValueError,
    IndexError,
    OverflowError,
    NotImplementedError,
    RuntimeError,  # an encrypted member
    OSError,  # offsets that lead before the file's beginning
)


@dataclass(frozen=True)
class Member:
    """One file inside a zip: sizes in bytes."""

    size: int
    stored: int
    compressed: bool


@dataclass(frozen=True)
class Sniff:
    """A file about to be recognized. Everything is read when it is first asked for."""

    path: Path
    size: int
    head: bytes

    @property
    def is_zip(self) -> bool:
        return self.head[:4] == b"PK\x03\x04"

    @property
    def is_legacy_torch(self) -> bool:
        """Whether the file opens with the pickled magic number of torch before 1.6."""
        return (
            self.head[:2] == b"\x80\x02" and LEGACY_MAGIC.to_bytes(10, "little") in self.head[:32]
        )

    @cached_property
    def members(self) -> dict[str, Member]:
        """The zip's listing; empty when the file is no zip. BadInput when it is a damaged one."""
        if not self.is_zip:
            return {}
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except _DAMAGED_ZIP as error:
            raise damaged_zip(self.path, str(error)) from error
        found: dict[str, Member] = {}
        for info in infos:
            if info.filename in found:
                raise damaged_zip(self.path, f"'{info.filename}' occurs twice in it")
            found[info.filename] = Member(
                info.file_size, info.compress_size, info.compress_type != zipfile.ZIP_STORED
            )
        total = sum(member.size for member in found.values())
        # torch.save stores without compression, so a file that grows a lot is a bomb or damaged
        if total > max(1 << 30, 4 * self.size):
            raise damaged_zip(
                self.path, f"its listing promises {total / 1e9:.1f} GB in {self.size / 1e6:.1f} MB"
            )
        return found

    @cached_property
    def folder(self) -> str | None:
        """The single top folder that torch's zips have ("archive/"); None without one."""
        tops = {name.partition("/")[0] for name in self.members if "/" in name}
        loose = [name for name in self.members if "/" not in name]
        return f"{next(iter(tops))}/" if len(tops) == 1 and not loose else None

    def has(self, record: str) -> bool:
        """Whether torch's zip holds `record` ("data.pkl", "constants.pkl") in its top folder."""
        return self.folder is not None and self.folder + record in self.members

    def member(self, name: str) -> bytes:
        """The bytes of a zip's member, its checksum verified. Raises BadInput when it is damaged."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name)
        except _DAMAGED_ZIP as error:
            raise damaged_zip(self.path, str(error)) from error

    def record(self, record: str) -> bytes:
        return self.member(f"{self.folder}{record}")

    @cached_property
    def pickle(self) -> Scan | None:
        """The object that torch.save wrote, as data; None when this is no file of torch.save.

        Raises BadInput when it is one, and its pickle is damaged.
        """
        try:
            if self.has("data.pkl"):
                name = f"{self.folder}data.pkl"
                if self.members[name].size > _MAX_PICKLE_BYTES:
                    raise PickleError("the pickle is over 256 MB")
                return pickle_scan.scan(self.member(name))
            if self.is_legacy_torch:
                return self._legacy()[0]
        except PickleError as error:
            raise BadInput(
                f"{self.path} is damaged: its pickle cannot be read ({error}).",
                hint="Copy or download the file again, or save the checkpoint anew.",
            ) from error
        return None

    @cached_property
    def legacy_data_offset(self) -> int:
        """Where the storages begin in a file of torch before 1.6."""
        return self._legacy()[1]

    def _legacy(self) -> tuple[Scan, int]:
        """The object and the end of the five pickles: magic, protocol, system, object, keys."""
        with (
            open(self.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            scans: list[Scan] = []
            position = 0
            for _ in range(5):
                found = pickle_scan.scan(data, position)
                position = found.end
                scans.append(found)
        if scans[0].tree != LEGACY_MAGIC or scans[1].tree != 1001:
            raise PickleError("wrong magic number or version")
        if not isinstance(scans[4].tree, list):
            raise PickleError("the list of storages is missing")
        # an unpickler executes all five, so names and objects of all five count
        merged = Scan(
            tree=scans[3].tree,
            globals=tuple(dict.fromkeys(name for one in scans for name in one.globals)),
            made=tuple(node for one in scans for node in one.made),
            end=position,
        )
        return merged, position

    @property
    def tree(self) -> Any:
        """The tree of `pickle`; None without one."""
        return None if self.pickle is None else self.pickle.tree


def damaged_zip(path: Path, detail: str) -> BadInput:
    return BadInput(
        f"{path} is a damaged or incomplete zip archive: {detail}.",
        hint="Copy or download the file again; compare its size with the original's.",
    )


def sniff(path: Path) -> Sniff:
    """Look at `path`. Raises BadInput when it is missing, a folder, empty or unreadable."""
    try:
        if path.is_dir():
            raise BadInput(
                f"{path} is a folder, not a checkpoint file.",
                hint="Name the file in it, e.g. weights/best.pt.",
            )
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise BadInput(
            f"The checkpoint {path} does not exist.", hint="Check the path's spelling."
        ) from error
    except OSError as error:
        raise BadInput(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a NUL in the path
        raise BadInput(f"{str(path)!r} is no usable path: {error}.") from error
    if size == 0:
        raise BadInput(
            f"The checkpoint {path} is empty (0 bytes).",
            hint="The download or the save was cut off; fetch or write it again.",
        )
    return Sniff(path=path, size=size, head=head)
