"""The command line of `edgekit-device.pyz`: docs/device.md has its grammar and its answers."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, NoReturn, Sequence

from edgekit.board import FORMAT, SCHEMA, VERSION
from edgekit.board.built import replacing
from edgekit.board.errors import INTERRUPTED, DeviceError, UsageError, VerificationFailed
from edgekit.board.session import BuildOptions, SessionOptions


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", "See --help, or docs/device.md.")


def main(arguments: Sequence[str]) -> int:
    """Run one command, print its answer as JSON, and return the exit code."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup sets SIGHUP to be ignored, and that is what is wanted then
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, _interrupt)
    answer: dict[str, Any] = {"format": FORMAT, "schema": SCHEMA, "program": VERSION}
    answer["command"] = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parsed: argparse.Namespace | None = None
    code = 0
    try:
        parsed = _parser().parse_args(arguments)
        answer["command"] = parsed.command
        answer.update(COMMANDS[parsed.command](parsed))
        if answer.get("ok") is False:
            failed = [check for check in answer["checks"] if not check["ok"]]
            lines = "; ".join(f"{check['name']}: {check['detail']}" for check in failed[:3])
            raise VerificationFailed(
                f"The bundle does not verify: {lines}" + (" …" if failed[3:] else ""),
                "Copy the bundle again, or export it again.",
            )
    except DeviceError as error:
        code = error.exit_code
        answer.update(error=error.message, hint=error.hint, exit_code=code)
    except Interrupted:
        code = INTERRUPTED
        answer.update(error="Interrupted.", hint="", exit_code=code)
    except SystemExit as leaving:  # --help has been printed
        return int(leaving.code or 0)
    except Exception as error:
        traceback.print_exc()
        code = 1
        text = f"{type(error).__name__}: {error}"
        answer.update(error=f"A bug: {text}", hint="The traceback is on stderr.", exit_code=code)
    return _put(answer, parsed, code)


def _put(answer: dict[str, Any], parsed: argparse.Namespace | None, code: int) -> int:
    """Write the answer to stdout and, where it was asked for, to a file."""
    text = json.dumps(_plain(answer), ensure_ascii=False) + "\n"
    place = getattr(parsed, "answer", None)
    if place is not None:
        try:
            with replacing(Path(place)) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except DeviceError as error:
            code = error.exit_code
            failure = {**answer, "error": error.message, "hint": error.hint, "exit_code": code}
            text = json.dumps(_plain(failure), ensure_ascii=False) + "\n"
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.flush()
    return code


def _plain(value: Any) -> Any:
    """`value` with every number that JSON has no word for as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _interrupt(number: int, frame: Any) -> None:
    # a second signal must not break the cleaning up after the first
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    raise Interrupted


def _progress(parsed: argparse.Namespace) -> Callable[[str], None]:
    def progress(line: str) -> None:
        if not parsed.quiet:
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr, flush=True)

    return progress


def _number(kind: Callable[[str], Any], least: float, strict: bool = False) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        value = kind(text)
        if not math.isfinite(value) or value < least or (strict and value == least):
            raise argparse.ArgumentTypeError(f"{text!r} is out of range")
        return value

    convert.__name__ = kind.__name__
    return convert


def share(text: str) -> float:
    """2% or 0.02 as 0.02."""
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 100 %")
    return value


def cpu_list(text: str) -> tuple[int, ...]:
    """CPU numbers from 0,1 or 0-3 or 0-1,4."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        digits = first.isdecimal() and (not dash or last.isdecimal())
        if not digits or len(first) > 5 or len(last) > 5:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of CPUs such as 0,1 or 0-3")
        cpus.update(range(int(first), int(last or first) + 1))
    if not cpus:
        raise argparse.ArgumentTypeError(f"{text!r} names no CPU")
    return tuple(sorted(cpus))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="edgekit-device.pyz",
        description="Build, check, measure and run a bundle on this board. Answers are JSON.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    positive = _number(int, 1)
    seconds = _number(float, 0, strict=True)

    def command(name: str, text: str, bundle: str | None = None) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("bundle", nargs=bundle, type=Path, metavar="BUNDLE", help="its folder")
        one.add_argument("--answer", metavar="FILE", help="write the answer there, too")
        one.add_argument("--quiet", action="store_true", help="no progress on stderr")
        return one

    def running(one: argparse.ArgumentParser, timeout_s: float) -> None:
        one.add_argument("--runtime", metavar="NAME", help="what runs it")
        one.add_argument("--threads", type=positive, default=1, help="runtime threads (1)")
        one.add_argument(
            "--timeout", type=seconds, default=timeout_s, metavar="S", help="longest wait for a run"
        )
        one.add_argument("--arch", choices=("x86_64", "aarch64", "armhf"), help="of the runner")
        one.add_argument("--emulator", metavar="PROGRAM", help="starts the runner")
        one.add_argument("--cuda-graph", action="store_true", help="TensorRT: launch as one graph")

    running(command("verify", "check hashes, preprocessing and golden outputs"), 600.0)
    build = command("build", "make what has to be made on this board")
    methods = ("auto", "qdq", "entropy", "minmax", "float")
    build.add_argument("--method", choices=methods, default="auto")
    build.add_argument(
        "--fp16", action="store_true", default=True, help="allow float16 layers (the default)"
    )
    build.add_argument("--no-fp16", dest="fp16", action="store_false", help="float32 beside INT8")
    build.add_argument("--version-compatible", action="store_true", help="loads in later versions")
    build.add_argument("--hardware-compatible", action="store_true", help="loads on later GPUs")
    build.add_argument("--max-batch", type=positive, default=1, metavar="N", help="of a free batch")
    build.add_argument("--workspace-mb", type=positive, metavar="N", help="scratch memory")
    build.add_argument("--dla", type=_number(int, 0), metavar="CORE", help="DLA core")
    build.add_argument("--force", action="store_true", help="build again what is there")
    build.add_argument("--show-trtexec", action="store_true", help="the same as a trtexec command")
    bench = command("bench", "measure latency, alone or against another bundle")
    running(bench, 600.0)
    bench.add_argument("--against", type=Path, metavar="OTHER", help="a bundle to take turns with")
    bench.add_argument("--runs", type=positive, metavar="N", help="timed runs")
    bench.add_argument("--seconds", type=seconds, metavar="S", help="stop after so long")
    bench.add_argument("--warmup", type=_number(int, 0), default=10, metavar="N")
    bench.add_argument("--precision", type=share, default=0.02, metavar="SHARE", help="2%%")
    bench.add_argument("--max-seconds", type=seconds, metavar="S", help="when it is not reached")
    bench.add_argument("--cooldown", type=_number(float, 0), default=0.0, metavar="S")
    bench.add_argument("--affinity", type=cpu_list, default=(), metavar="CPUS", help="0,1 or 0-3")
    bench.add_argument("--input", type=Path, metavar="FILE", help="a tensor, .npy")
    bench.add_argument("--tolerance", type=share, default=0.03, metavar="SHARE", help="3%%")
    bench.add_argument("--samples", action="store_true", help="every run's time in the answer")
    run = command("run", "run the model once")
    running(run, 600.0)
    what = run.add_mutually_exclusive_group(required=True)
    what.add_argument("--golden", type=_number(int, 0), metavar="N", help="on golden sample N")
    what.add_argument("--input", type=Path, metavar="FILE", help="on a tensor, .npy")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="write the outputs there, .npy")
    run.add_argument("--values", action="store_true", help="outputs' values in the answer")
    command("info", "what this board is and can run", bundle="?")
    return parser


def _session_options(parsed: argparse.Namespace) -> SessionOptions:
    try:
        emulator = shlex.split(parsed.emulator) if parsed.emulator is not None else None
    except ValueError as error:
        raise UsageError(f"--emulator {parsed.emulator!r}: {error}.") from error
    return SessionOptions(
        threads=parsed.threads,
        arch=parsed.arch,
        emulator=emulator,
        cuda_graph=parsed.cuda_graph,
    )


def _verify(parsed: argparse.Namespace) -> dict[str, Any]:
    from edgekit.board.verify import VerifyOptions, verify

    options = VerifyOptions(parsed.runtime, _session_options(parsed), parsed.timeout)
    return verify(parsed.bundle, options, _progress(parsed))


def _build(parsed: argparse.Namespace) -> dict[str, Any]:
    from edgekit.board.build import build

    options = BuildOptions(
        method=parsed.method,
        fp16=parsed.fp16,
        workspace_mb=parsed.workspace_mb,
        dla=parsed.dla,
        force=parsed.force,
        show_trtexec=parsed.show_trtexec,
        version_compatible=parsed.version_compatible,
        hardware_compatible=parsed.hardware_compatible,
        max_batch=parsed.max_batch,
    )
    return build(parsed.bundle, options, _progress(parsed), parsed.quiet)


def _bench(parsed: argparse.Namespace) -> dict[str, Any]:
    from edgekit.board.bench import BenchOptions, bench

    options = BenchOptions(
        against=parsed.against,
        runtime=parsed.runtime,
        session=_session_options(parsed),
        runs=parsed.runs,
        seconds=parsed.seconds,
        warmup=parsed.warmup,
        precision=parsed.precision,
        max_seconds=parsed.max_seconds,
        cooldown_s=parsed.cooldown,
        affinity=parsed.affinity,
        input=parsed.input,
        tolerance=parsed.tolerance,
        timeout_s=parsed.timeout,
        samples=parsed.samples,
    )
    return bench(parsed.bundle, options, _progress(parsed))


def _run(parsed: argparse.Namespace) -> dict[str, Any]:
    from edgekit.board.run import RunOptions, run

    options = RunOptions(
        runtime=parsed.runtime,
        session=_session_options(parsed),
        golden=parsed.golden,
        input=parsed.input,
        out=parsed.out,
        values=parsed.values,
        timeout_s=parsed.timeout,
    )
    return run(parsed.bundle, options, _progress(parsed))


def _info(parsed: argparse.Namespace) -> dict[str, Any]:
    from edgekit.board.info import info

    return info(parsed.bundle)


COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "verify": _verify,
    "build": _build,
    "bench": _bench,
    "run": _run,
    "info": _info,
}
