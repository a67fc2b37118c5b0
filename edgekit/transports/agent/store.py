"""The folder on the board: objects by hash, bundles made of them."""

from __future__ import annotations

import os
import shutil
from typing import Any

from edgekit.transports.agent.files import (
    SHA256,
    Refused,
    digest_of,
    no_space,
    safe,
    take,
    write_file,
)
from edgekit.transports.agent.link import Link

MARKER = "edgekit-device.json"
# room that must be left for the run's own small files
SLACK_BYTES = 1 << 20


class Store:
    """The folder on the board."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        marker = os.path.join(self.root, MARKER)
        try:
            os.makedirs(self.root, mode=0o700, exist_ok=True)
            if os.stat(self.root).st_uid != os.getuid():
                raise Refused("not_ours", f"the folder {self.root} belongs to another user")
            if not os.path.isfile(marker):
                if os.listdir(self.root):
                    raise Refused(
                        "not_ours", f"the folder {self.root} holds other files; it is left alone"
                    )
                write_file(marker, b'{"format": "edgekit-device", "schema": 1}\n')
            for name in ("objects", "bundles", "runs"):
                os.makedirs(os.path.join(self.root, name), exist_ok=True)
        except OSError as error:
            kind = "no_space" if no_space(error) else "folder"
            raise Refused(kind, f"{self.root}: {error.strerror}") from error

    def at(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    def free_bytes(self) -> int:
        facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize

    def missing(self, objects: list[list[Any]]) -> dict[str, Any]:
        """Which objects must be sent and from which byte on; refused when they have no room."""
        wanted: dict[str, int] = {safe(sha, SHA256): int(size) for sha, size in objects}
        answer = []
        need = 0
        for sha, size in wanted.items():
            path = self.at("objects", sha)
            if os.path.isfile(path):
                if os.path.getsize(path) == size and digest_of(path) == sha:
                    os.utime(path)
                    continue
                os.unlink(path)
            part = path + ".part"
            offset = os.path.getsize(part) if os.path.isfile(part) else 0
            if offset > size:
                os.unlink(part)
                offset = 0
            answer.append([sha, offset])
            need += size - offset
        free = self.free_bytes()
        if need and need + SLACK_BYTES > free:
            raise Refused(
                "no_space",
                f"{self.root} has {free / 1e6:.1f} MB free, "
                f"and {(need + SLACK_BYTES) / 1e6:.1f} MB are needed",
                free=free,
                need=need,
            )
        return {"missing": answer, "free": free}

    def put(self, link: Link, request: dict[str, Any]) -> dict[str, Any]:
        """Take the frames of one object from `offset` on; it gets its name only when its hash is right."""
        sha, size = safe(request["sha"], SHA256), int(request["size"])
        path = self.at("objects", sha)
        descriptor = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if not take(descriptor, 20.0):
                raise Refused("busy", "another host is sending the same file")
            position = int(request["offset"])
            if os.fstat(descriptor).st_size != position:
                raise Refused("retry", "the upload is not where it was")
            os.lseek(descriptor, position, os.SEEK_SET)
            while position < size:
                # a connection that breaks here leaves what has come, for the next one
                header, body = link.receive()
                if header.get("op") == "ping":
                    continue
                if not body:
                    raise Refused("bad_request", "the upload ended early")
                position += len(body)
                self.write(descriptor, body, path + ".part")
            if position != size or digest_of(path + ".part") != sha:
                os.unlink(path + ".part")
                raise Refused("retry", "the file arrived changed")
            os.fsync(descriptor)
            os.replace(path + ".part", path)
        finally:
            os.close(descriptor)
        return {}

    def write(self, descriptor: int, data: bytes, path: str) -> None:
        """Write all of `data`; when that cannot be, the file at `path` is removed."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError as error:
            os.unlink(path)
            kind = "no_space" if no_space(error) else "folder"
            raise Refused(kind, f"{self.root}: {error.strerror}") from error

    def place(self, key: str, files: list[list[str]]) -> dict[str, Any]:
        """Make bundles/KEY from objects, or mend it; files the bundle does not have are left."""
        folder = self.at("bundles", safe(key))
        for path, sha in files:
            parts = path.split("/")
            source = self.at("objects", safe(sha, SHA256))
            target = os.path.join(folder, *[safe(part) for part in parts])
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.lexists(target):
                if os.path.isfile(target) and os.path.samefile(source, target):
                    continue
                if not os.path.islink(target) and digest_of(target) == sha:
                    continue
                os.unlink(target)
            temporary = f"{target}.{os.getpid()}.tmp"
            try:
                try:
                    os.link(source, temporary)
                except OSError as error:
                    if no_space(error):
                        raise
                    shutil.copyfile(source, temporary)
                os.replace(temporary, target)
            except OSError as error:
                if os.path.lexists(temporary):
                    os.unlink(temporary)
                kind = "no_space" if no_space(error) else "folder"
                raise Refused(kind, f"{self.root}: {error.strerror}") from error
        for path, _ in files:
            if path.startswith("runner/"):
                # programs; an emulator, too, asks for the permission
                os.chmod(os.path.join(folder, path), 0o700)
        os.utime(folder)
        return {"path": folder}
