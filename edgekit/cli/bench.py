"""`edgekit bench`: latency of a model or bundle, gates, and a comparison of two."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.checkpoint_options import checkpoint_options, load_options
from edgekit.cli.console import emit, json_option, note, print_table, progress, warn
from edgekit.cli.device_options import device_choice, device_options, given, refuse_here_only
from edgekit.cli.history_options import history_option, remember_report
from edgekit.cli.model_options import runtime_option, size_of
from edgekit.errors import LatencyBudgetMissed, UsageError

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions
    from edgekit.stages.measure import ModelToTime
    from edgekit.types import LatencyReport, SpeedUp

# share of the machine in others' hands above which the figures are in doubt
_BUSY = 0.1
_ROWS = (
    ("p50", "p50_ms"),
    ("p90", "p90_ms"),
    ("p95", "p95_ms"),
    ("p99", "p99_ms"),
    ("mean", "mean_ms"),
    ("std", "std_ms"),
    ("min", "min_ms"),
    ("max", "max_ms"),
)


def cpu_list(text: str) -> tuple[int, ...]:
    """CPU numbers from 0,1 or 0-3 or 0-1,4. Raises UsageError for anything else."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--affinity {text!r} is not a list of CPUs such as 0,1 or 0-3.")
        if len(first) > 5 or len(last) > 5:
            raise UsageError(f"--affinity {text!r} names a CPU that no machine has.")
        cpus.update(range(int(first), int(last or first) + 1))
    if not cpus:
        raise UsageError(f"--affinity {text!r} names no CPU.")
    return tuple(sorted(cpus))


@click.command(
    epilog="""\b
Examples:
  edgekit bench model.onnx --threads 4
  edgekit bench best.pt --against best-x86-int8/        # PyTorch against the bundle
  edgekit bench best-x86-int8/ --max-p99-ms 25          # exit code 7 when it is slower
  edgekit bench best-rpi5-int8/ --device ssh://pi@raspberrypi.local
  edgekit bench int8.onnx --against float.onnx --json   # against.ratio above 1: int8 is faster
"""
)
@click.argument("model", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="OTHER",
    type=click.Path(path_type=Path),
    help="Time this model or bundle in turns with MODEL, in the same run.",
)
@click.option("--runs", type=click.IntRange(min=1), help="Timed runs. [default: 100 and 3 s]")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after S seconds."
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Untimed runs at least; more follow until the times settle.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Runtime threads."
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Batch size, where the model leaves it free."
)
@click.option("--affinity", metavar="CPUS", help="Pin to these CPUs: 0,1 or 0-3.")
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="Input arrays, preprocessed: .npy, or .npz with an array per input. "
    "[default: a bundle's golden sample, noise for a model]",
)
@click.option(
    "--max-p50-ms", type=click.FloatRange(min=0), help="Fail when the median is above this."
)
@click.option("--max-p99-ms", type=click.FloatRange(min=0), help="Fail when p99 is above this.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds to wait for one run.",
)
@click.option("--imgsz", metavar="N|HxW", help="Input size, where the model leaves it open.")
@click.option(
    "--precision",
    metavar="P%",
    help="On a device: measure until the median is known this well. [default: there, 2%]",
)
@click.option(
    "--cooldown",
    type=click.FloatRange(min=0),
    help="On a device: seconds to rest before the runs.",
)
@runtime_option
@device_options
@checkpoint_options
@history_option
@json_option
def command(
    model: Path,
    against: Path | None,
    runs: int | None,
    seconds: float | None,
    warmup: int,
    threads: int,
    batch: int | None,
    affinity: str | None,
    inputs: Path | None,
    max_p50_ms: float | None,
    max_p99_ms: float | None,
    timeout_s: float,
    imgsz: str | None,
    precision: str | None,
    cooldown: float | None,
    no_history: bool,
    as_json: bool,
    **arguments: Any,
) -> int:
    """Measure latency, here or on a device; gate on it; compare two models.

    The model runs in a process of its own, warmed up first. Times are of one call of the runtime,
    from input arrays to output arrays. With --against, the two take turns, and the ratio of their
    medians comes with its 95 % interval.
    """
    context = click.get_current_context()
    choice = device_choice(arguments)
    if choice.devices:
        from edgekit.cli.device_bench import bench_on_devices

        refuse_here_only(
            context,
            ("batch", "inputs", "imgsz", "arch", "arch_args", "code", "trust", "weights"),
        )
        values = {
            "runs": runs,
            "seconds": seconds,
            "warmup": given(context, "warmup"),
            "threads": given(context, "threads"),
            "affinity": affinity,
            "timeout_s": given(context, "timeout_s"),
            "precision": precision,
            "cooldown": cooldown,
            "runtime": arguments["runtime"],
        }
        return bench_on_devices(
            choice,
            model,
            against,
            values,
            max_p50_ms=max_p50_ms,
            max_p99_ms=max_p99_ms,
            history=not no_history,
            as_json=as_json,
        )
    if precision is not None or cooldown is not None:
        raise UsageError(
            "--precision and --cooldown go with --device.", hint="--device local measures here."
        )
    from edgekit.stages.measure import MeasureOptions, measure, measure_against

    options = MeasureOptions(
        runs=runs,
        seconds=seconds,
        warmup=warmup,
        threads=threads,
        batch=batch,
        affinity=cpu_list(affinity) if affinity is not None else (),
        timeout_s=timeout_s,
    )
    load, size, runtime = load_options(arguments), size_of(imgsz), arguments["runtime"]
    this = resolve(model, inputs, load, size, runtime)
    other_report: LatencyReport | None = None
    ratio: SpeedUp | None = None
    if against is None:
        with progress(quiet=as_json) as report_progress:
            report = measure(this, options, report_progress)
    else:
        other = resolve(against, inputs, load, size)
        with progress(quiet=as_json) as report_progress:
            report, other_report, ratio = measure_against(this, other, options, report_progress)
    if not no_history:
        _remember(model, report)
    missed = _missed(report, max_p50_ms, max_p99_ms)
    if as_json:
        answer = report_json(report)
        if ratio is not None and other_report is not None:
            answer["against"] = {
                "ratio": ratio.ratio,
                "low": ratio.low,
                "high": ratio.high,
                "other": report_json(other_report),
            }
        if missed is not None:
            # one object only: the result and the missed budget together
            answer |= {
                "error": missed.message,
                "hint": missed.hint,
                "exit_code": missed.exit_code,
            }
        emit(answer)
        return missed.exit_code if missed is not None else 0
    _show(this.name, report, against.name if against else "", other_report, ratio)
    _remarks(report, options.affinity)
    if missed is not None:
        raise missed
    return 0


def _remember(path: Path, report: LatencyReport) -> None:
    """Bundles have a history; a file without a manifest has no name to follow."""
    from edgekit.bundle import is_bundle

    if is_bundle(path):
        remember_report(path, report_json(report))


def resolve(
    path: Path,
    inputs: Path | None = None,
    load: LoadOptions | None = None,
    size: tuple[int, int] | None = None,
    runtime: str | None = None,
) -> ModelToTime:
    """What to time for a path of the command line: a checkpoint, an ONNX file, or a bundle's folder.

    `size` (height, width) is for checkpoints and files that leave it open; `runtime` chooses among
    those of a bundle. Raises what
    `edgekit.stages.opening.describe` raises.
    """
    from edgekit.stages.measure import ModelToTime

    if path.suffix.lower() == ".onnx" and path.is_file():
        from edgekit import onnx_file

        # any ONNX file can be timed, also one that takes no images
        contract = onnx_file.read_contract(onnx_file.describe(path))
        if contract is not None and size is not None:
            contract = contract.replace(height=size[0], width=size[1])
        return ModelToTime(
            name=path.name,
            runtime="onnxruntime",
            files=(path,),
            contract=contract,
            inputs=inputs,
        )
    from edgekit.stages.opening import describe

    named = describe(path, load, runtime=runtime)
    if inputs is None and named.golden:
        # a bundle carries real inputs: its golden samples
        inputs = named.golden[0]
    return ModelToTime(
        name=named.name,
        runtime=named.runtime,
        files=named.files,
        contract=named.contract(size=size).contract,
        inputs=inputs,
        load=named.load,
    )


def report_json(report: LatencyReport) -> dict[str, Any]:
    """The contract's keys of a measurement, without the single samples."""
    from edgekit.types import to_json

    answer: dict[str, Any] = to_json(report)
    del answer["samples_ms"]
    return answer


def _missed(
    report: LatencyReport, max_p50_ms: float | None, max_p99_ms: float | None
) -> LatencyBudgetMissed | None:
    over = [
        f"{name} is {value:.3f} ms, above the budget of {limit:g} ms"
        for name, value, limit in (
            ("p50", report.p50_ms, max_p50_ms),
            ("p99", report.p99_ms, max_p99_ms),
        )
        if limit is not None and value > limit
    ]
    if not over:
        return None
    busy = not math.isnan(report.load) and report.load > _BUSY
    return LatencyBudgetMissed(
        "; ".join(over) + ".",
        hint="Other processes were busy during the runs: measure again on a quiet machine."
        if busy
        else "Take a smaller model or input, more threads, or a target with a faster precision.",
    )


def _show(
    name: str,
    report: LatencyReport,
    other_name: str,
    other: LatencyReport | None,
    ratio: SpeedUp | None,
) -> None:
    from rich.table import Table

    click.echo(f"{report.runs} runs, batch {report.batch}, {_threads(report)}, {report.runtime}")
    table = Table()
    table.add_column("")
    table.add_column(name, justify="right")
    reports = [report]
    if other is not None:
        table.add_column(other_name, justify="right")
        reports.append(other)
    for label, key in _ROWS:
        table.add_row(label, *(f"{getattr(each, key):.3f} ms" for each in reports))
    table.add_row("throughput", *(f"{each.throughput_fps:.1f} images/s" for each in reports))
    table.add_row("peak memory", *(f"{each.peak_rss_mb:.1f} MB" for each in reports))
    print_table(table)
    if ratio is not None:
        click.echo(_in_words(name, other_name, ratio))


def _threads(report: LatencyReport) -> str:
    text = f"{report.threads} thread" + ("s" if report.threads > 1 else "")
    return text + ("" if report.spinning else " (not spinning)")


def _in_words(name: str, other: str, ratio: SpeedUp) -> str:
    interval = f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
    if ratio.low <= 1.0 <= ratio.high:
        return (
            f"{name} and {other}: no difference can be told "
            f"(ratio of medians {ratio.ratio:.3f}, {interval})."
        )
    if ratio.ratio > 1.0:
        return f"{name} is {ratio.ratio:.3f} times as fast as {other} ({interval})."
    return f"{name} is slower than {other}: {ratio.ratio:.3f} times its speed ({interval})."


def _remarks(report: LatencyReport, affinity: tuple[int, ...]) -> None:
    """What a reader must know to believe the numbers."""
    from edgekit.cpu import available_cores

    cores = len(affinity) or available_cores()
    if report.device_ms:
        at = report.device_ms
        note(
            f"By the GPU's clock {at['gpu']:.2f} ms with copies, {at['gpu_compute']:.2f} ms without; by "
            f"the host's {at['wall']:.2f} and {at['wall_compute']:.2f} ms."
        )
    if report.threads > cores:
        warn(f"{report.threads} threads share {cores} CPU{'s' if cores > 1 else ''}.")
    if math.isnan(report.load):
        note("Other load on the machine: not available on this system.")
    elif report.load > _BUSY:
        warn(f"Other processes used {report.load:.0%} of the machine during the runs.")
    if not report.settled:
        warn(f"The times had not settled after {report.warmup} warm-up runs.")
    if report.runs < 100:
        note(f"p99 of {report.runs} runs is close to their maximum; 100 or more tell it better.")
    if report.inputs == "random":
        note("Inputs were noise within the model's contract; --inputs takes real ones.")
