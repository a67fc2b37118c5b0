"""Nothing is written half: failures, kills and full disks leave what was there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import atomic
from edgekit.errors import BadInput, NoSpace
from tests.disk import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def _fill(folder: Path, word: str, files: int = 3) -> None:
    for number in range(files):
        (folder / f"{number}.txt").write_text(word)


def _words(folder: Path) -> set[str]:
    return {file.read_text() for file in folder.iterdir()}


def _hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    atomic.write_json(path, {"b": 1, "a": [1, 2]})
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomic.replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".json"
        raise RuntimeError
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for word in ("old", "new"):
        with atomic.replacing_folder(path) as temporary:
            _fill(temporary, word, files=5 if word == "old" else 2)
            (temporary / "sub").mkdir()
            (temporary / "sub" / "file").write_text(word)
    assert sorted(file.name for file in path.iterdir()) == ["0.txt", "1.txt", "sub"]
    assert (path / "sub" / "file").read_text() == "new"
    assert _hidden(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_a_failure_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    path = tmp_path / "bundle"
    with atomic.replacing_folder(path) as temporary:
        _fill(temporary, "old")
    with pytest.raises(KeyboardInterrupt), atomic.replacing_folder(path) as temporary:
        _fill(temporary, "new")
        raise KeyboardInterrupt
    assert _words(path) == {"old"}
    with atomic.replacing_folder(path) as temporary:
        _fill(temporary, "newer")
    assert _words(path) == {"newer"}
    assert _hidden(tmp_path) == []


def test_the_second_rename_failing_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    path = tmp_path / "bundle"
    path.mkdir()
    _fill(path, "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".tmp." in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), atomic.replacing_folder(path) as temporary:
        _fill(temporary, "new")
    assert _words(path) == {"old"}
    assert _hidden(tmp_path) == []


def test_a_reader_never_misses_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    _fill(path, "0")
    if not atomic._exchange(path, _other(tmp_path)):
        pytest.skip("this file system cannot exchange two folders")
    stop = threading.Event()
    seen: set[int | None] = set()
    looks = 0

    def look() -> None:
        nonlocal looks
        while not stop.is_set():
            looks += 1
            try:
                seen.add(path.stat().st_ino)
            except FileNotFoundError:
                seen.add(None)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for number in range(200):
            with atomic.replacing_folder(path) as temporary:
                _fill(temporary, str(number))
    finally:
        stop.set()
        thread.join()
    assert looks > 100
    assert len(seen) >= 2  # a file system may use an inode again
    assert None not in seen


def _other(tmp_path: Path) -> Path:
    other = tmp_path / "other"
    other.mkdir()
    _fill(other, "0")
    return other


_WRITER = """
import sys, time
from pathlib import Path
from edgekit import atomic
with atomic.replacing_folder(Path(sys.argv[1])) as temporary:
    (temporary / "0.txt").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def _writer(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_killed_writer_leaves_the_old_folder_and_its_rest_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    _fill(path, "old")
    process = _writer(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _words(path) == {"old"}
    assert len(_hidden(tmp_path)) == 1
    with atomic.replacing_folder(path) as temporary:
        _fill(temporary, "new")
    assert _words(path) == {"new"}
    assert _hidden(tmp_path) == []


def test_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    process = _writer(path)
    try:
        with atomic.replacing_folder(path) as temporary:
            _fill(temporary, "mine")
        assert len(_hidden(tmp_path)) == 1
    finally:
        process.kill()
        process.wait()
    assert _words(path) == {"mine"}


def test_a_kill_between_two_renames_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where folders cannot be exchanged the old one lies aside for a moment; nobody holds it."""
    path = tmp_path / "bundle"
    aside = tmp_path / ".bundle.old.abcdefgh"
    (aside / "folder").mkdir(parents=True)
    _fill(aside / "folder", "old")
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    with pytest.raises(RuntimeError), atomic.replacing_folder(path):
        raise RuntimeError
    assert _words(path) == {"old"}
    assert _hidden(tmp_path) == []


def test_a_link_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "bundle"
    real.mkdir(parents=True)
    _fill(real, "old")
    link = tmp_path / "link"
    link.symlink_to(real)
    with atomic.replacing_folder(link) as temporary:
        _fill(temporary, "new")
    assert link.is_symlink()
    assert _words(real) == {"new"}


def test_a_file_is_not_taken_for_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(BadInput, match="is a file"), atomic.replacing_folder(path):
        pass
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["ünïcode", "a b'c\"d", "$(x);-", "x" * 255])
def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for word in ("old", "new"):
        with atomic.replacing_folder(path) as temporary:
            _fill(temporary, word)
    assert _words(path) == {"new"}
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_full_disk_is_said_and_leaves_the_old(disk: SmallDisk) -> None:
    path = disk.folder / "bundle"
    with atomic.replacing_folder(path) as temporary:
        _fill(temporary, "old")
    file = disk.folder / "result.json"
    atomic.write_text(file, "old")
    with disk.full(), pytest.raises(NoSpace), atomic.replacing_folder(path) as temporary:
        (temporary / "big").write_bytes(bytes(disk.too_much))
    with disk.full(), pytest.raises(NoSpace):
        atomic.write_bytes(file, bytes(disk.too_much))
    assert _words(path) == {"old"}
    assert file.read_text() == "old"
    assert _hidden(disk.folder) == []
    with atomic.replacing_folder(path) as temporary:
        _fill(temporary, "new")
    assert _words(path) == {"new"}


def test_a_mount_point_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path / "out")
    with (
        pytest.raises(BadInput, match="mount point") as caught,
        atomic.replacing_folder(tmp_path / "out"),
    ):
        pass
    assert str(tmp_path / "out" / "bundle") in caught.value.hint


def test_other_peoples_permission_errors_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic.replacing(tmp_path / "out.json"):
        raise PermissionError(13, "Permission denied", "/somewhere/else/image.jpg")
    with pytest.raises(BadInput, match="Cannot write"), atomic.replacing(tmp_path / "out.json"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "out.json"))


def test_locks_exclude_and_end_with_their_holder(tmp_path: Path) -> None:
    from edgekit.filelock import NamedLock

    path = tmp_path / "lock"
    one, other = NamedLock(path), NamedLock(path)
    assert one.acquire(exclusive=False)
    assert other.acquire(exclusive=False)
    assert not NamedLock(path).acquire(exclusive=True, wait=False)
    one.release()
    assert path.exists()
    other.release()
    assert not path.exists()
    assert one.acquire(exclusive=True)
    waited: list[float] = []

    def wait() -> None:
        start = time.monotonic()
        other.acquire(exclusive=True)
        waited.append(time.monotonic() - start)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    one.release()
    thread.join(timeout=10)
    assert waited and waited[0] >= 0.04
    # the waiter saw that the file it waited on was removed, and holds the one that is there now
    assert path.exists()
    assert not NamedLock(path).acquire(exclusive=True, wait=False)
    other.release()
