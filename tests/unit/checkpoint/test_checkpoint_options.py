"""The shared command-line options of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edgekit.checkpoint import LoadOptions
from edgekit.cli.checkpoint_options import checkpoint_options, load_options
from edgekit.errors import UsageError

seen: list[Any] = []


@click.command()
@checkpoint_options
@click.option("--other", default=1)
def command(**arguments: Any) -> None:
    seen.append((load_options(arguments), arguments))


def _run(*args: str) -> tuple[LoadOptions, dict[str, Any]]:
    result = CliRunner().invoke(command, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    options, rest = seen.pop()
    return options, rest


def test_nothing_given() -> None:
    options, rest = _run()
    assert options == LoadOptions()
    assert rest == {"other": 1}


def test_everything_given() -> None:
    options, rest = _run(
        "--arch", "a.b:c", "--arch-arg", "width=0.5", "--arch-arg", "act-type=relu=x", "--code", "x",
        "--code", "y", "--trust-checkpoint", "--weights", "ema", "--other", "3",
    )  # fmt: skip
    assert options == LoadOptions(
        arch="a.b:c",
        arch_args={"width": "0.5", "act_type": "relu=x"},
        code=(Path("x"), Path("y")),
        trust=True,
        weights="ema",
    )
    assert rest == {"other": 3}


@pytest.mark.parametrize(
    "args",
    [
        ("--arch", "a:b", "--arch-arg", "width"),
        ("--arch", "a:b", "--arch-arg", "=3"),
        ("--arch", "a:b", "--arch-arg", "w=3", "--arch-arg", "w=4"),
        ("--arch-arg", "w=3"),
        ("--weights", "emma"),
    ],
)
def test_wrong_use(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        _run(*args)
