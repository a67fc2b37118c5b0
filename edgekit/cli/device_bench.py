"""`edgekit bench --device`: the same measurement, made by the bundle's own program on the board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cli.console import emit, note, print_table, warn
from edgekit.cli.device_options import (
    DeviceChoice,
    answers_json,
    do_on_devices,
    show_errors,
)
from edgekit.cli.history_options import remember
from edgekit.errors import LatencyBudgetMissed

if TYPE_CHECKING:
    from edgekit.stages.device import DeviceAnswer

_COLUMNS = (
    ("p50", "p50_ms"),
    ("p90", "p90_ms"),
    ("p99", "p99_ms"),
    ("mean", "mean_ms"),
    ("std", "std_ms"),
)


def bench_words(values: dict[str, Any]) -> list[str]:
    """Options of the device program's bench, from those of `edgekit bench` that were given."""
    words = []
    for key, option in (
        ("runtime", "--runtime"),
        ("threads", "--threads"),
        ("runs", "--runs"),
        ("seconds", "--seconds"),
        ("warmup", "--warmup"),
        ("precision", "--precision"),
        ("cooldown", "--cooldown"),
        ("affinity", "--affinity"),
        ("timeout_s", "--timeout"),
    ):
        if values.get(key) is not None:
            words.append(f"{option}={values[key]}")
    return words


def bench_on_devices(
    choice: DeviceChoice,
    bundle: Path,
    against: Path | None,
    values: dict[str, Any],
    *,
    max_p50_ms: float | None,
    max_p99_ms: float | None,
    history: bool,
    as_json: bool,
) -> int:
    """Measure on every device, show one table; the exit code is the worst of all."""
    from edgekit.stages.device import worst

    answers = do_on_devices(
        choice, "bench", bundle, bench_words(values), against=against, quiet=as_json
    )
    if history:
        remember(bundle, answers)
    answers = [_gated(answer, max_p50_ms, max_p99_ms) for answer in answers]
    if as_json:
        emit(answers_json(answers))
        return worst(answers)
    _show(answers, against)
    show_errors(answers)
    return worst(answers)


def _gated(
    answer: DeviceAnswer, max_p50_ms: float | None, max_p99_ms: float | None
) -> DeviceAnswer:
    """The answer with the budget's error, where it is slower than allowed."""
    import dataclasses

    if answer.error is not None or answer.answer is None:
        return answer
    over = []
    for name, key, limit in (("p50", "p50_ms", max_p50_ms), ("p99", "p99_ms", max_p99_ms)):
        value = answer.answer.get(key)
        if limit is not None and (value is None or value > limit):
            found = "is not available" if value is None else f"is {value:.3f} ms"
            over.append(f"{name} {found}; the budget is {limit:g} ms")
    if not over:
        return answer
    return dataclasses.replace(
        answer,
        error=LatencyBudgetMissed(
            f"{answer.device}: {'; '.join(over)}.",
            hint="Take a smaller model or input, more threads, or a target with a faster precision.",
        ),
    )


def _show(answers: Sequence[DeviceAnswer], against: Path | None) -> None:
    from rich.table import Table

    measured = [answer for answer in answers if answer.answer and "p50_ms" in answer.answer]
    if not measured:
        return
    table = Table()
    table.add_column("device", overflow="fold")
    for title in ("runtime", *(name for name, _ in _COLUMNS), "images/s", "memory", "runs"):
        table.add_column(title, justify="left" if title == "runtime" else "right")
    if against is not None:
        table.add_column(f"speed against {against.name}", justify="right")
    for answer in measured:
        found = answer.answer or {}
        row = [answer.device, runtime_text(found)]
        row += [shown(found.get(key), "{:.3f} ms") for _, key in _COLUMNS]
        row += [
            shown(found.get("throughput_fps"), "{:.1f}"),
            shown(found.get("peak_rss_mb"), "{:.1f} MB"),
            shown(found.get("runs"), "{}"),
        ]
        if against is not None:
            ratio = found.get("against") or {}
            row.append(
                f"{shown(ratio.get('ratio'), '{:.3f}')} "
                f"({shown(ratio.get('low'), '{:.3f}')} to {shown(ratio.get('high'), '{:.3f}')})"
            )
        table.add_row(*row)
    print_table(table)
    for answer in measured:
        for line in remarks(answer.answer or {}):
            warn(f"{answer.device}: {line}")
        if answer.sent_bytes:
            note(f"{answer.device}: {answer.sent_bytes / 1e6:.1f} MB sent")


def remarks(found: dict[str, Any]) -> list[str]:
    """What the program itself says a reader must know to believe the numbers."""
    from edgekit.transports.board import printable

    caveats = found.get("caveats")
    if not isinstance(caveats, list):
        return []
    return [printable(str(each.get("text"))) for each in caveats if isinstance(each, dict)]


def runtime_text(found: dict[str, Any]) -> str:
    """Runtime and precision, such as "onnxruntime int8"."""
    return " ".join(str(found[key]) for key in ("runtime", "model_precision") if found.get(key))


def shown(value: Any, form: str) -> str:
    """The value, or that there is none: never zero for what was not measured."""
    return form.format(value) if isinstance(value, (int, float)) else "not available"
