"""The published layouts, from rows that are made up: columns, grouping, sorting, formats."""

from __future__ import annotations

import csv
import io

import pytest

from edgekit.report.compare_columns import method_of
from edgekit.report.compare_formats import comma_separated, for_terminal, markdown
from edgekit.report.compare_presets import LAYOUTS, CompareTable, compare_table
from edgekit.report.comparison import Comparison, Drop, Row, RowTiming
from edgekit.types import AccuracyReport, LatencyReport, SpeedUp


def latency(p50_ms: float, batch: int = 1) -> LatencyReport:
    return LatencyReport(
        p50_ms=p50_ms, p90_ms=p50_ms, p95_ms=p50_ms, p99_ms=p50_ms, mean_ms=p50_ms, std_ms=0.0,
        min_ms=p50_ms, max_ms=p50_ms, runs=100, threads=1, batch=batch,
        throughput_fps=batch * 1e3 / p50_ms, peak_rss_mb=80.0, load=0.02,
    )  # fmt: skip


def timing(runtime: str, p50_ms: float, base_ms: float | None = None, batch: int = 1) -> RowTiming:
    speedup = None
    if base_ms is not None:
        ratio = base_ms / p50_ms
        speedup = SpeedUp(ratio=ratio, low=0.95 * ratio, high=1.05 * ratio)
    return RowTiming(runtime=runtime, batch=batch, latency=latency(p50_ms, batch), speedup=speedup)


def accuracy(value: float) -> AccuracyReport:
    return AccuracyReport(task="detect", images=50, map50_95=value, map50=value + 0.2, map75=value)


def rows() -> list[Row]:
    common = {"source": "full.pt", "architecture": "yolo11n"}
    full = Row(
        name="full", precision="fp32", parameters=2_600_000, size_mb=10.4, macs=800_000_000,
        sparsity=0.0, pruned_share=0.0, accuracy=accuracy(0.75),
        timings=(timing("torch", 40.0), timing("onnxruntime", 10.0)), **common,
    )  # fmt: skip
    int8 = Row(
        name="full INT8", precision="int8", made_from="full", baseline="full", parameters=2_600_000,
        size_mb=2.6, macs=800_000_000, sparsity=0.02, pruned_share=0.0, accuracy=accuracy(0.74),
        drop=Drop(difference=-0.01, low=-0.02, high=0.001),
        timings=(timing("onnxruntime", 5.0, 10.0),), **common,
    )  # fmt: skip
    pruned = Row(
        name="p50", source="p50.pt", architecture="yolo11n", precision="fp32", baseline="full",
        parameters=900_000, size_mb=3.9, macs=300_000_000, sparsity=0.0, pruned_share=0.32,
        training_batch=16, accuracy=accuracy(0.70), drop=Drop(difference=-0.05),
        timings=(timing("torch", 20.0, 40.0), timing("onnxruntime", 9.9, 10.0)),
    )  # fmt: skip
    broken = Row(
        name="broken", source="broken.pt", precision="fp32", baseline="full",
        errors=("its pickle cannot be read",),
    )  # fmt: skip
    return [full, int8, pruned, broken]


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        rows=tuple(rows()), task="detect", images=50,
        settings={"machine": "a CPU", "threads": 1, "data": "data.yaml", "split": "val"}, load=0.02,
    )  # fmt: skip


def column(table: CompareTable, title: str) -> list[str]:
    index = table.titles.index(title)
    return [row[index].text for group in table.groups for row in group.rows]


def test_default_has_everything(comparison: Comparison) -> None:
    table = compare_table(comparison, "default")
    assert column(table, "Model") == ["full", "full INT8", "p50", "broken"]
    assert column(table, "Params (M)") == ["2.600", "2.600", "0.900", "–"]
    assert column(table, "FLOPs reduction") == ["0.0 %", "0.0 %", "62.5 %", "–"]
    assert column(table, "PyTorch (ms)") == ["40.00", "–", "20.00", "–"]
    assert column(table, "PyTorch speed-up") == ["1.00×", "–", "2.00×", "–"]
    # 10.0 / 9.9 with 5 % either way: nobody can tell
    assert column(table, "ONNX Runtime speed-up") == ["1.00×", "2.00×", "1.01× ≈", "–"]
    assert column(table, "mAP50-95 (%)") == ["75.0", "74.0", "70.0", "–"]
    assert column(table, "Change (points)") == ["–", "-1.0 (-2.0 to +0.1)", "-5.0", "–"]
    notes = " ".join(table.notes)
    assert "broken failed: its pickle cannot be read" in notes
    assert "Baseline: full." in notes and "≈" in notes and "50 images" in notes


def test_pruning_groups_by_training_batch(comparison: Comparison) -> None:
    table = compare_table(comparison, "pruning")
    assert [group.heading for group in table.groups] == [
        "Training batch 16",
        "Training batch not known",
    ]
    assert column(table, "Pruned") == ["32 %", "0 %", "0 %", "–"]
    for title in ("PyTorch speed-up", "ONNX speed-up", "mAP50 (%)", "mAP50-95 (%)", "Precision"):
        assert title in table.titles


def test_pruning_shows_zeros_where_no_channel_is_gone() -> None:
    sparse = Row(name="s", source="s", precision="fp32", pruned_share=0.0, sparsity=0.4)
    table = compare_table(Comparison(rows=(sparse,)), "pruning")
    assert column(table, "Pruned") == ["40 %"]


def test_compression_is_sorted_within_architectures(comparison: Comparison) -> None:
    table = compare_table(comparison, "compression")
    assert [group.heading for group in table.groups] == ["yolo11n", ""]
    assert column(table, "Compression") == ["1.00×", "2.67×", "4.00×", "–"]
    assert column(table, "Method") == ["baseline", "pruned 32 %", "INT8", "float"]
    assert column(table, "Latency (ms)") == ["10.00", "9.90", "5.00", "–"]


def test_deployment_has_a_line_for_each_runtime(comparison: Comparison) -> None:
    table = compare_table(comparison, "deployment")
    solutions = column(table, "Solution")
    assert solutions[:3] == ["full, PyTorch FP32", "p50, PyTorch FP32", "full, ONNX Runtime FP32"]
    assert solutions[-2:] == ["full, ONNX Runtime INT8", "broken, FP32"]
    assert column(table, "Latency (ms)")[:5] == ["40.00", "20.00", "10.00", "9.90", "5.00"]


def test_ablation_shows_differences() -> None:
    on = Row(name="everything on", source="m", precision="int8", variant="", size_mb=2.6,
             accuracy=accuracy(0.7), timings=(timing("onnxruntime", 5.0),))  # fmt: skip
    off = Row(name="without INT8", source="m", precision="fp32", variant="INT8", size_mb=10.4,
              baseline="everything on", accuracy=accuracy(0.72), drop=Drop(difference=0.02),
              timings=(timing("onnxruntime", 10.0, 5.0),))  # fmt: skip
    table = compare_table(Comparison(rows=(on, off), task="detect", images=9), "ablation")
    assert column(table, "Optimization off") == ["everything on", "− INT8"]
    assert column(table, "Δ latency (ms)") == ["–", "+5.00"]
    assert column(table, "Δ accuracy (points)") == ["–", "+2.0"]
    assert column(table, "Δ size (MB)") == ["–", "+7.80"]
    assert column(table, "Speed against everything on") == ["–", "0.50×"]


def test_batches_become_columns(comparison: Comparison) -> None:
    row = rows()[0]
    several = Row(
        **{**row.__dict__, "timings": (*row.timings, timing("onnxruntime", 16.0, batch=4))}
    )
    table = compare_table(Comparison(rows=(several,), batches=(1, 4)), "default")
    assert column(table, "Images/s, batch 1") == ["100.0"]
    assert column(table, "Images/s, batch 4") == ["250.0"]


@pytest.mark.parametrize("preset", list(LAYOUTS))
def test_a_comparison_in_which_everything_failed_is_still_a_table(preset: str) -> None:
    broken = Row(name="b", source="b", precision="fp32", errors=("no",), variant="")
    table = compare_table(Comparison(rows=(broken,)), preset)
    assert markdown(table).startswith("|")
    assert comma_separated(table).splitlines()[1].endswith(",no")


def test_markdown_is_a_table_of_equal_widths(comparison: Comparison) -> None:
    text = markdown(compare_table(comparison, "compression"))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    assert "**yolo11n**" in text


def test_markdown_escapes_bars_and_breaks() -> None:
    row = Row(name="a|b\nc", source="x", precision="fp32")
    text = markdown(compare_table(Comparison(rows=(row,)), "default"))
    assert "a\\|b c" in text


def test_csv_reads_back_as_numbers(comparison: Comparison) -> None:
    text = comma_separated(compare_table(comparison, "compression"))
    read = list(csv.DictReader(io.StringIO(text)))
    assert [line["Group"] for line in read] == ["yolo11n"] * 3 + [""]
    assert float(read[2]["Compression"]) == pytest.approx(4.0)
    assert read[3]["Error"] == "its pickle cannot be read"
    assert read[3]["Size (MB)"] == ""


def test_terminal_table_does_not_read_markup() -> None:
    from rich.console import Console

    row = Row(name="[red]x[/red]", source="x", precision="fp32")
    console = Console(file=io.StringIO(), width=200)
    console.print(for_terminal(compare_table(Comparison(rows=(row,)), "default")))
    assert "[red]x[/red]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "float"),
        ({"precision": "int8"}, "INT8"),
        ({"pruned_share": 0.3}, "pruned 30 %"),
        ({"sparsity": 0.5}, "sparse 50 %"),
        ({"ternary_share": 0.9, "sparsity": 0.5}, "ternary"),
        ({"pruned_share": 0.3, "precision": "int8"}, "pruned 30 % + INT8"),
    ],
)
def test_methods_are_read_from_the_model(changes: dict[str, object], expected: str) -> None:
    base = Row(name="base", source="b", precision="fp32")
    row = Row(**{"name": "m", "source": "m", "precision": "fp32", "baseline": "base", **changes})  # type: ignore[arg-type]
    assert method_of(row, Comparison(rows=(base, row))) == expected
