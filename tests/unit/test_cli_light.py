"""The command line stays light: help imports no numeric library, and every command is documented."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import click
import pytest

from edgekit.cli import COMMANDS, run

HEAVY = {"torch", "onnx", "onnxruntime", "cv2", "numpy", "ncnn", "tensorrt", "rich", "onnx_ir"}


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from edgekit.cli import run\n"
        f"code = run({arguments!r})\n"
        "print('LOADED', sorted(m for m in sys.modules if '.' not in m))\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.rpartition("LOADED ")[2]
    assert "edgekit" in loaded
    found = {name for name in HEAVY if f"'{name}'" in loaded}
    assert not found


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    command = importlib.import_module(COMMANDS[name][0]).command
    assert isinstance(command, click.Command)
    assert command.help and len(command.help) > 20
    text = (command.epilog or "") + command.help
    if isinstance(command, click.Group):
        text += "".join((sub.epilog or "") + (sub.help or "") for sub in command.commands.values())
    assert f"edgekit {name}" in text, "the help shows an example"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{name}: {parameter.name} has no help"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["exprot"]) == 2
    assert "export" in capsys.readouterr().err


def test_unknown_option_is_usage_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--json", "--no-such-option"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 2
    assert "--no-such-option" in answer["error"]


def test_export_without_anything_says_what_to_give(
    capsys: pytest.CaptureFixture[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert run(["export"]) == 2
    assert "checkpoint" in capsys.readouterr().err.lower()


def test_python_minus_m_runs_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("edgekit, version ")
