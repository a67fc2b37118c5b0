"""Addresses of boards and devices.toml: what is taken, and what is refused with a next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.transports.address import ADB_FOLDER, DEFAULT_FOLDER, Address, parse_address
from edgekit.transports.carriers import ssh_argv
from edgekit.transports.settings import Device, check_ssh_option, find_devices, load_devices


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", Address(kind="local")),
        ("ssh://board", Address(kind="ssh", host="board", folder=DEFAULT_FOLDER)),
        ("ssh://me@board:2222", Address(kind="ssh", host="board", user="me", port=2222)),
        ("ssh://board/tmp/a b", Address(kind="ssh", host="board", folder="/tmp/a b")),
        ("ssh://board/$(x);\n'\"", Address(kind="ssh", host="board", folder="/$(x);\n'\"")),
        ("ssh://board/~/x", Address(kind="ssh", host="board", folder="~/x")),
        ("ssh://me@[fe80::1%eth0]:22/d", Address(
            kind="ssh", host="fe80::1%eth0", user="me", port=22, folder="/d")),
        ("adb://", Address(kind="adb", folder=ADB_FOLDER)),
        ("adb://192.168.1.5:5555", Address(
            kind="adb", host="192.168.1.5:5555", folder=ADB_FOLDER)),
        ("adb://R58/data/local/tmp/x", Address(
            kind="adb", host="R58", folder="/data/local/tmp/x")),
    ],
)  # fmt: skip
def test_addresses(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "board", "ftp://board", "ssh://", "ssh:///tmp", "ssh://-oProxyCommand=x", "ssh://a b",
        "ssh://a\nb", "ssh://a;b", "ssh://$(x)", "ssh://'a'", "ssh://me;x@board", "ssh://-l@board",
        "ssh://@board", "ssh://board:0", "ssh://board:65536", "ssh://board:x", "ssh://board:-1",
        "ssh://board:22:22", "ssh://[::1", "ssh://[-x]", "ssh://board/a\0b", "adb://-s", "adb://a b",
        "adb://a;b", "adb://a/relative/../x", "adb://a/data/$(x)", "adb://a/-rf",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="password") as caught:
        parse_address("ssh://me:secret@board")
    assert "secret" not in caught.value.message + caught.value.hint


def test_devices_file(tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(
        '[pi]\naddress = "ssh://pi@pi.lab:2222"\npython = "/venv/bin/python"\nlimit_s = 60\n'
        'known_hosts = "keys/known"\nidentity_file = "~/.ssh/lab"\nfolder = "/var/tmp/x y"\n'
        'ssh_options = ["compression=yes"]\nenvironment = { OMP_NUM_THREADS = "2" }\n'
        '[here]\naddress = "local"\n'
    )
    pi = load_devices(file)["pi"]
    assert pi.address == Address(
        kind="ssh", host="pi.lab", user="pi", port=2222, folder="/var/tmp/x y"
    )
    assert pi.known_hosts == str(tmp_path / "keys" / "known")
    assert pi.identity_file == str(Path.home() / ".ssh" / "lab")
    assert pi.ssh_options == ("Compression=yes",) and pi.limit_s == 60.0
    assert pi.environment == {"OMP_NUM_THREADS": "2"}
    found = find_devices(["pi", "local", "pi"], file)
    assert [device.name for device in found] == ["pi", "local"]
    with pytest.raises(UsageError, match="no device 'pj'") as caught:
        find_devices(["pj"], file)
    assert "'pi'" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[pi]\nadress = 'local'", "adress"),
        ("[pi]\n", "no address"),
        ("[pi]\naddress = 'ssh://-x'", "host"),
        ("[pi]\naddress = 'local'\nlimit_s = 0", "limit_s"),
        ("[pi]\naddress = 'local'\nfolder = 'relative'", "absolute"),
        ("[pi]\naddress = 'local'\nssh_options = ['ProxyCommand=x']", "ProxyCommand"),
        ("[pi]\naddress = 'local'\nssh_options = ['LocalCommand=x']", "LocalCommand"),
        ("[pi]\naddress = 'local'\nssh_options = ['Include=/x']", "Include"),
        ("[pi]\naddress = 'local'\nssh_options = ['StrictHostKeyChecking=no']", "anyone"),
        (
            "[pi]\naddress = 'local'\nssh_options = ['stricthostkeychecking=accept-new']",
            "command line",
        ),
        ("[pi]\naddress = 'local'\nssh_options = ['ProxyJump=-oX']", "jump"),
        ("[pi]\naddress = 'local'\nenvironment = { 'A B' = 'x' }", "environment"),
        ("[pi]\naddress = 'local'\nemulator = 'qemu; x'", "emulator"),
        ("[pi]\naddress = 'local'\narch = 'arm'", "arch"),
        ("[pi]\naddress = 'adb://x'\nfolder = '~/x y'", "adb"),
        ("['-x']\naddress = 'local'", "name"),
        ("[local]\naddress = 'local'", "name"),
        ("pi = 1", "table"),
        ("[pi", "TOML"),
    ],
)
def test_mistakes_in_devices_file(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=part):
        load_devices(file)


def test_ssh_is_called_with_checked_words_only() -> None:
    device = Device(
        name="x",
        address=parse_address("ssh://me@board:2222/a;b"),
        ssh_options=(check_ssh_option("StrictHostKeyChecking=accept-new", "x"),),
        known_hosts='/a "b"/%h',
    )
    argv = ssh_argv(device)
    assert argv[-2:] == ["--", "board"]
    assert argv[argv.index("-p") + 1] == "2222" and argv[argv.index("-l") + 1] == "me"
    assert 'UserKnownHostsFile="/a \\"b\\"/%%h"' in argv
    # ssh takes the first value: a device's own goes before the default
    assert argv.index("StrictHostKeyChecking=accept-new") < argv.index("StrictHostKeyChecking=yes")
    assert "BatchMode=yes" in argv and not any("a;b" in word for word in argv)
