"""A board behind a real sshd: sending, running, and every way in which a connection can fail."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit import bundle
from edgekit.errors import BadInput, DeviceUnreachable, EdgekitError, NoSpace
from edgekit.transports.board import Board, BoardFile, bundle_files, bundle_key
from edgekit.transports.bootstrap import PythonMissing
from edgekit.transports.settings import Device
from tests import remote_host
from tests.bundles import contents
from tests.disk import small_disk
from tests.remote_host import Network, RemoteHost

WAIT_FOR_FILE = """
import os, sys, time
print("started", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
print("done")
"""
"""A program that ends when a file appears."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with remote_host.network() as made:
        yield made


@pytest.fixture(scope="module")
def host(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteHost]:
    with remote_host.remote_host(tmp_path_factory.mktemp("host"), network) as made:
        yield made


@pytest.fixture
def small(tmp_path: Path) -> list[BoardFile]:
    """The files of a small bundle with a real model."""
    return bundle_files(bundle.write(tmp_path / "bundle", contents(tmp_path / "sources")))


def python(code: str, *arguments: str) -> list[Any]:
    return [{"python": True}, "-c", code, *arguments]


def objects(device: Device) -> set[str]:
    return {path.name for path in (Path(device.address.folder) / "objects").iterdir()}


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def big_bundle(folder: Path, megabytes: int) -> list[BoardFile]:
    """Files as a bundle's, of which one is large."""
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b"{}")
    (folder / "big.bin").write_bytes(os.urandom(megabytes << 20))
    from edgekit.atomic import sha256_file

    return [
        BoardFile(
            path=name,
            source=folder / name,
            size_bytes=(folder / name).stat().st_size,
            sha256=sha256_file(folder / name),
        )
        for name in ("manifest.json", "big.bin")
    ]


def test_send_run_and_nothing_left(
    host: RemoteHost, small: list[BoardFile], tmp_path: Path
) -> None:
    device = host.device("first")
    with Board(device) as board:
        facts = board.connect()
        assert facts.system == "Linux" and facts.python
        key = board.send(small)
        assert board.sent_bytes == sum({item.sha256: item.size_bytes for item in small}.values())
        outcome = board.run(
            [*python("import sys; print(open(sys.argv[1]).read())"),
             {"bundle": key, "path": "manifest.json"}]
        )  # fmt: skip
    assert outcome.exit_code == 0
    assert json.loads(outcome.stdout)["format"] == "edgekit-bundle"
    placed = Path(device.address.folder) / "bundles" / key
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=placed, check=True)
    assert not list((Path(device.address.folder) / "runs").iterdir())
    host.wait_until_quiet()
    with Board(device) as board:
        assert board.send(small) == key == bundle_key(small)
        assert board.sent_bytes == 0, "what is there is not sent again"
        assert board.purge() == []
    assert not Path(device.address.folder).exists()


def test_a_changed_file_alone_is_sent_again_and_a_damaged_one_is_mended(
    host: RemoteHost, small: list[BoardFile], tmp_path: Path
) -> None:
    device = host.device("changed")
    with Board(device) as board:
        key = board.send(small)
    placed = Path(device.address.folder) / "bundles" / key
    model = next(item for item in small if item.path.endswith(".onnx"))
    damaged = placed / model.path
    damaged.write_bytes(b"x" * model.size_bytes)
    other = tmp_path / "other.json"
    other.write_bytes(b"{}")
    (placed / "built").mkdir()
    (placed / "built" / "engine").write_bytes(b"made on the board")
    with Board(device) as board:
        board.send(small)
        assert board.sent_bytes == model.size_bytes
    assert damaged.read_bytes() == model.source.read_bytes()
    assert (placed / "built" / "engine").read_bytes() == b"made on the board"


def test_upload_cut_in_the_middle_goes_on_where_it_was(host: RemoteHost, tmp_path: Path) -> None:
    files = big_bundle(tmp_path / "big", 24)
    device = host.device("cut-upload")
    cuts = []

    def cut(done: int, total: int, what: str) -> None:
        if done > 12 << 20 and not cuts:
            cuts.append(done)
            host.cut()

    with Board(device, progress=cut) as board:
        key = board.send(files)
        assert cuts and board.connections == 2
        # what lay in the network's buffers is sent twice, the rest is not
        assert board.sent_bytes < 36 << 20
    big = Path(device.address.folder) / "bundles" / key / "big.bin"
    assert big.read_bytes() == (tmp_path / "big" / "big.bin").read_bytes()
    assert not [name for name in objects(device) if name.endswith(".part")]
    host.wait_until_quiet()


@pytest.mark.parametrize("how", ["cut", pytest.param("link", marks=pytest.mark.slow)])
def test_a_run_survives_its_connection(host: RemoteHost, tmp_path: Path, how: str) -> None:
    """The connection is cut, or the cable is out for longer than the patience; the run goes on."""
    device = host.device(f"survives-{how}", silence_s=1.5)
    go = tmp_path / "go"

    def disturb() -> None:
        wait_for(lambda: any("started" in text for text in outputs(device)))
        if how == "cut":
            host.cut()
        else:
            host.link_down()
        time.sleep(0.3 if how == "cut" else 2.0)
        go.touch()
        if how == "link":
            host.link_up()

    with Board(device) as board:
        thread = in_background(disturb)
        outcome = board.run(python(WAIT_FOR_FILE, str(go)))
        thread.join()
        assert board.connections >= 2
    assert outcome.stdout == b"started\ndone\n" and outcome.exit_code == 0
    # an agent behind a dead link waits for its host a little before it ends
    host.wait_until_quiet(30.0)


def outputs(device: Device) -> list[str]:
    return [path.read_text() for path in Path(device.address.folder).glob("runs/*/stdout")]


@pytest.mark.slow
def test_a_run_is_picked_up_by_another_command(host: RemoteHost, tmp_path: Path) -> None:
    device = host.device("picked-up", silence_s=1.0)
    go = tmp_path / "go"

    def break_off() -> None:
        wait_for(lambda: any("started" in text for text in outputs(device)))
        host.freeze()

    thread = in_background(break_off)
    with pytest.raises(DeviceUnreachable) as caught, Board(device, limit_s=4.0) as board:
        board.run(python(WAIT_FOR_FILE, str(go)), name="run-1")
    thread.join()
    host.thaw()
    assert caught.value.exit_code == 10 and "--pick-up run-1" in caught.value.hint
    go.touch()
    with Board(device) as board:
        outcome = board.pick_up("run-1")
    assert outcome.stdout == b"started\ndone\n"
    with Board(device) as board, pytest.raises(BadInput, match="no run run-1"):
        board.pick_up("run-1")
    host.wait_until_quiet()


def test_a_host_that_hangs_ends_within_the_limit_and_the_board_stops_by_itself(
    host: RemoteHost, tmp_path: Path
) -> None:
    device = host.device("hangs", silence_s=1.0)

    def hang() -> None:
        wait_for(lambda: any("started" in text for text in outputs(device)))
        host.freeze()

    thread = in_background(hang)
    started = time.monotonic()
    with pytest.raises(DeviceUnreachable), Board(device, limit_s=4.0) as board:
        board.run(python(WAIT_FOR_FILE, str(tmp_path / "never")))
    assert time.monotonic() - started < 8.0
    thread.join()
    # still frozen: the board ends the run by its own clock
    wait_for(lambda: not any(str(tmp_path / "never") in line for line in host.processes()))
    host.thaw()
    host.wait_until_quiet()


def test_time_limit_ends_the_run_and_its_children(host: RemoteHost) -> None:
    device = host.device("limit")
    code = (
        "import subprocess, sys, time\n"
        "for number in range(3):\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'],\n"
        "                     start_new_session=True)\n"
        "time.sleep(1000)"
    )
    late = pytest.raises(DeviceUnreachable, match="did not finish within 2 s")
    with late, Board(device, limit_s=2.0) as board:
        board.run(python(code))
    host.wait_until_quiet()
    assert not list((Path(device.address.folder) / "runs").iterdir())


def test_interrupt_cancels_the_run(host: RemoteHost, tmp_path: Path) -> None:
    device = host.device("interrupt")
    stop = threading.Event()

    def interrupt() -> None:
        wait_for(lambda: any("started" in text for text in outputs(device)))
        stop.set()

    thread = in_background(interrupt)
    with pytest.raises(EdgekitError) as caught, Board(device, stop=stop) as board:
        board.run(python(WAIT_FOR_FILE, str(tmp_path / "never")))
    thread.join()
    assert caught.value.exit_code == 130
    host.wait_until_quiet()
    assert not list((Path(device.address.folder) / "runs").iterdir())


@pytest.mark.slow
def test_runs_take_turns(host: RemoteHost, tmp_path: Path) -> None:
    """Two measurements at once would disturb each other: the second one waits."""
    device = host.device("turns")
    code = "import time; print(time.time()); time.sleep(0.3); print(time.time())"
    spans: list[list[float]] = []

    def one() -> None:
        with Board(device) as board:
            spans.append([float(line) for line in board.run(python(code)).stdout.split()])

    threads = [in_background(one) for _ in range(3)]
    for thread in threads:
        thread.join()
    spans.sort()
    assert len(spans) == 3
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_wrong_host_key_is_refused(host: RemoteHost, tmp_path: Path) -> None:
    known = (host.folder / "known_hosts").read_text().split()
    other = tmp_path / "other"
    remote_host._key(other)
    lines = {
        "changed": f"{known[0]} {' '.join((tmp_path / 'other.pub').read_text().split()[:2])}\n",
        "unknown": "",
    }
    for kind, text in lines.items():
        file = tmp_path / f"known {kind}"
        file.write_text(text)
        with (
            pytest.raises(DeviceUnreachable) as caught,
            Board(host.device("never-made", known_hosts=str(file))) as board,
        ):
            board.connect()
        assert caught.value.exit_code == 10
        assert "host key" in caught.value.message and "Nothing was sent" in caught.value.message
        assert ("ssh-keygen -R" if kind == "changed" else "ssh -p") in caught.value.hint
        assert file.read_text() == text, "no key is learnt by itself"
    assert not (host.folder / "never-made").exists()


def test_wrong_key_and_no_server_and_no_such_host(host: RemoteHost, tmp_path: Path) -> None:
    remote_host._key(tmp_path / "stranger")
    device = host.device("never-made", identity_file=str(tmp_path / "stranger"))
    with pytest.raises(DeviceUnreachable, match="does not let us in") as caught:
        Board(device).connect()
    assert "ssh-copy-id" in caught.value.hint
    closed = replace(device, address=replace(device.address, port=1))
    with pytest.raises(DeviceUnreachable, match="cannot be reached") as caught:
        Board(closed).connect()
    assert "no ssh server" in caught.value.hint
    nowhere = replace(device, address=replace(device.address, host="no-such-host.invalid"))
    with pytest.raises(DeviceUnreachable, match=r"no host named no-such-host\.invalid"):
        Board(nowhere).connect()


@pytest.mark.slow
def test_link_down_from_the_beginning(host: RemoteHost) -> None:
    host.link_down()
    try:
        started = time.monotonic()
        with pytest.raises(DeviceUnreachable), Board(host.device(), limit_s=3.0) as board:
            board.connect()
        assert time.monotonic() - started < 8.0
    finally:
        host.link_up()


def test_full_disk(network: Network, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small disk", size=3 << 20) as disk:
        # started after the disk is there: a namespace keeps the mounts it found
        if disk.mounted:
            with remote_host.remote_host(tmp_path / "host", network) as host:
                full_disk_on(host, disk.folder, tmp_path)
            return
        # where nothing can be mounted: files have a limit there
        limit = 'ulimit -f 1000; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
        limited = remote_host.remote_host(tmp_path / "host", network, force_command=limit)
        with limited as host:
            device = host.device()
            with pytest.raises(NoSpace), Board(device) as board:
                board.send(big_bundle(tmp_path / "big", 8))
            assert not [name for name in objects(device) if name.endswith(".part")]
            host.wait_until_quiet()


def full_disk_on(host: RemoteHost, full_disk: Path, tmp_path: Path) -> None:
    files = big_bundle(tmp_path / "big", 8)
    device = host.device()
    device = replace(device, address=replace(device.address, folder=str(full_disk / "store")))
    with pytest.raises(NoSpace, match="MB are needed") as caught, Board(device) as board:
        board.send(files)
    assert caught.value.exit_code == 11 and caught.value.hint
    assert list((full_disk / "store" / "objects").iterdir()) == []

    def fill(done: int, total: int, what: str) -> None:
        (full_disk / "foreign").write_bytes(os.urandom(free(full_disk) - (300 << 10)))

    # enough at first, but somebody else fills the disk meanwhile
    with pytest.raises(NoSpace), Board(device, progress=once(fill)) as board:
        board.send(big_bundle(tmp_path / "smaller", 1))
    assert not [name for name in objects(device) if name.endswith(".part")]
    (full_disk / "foreign").unlink()
    # a run that fills the disk is still told about
    with Board(device) as board:
        outcome = board.run(
            python(
                "import sys\n"
                "try:\n"
                "    open('fill', 'wb').write(bytes(8 << 20))\n"
                "except OSError as error:\n"
                "    sys.exit(11)"
            )
        )
    assert outcome.exit_code == 11
    host.wait_until_quiet()


def free(place: Path) -> int:
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize


def once(call: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    called: list[bool] = []

    def progress(done: int, total: int, what: str) -> None:
        if not called:
            called.append(True)
            call(done, total, what)

    return progress


def test_a_folder_of_others_is_left_alone(host: RemoteHost) -> None:
    place = host.folder / "photos"
    place.mkdir()
    (place / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BadInput, match="holds other files"), Board(host.device("photos")) as board:
        board.connect()
    assert [path.name for path in place.iterdir()] == ["cat.jpg"]


def test_purge_leaves_what_others_put_there(host: RemoteHost, small: list[BoardFile]) -> None:
    device = host.device("shared")
    with Board(device) as board:
        board.send(small)
        (host.folder / "shared" / "notes.txt").write_text("mine")
        assert board.purge() == ["notes.txt"]
    assert [path.name for path in (host.folder / "shared").iterdir()] == ["notes.txt"]


def test_no_python(network: Network, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/sh")
    with remote_host.remote_host(tmp_path / "host", network, path=str(tools)) as host:
        with pytest.raises(PythonMissing, match="has no python3") as caught:
            Board(host.device()).connect()
        assert caught.value.exit_code == 4 and "3.8" in caught.value.hint
        host.wait_until_quiet()


def test_old_python(network: Network, tmp_path: Path) -> None:
    """A fake old Python: a real one that says it is 3.6."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/sh")
    fake = tools / "python3"
    fake.write_text(
        "#!/bin/sh\n"
        'exec PYTHON -c "import sys; sys.version_info = (3, 6, 9); exec(sys.argv[1])" "$3"\n'.replace(
            "PYTHON", sys.executable
        )
    )
    fake.chmod(0o755)
    with remote_host.remote_host(tmp_path / "host", network, path=str(tools)) as host:
        with pytest.raises(PythonMissing, match=r"Python 3\.6\.9; 3\.8 or newer") as caught:
            Board(host.device()).connect()
        assert caught.value.version == "3.6.9"
        host.wait_until_quiet()


def test_a_talkative_login_shell(network: Network, tmp_path: Path) -> None:
    """What start files print comes before the agent, and is read past."""
    force = 'printf "Welcome to \\033[1mboard\\033[0m\\nno newline: "; eval "$SSH_ORIGINAL_COMMAND"'
    talkative = remote_host.remote_host(tmp_path / "host", network, force_command=force)
    with talkative as host, Board(host.device()) as board:
        assert board.run(python("print(1)")).stdout == b"1\n"


HOSTILE = ["a b", "-rf", "--", "'", '"', "$(touch MARK)", "`touch MARK`", ";touch MARK;", "a\nb",
           "&& touch MARK", "| touch MARK", "\\", "*", "~", "{}", "%s", "é", "\x1b[2J"]  # fmt: skip


def test_arguments_arrive_letter_by_letter(host: RemoteHost, tmp_path: Path) -> None:
    words = [word.replace("MARK", str(tmp_path / "mark")) for word in HOSTILE]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    with Board(host.device("words")) as board:
        outcome = board.run(python(code, *words))
    assert json.loads(outcome.stdout) == words
    assert not (tmp_path / "mark").exists()


@pytest.mark.slow
def test_folders_are_taken_letter_by_letter(
    host: RemoteHost, small: list[BoardFile], tmp_path: Path
) -> None:
    words = [word.replace("MARK", "mark") for word in HOSTILE]
    for number in range(0, len(words), 6):
        name = "/".join(words[number : number + 6])
        device = host.device(f"{number}/{name}")
        with Board(device) as board:
            board.send(small)
        assert (host.folder / str(number) / name / "bundles").is_dir()
    assert not list(host.folder.rglob("mark")) and not Path("mark").exists()
    assert not (Path.home() / "mark").exists()


def test_a_run_whose_minder_is_killed_is_told_as_broken_off(
    host: RemoteHost, tmp_path: Path
) -> None:
    device = host.device("broken-off")

    def kill() -> None:
        wait_for(lambda: any("started" in text for text in outputs(device)))
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    if b"mind" in words and device.address.folder.encode() in words:
                        os.kill(int(folder.name), signal.SIGKILL)

    thread = in_background(kill)
    with pytest.raises(DeviceUnreachable, match="broken off"), Board(device) as board:
        board.run(python(WAIT_FOR_FILE, str(tmp_path / "never")))
    thread.join()
    host.wait_until_quiet()


FAKE_AGENT = r"""
import json, os, struct, sys
answers = json.loads(os.environ["ANSWERS"])
sys.stdout.buffer.write(b"EDGEKIT-PYTHON 3.11.0\n")
number = 0
for text in answers:
    data = text.replace("ID", str(number)).encode()
    sys.stdout.buffer.write(struct.pack(">II", len(data), 0) + data)
    number += 1
sys.stdout.buffer.flush()
sys.stdin.buffer.read()
"""


@pytest.mark.parametrize(
    "answers",
    [
        ["[]"],
        ["no json"],
        ['{"ready": 1}', '{"id": ID}'],
        ['{"ready": 1}', '{"id": ID, "system": 1, "machine": [], "python": {}, "host": 0, "free": "x"}'],
        ['{"ready": 1}', '{"id": ID, "error": "\\u001b[2J", "message": ["x"]}'],
        ['{"ready": 1}', '{"id": ID, "system": "", "machine": "", "python": "", "host": "", "free": 1}',
         '{"id": ID, "missing": [["unknown", 0]]}'],
    ],
)  # fmt: skip
def test_a_device_that_answers_nonsense(
    network: Network, small: list[BoardFile], tmp_path: Path, answers: list[str]
) -> None:
    """A fake agent, in place of ours, that says what it likes: an error, never a traceback."""
    program = tmp_path / "fake_agent.py"
    program.write_text(FAKE_AGENT)
    (tmp_path / "answers.sh").write_text(
        f"export ANSWERS={shlex.quote(json.dumps(answers))}\nexec {sys.executable} {program}\n"
    )
    force = f"/bin/sh {tmp_path}/answers.sh"
    with remote_host.remote_host(tmp_path / "host", network, force_command=force) as host:
        device = host.device(silence_s=2.0)
        with pytest.raises(EdgekitError) as caught, Board(device, limit_s=6.0) as board:
            board.send(small)
        assert caught.value.exit_code in (8, 10) and "\x1b" not in caught.value.message
