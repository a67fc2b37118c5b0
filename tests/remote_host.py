"""A second host for tests: a real sshd with keys of its own, in a network namespace where that can be had.

As root with the right to make namespaces, the host has an address of its own behind a veth pair, and
`link_down` takes the cable out. Otherwise it is an sshd on loopback, and `link_down` stops its
processes: to a client both look the same, nothing comes back. EDGEKIT_TEST_LOOPBACK=1 asks for that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.transports.address import parse_address
from edgekit.transports.settings import Device

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def _ip(*arguments: str) -> bool:
    ip = shutil.which("ip") or "/usr/sbin/ip"
    try:
        done = subprocess.run([ip, *arguments], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


@dataclass
class Network:
    """Where the servers of a test session listen: `namespace` is empty for loopback."""

    address: str
    namespace: str = ""
    interface: str = ""

    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace] if self.namespace else []


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A namespace with a link to it, or loopback where none can be made."""
    if not Path(SSHD).exists() or shutil.which("ssh") is None:
        pytest.skip("no sshd: apt-get install openssh-server openssh-client")
    number = os.getpid() % 16000
    name, ours, theirs = f"edgekit-{number}", f"ek{number}a", f"ek{number}b"
    third, fourth = number // 64, number % 64 * 4
    subnet = f"10.{200 + third // 250}.{third % 250}"
    wanted = os.getuid() == 0 and os.environ.get("EDGEKIT_TEST_LOOPBACK") != "1"
    made = wanted and _ip("netns", "add", name)
    steps = [
        ("link", "add", ours, "type", "veth", "peer", "name", theirs),
        ("link", "set", theirs, "netns", name),
        ("addr", "add", f"{subnet}.{fourth + 1}/30", "dev", ours),
        ("link", "set", ours, "up"),
        ("-n", name, "addr", "add", f"{subnet}.{fourth + 2}/30", "dev", theirs),
        ("-n", name, "link", "set", theirs, "up"),
        ("-n", name, "link", "set", "lo", "up"),
    ]
    try:
        if made and all(_ip(*step) for step in steps):
            yield Network(f"{subnet}.{fourth + 2}", name, ours)
        else:
            yield Network("127.0.0.1")
    finally:
        if made:
            _ip("link", "del", ours)
            _ip("netns", "del", name)


@dataclass
class RemoteHost:
    """A running sshd. `mark` is in the environment of all that it starts."""

    folder: Path
    network: Network
    port: int
    mark: str
    server: subprocess.Popen[bytes]
    stopped: list[int] = field(default_factory=list)

    def device(self, where: str = "store", **changes: Any) -> Device:
        """The host as a device, with its folder `where` under the test's folder."""
        name = self.network.address
        # an absolute path is taken letter by letter
        address = parse_address(f"ssh://root@{name}:{self.port}{self.folder / where}")
        if os.getuid() != 0:
            address = replace(address, user="")
        values: dict[str, Any] = {
            "name": "board",
            "address": address,
            "identity_file": str(self.folder / "client_key"),
            "known_hosts": str(self.folder / "known_hosts"),
            "limit_s": 60.0,
            "silence_s": 5.0,
        }
        return Device(**(values | changes))

    def processes(self) -> list[str]:
        """Command lines of all that the server has started and that still runs, itself left out."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if self.mark.encode() in (folder / "environ").read_bytes():
                        words = (folder / "cmdline").read_bytes().split(b"\0")
                        found.append(" ".join(word.decode("utf-8", "replace") for word in words))
        return [line for line in found if line]

    def wait_until_quiet(self, within_s: float = 15.0) -> None:
        """Fail unless everything that was started here ends within `within_s`."""
        end = time.monotonic() + within_s
        while self.processes():
            assert time.monotonic() < end, f"left running: {self.processes()}"
            time.sleep(0.05)

    def sessions(self) -> list[int]:
        """The processes of sshd that serve connections."""
        parents = {self.server.pid}
        found: list[int] = []
        while parents:
            children = set()
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit():
                    with contextlib.suppress(OSError):
                        fields = (folder / "stat").read_text().rpartition(")")[2].split()
                        name = (folder / "comm").read_text().strip()
                        if int(fields[1]) in parents and name.startswith("sshd"):
                            children.add(int(folder.name))
            found += children
            parents = children
        return found

    def cut(self) -> None:
        """Kill every connection's server process, as a crash or a reboot of a router would."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Stop every connection's server process: it is there and does not answer."""
        self.stopped = [*self.sessions(), self.server.pid]
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped = []

    def link_down(self) -> None:
        if self.network.namespace:
            assert _ip("link", "set", self.network.interface, "down")
        else:
            self.freeze()

    def link_up(self) -> None:
        if self.network.namespace:
            assert _ip("link", "set", self.network.interface, "up")
        else:
            self.thaw()


def _key(path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True
    )


def _free_port(network: Network) -> int:
    if network.namespace:
        # nobody else listens there
        _free_port.last = getattr(_free_port, "last", 2200) + 1  # type: ignore[attr-defined]
        return int(_free_port.last)  # type: ignore[attr-defined]
    with socket.socket() as probe:
        probe.bind((network.address, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def remote_host(
    folder: Path, network: Network, *, path: str = "", force_command: str = ""
) -> Iterator[RemoteHost]:
    """Start an sshd whose sessions have `path` as PATH, and run `force_command` where one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    _key(folder / "host_key")
    _key(folder / "client_key")
    shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
    port = _free_port(network)
    mark = f"EDGEKIT_TEST_HOST={os.getpid()}.{port}"
    if path:
        # set after the login shell's start files, which may change it
        force_command = f'PATH="{path}" exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    lines = [
        f"Port {port}",
        f"ListenAddress {network.address}",
        f'HostKey "{folder}/host_key"',
        f'AuthorizedKeysFile "{folder}/authorized_keys"',
        f'PidFile "{folder}/pid"',
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "StrictModes no",
        "UsePAM no",
        "UseDNS no",
        "PrintMotd no",
        "MaxStartups 100",
        f"SetEnv {mark}",
        *([f"ForceCommand {force_command}"] if force_command else []),
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[{network.address}]:{port} {kind} {key}\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [*network.prefix(), SSHD, "-D", "-f", str(folder / "sshd_config"),
         "-E", str(folder / "log")]
    )  # fmt: skip
    host = RemoteHost(folder, network, port, mark, server)
    try:
        _wait_for(network.address, port, server, folder / "log")
        yield host
    finally:
        host.thaw()
        # those whose clients are gone behind a dead link would wait for them for hours
        sessions = host.sessions()
        server.terminate()
        server.wait(timeout=10)
        for pid in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _wait_for(address: str, port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 10
    while True:
        assert server.poll() is None, f"sshd ended: {log.read_text()}"
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end, "sshd does not listen"
            time.sleep(0.02)
