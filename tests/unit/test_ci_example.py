"""The example workflow is valid YAML, and every edgekit command in it is one that exists."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgekit import cli
from edgekit.cli import group
from edgekit.errors import EdgekitError
from edgekit.target_files import load_target

FILE = Path(__file__).resolve().parent.parent.parent / "examples" / "ci" / "edgekit.yml"


def commands() -> list[list[str]]:
    jobs: dict[str, Any] = yaml.safe_load(FILE.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    lines = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("edgekit ")]


def test_every_option_exists() -> None:
    found = commands()
    assert [words[0] for words in found] == ["export", "check"]
    for name, *words in found:
        command = group.get_command(
            group.make_context("edgekit", ["--help"], resilient_parsing=True), name
        )
        assert command is not None
        context = command.make_context(name, words, resilient_parsing=False)
        if name == "export":
            try:
                load_target(context.params["target"])
            except EdgekitError as error:
                pytest.fail(str(error))
        else:
            assert context.params["device"] == ("ssh://ci@board.lab",)


def test_the_options_for_the_device_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    (check,) = (words for words in commands() if words[0] == "check")
    # the bundle is not there: everything before that was understood
    assert cli.run(check) == 8
    assert "new is not a bundle" in capsys.readouterr().err
