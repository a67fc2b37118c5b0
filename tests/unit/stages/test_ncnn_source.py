"""ncnn's source archive: pip's own configuration finds it, its hash decides, nothing leads out."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edgekit.errors import BadInput, BuildFailed
from edgekit.stages import ncnn_source


def _sdist(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(links: Path, version: str, sha256: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit.stages.sdist_child", "ncnn", version, sha256, str(out)],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_is_the_one_that_is_tested() -> None:
    constraints = Path(__file__).parents[3] / "constraints.txt"
    pinned = re.search(r"^ncnn==(\S+)$", constraints.read_text(), re.MULTILINE)
    assert pinned and pinned[1] == ncnn_source.NCNN_VERSION


def test_an_archive_comes_through_pips_configuration(tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    sha256 = _sdist(links / "ncnn-1.2.tar.gz", {"ncnn-1.2/CMakeLists.txt": b"project(ncnn)"})
    _sdist(links / "ncnn-1.3.tar.gz", {"ncnn-1.3/CMakeLists.txt": b"another"})
    (links / "ncnn-1.2-py3-none-any.whl").write_bytes(b"never looked at")
    out = tmp_path / "got.tar.gz"
    done = _fetch(links, "1.2", sha256, out)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(out.read_bytes()).hexdigest() == sha256

    done = _fetch(links, "1.2", "0" * 64, tmp_path / "other")
    assert done.returncode == 5
    assert sha256 in done.stderr
    assert not (tmp_path / "other").exists()
    done = _fetch(links, "1.4", sha256, tmp_path / "other")
    assert done.returncode == 4
    assert "no source of ncnn 1.4" in done.stderr


def test_a_fetch_that_fails_says_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("EDGEKIT_NATIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(BuildFailed) as caught:
        ncnn_source.source()
    assert "EDGEKIT_NCNN_SDIST" in caught.value.hint
    assert list((tmp_path / "cache").glob("*")) == []


def test_an_archive_given_by_hand_must_be_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.tar.gz"
    sha256 = _sdist(file, {"ncnn/CMakeLists.txt": b"project(ncnn)", "ncnn/src/net.h": b"//"})
    monkeypatch.setenv("EDGEKIT_NATIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEKIT_NCNN_SDIST", str(file))
    with pytest.raises(BadInput, match=sha256):
        ncnn_source.source()
    monkeypatch.setattr(ncnn_source, "NCNN_SHA256", sha256)
    folder = ncnn_source.source()
    assert (folder / "src" / "net.h").read_bytes() == b"//"
    # unpacked once: the archive is not needed again
    file.unlink()
    assert ncnn_source.source() == folder
    monkeypatch.setenv("EDGEKIT_NATIVE_CACHE", str(tmp_path / "another"))
    with pytest.raises(BadInput, match="not a file"):
        ncnn_source.source()


def test_a_member_that_leads_out_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.tar.gz"
    _sdist(file, {"ncnn/../../../escaped": b"x"})
    (tmp_path / "into").mkdir()
    with pytest.raises(BadInput, match="leads out"):
        ncnn_source.unpack(file, tmp_path / "into")
    assert not (tmp_path / "escaped").exists()
