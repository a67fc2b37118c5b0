"""Work on boards: a bundle's own program run there, and its answer brought back.

The bundle is sent (what changed of it), its `edgekit-device.pyz` is run apart from the connection, and
the JSON on its standard output is the answer. Several boards work at the same time; one that fails does
not end the others.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.board.program import PROGRAM, program_bytes
from edgekit.errors import (
    AccuracyBudgetMissed,
    BadInput,
    BuildFailed,
    DeviceUnreachable,
    EdgekitError,
    LatencyBudgetMissed,
    MissingDependency,
    NoSpace,
    NotPossible,
    UsageError,
    VerificationFailed,
)
from edgekit.manifest import Manifest, read_manifest
from edgekit.stages import device_native
from edgekit.transports.board import (
    Board,
    BoardFile,
    Facts,
    Outcome,
    PythonMissing,
    bundle_files,
    new_run_name,
    printable,
)
from edgekit.transports.settings import Device
from edgekit.transports.shell_board import ShellBoard
from edgekit.types import Progress, no_progress

FORMAT = "edgekit-device"
_KINDS: tuple[type[EdgekitError], ...] = (
    UsageError,
    MissingDependency,
    NotPossible,
    BuildFailed,
    AccuracyBudgetMissed,
    LatencyBudgetMissed,
    BadInput,
    VerificationFailed,
    DeviceUnreachable,
    NoSpace,
)


@dataclass(frozen=True, kw_only=True)
class DeviceWork:
    """What a board is to do: a command of the device program (docs/device.md) on a bundle.

    `options` are its further words. `against`: another bundle, for bench. `limit_s` None: the
    device's own. `keep`: leave the run's folder on the board. `run`: pick up that run, and start none.
    """

    command: str
    bundle: Path
    against: Path | None = None
    options: tuple[str, ...] = ()
    limit_s: float | None = None
    keep: bool = False
    run: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceAnswer:
    """What came of it on one board: the program's answer, or the error, or both (a failed check).

    `seconds` is all the time it took, sending included; `sent_bytes` what had to be sent.
    """

    device: str
    address: str
    run: str
    answer: dict[str, Any] | None = field(default=None, repr=False)
    error: EdgekitError | None = None
    facts: Facts | None = None
    seconds: float = 0.0
    sent_bytes: int = 0

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error is not None else 0


def work_on(
    device: Device,
    work: DeviceWork,
    progress: Progress = no_progress,
    *,
    stop: threading.Event | None = None,
    announce: Callable[[str, str], None] | None = None,
) -> DeviceAnswer:
    """Do `work` on one board. What goes wrong there is in the answer.

    `announce` hears the device's and the run's name before the run is started: with them it can be
    picked up whatever becomes of us. Raises BadInput only for a bundle that cannot be read here.
    """
    started = time.monotonic()
    bundles = [read_manifest(path) for path in (work.bundle, work.against) if path is not None]
    files = [bundle_files(manifest) for manifest in bundles]
    run = work.run or new_run_name()
    board = Board(device, limit_s=work.limit_s, stop=stop, progress=progress)
    answer: dict[str, Any] | None = None
    error: EdgekitError | None = None
    board = Board(device, limit_s=work.limit_s, stop=stop, progress=progress)
    try:
        with board:
            try:
                board.connect()
            except PythonMissing as missing:
                outcome, facts, sent_bytes = _natively(
                    board, work, run, bundles[0], files[0], missing, progress, stop, announce
                )
            else:
                outcome = _outcome(board, work, run, bundles, files, announce)
                facts, sent_bytes = board.facts, board.sent_bytes
        answer = parse_answer(device.name, outcome)
        error = error_of(device.name, answer)
    except EdgekitError as caught:
        error, facts, sent_bytes = caught, board.facts, board.sent_bytes
    return DeviceAnswer(
        device=device.name,
        address=str(device.address),
        run=run,
        answer=answer,
        error=error,
        facts=facts,
        seconds=time.monotonic() - started,
        sent_bytes=sent_bytes,
    )


def _outcome(
    board: Board,
    work: DeviceWork,
    run: str,
    bundles: Sequence[Manifest],
    files: Sequence[list[BoardFile]],
    announce: Callable[[str, str], None] | None,
) -> Outcome:
    if work.run is not None:
        return board.pick_up(work.run, keep=work.keep)
    keys = [board.send(listed) for listed in files]
    program: dict[str, Any] = {"bundle": keys[0], "path": PROGRAM}
    if PROGRAM not in bundles[0].files:
        # bundles of before the device program: ours goes beside them
        program["bundle"] = _send_program(board)
    argv: list[Any] = [board.device.python or {"python": True}, program, work.command]
    argv += work.options
    if work.command in ("verify", "bench", "run"):
        argv += [f"--arch={board.device.arch}"] if board.device.arch else []
        argv += [f"--emulator={board.device.emulator}"] if board.device.emulator else []
    if len(keys) > 1:
        argv += ["--against", {"bundle": keys[1]}]
    if announce is not None:
        announce(board.device.name, run)
    return board.run([*argv, "--", {"bundle": keys[0]}], name=run, keep=work.keep)


def _natively(
    board: Board,
    work: DeviceWork,
    run: str,
    manifest: Manifest,
    files: Sequence[BoardFile],
    missing: PythonMissing,
    progress: Progress,
    stop: threading.Event | None,
    announce: Callable[[str, str], None] | None,
) -> tuple[Outcome, Facts | None, int]:
    """The same with the bundle's native runner, on a board without Python."""
    if work.run is not None:
        found = device_native.pick_up_natively(
            board.device, run, limit_s=board.left_s, keep=work.keep, progress=progress
        )
        return device_native.as_answer(work.command, found), None, 0
    found, facts, sent_bytes = device_native.work_natively(
        board.device,
        work.command,
        work.options,
        run,
        manifest,
        files,
        missing,
        comparing=work.against is not None,
        limit_s=board.left_s,
        keep=work.keep,
        progress=progress,
        stop=stop,
        announce=announce,
    )
    return device_native.as_answer(work.command, found), facts, sent_bytes


def _send_program(board: Board) -> str:
    import tempfile

    data = program_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    with tempfile.TemporaryDirectory(prefix="edgekit-device-") as folder:
        source = Path(folder) / PROGRAM
        source.write_bytes(data)
        file = BoardFile(path=PROGRAM, source=source, size_bytes=len(data), sha256=sha256)
        return board.send([file], f"program-{sha256[:32]}")


def parse_answer(device: str, outcome: Outcome) -> dict[str, Any]:
    """The one JSON object that the program printed. BuildFailed when it printed something else."""
    lines = outcome.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        checks = answer.get("checks", [])
        if isinstance(checks, list) and all(
            isinstance(check, dict) and {"name", "ok", "detail"} <= check.keys() for check in checks
        ):
            return answer
    tail = printable("\n".join(outcome.stderr.strip().splitlines()[-8:]))
    if outcome.exit_code < 0:
        how = f"was ended by signal {-outcome.exit_code}"
        hint = "Signal 9 is often the kernel's, when memory runs out." if tail == "" else tail
    else:
        how, hint = f"ended with status {outcome.exit_code} and no answer", tail
    raise BuildFailed(f"{device}: the program {how}.", hint=hint)


def kind_of(exit_code: object, otherwise: type[EdgekitError]) -> type[EdgekitError]:
    """The kind of error that has `exit_code`."""
    return next((kind for kind in _KINDS if kind.exit_code == exit_code), otherwise)


def error_of(device: str, answer: dict[str, Any]) -> EdgekitError | None:
    """The error that an answer of the device program tells of, named after the device."""
    if "error" not in answer:
        return None
    code = answer.get("exit_code")
    kind = kind_of(code, BuildFailed)
    text, hint = printable(str(answer["error"])), printable(str(answer.get("hint") or ""))
    return kind(f"{device}: {text}", hint=hint)


def work_on_all(
    devices: Sequence[Device],
    work: DeviceWork,
    progress: Progress = no_progress,
    announce: Callable[[str, str], None] | None = None,
) -> list[DeviceAnswer]:
    """Do `work` on all boards at the same time; one answer for each, in their order.

    When we are interrupted, what runs on the boards is cancelled first. Raises as `work_on`.
    """
    if len(devices) == 1:
        return [work_on(devices[0], work, progress, announce=announce)]
    for path in (work.bundle, work.against):
        if path is not None:
            read_manifest(path)
    stop = threading.Event()
    answers: list[DeviceAnswer | BaseException | None] = [None] * len(devices)
    news: queue.Queue[tuple[int, int, str] | None] = queue.Queue()

    def one(number: int) -> None:
        try:
            answers[number] = work_on(
                devices[number],
                work,
                lambda *said: news.put(said),
                stop=stop,
                announce=announce,
            )
        except BaseException as error:  # shown by the main thread
            answers[number] = error
        finally:
            news.put(None)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(devices))]
    try:
        for thread in threads:
            thread.start()
        left = len(threads)
        while left:
            said = news.get()
            if said is None:
                left -= 1
            else:
                progress(*said)
    except BaseException:
        stop.set()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    done = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        assert answer is not None
        done.append(answer)
    return done


def worst(answers: Sequence[DeviceAnswer]) -> int:
    """The exit code of several boards: a bug before all, then the highest."""
    codes = [answer.exit_code for answer in answers]
    return 1 if 1 in codes else max(codes, default=0)


def board_facts(device: Device, limit_s: float, *, clear: bool) -> tuple[Facts, list[str]]:
    """What a board is; with `clear`, all of ours is removed there, and what is left is named.

    Raises DeviceUnreachable, and BadInput for a folder of others or while a run goes on.
    """
    try:
        with Board(device, limit_s=limit_s) as board:
            facts = board.connect()
            left = board.purge() if clear else []
    except PythonMissing:
        with ShellBoard(device, limit_s=limit_s) as shell:
            facts = shell.connect()
            left = shell.purge() if clear else []
    return (
        Facts(
            system=printable(facts.system),
            machine=printable(facts.machine),
            python=printable(facts.python),
            host=printable(facts.host),
            free_bytes=facts.free_bytes,
        ),
        [printable(name) for name in left],
    )
