"""The program that carries frames to a board, and what its error messages mean."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekit.errors import DeviceUnreachable, EdgekitError, MissingDependency
from edgekit.transports.bootstrap import REMOTE_COMMAND, local_command
from edgekit.transports.settings import Device

_CONNECT_S = 10

# what is fixed, whatever ~/.ssh/config says; ssh takes the first value it sees
_SSH = (
    "BatchMode=yes",
    "RequestTTY=no",
    "RemoteCommand=none",
    "EscapeChar=none",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    # an existing master may be used, but none is left behind
    "ControlMaster=no",
)
_SSH_DEFAULTS = (
    "StrictHostKeyChecking=yes",
    f"ConnectTimeout={_CONNECT_S}",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
)


def carrier_argv(device: Device) -> list[str]:
    """The command line that connects standard input and output with an agent on `device`.

    Raises MissingDependency when ssh or adb is not installed.
    """
    if device.address.kind == "local":
        return local_command()
    if device.address.kind == "adb":
        return [*adb_argv(device), "shell", "-T", REMOTE_COMMAND]
    return [*ssh_argv(device), REMOTE_COMMAND]


def ssh_argv(device: Device) -> list[str]:
    """ssh with every option, up to and with the host's name."""
    program = shutil.which("ssh")
    if program is None:
        raise MissingDependency(
            "ssh:// devices need the program ssh, which is not installed.",
            hint="Install it with: apt-get install openssh-client",
        )
    argv = [program, "-T"]
    for option in (*_SSH, *device.ssh_options):
        argv += ["-o", option]
    if device.known_hosts is not None:
        argv += ["-o", f"UserKnownHostsFile={quoted(device.known_hosts)}"]
        argv += ["-o", "GlobalKnownHostsFile=/dev/null"]
    if device.identity_file is not None:
        argv += ["-o", f"IdentityFile={quoted(device.identity_file)}", "-o", "IdentitiesOnly=yes"]
    for option in _SSH_DEFAULTS:
        argv += ["-o", option]
    if device.address.port is not None:
        argv += ["-p", str(device.address.port)]
    if device.address.user:
        argv += ["-l", device.address.user]
    return [*argv, "--", device.address.host]


def quoted(path: str) -> str:
    """A file's name as a value of ssh_config(5): quoted, and with % doubled (it begins a token)."""
    return '"' + path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"') + '"'


def adb_argv(device: Device) -> list[str]:
    """adb, with the choice of the device."""
    program = shutil.which("adb")
    if program is None:
        raise MissingDependency(
            "adb:// devices need the program adb, which is not installed.",
            hint="Install it with: apt-get install adb",
        )
    return [program, *(["-s", device.address.host] if device.address.host else [])]


def explain(device: Device, error: EdgekitError, messages: str) -> EdgekitError | None:
    """What a carrier's `messages` mean, when trying again cannot help; None when it can.

    The answer is shown in place of `error`, which says only that the connection ended.
    """
    name, host = device.name, device.address.host
    port = f" -p {device.address.port}" if device.address.port is not None else ""
    known = [
        (
            "REMOTE HOST IDENTIFICATION HAS CHANGED",
            f"{name} shows another host key than the one in known_hosts: it has been installed anew, "
            "or it is another machine. Nothing was sent.",
            "Ask whoever runs it. When the new key is right, remove the old one: "
            f"ssh-keygen -R {_known_name(device)}",
        ),
        (
            "Host key verification failed",
            f"{name} shows a host key that is not in known_hosts. Nothing was sent.",
            f"Connect once by hand and compare the key: ssh{port} {host}",
        ),
        (
            "Permission denied",
            f"{name} does not let us in: no key that it knows.",
            f"Copy yours there: ssh-copy-id{port} {device.address.user or '$USER'}@{host}",
        ),
        ("Too many authentication failures", f"{name} does not let us in: too many keys tried.",
         "Name the right one with identity_file in devices.toml."),
        ("Could not resolve hostname", f"There is no host named {host}.",
         "Check the name, or give the address as numbers."),
        ("unauthorized", f"{name} has not allowed this computer to use adb.",
         "Unlock the device and allow USB debugging in the question it shows."),
        ("more than one device", "There are several adb devices.",
         "Name one: adb://SERIAL; `adb devices` lists them."),
        ("no devices/emulators found", "adb sees no device.",
         "Connect one and switch on USB debugging; `adb devices` lists them."),
        ("Bad configuration option", f"ssh does not know an option given for {name}: {messages}.",
         "Update ssh, or take the option out."),
    ]  # fmt: skip
    for sign, message, hint in known:
        if sign in messages:
            return DeviceUnreachable(message, hint=hint)
    if device.address.kind == "ssh" and device.identity_file is not None:
        missing = not Path(device.identity_file).is_file()
        if missing:
            return DeviceUnreachable(f"{name}: the key {device.identity_file} does not exist.")
    return None


def unreachable(device: Device, error: EdgekitError, messages: str) -> EdgekitError:
    """The error for a board that did not answer at all."""
    hints = (
        ("Connection refused", "The machine is there, but no ssh server listens on that port."),
        ("Connection timed out", "Is it switched on, and reachable from here?"),
        ("No route to host", "Is it switched on, and in the same network?"),
        ("not found", "`adb devices` lists what adb sees."),
        ("offline", "Connect it again; `adb devices` shows its state."),
    )
    hint = next((text for sign, text in hints if sign in messages), error.hint)
    return DeviceUnreachable(f"{device.name} cannot be reached. {error.message}", hint=hint)


def _known_name(device: Device) -> str:
    port = device.address.port
    return device.address.host if port in (None, 22) else f"'[{device.address.host}]:{port}'"
