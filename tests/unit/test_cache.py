"""The stage cache: right answers only, shared by processes, bounded, and clear about misses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit import atomic
from edgekit.cache import StageCache, cache_folder, max_mb
from edgekit.cli import run
from edgekit.errors import BadInput, NoSpace, UsageError
from edgekit.filehash import FileHashes
from tests.disk import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def _put(cache: StageCache, key: str, size: int = 10, answer: Any = 1) -> None:
    with cache.put(key) as folder:
        (folder / "result.json").write_text(json.dumps({"answer": answer}))
        (folder / "files").mkdir()
        (folder / "files" / "model.onnx").write_bytes(b"m" * size)


def _left(cache: StageCache) -> list[str]:
    """What lies about besides finished entries."""
    return [
        path.name
        for room in ("temporary", "partial", "locks")
        if (cache.folder / room).is_dir()
        for path in (cache.folder / room).iterdir()
    ]


def test_what_is_put_is_got(tmp_path: Path) -> None:
    with StageCache(tmp_path) as cache:
        key = cache.key("quantize", {"model": "abc", "options": {"bits": 8, "names": ("a", "b")}})
        assert cache.get(key) is None
        _put(cache, key, size=1000)
        entry = cache.get(key)
        assert entry is not None
        assert entry.result == {"answer": 1}
        assert entry.stage == "quantize"
        assert entry.file("files/model.onnx").read_bytes() == b"m" * 1000
    with StageCache(tmp_path) as other:
        again = other.key("quantize", {"options": {"names": ["a", "b"], "bits": 8}, "model": "abc"})
        assert again == key
        assert other.get(again) is not None
    assert _left(cache) == []


def test_every_field_is_part_of_the_key(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    base = {"model": "abc", "images": ["1", "2"], "options": {"bits": 8, "on": True}}
    keys = {
        cache.key("quantize", base),
        cache.key("calibrate", base),
        cache.key("quantize", {**base, "model": "abd"}),
        cache.key("quantize", {**base, "images": ["2", "1"]}),
        cache.key("quantize", {**base, "options": {"bits": 7, "on": True}}),
        cache.key("quantize", {**base, "options": {"bits": 8, "on": 1}}),
        cache.key("quantize", {**base, "extra": None}),
    }
    assert len(keys) == 7
    with pytest.raises(TypeError):
        cache.key("quantize", {"model": Path("/model.onnx")})
    with pytest.raises(ValueError, match="JSON"):
        cache.key("quantize", {"threshold": float("nan")})
    with pytest.raises(ValueError, match="stage"):
        cache.key("../quantize", {})


@pytest.mark.parametrize("name", ["files/model.onnx", "result.json", "entry.json"])
@pytest.mark.parametrize("how", ["flip", "shorten", "remove"])
def test_a_damaged_entry_is_never_used(tmp_path: Path, name: str, how: str) -> None:
    notes: list[str] = []
    with StageCache(tmp_path, note=notes.append) as cache:
        key = cache.key("build", {"model": "abc"})
        _put(cache, key)
        entry = cache.get(key)
        assert entry is not None
        file = entry.folder / name
        data = file.read_bytes()
        if how == "flip":
            # inside entry.json a digit of a hash is hit, so that it stays readable
            place = data.find(b'"sha256": "') + 12 if name == "entry.json" else len(data) // 2
            flipped = b"0" if data[place : place + 1] != b"0" else b"1"
            file.write_bytes(data[:place] + flipped + data[place + 1 :])
        elif how == "shorten":
            file.write_bytes(data[: len(data) // 2])
        else:
            file.unlink()
        assert cache.get(key) is None
        assert len(notes) == 1
        assert key in notes[0]
        assert not entry.folder.exists()
        _put(cache, key)
        assert cache.get(key) is not None


def test_a_damaged_entry_that_another_process_holds_is_replaced(tmp_path: Path) -> None:
    holder, cache = StageCache(tmp_path), StageCache(tmp_path)
    key = cache.key("build", {"model": "abc"})
    _put(holder, key)
    held = holder.get(key)
    assert held is not None
    held.file("files/model.onnx").write_bytes(b"broken")
    assert cache.get(key) is None
    _put(cache, key, size=7)
    entry = cache.get(key)
    assert entry is not None
    assert entry.file("files/model.onnx").read_bytes() == b"m" * 7


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    key = cache.key("build", {"model": "abc"})
    with pytest.raises(KeyboardInterrupt), cache.put(key) as folder:
        (folder / "result.json").write_text("{}")
        raise KeyboardInterrupt
    assert cache.get(key) is None
    with pytest.raises(ValueError, match=r"result\.json"), cache.put(key) as folder:
        (folder / "other").write_text("{}")
    assert cache.get(key) is None
    assert cache.show() == []
    assert _left(cache) == []


_PUT = """
import json, sys, time
from pathlib import Path
from edgekit.cache import StageCache
folder, start, size = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
with StageCache(folder) as cache:
    for number in range(15):
        key = cache.key("build", {"number": number})
        time.sleep(max(0.0, start + number * 0.02 - time.time()))
        if cache.get(key) is None:
            with cache.put(key) as out:
                (out / "result.json").write_text(json.dumps({"number": number}))
                (out / "model").write_bytes(bytes([number]) * size)
        entry = cache.get(key)
        assert entry.result == {"number": number}
        assert entry.file("model").read_bytes() == bytes([number]) * size
print("done")
"""


@pytest.mark.parametrize("cap_mb", ["", "0.5"])
def test_processes_share_one_cache(tmp_path: Path, cap_mb: str) -> None:
    """Four processes put and get the same keys at the same time, also while entries are evicted."""
    start = time.time() + 1.0
    environment = {**os.environ, "EDGEKIT_CACHE_MAX_MB": cap_mb}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PUT, str(tmp_path), str(start), "100000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(4)
    ]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert out == "done\n", err
    cache = StageCache(tmp_path)
    for number in range(15):
        entry = cache.get(cache.key("build", {"number": number}))
        if cap_mb:
            continue
        assert entry is not None
        assert entry.result == {"number": number}
    cache.close()
    cache.evict()
    assert _left(cache) == []


def test_partial_work_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edgekit.cache import StageCache\n"
        "cache = StageCache(Path(sys.argv[1]))\n"
        "key = cache.key('calibrate', {'images': 3})\n"
        "(cache.partial(key) / 'reached').write_text('2')\n"
        "with cache.put(key) as folder:\n"
        "    (folder / 'half').write_text('')\n"
        "    print(key, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    key = process.stdout.readline().strip()
    with StageCache(tmp_path) as cache:
        # the other process is alive: its work is not shared
        assert list(cache.partial(key).iterdir()) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    with StageCache(tmp_path) as cache:
        assert cache.get(key) is None
        folder = cache.partial(key)
        assert (folder / "reached").read_text() == "2"
        assert cache.partial(key) == folder
        shown = [info for info in cache.show() if info.partial and info.size_mb > 0]
        assert [(info.stage, info.in_use) for info in shown] == [("calibrate", True)]
        _put(cache, key)
        assert not folder.exists()
        assert cache.get(key) is not None
    # what the killed process was writing is gone too
    assert not list((tmp_path / "temporary").iterdir())


def test_the_least_recently_used_goes_first_and_never_one_in_use(tmp_path: Path) -> None:
    with StageCache(tmp_path, max_size_mb=100) as filling:
        keys = [filling.key("build", {"number": number}) for number in range(4)]
        for age, key in enumerate(keys):
            _put(filling, key, size=1_000_000)
            os.utime(tmp_path / "entries" / key / "entry.json", (age + 1000, age + 1000))
    holder = StageCache(tmp_path)
    assert holder.get(keys[0]) is not None
    os.utime(tmp_path / "entries" / keys[0] / "entry.json", (1, 1))
    with StageCache(tmp_path, max_size_mb=3.1) as cache:
        new = cache.key("build", {"number": 9})
        _put(cache, new, size=1_000_000)
        kept = {info.key for info in cache.show()}
        assert kept == {keys[0], keys[3], new}
    holder.close()
    with StageCache(tmp_path, max_size_mb=0) as cache:
        assert cache.evict() == 3
        assert cache.show() == []


def test_a_hit_renews_an_entry(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    keys = [cache.key("build", {"number": number}) for number in range(2)]
    for key in keys:
        _put(cache, key)
        os.utime(tmp_path / "entries" / key / "entry.json", (1000, 1000))
    assert cache.get(keys[0]) is not None
    assert [info.key for info in cache.show()] == keys


def test_a_miss_is_explained_by_the_nearest_entry(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    fields: dict[str, Any] = {
        "model": "abc",
        "images": [str(n) for n in range(128)],
        "options": {"method": "minmax", "bits": 8},
        "versions": {"onnxruntime": "1.20"},
    }
    assert cache.why_missed("calibrate", fields) == "nothing of calibrate is in the cache"
    _put(cache, cache.key("calibrate", fields))
    _put(cache, cache.key("calibrate", {"model": "other"}))
    _put(cache, cache.key("build", {**fields, "options": {"method": "mse", "bits": 8}}))

    def why(**changes: Any) -> str:
        return cache.why_missed("calibrate", {**fields, **changes})

    assert why(model="abd") == 'model: "abd", was "abc"'
    images = ["x", *fields["images"][1:]]
    assert why(images=images) == "images: 1 of 128 differ"
    assert why(images=images[:100]) == "images: 100 values, were 128"
    assert why(options={"method": "mse", "bits": 8}) == 'options.method: "mse", was "minmax"'
    assert why(options={"method": "minmax", "bits": 8.0}) == "options.bits: 8.0, was 8"
    both = why(versions={"onnxruntime": "1.31", "numpy": "2"})
    assert both == 'versions.numpy is new ("2"); versions.onnxruntime: "1.31", was "1.20"'


def test_where_the_cache_lies_and_how_large_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("EDGEKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "edgekit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "edgekit"
    monkeypatch.setenv("EDGEKIT_CACHE_MAX_MB", "12.5")
    assert max_mb() == 12.5
    for text in ("much", "-1", "nan"):
        monkeypatch.setenv("EDGEKIT_CACHE_MAX_MB", text)
        with pytest.raises(UsageError, match="EDGEKIT_CACHE_MAX_MB"):
            max_mb()


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = StageCache(tmp_path / "file")
    key = cache.key("build", {})
    assert cache.get(key) is None
    assert cache.show() == []
    with pytest.raises(BadInput, match="cannot be written") as caught, cache.put(key):
        pass
    assert "EDGEKIT_CACHE" in caught.value.hint


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    with pytest.raises(PermissionError), cache.put(cache.key("build", {})):
        raise PermissionError(13, "Permission denied", "/somewhere/else/image.jpg")


def test_a_full_disk_is_said_and_leaves_nothing_half(disk: SmallDisk) -> None:
    cache = StageCache(disk.folder / "cache")
    kept, key = cache.key("build", {"number": 0}), cache.key("build", {"number": 1})
    _put(cache, kept)
    with disk.full(), pytest.raises(NoSpace) as caught:
        _put(cache, key, size=disk.too_much)
    assert caught.value.exit_code == 11
    assert cache.get(key) is None
    assert cache.get(kept) is not None
    assert [info.key for info in cache.show()] == [kept]
    assert _left(cache) == [kept]  # the lock of the one in use
    _put(cache, key)
    assert cache.get(key) is not None


def test_the_commands_show_and_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("EDGEKIT_CACHE_MAX_MB", "50")
    with StageCache() as cache:
        for number in range(2):
            _put(cache, cache.key("build", {"number": number}), size=500_000)
        cache.partial(cache.key("calibrate", {}))
    held = StageCache()
    key = held.key("build", {"number": 0})
    assert held.get(key) is not None
    assert run(["cache", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["folder"] == str(tmp_path)
    assert shown["max_mb"] == 50
    assert shown["size_mb"] == pytest.approx(1.0, abs=0.01)
    assert {(e["stage"], e["partial"], e["in_use"]) for e in shown["entries"]} == {
        ("build", False, True),
        ("build", False, False),
        ("calibrate", True, False),
    }
    assert run(["cache", "show"]) == 0
    text = capsys.readouterr()
    assert "build" in text.out
    assert "3 entries, 1.0 of 50 MB" in text.err
    assert run(["cache", "clear", "--json"]) == 0
    cleared = json.loads(capsys.readouterr().out)
    assert (cleared["removed"], cleared["in_use"]) == (2, 1)
    assert held.get(key) is not None
    held.close()
    assert run(["cache", "clear"]) == 0
    assert "Removed 1 entries" in capsys.readouterr().err
    assert StageCache().show() == []


# --- hashes of files ----------------------------------------------------------------------------


def _old(path: Path, data: bytes) -> Path:
    """A file whose hash may be remembered: not changed just now."""
    path.write_bytes(data)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are really read; files count as old enough at once."""
    names: list[str] = []
    real = atomic.sha256_file

    def counting(path: Path, *rest: Any) -> str:
        names.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr("edgekit.filehash.atomic.sha256_file", counting)
    monkeypatch.setattr("edgekit.filehash._RACY_NS", -1)
    return names


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    files = [_old(tmp_path / f"{n}.jpg", bytes([n]) * 100) for n in range(3)]
    memo = tmp_path / "hashes.json"
    with FileHashes(memo) as hashes:
        first = hashes.sha256_all(files)
        assert hashes.sha256_all(files) == first
    assert len(set(first)) == 3
    assert reads == ["0.jpg", "1.jpg", "2.jpg"]
    with FileHashes(memo) as hashes:
        assert hashes.sha256_all(files) == first
    assert len(reads) == 3


def test_a_change_is_seen_even_when_size_and_time_are_set_back(
    tmp_path: Path, reads: list[str]
) -> None:
    file = _old(tmp_path / "image.jpg", b"a" * 100)
    with FileHashes(tmp_path / "hashes.json") as hashes:
        before = hashes.sha256(file)
    status = file.stat()
    file.write_bytes(b"b" * 100)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with FileHashes(tmp_path / "hashes.json") as hashes:
        assert hashes.sha256(file) != before
    replaced = tmp_path / "other.jpg"
    replaced.write_bytes(b"c" * 100)
    replaced.replace(file)
    with FileHashes(tmp_path / "hashes.json") as hashes:
        assert hashes.sha256(file) == atomic.sha256_file(file)
    assert reads[:3] == ["image.jpg"] * 3


def test_a_file_changed_just_now_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.filehash._RACY_NS", 2_000_000_000)
    file = _old(tmp_path / "image.jpg", b"a")
    with FileHashes(tmp_path / "hashes.json") as hashes:
        hashes.sha256(file)
        hashes.sha256(file)
    assert len(reads) == 2
    assert not (tmp_path / "hashes.json").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": [1, 2, 3, 4, 5, 6]}', "\x00\xff"])
def test_a_damaged_memo_is_started_anew(tmp_path: Path, reads: list[str], text: str) -> None:
    memo = tmp_path / "hashes.json"
    memo.write_text(text, encoding="latin-1")
    file = _old(tmp_path / "image.jpg", b"a")
    with FileHashes(memo) as hashes:
        digest = hashes.sha256(file)
    with FileHashes(memo) as hashes:
        assert hashes.sha256(file) == digest
    assert reads == ["image.jpg"]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with FileHashes(tmp_path / "hashes.json") as hashes, pytest.raises(BadInput, match="not exist"):
        hashes.sha256(tmp_path / "nothing.jpg")
