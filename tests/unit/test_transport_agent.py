"""What is sent to boards: plain Python 3.8 that stands alone, started by one constant command."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit.transports.agent as agent
from edgekit.errors import BadInput
from edgekit.stages.device import error_of, parse_answer
from edgekit.transports import bootstrap, shell_scripts
from edgekit.transports.address import Address
from edgekit.transports.board import Board, Outcome, printable
from edgekit.transports.settings import Device

FOLDER = Path(agent.__file__).parent
SOURCES = sorted(FOLDER.glob("*.py"))
SCRIPTS = [
    getattr(shell_scripts, name)
    for name in ("HELLO", "MISSING", "UNPACK", "CLEAR", "ACCEPT", "PLACE", "START", "POLL", "FETCH",
                 "REMOVE", "PURGE")
]  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_agent_is_python_3_8_and_imports_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            own = name.startswith("edgekit.transports.agent")
            assert own or name.split(".")[0] in sys.stdlib_module_names, name


def test_every_module_is_sent() -> None:
    assert {path.stem for path in SOURCES} - {"__init__"} == set(bootstrap._MODULES)
    assert bootstrap.first_bytes()[:8] == b"%08d" % len(bootstrap.agent_program())


@pytest.mark.parametrize("command", [bootstrap.REMOTE_COMMAND, *SCRIPTS])
def test_commands_are_read_alike_by_every_shell(command: str) -> None:
    """One line; single quotes in pairs; nothing that csh's history or fish would change."""
    assert "\n" not in command and "`" not in command
    assert command.count("'") % 2 == 0
    # csh: "!" is history unless a blank, "=" or "(" follows
    assert all(command[at + 1] in " =(" for at, letter in enumerate(command) if letter == "!")


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_the_command_starts_the_agent(shell: str) -> None:
    done = subprocess.run(
        [shell, "-c", bootstrap.REMOTE_COMMAND],
        input=bootstrap.first_bytes(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    line, _, frames = done.stdout.partition(b"\n")
    assert line.startswith(bootstrap.GREETING)
    length = int.from_bytes(frames[:4], "big")
    assert json.loads(frames[8 : 8 + length]) == {"ready": 1}


def test_a_module_in_the_home_folder_does_not_stand_in_for_pythons_own(tmp_path: Path) -> None:
    (tmp_path / "hashlib.py").write_text("raise SystemExit('taken over')")
    done = subprocess.run(
        bootstrap.local_command(),
        input=bootstrap.first_bytes(),
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert b"ready" in done.stdout and b"taken over" not in done.stderr


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.getuid() != 0:
        place = Path("/usr/share")
    else:
        place = tmp_path / "theirs"
        place.mkdir()
        os.chown(place, 12345, 12345)
    device = Device(name="local", address=Address(kind="local", folder=str(place)))
    with pytest.raises(BadInput), Board(device) as board:
        board.connect()


def test_a_devices_words_cannot_move_the_cursor() -> None:
    nasty = "\x1b[2Jgone\x07\u202e"
    assert printable(nasty) == "�[2Jgone��"
    error = error_of("pi", {"error": nasty, "hint": nasty, "exit_code": 5})
    assert error is not None and "\x1b" not in error.message + error.hint
    assert error.exit_code == 5


@pytest.mark.parametrize("stdout", [b"", b"no json", b"[1]", b"\xff\xfe"])
def test_a_program_that_ends_without_an_answer(stdout: bytes) -> None:
    from edgekit.errors import BuildFailed

    outcome = Outcome(run="r", exit_code=-9, stdout=stdout, stderr="")
    with pytest.raises(BuildFailed, match="signal 9") as caught:
        parse_answer("pi", outcome)
    assert "memory" in caught.value.hint
    outcome = Outcome(run="r", exit_code=1, stdout=stdout, stderr="Traceback\nboom")
    with pytest.raises(BuildFailed, match="status 1") as caught:
        parse_answer("pi", outcome)
    assert "boom" in caught.value.hint
