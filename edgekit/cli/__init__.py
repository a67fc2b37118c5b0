"""The command line: one module per command, imported when that command is called."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from edgekit import __version__
from edgekit.errors import INTERRUPTED, EdgekitError, nearest

# command → (module with a `command`, one line for `edgekit --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "export": ("edgekit.cli.export", "Take a checkpoint to a verified, measured bundle."),
    "simplify": ("edgekit.cli.simplify", "Simplify an ONNX model, accepted only after parity."),
    "calibrate": ("edgekit.cli.calibrate", "Collect activation statistics of an ONNX model."),
    "calibration": ("edgekit.cli.calibration", "Look into statistics: ranges by every method."),
    "quantize": ("edgekit.cli.quantize", "Insert INT8 QDQ into an ONNX model."),
    "debug": ("edgekit.cli.debug", "Rank layers by what INT8 costs, with the reason and a remedy."),
    "verify": ("edgekit.cli.verify", "Check a bundle, or the parity of two models."),
    "evaluate": ("edgekit.cli.evaluate", "Measure accuracy on labelled images."),
    "inspect": ("edgekit.cli.inspect", "Show what a model or checkpoint is made of."),
    "draw": ("edgekit.cli.draw", "Write images with the boxes or classes that a model finds."),
    "bench": ("edgekit.cli.bench", "Measure latency; gate on it; compare two models."),
    "build": ("edgekit.cli.build", "Build what a bundle needs built on its device."),
    "check": ("edgekit.cli.check", "Hold a bundle against budgets and a baseline, for CI."),
    "history": ("edgekit.cli.history", "Show results over time, per model and device."),
    "devices": ("edgekit.cli.devices", "List devices, look at them, clear what was sent there."),
    "profile": ("edgekit.cli.profile", "Show where time goes and what INT8 costs, per layer."),
    "report": ("edgekit.cli.report", "Write one HTML page on a bundle."),
    "compare": ("edgekit.cli.compare", "Compare models: sizes, speed in every runtime, accuracy."),
    "targets": ("edgekit.cli.targets", "List and show target profiles."),
    "runner": ("edgekit.cli.runner", "Build the native NCNN runner for a board."),
    "doctor": ("edgekit.cli.doctor", "Show what this machine has and what each target lacks."),
    "cache": ("edgekit.cli.cache", "Show or clear the stage cache."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(
                f"No such command '{args[0]}'. {nearest(args[0], list(COMMANDS))}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


EPILOG = """\b
Example:
  edgekit export best.pt --target x86-int8 --images calib/ --data data.yaml
  edgekit verify best-x86-int8/
  edgekit bench best-x86-int8/ --max-p99-ms 25
"""


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="edgekit")
def group() -> None:
    """From a compressed vision checkpoint to a verified, measured bundle for an edge board."""


def _report(message: str, hint: str, exit_code: int, as_json: bool) -> int:
    """Show an expected failure: an object on stdout under --json, else two lines on stderr."""
    if as_json:
        click.echo(json.dumps({"error": message, "hint": hint, "exit_code": exit_code}))
    else:
        click.echo(f"Error: {message}", err=True)
        if hint:
            click.echo(f"Hint: {hint}", err=True)
    return exit_code


def _terminate(number: int, frame: FrameType | None) -> None:
    # a polite kill unwinds like Ctrl-C, so that temporary files are removed
    raise SystemExit(128 + number)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (the design's table)."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result: Any = group.main(args=args, prog_name="edgekit", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except EdgekitError as error:
        return _report(error.message, error.hint, error.exit_code, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "edgekit"
        return _report(error.format_message(), f"See `{command} --help`.", 2, as_json)
    except click.ClickException as error:
        return _report(error.format_message(), "", 8, as_json)
    except (click.Abort, KeyboardInterrupt):
        return _report(
            "Interrupted.",
            "Run the same command again: finished work is kept.",
            INTERRUPTED,
            as_json,
        )
    except BrokenPipeError:
        # the reader (head, less) went away; writing the rest would only raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _report(
                f"No space left on the disk: {error}.",
                "Free some space and run the same command again: finished work is kept.",
                11,
                as_json,
            )
        raise


def main() -> None:
    """Entry point of the `edgekit` program."""
    sys.exit(run())
