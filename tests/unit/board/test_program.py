"""The packed device program: the same bytes everywhere, Python 3.8, the standard library alone."""

from __future__ import annotations

import ast
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgekit
from edgekit.board import VERSION
from edgekit.board.drivers import DRIVERS
from edgekit.board.program import program_bytes, sources

_BOARD = Path(edgekit.__file__).parent / "board"
_FILES = sorted(_BOARD.rglob("*.py"))
# what the board's own drivers import, inside functions
_RUNTIMES = {"numpy", "onnxruntime", "ncnn", "tensorrt", "pycuda", "cuda"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "edgekit-device.pyz"
    path.write_bytes(program_bytes())
    return path


def test_the_same_sources_give_the_same_bytes() -> None:
    data = program_bytes()
    assert data == program_bytes()
    assert data.startswith(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        names = archive.namelist()
    assert names == sorted(names)
    assert {"__main__.py", "edgekit/__init__.py", "edgekit/board/verify.py"} <= set(names)
    assert set(names) == set(sources())


def test_the_version_is_that_of_edgekit() -> None:
    assert edgekit.__version__ == VERSION


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.relative_to(_BOARD).as_posix())
def test_every_file_is_python_3_8_and_imports_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports: the package has the same name in the program"
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            top = module.split(".")[0]
            if top == "edgekit":
                assert module.split(".")[:2] == ["edgekit", "board"], module
            else:
                assert top in sys.stdlib_module_names | _RUNTIMES | {"__future__"}, module
    top_level = [
        name.name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import)
        for name in node.names
    ]
    assert not _RUNTIMES & set(top_level), "a runtime is imported inside functions"


def test_nothing_newer_than_python_3_8_is_used() -> None:
    """vermin knows in which Python each module, function and keyword of the library came."""
    tool = shutil.which("vermin", path=str(Path(sys.executable).parent))
    assert tool, "vermin belongs to the dev extra"
    files = [str(path) for path in _FILES if path.name != "__main__.py"]
    done = subprocess.run(
        [tool, "--no-tips", "-t=3.8-", "--violations", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_it_starts_without_site_packages_in_isolation(program: Path, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the working directory was imported')")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), "info"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    answer = json.loads(done.stdout)
    assert done.returncode == 0, answer
    assert (answer["format"], answer["schema"], answer["command"]) == ("edgekit-device", 1, "info")
    assert answer["machine"]["cores"] >= 1
    assert answer["runtimes"].keys() == DRIVERS.keys()
    assert not any(found["available"] for found in answer["runtimes"].values())
    assert answer["runtimes"]["onnxruntime"]["why_not"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["paint"], "invalid choice"),
        (["verify"], "required"),
        (["verify", ".", "--color"], "unrecognized"),
        (["verify", ".", "--threads", "0"], "out of range"),
        (["verify", ".", "--threads", "two"], "invalid"),
        (["verify", ".", "--thr", "2"], "unrecognized"),
        (["run", "."], "required"),
        (["run", ".", "--golden", "0", "--input", "x.npy"], "not allowed"),
    ],
)
def test_wrong_usage_is_an_answer_too(program: Path, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["exit_code"]) == (2, 2)
    assert words in answer["error"].lower()
    assert "Traceback" not in done.stderr


def test_an_older_python_says_so() -> None:
    """The first file parses on any Python 3, and stops before anything else is imported."""
    source = (_BOARD / "__main__.py").read_text()
    ast.parse(source, feature_version=(3, 4))
    guard, rest = source.split("if __name__", 1)
    assert "edgekit.board" not in guard.replace("edgekit-device", "")
    assert "future" not in source
    done = subprocess.run(
        [sys.executable, "-c", guard.replace("(3, 8)", "(99, 0)")],
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["exit_code"]) == (3, 3)
    assert f"this is {sys.version_info[0]}.{sys.version_info[1]}" in answer["error"]
    assert "import" in rest
