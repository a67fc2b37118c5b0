"""Where a board is: `local[:///folder]`, `ssh://[user@]host[:port][/folder]`, `adb://[serial]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.errors import UsageError

DEFAULT_FOLDER = "~/.cache/edgekit-device"
"""Where a board keeps what is sent to it, unless the address names another folder."""

ADB_FOLDER = "/data/local/tmp/edgekit-device"

# what ssh itself takes as a name; none begins with a dash, which ssh would read as an option
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]*")
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_ADB_PATH = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)+")
_HINT = "Give local, ssh://user@host[:port][/folder], adb://serial, or a name from devices.toml."


@dataclass(frozen=True, kw_only=True)
class Address:
    """A checked address. `kind` is "local", "ssh" or "adb"; `host` is the serial number for adb."""

    kind: str
    host: str = ""
    user: str = ""
    port: int | None = None
    folder: str = DEFAULT_FOLDER

    def __str__(self) -> str:
        if self.kind == "local":
            return "local"
        if self.kind == "adb":
            return f"adb://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port is not None else "")


def is_address(text: str) -> bool:
    """Whether `text` is meant as an address, and not as the name of a board in devices.toml."""
    return text == "local" or "://" in text


def parse_address(text: str) -> Address:
    """The board that `text` names. Raises UsageError for what is no address, also for a password.

    The folder of an ssh address is taken letter by letter: "/a b" is the folder "/a b", and "/~/x" is
    x in the user's home.
    """
    if text == "local":
        return Address(kind="local")
    scheme, separator, rest = text.partition("://")
    if scheme == "local" and rest.startswith("/"):
        return Address(kind="local", folder=_folder(rest))
    if not separator or scheme not in ("ssh", "adb"):
        raise UsageError(f"{text!r} is not the address of a device.", hint=_HINT)
    if scheme == "adb":
        return _adb(text, rest)
    authority, slash, folder = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if ":" in user:
        raise UsageError(
            "The address holds a password, which every user of this machine could read.",
            hint="Use a key: ssh-keygen, then ssh-copy-id; and leave the password out.",
        )
    if at and not _USER.fullmatch(user):
        raise UsageError(f"{user!r} in {text!r} is not a user's name.", hint=_HINT)
    host, port = _host_and_port(text, host)
    return Address(kind="ssh", user=user, host=host, port=port, folder=_folder(slash + folder))


def _host_and_port(text: str, host: str) -> tuple[str, int | None]:
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        if not bracket or not _IPV6.fullmatch(name) or (rest and not rest.startswith(":")):
            raise UsageError(f"{host!r} in {text!r} is not an IPv6 address.", hint=_HINT)
        port_text = rest[1:] if rest else None
    else:
        name, colon, after = host.partition(":")
        port_text = after if colon else None
        if not _HOST.fullmatch(name) or len(name) > 253:
            raise UsageError(f"{name!r} in {text!r} is not a host's name.", hint=_HINT)
    if port_text is None:
        return name, None
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 0 < int(port_text) < 65536:
        raise UsageError(f"{port_text!r} in {text!r} is not a port.", hint=_HINT)
    return name, int(port_text)


def _folder(path: str) -> str:
    if path in ("", "/"):
        return DEFAULT_FOLDER
    if path.startswith("/~/"):
        path = path[1:]
    return check_folder(path)


def check_folder(path: str) -> str:
    """`path` as a folder on a board: absolute, or below ~/. UsageError for anything else."""
    if "\0" in path or len(path) > 1000:
        raise UsageError(f"{path[:40]!r} is not a folder's name.")
    if not path.startswith(("/", "~/")) or path.rstrip("/") in ("", "~"):
        raise UsageError(
            f"The folder on the device must be an absolute path, or begin with ~/, not {path!r}."
        )
    return path


def _adb(text: str, rest: str) -> Address:
    serial, slash, folder = rest.partition("/")
    if serial and not _SERIAL.fullmatch(serial):
        raise UsageError(f"{serial!r} in {text!r} is not a serial number.", hint=_HINT)
    folder = slash + folder.rstrip("/") if folder else ADB_FOLDER
    if not _ADB_PATH.fullmatch(folder):
        raise UsageError(
            f"{folder!r} in {text!r} is not a folder that can be used over adb.",
            hint="Use letters, digits and . _ + - only, for example /data/local/tmp/edgekit.",
        )
    return Address(kind="adb", host=serial, folder=folder)
