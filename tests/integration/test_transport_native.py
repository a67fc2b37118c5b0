"""Boards without Python, over a real sshd and over the real adb with a fake device.

The runner in these bundles is a fake, named so: a shell script that answers like edgekit-ncnn. What is
tested is the way there and back.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import bundle
from edgekit.bundle import ExtraFile
from edgekit.stages.device import DeviceAnswer, DeviceWork, work_on
from edgekit.stages.device_native import ARCHES
from edgekit.transports.address import parse_address
from edgekit.transports.settings import Device
from tests import remote_host
from tests.bundles import contents
from tests.disk import small_disk
from tests.fake_adbd import fake_device
from tests.remote_host import Network, RemoteHost

TOOLS = ("sh", "mkdir", "ls", "df", "rm", "mv", "cp", "ln", "cat", "sleep", "uname", "tar",
         "sha256sum", "tail", "chmod", "rmdir", "setsid")  # fmt: skip

FAKE_RUNNER = """#!/bin/sh
# a fake of edgekit-ncnn
for word in "$@"; do bundle="$word"; done
case "$1" in
--self-test)
    cd "$bundle" && sha256sum -c SHA256SUMS > /dev/null || exit 9
    echo '{"ok": true, "checks": [{"name": "golden outputs (ncnn)", "ok": true, "detail": "a fake"}]}';;
--bench)
    echo "$@" >&2
    while [ -f HOLD ]; do sleep 1; done
    echo '{"p50_ms": 1.5, "p99_ms": 2.0, "runs": 7, "runtime": "ncnn", "not_available": ["power"]}';;
esac
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH without Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    return folder


def native_bundle(folder: Path, *, arch: str = "", runner: str = FAKE_RUNNER) -> Path:
    arch = arch or ARCHES[platform.machine()]
    source = folder / "fake-runner"
    source.write_text(runner)
    made = contents(folder / "sources")
    extra = ExtraFile(path=f"runner/{arch}/edgekit-ncnn", source=source, what="a fake runner")
    made = dataclasses.replace(made, extra=(*made.extra, extra))
    return bundle.write(folder / "native", made).folder


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with remote_host.network() as made:
        yield made


@pytest.fixture
def host(network: Network, tmp_path: Path, tools: Path) -> Iterator[RemoteHost]:
    with remote_host.remote_host(tmp_path / "host", network, path=str(tools)) as made:
        yield made


def work(device: Device, command: str, path: Path, *options: str) -> DeviceAnswer:
    return work_on(device, DeviceWork(command=command, bundle=path, options=options))


@pytest.mark.slow
def test_ssh_without_python(host: RemoteHost, tmp_path: Path) -> None:
    path = native_bundle(tmp_path)
    # quotes and blanks in the folder's name are no more than letters
    device = host.device("a b'$(touch mark)")
    answer = work(device, "verify", path)
    assert answer.error is None, answer.error
    assert answer.answer is not None and answer.answer["ok"] is True
    assert answer.sent_bytes > 0 and answer.facts is not None and answer.facts.python == ""
    answer = work(device, "bench", path, "--runs=7", "--threads=2", "--cooldown=1")
    assert answer.error is None and answer.sent_bytes == 0, answer.error
    assert answer.answer is not None and answer.answer["p50_ms"] == 1.5
    assert answer.answer["conditions"]["not_available"] == {"power": "not available"}
    root = Path(device.address.folder)
    assert list((root / "runs").iterdir()) == [] and not Path("mark").exists()
    assert not (Path.home() / "mark").exists()
    # the runner's answer goes through the same gates and history as any other
    refused = work(device, "bench", path, "--precision=1%")
    assert refused.exit_code == 4 and "--precision" in str(refused.error)
    host.wait_until_quiet()


def test_ssh_without_python_or_runner(host: RemoteHost, tmp_path: Path) -> None:
    plain = bundle.write(tmp_path / "plain", contents(tmp_path / "sources")).folder
    answer = work(host.device(), "verify", plain)
    assert answer.exit_code == 4 and "no python3" in str(answer.error)
    (tmp_path / "other").mkdir()
    other = native_bundle(tmp_path / "other", arch="riscv64")
    answer = work(host.device(), "verify", other)
    assert answer.exit_code == 4 and "it has riscv64" in str(answer.error)
    host.wait_until_quiet()


@pytest.mark.slow
def test_a_native_run_survives_its_connection(host: RemoteHost, tmp_path: Path) -> None:
    path = native_bundle(tmp_path, runner=FAKE_RUNNER.replace("HOLD", str(tmp_path / "hold")))
    (tmp_path / "hold").touch()
    device = host.device()

    def disturb() -> None:
        end = time.monotonic() + 20
        while not any("--bench" in line for line in host.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        host.cut()
        time.sleep(0.3)
        host.cut()
        (tmp_path / "hold").unlink()

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    answer = work(device, "bench", path)
    thread.join()
    assert answer.error is None, answer.error
    host.wait_until_quiet()


def test_a_native_run_ends_at_its_limit(host: RemoteHost, tmp_path: Path) -> None:
    path = native_bundle(tmp_path, runner=FAKE_RUNNER.replace("HOLD", str(tmp_path / "hold")))
    (tmp_path / "hold").touch()
    device = dataclasses.replace(host.device(), limit_s=5.0)
    started = time.monotonic()
    answer = work(device, "bench", path)
    assert answer.exit_code == 10 and "within" in str(answer.error)
    assert time.monotonic() - started < 12.0
    host.wait_until_quiet()


def test_adb(tmp_path: Path, tools: Path) -> None:
    """The real adb, and a fake device that has no Python."""
    path = native_bundle(tmp_path)
    mark = f"EDGEKIT_TEST_HOST=adb.{os.getpid()}"
    name, _, value = mark.partition("=")
    environment = {"PATH": str(tools), "HOME": str(tmp_path), name: value}
    with fake_device(tmp_path, environment) as serial:
        device = Device(
            name="phone",
            address=parse_address(f"adb://{serial}{tmp_path}/store"),
            limit_s=60.0,
            silence_s=5.0,
        )
        answer = work(device, "verify", path)
        assert answer.error is None, answer.error
        assert answer.answer is not None and answer.answer["ok"] is True and answer.sent_bytes > 0
        answer = work(device, "bench", path, "--runs=7")
        assert answer.error is None and answer.sent_bytes == 0, answer.error
        assert json.loads(json.dumps(answer.answer))["p99_ms"] == 2.0
        assert list((tmp_path / "store" / "runs").iterdir()) == []
        gone = dataclasses.replace(device, address=parse_address("adb://no-such-device"))
        missing = work(gone, "verify", path)
        assert missing.exit_code == 10 and "adb devices" in (
            missing.error.hint if missing.error else ""
        )


def test_adb_with_python(tmp_path: Path) -> None:
    """Boards that are reached by adb and have Python run the device program, as over ssh."""
    path = bundle.write(tmp_path / "plain", contents(tmp_path / "sources")).folder
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    with fake_device(tmp_path, environment) as serial:
        device = Device(
            name="board",
            address=parse_address(f"adb://{serial}{tmp_path}/store"),
            python=shutil.which("python3"),
            limit_s=60.0,
            silence_s=5.0,
        )
        answer = work(device, "info", path)
        assert answer.error is None, answer.error
        assert answer.answer is not None and answer.answer["machine"]["arch"] == platform.machine()


@pytest.fixture(scope="module")
def for_arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for ncnn with the real runner for aarch64."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64: apt-get install qemu-user")
    from edgekit.preprocess import Preprocess
    from edgekit.stages import runner_build
    from tests.ncnn_bundles import front, write_bundle

    folder = tmp_path_factory.mktemp("arm")
    extra = ExtraFile(
        path="runner/aarch64/edgekit-ncnn",
        source=runner_build.build("aarch64"),
        what="the native runner",
    )
    contract = Preprocess(height=32, width=32, resize="none")
    return write_bundle(folder / "bundle", contract, front(contract, (1, 10)), extra=(extra,))


EMULATED = {"arch": "aarch64", "emulator": shutil.which("qemu-aarch64")}


@pytest.mark.slow
def test_the_aarch64_runner_on_a_remote_without_python(host: RemoteHost, for_arm: Path) -> None:
    """The real runner, emulated on the remote: the bundle is verified there, and measured."""
    device = host.device(**EMULATED)
    answer = work(device, "verify", for_arm)
    assert answer.error is None, answer.error
    assert answer.answer is not None and answer.answer["ok"] is True
    checks = {check["name"]: check for check in answer.answer["checks"]}
    golden = next(check for name, check in checks.items() if name.startswith("golden outputs"))
    assert golden["ok"] and not golden.get("skipped"), golden
    answer = work(device, "bench", for_arm, "--runs=5", "--warmup=1", "--cooldown=0")
    assert answer.error is None and answer.answer is not None, answer.error
    assert answer.answer["p50_ms"] > 0 and answer.answer["runs"] == 5
    host.wait_until_quiet()


@pytest.mark.slow
def test_the_aarch64_runner_driven_by_the_device_program(
    network: Network, tmp_path: Path, for_arm: Path
) -> None:
    with remote_host.remote_host(tmp_path / "host", network) as host:
        device = host.device(**EMULATED)
        answer = work(device, "verify", for_arm, "--runtime=edgekit-ncnn")
        assert answer.error is None, answer.error
        assert answer.answer is not None and answer.answer["ok"] is True
        host.wait_until_quiet()


@pytest.mark.slow
def test_a_damaged_bundle_does_not_verify_there(
    host: RemoteHost, for_arm: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(for_arm, tmp_path / "copy"))
    golden = next((copy / "golden").rglob("output_0.npy"))
    data = bytearray(golden.read_bytes())
    data[-2] ^= 0x40
    golden.write_bytes(data)
    answer = work(host.device(**EMULATED), "verify", copy)
    assert answer.exit_code == 9, answer


@pytest.mark.slow
def test_a_folder_of_others_a_full_disk_and_a_poor_system(
    network: Network, tmp_path: Path, tools: Path
) -> None:
    path = native_bundle(tmp_path, runner=FAKE_RUNNER + "#" * (6 << 20))
    with small_disk(tmp_path / "disk", size=3 << 20) as small:
        disk = small.folder
        with remote_host.remote_host(tmp_path / "host", network, path=str(tools)) as host:
            photos = host.folder / "photos"
            photos.mkdir()
            (photos / "cat.jpg").write_bytes(b"cat")
            answer = work(host.device("photos"), "verify", path)
            assert answer.exit_code == 8 and "other files" in str(answer.error)
            assert [item.name for item in photos.iterdir()] == ["cat.jpg"]
            device = host.device()
            folder = str(disk / "store")
            device = dataclasses.replace(
                device, address=dataclasses.replace(device.address, folder=folder)
            )
            if small.mounted:
                answer = work(device, "verify", path)
                assert answer.exit_code == 11, answer
                assert not list((disk / "store" / "objects").iterdir())
                assert not list((disk / "store" / "incoming").iterdir())
            (tools / "sha256sum").unlink()
            answer = work(host.device("poor"), "verify", path)
            assert answer.exit_code == 4 and "sha256sum" in str(answer.error)
            host.wait_until_quiet()
