"""A board with its settings, and devices.toml, which gives boards names.

    [pi]
    address = "ssh://pi@raspberrypi.local"
    python = "/home/pi/venv/bin/python"        # the Python with the runtime; default: python3
    identity_file = "~/.ssh/lab"
    known_hosts = "known_hosts"                 # beside devices.toml
    ssh_options = ["Compression=yes"]
    limit_s = 600
    environment = { OMP_WAIT_POLICY = "passive" }

    [emulated]
    address = "ssh://builder.lab"
    arch = "aarch64"                            # the native runner for that, …
    emulator = "/usr/bin/qemu-aarch64"          # … started by this program on the device

The file may come with a project from somebody else, so it can name no program that runs on this
machine: of ssh's options only those of SSH_OPTIONS are taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError, nearest
from edgekit.schema import check_section
from edgekit.toml_file import read_toml
from edgekit.transports.address import Address, check_folder, is_address, parse_address

FILE_NAME = "devices.toml"

SSH_OPTIONS = (
    "AddressFamily", "BindAddress", "BindInterface", "CASignatureAlgorithms", "Ciphers",
    "Compression", "ConnectionAttempts", "ConnectTimeout", "GlobalKnownHostsFile",
    "HashKnownHosts", "HostKeyAlgorithms", "HostKeyAlias", "IdentitiesOnly", "IdentityFile",
    "IPQoS", "KexAlgorithms", "MACs", "PreferredAuthentications", "ProxyJump",
    "PubkeyAcceptedAlgorithms", "RekeyLimit", "ServerAliveCountMax", "ServerAliveInterval",
    "StrictHostKeyChecking", "TCPKeepAlive", "UserKnownHostsFile",
)  # fmt: skip
"""ssh_config(5) keywords that start no program and open no door."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PROGRAM = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)+")
_JUMP = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9._@:,\[\]-]*")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A board: its name in tables, its address, and how to talk to it.

    `limit_s`: longest time for one piece of work. `silence_s`: after so long without a sign of life a
    connection is given up (and made again). `python` None: the board's python3. `arch` and `emulator`
    are for the native runner: the architecture to take instead of the board's, and the program there that
    starts it.
    """

    name: str
    address: Address
    python: str | None = None
    arch: str | None = None
    emulator: str | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    ssh_options: tuple[str, ...] = ()
    limit_s: float = 900.0
    silence_s: float = 20.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Section:
    address: str = ""
    python: str | None = None
    arch: str | None = field(default=None, metadata={"choices": ("x86_64", "aarch64", "armhf")})
    emulator: str | None = None
    folder: str | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    ssh_options: tuple[str, ...] = ()
    limit_s: float = field(default=900.0, metadata={"above": 0.0})
    silence_s: float = field(default=20.0, metadata={"minimum": 1.0})


def check_ssh_option(text: str, where: str) -> str:
    """`text` as KEYWORD=VALUE for ssh -o. UsageError for a keyword that is not in SSH_OPTIONS."""
    keyword, equals, value = text.partition("=")
    known = {name.lower(): name for name in SSH_OPTIONS}
    if not equals or keyword.lower() not in known:
        raise UsageError(
            f"{where}: {text!r} is not an option for ssh that is taken here.",
            hint=nearest(keyword, SSH_OPTIONS)
            + " Any other belongs in ~/.ssh/config, under the device's host name.",
        )
    name = known[keyword.lower()]
    if not value or any(ord(letter) < 32 for letter in value):
        raise UsageError(f"{where}: {text!r} has no usable value.")
    if name == "StrictHostKeyChecking" and value not in ("yes", "accept-new"):
        raise UsageError(
            f"{where}: a device whose host key is not checked can be anyone's machine.",
            hint="Use StrictHostKeyChecking=accept-new to learn a key once.",
        )
    if name == "ProxyJump" and not _JUMP.fullmatch(value):
        raise UsageError(f"{where}: {value!r} is not a host to jump over.")
    return f"{name}={value}"


def load_devices(path: Path) -> dict[str, Device]:
    """The boards in the file `path`, by name. Raises UsageError for any mistake in it."""
    return {name: _device(path, name, table) for name, table in read_toml(path).items()}


def _device(path: Path, name: str, table: Any) -> Device:
    where = f"{path}: [{name}]"
    if not _NAME.fullmatch(name) or name == "local":
        raise UsageError(f"{where}: a device's name has letters, digits, . _ - and is not 'local'.")
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} must be a table of keys and values.")
    rest = {key: value for key, value in table.items() if key != "environment"}
    section = _Section(**check_section(_Section, rest, where))
    if not section.address:
        raise UsageError(f"{where} has no address.", hint='For example: address = "ssh://pi@pi".')
    address = parse_address(section.address)
    if section.folder is not None and address.kind == "adb":
        address = parse_address(f"adb://{address.host}/{section.folder.lstrip('/')}")
    elif section.folder is not None:
        address = replace(address, folder=check_folder(section.folder))
    return Device(
        name=name,
        address=address,
        python=section.python,
        arch=section.arch,
        emulator=_program(section.emulator, where),
        identity_file=_file(path, section.identity_file),
        known_hosts=_file(path, section.known_hosts),
        ssh_options=tuple(_ssh_option(option, where) for option in section.ssh_options),
        limit_s=section.limit_s,
        silence_s=section.silence_s,
        environment=check_environment(table.get("environment", {}), where),
    )


def _ssh_option(text: str, where: str) -> str:
    """As `check_ssh_option`; whether a new host key is learnt is not for a file to say."""
    option = check_ssh_option(text, where)
    if option.startswith("StrictHostKeyChecking="):
        raise UsageError(
            f"{where}: StrictHostKeyChecking is for the command line.",
            hint="Use --ssh-option StrictHostKeyChecking=accept-new, once.",
        )
    return option


def check_environment(values: Any, where: str) -> dict[str, str]:
    """`values` as environment variables; UsageError for what is none."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} environment must be a table of keys and strings.")
    for key, value in values.items():
        if not _VARIABLE.fullmatch(key) or not isinstance(value, str) or "\0" in value:
            raise UsageError(f"{where} environment: {key!r} is not a variable with a string.")
    return dict(values)


def _program(value: str | None, where: str) -> str | None:
    """A program on the device: one absolute path, which a shell and shlex take as it is."""
    if value is not None and not _PROGRAM.fullmatch(value):
        raise UsageError(f"{where}: emulator {value!r} is not the absolute path of a program.")
    return value


def _file(path: Path, value: str | None) -> str | None:
    """A file named in devices.toml: from the home with ~/, else beside devices.toml."""
    if value is None:
        return None
    return str(path.parent.absolute() / Path(value).expanduser())


def find_devices(names: Sequence[str], file: Path | None = None) -> list[Device]:
    """The boards that the command line names, each once: addresses, or names from `file`.

    `file` None: devices.toml in the working folder, where there is one. UsageError for unknown names.
    """
    known: dict[str, Device] = {}
    place = file or Path(FILE_NAME)
    if file is not None or (place.is_file() and not all(map(is_address, names))):
        known = load_devices(place)
    found: dict[str, Device] = {}
    for name in names:
        if is_address(name):
            device = Device(name=name, address=parse_address(name))
        elif name in known:
            device = known[name]
        else:
            raise UsageError(
                f"There is no device {name!r}" + (f" in {place}." if known else "."),
                hint=nearest(name, list(known))
                if known
                else "Give an address (local, ssh://user@host, adb://serial), or write devices.toml.",
            )
        found.setdefault(device.name, device)
    return list(found.values())
