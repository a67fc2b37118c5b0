"""Latency statistics on made-up samples, the order of turns, inputs, and the machine's load."""

from __future__ import annotations

import math
import os
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.cli.bench import cpu_list
from edgekit.errors import BadInput, NotPossible, UsageError
from edgekit.metrics import latency
from edgekit.metrics.latency import quantile, settled, speed_up, summary
from edgekit.preprocess import Preprocess
from edgekit.stages import timed as stage
from edgekit.stages.machine_load import LoadMeter
from edgekit.stages.measure import MeasureOptions, ModelToTime, measure, measure_against
from edgekit.stages.timing_inputs import MOST_FEEDS, batch_of, make_feeds
from edgekit.target import Measure
from edgekit.types import TensorSpec

# --- quantiles


def test_quantiles_are_numpys() -> None:
    generator = np.random.default_rng(3)
    for size in (1, 2, 5, 99, 100):
        samples = generator.exponential(size=size).tolist()
        for share in (0.0, 0.01, 0.5, 0.9, 0.99, 1.0):
            assert quantile(samples, share) == pytest.approx(np.quantile(samples, share), rel=1e-12)


def test_summary() -> None:
    samples = [3.0, 1.0, 2.0, 10.0]
    figures = summary(samples)
    assert figures["p50_ms"] == 2.5
    assert (figures["min_ms"], figures["max_ms"], figures["mean_ms"]) == (1.0, 10.0, 4.0)
    assert figures["std_ms"] == pytest.approx(np.std(samples, ddof=1))
    assert figures["p90_ms"] <= figures["p95_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert summary([5.0])["std_ms"] == 0.0
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


def test_settled() -> None:
    assert settled([10.0, 10.2, 9.9], [10.1, 10.3], 0.05)
    assert not settled([14.0, 13.0], [10.0, 10.1], 0.05)  # still getting faster
    assert not settled([10.0, 10.1], [12.0, 12.1], 0.05)  # throttling
    # a disturbance of some runs is no change of the model's speed
    assert settled([10.0, 10.1, 10.1, 10.2, 10.0], [10.1, 10.0, 15.0, 14.0, 10.2], 0.05)


# --- the ratio of two


def blocks(
    generator: np.random.Generator, count: int, ratio: float, size: int = 8
) -> tuple[list[list[float]], list[list[float]]]:
    """Runs of two models, the second `ratio` times as long, disturbed together block by block."""
    this, other = [], []
    for _ in range(count):
        common = math.exp(0.03 * generator.standard_normal())
        if generator.random() < 0.2:
            common *= 1.5  # somebody else's job ran
        for runs, base in ((this, 10.0), (other, 10.0 * ratio)):
            own = math.exp(0.01 * generator.standard_normal())
            noise = np.exp(0.02 * generator.standard_normal(size))
            runs.append((base * common * own * noise).tolist())
    return this, other


def test_ratio_is_that_of_the_pooled_medians() -> None:
    this, other = blocks(np.random.default_rng(0), 12, 1.3)
    result = speed_up(this, other)
    flat = [statistics.median([x for block in runs for x in block]) for runs in (other, this)]
    assert result.ratio == flat[0] / flat[1]
    assert result.low <= result.ratio <= result.high


def test_the_interval_holds_the_truth_about_as_often_as_promised() -> None:
    generator = np.random.default_rng(7)
    for count in (6, 12, 24):
        hits = 0
        for _ in range(150):
            result = speed_up(*blocks(generator, count, 1.1), resamples=500)
            hits += result.low <= 1.1 <= result.high
        assert hits / 150 >= 0.90, count


def test_ten_percent_more_work_is_told_from_the_same_work() -> None:
    generator = np.random.default_rng(11)
    slower = [speed_up(*blocks(generator, 16, 1.1)) for _ in range(20)]
    assert all(result.low > 1.0 for result in slower)
    same = [speed_up(*blocks(generator, 16, 1.0)) for _ in range(20)]
    assert sum(result.low <= 1.0 <= result.high for result in same) >= 18
    assert all(0.95 < result.ratio < 1.05 for result in same)


def test_swapping_the_models_inverts_the_ratio() -> None:
    this, other = blocks(np.random.default_rng(2), 12, 1.4)
    forward, backward = speed_up(this, other), speed_up(other, this)
    assert forward.ratio == pytest.approx(1 / backward.ratio)
    assert forward.low == pytest.approx(1 / backward.high)
    assert forward.high == pytest.approx(1 / backward.low)


def test_the_same_samples_give_the_same_interval_and_the_seed_matters() -> None:
    this, other = blocks(np.random.default_rng(2), 12, 1.4)
    assert speed_up(this, other, seed=5) == speed_up(this, other, seed=5)
    assert speed_up(this, other, seed=5) != speed_up(this, other, seed=6)


def test_pairing_removes_what_hits_both() -> None:
    generator = np.random.default_rng(4)
    this, other = blocks(generator, 20, 1.2)
    paired = speed_up(this, other)
    order = generator.permutation(20)
    unpaired = speed_up(this, [other[index] for index in order])
    assert paired.ratio == unpaired.ratio
    assert paired.high - paired.low < unpaired.high - unpaired.low


def test_one_block_says_nothing_about_the_spread() -> None:
    result = speed_up([[1.0, 2.0, 3.0]], [[2.0, 4.0, 6.0]])
    assert (result.ratio, result.low, result.high) == (2.0, 0.0, math.inf)


@pytest.mark.parametrize(
    ("this", "other"), [([], []), ([[1.0]], [[1.0], [1.0]]), ([[1.0], []], [[1.0], [1.0]])]
)
def test_blocks_must_match(this: list[list[float]], other: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="each of the same blocks"):
        speed_up(this, other)


def test_medians_of_resamples_are_those_of_the_repeated_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "_CHUNK", 40)  # several chunks
    generator = np.random.default_rng(9)
    ragged = [generator.random(size).round(1).tolist() for size in (1, 4, 3, 6, 2)]
    counts = generator.integers(0, 4, size=(30, 5))
    counts[:, 0] += counts.sum(axis=1) == 0
    expected = [
        statistics.median([x for block, n in zip(ragged, row, strict=True) for x in block * int(n)])
        for row in counts
    ]
    assert latency._medians(ragged, counts).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("freedom", "value"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (5, 2.5706),
        (11, 2.2010),
        (30, 2.0423),
        (1000, 1.9623),
    ],
)
def test_students_quantile_against_the_table(freedom: int, value: float) -> None:
    assert latency._student_quantile(0.025, freedom) == pytest.approx(-value, rel=2e-3)


# --- the order of turns


class FakeProcess:
    """Stands for a timing process: no model, a fixed time per run, and a diary of all turns."""

    diary: list[tuple[str, int, int]] = []  # noqa: RUF012 — one diary for all, that is the point
    run_ms: dict[str, float] = {"quick": 10.0, "slow": 25.0}  # noqa: RUF012

    def __init__(self, name: str, *_: Any, **settings: Any) -> None:
        self.device_ms: dict[str, float] = {}
        self.name = name
        self.settings = settings
        self.inputs = (TensorSpec(name="x", shape=("batch", 4), dtype="float32"),)

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        FakeProcess.diary.append((self.name, -1, -1))

    def feed(self, file: Path) -> None:
        assert file.is_file()

    def run(self, timed: int, untimed: int = 0) -> list[float]:
        FakeProcess.diary.append((self.name, timed, untimed))
        return [self.run_ms[self.name]] * timed

    def usage(self) -> tuple[float, float]:
        FakeProcess.diary.append((self.name, 0, 0))
        return 0.0, 123.0


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    FakeProcess.diary = []
    monkeypatch.setattr(stage, "TimingProcess", FakeProcess)
    return FakeProcess.diary


QUICK = ModelToTime(name="quick", runtime="onnxruntime", files=())
SLOW = ModelToTime(name="slow", runtime="onnxruntime", files=())


def timed_turns(diary: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """What lies between the two askings for usage: the timed part."""
    marks = [index for index, (_, timed, untimed) in enumerate(diary) if (timed, untimed) == (0, 0)]
    return list(diary[marks[1] + 1 : marks[2]])


def test_two_models_take_turns_abba_baab(diary: list[tuple[str, int, int]]) -> None:
    first, second, ratio = measure_against(QUICK, SLOW, MeasureOptions(runs=100))
    assert (first.runs, second.runs) == (100, 100)
    assert (first.p50_ms, second.p50_ms, ratio.ratio) == (10.0, 25.0, 2.5)
    turns = timed_turns(diary)
    # 100 ms hold 4 runs of the slower model, so a block is about 8 of each: 12 blocks
    assert turns[:6] == [
        ("quick", 4, 1), ("slow", 8, 1), ("quick", 4, 1),
        ("slow", 4, 1), ("quick", 8, 1), ("slow", 4, 1),
    ]  # fmt: skip
    assert len(turns) == 3 * 12
    for name in ("quick", "slow"):  # both have each place equally often
        middles = [turn for turn in turns[1::3] if turn[0] == name]
        assert len(middles) == 6


@pytest.mark.parametrize("runs", [1, 2, 3, 7, 24, 25, 101])
def test_each_model_gets_just_the_runs_asked_for(
    diary: list[tuple[str, int, int]], runs: int
) -> None:
    first, second, _ = measure_against(QUICK, SLOW, MeasureOptions(runs=runs))
    assert (first.runs, second.runs) == (runs, runs)
    assert measure(QUICK, MeasureOptions(runs=runs)).runs == runs


def test_short_measurements_still_have_enough_blocks(diary: list[tuple[str, int, int]]) -> None:
    measure_against(QUICK, SLOW, MeasureOptions(runs=48))
    assert [timed for _, timed, _ in timed_turns(diary)[1::3]] == [4] * 12


def test_a_turn_begins_with_a_hundredth_of_a_second_untimed(
    diary: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProcess, "run_ms", {"quick": 0.5, "slow": 25.0})
    measure_against(QUICK, SLOW, MeasureOptions(runs=24))
    untimed = {name: untimed for name, _, untimed in timed_turns(diary)}
    assert untimed == {"quick": 20, "slow": 1}


def test_a_time_limit_ends_after_an_even_number_of_blocks(
    diary: list[tuple[str, int, int]],
) -> None:
    measure_against(QUICK, SLOW, MeasureOptions(seconds=1e-6))
    assert len(timed_turns(diary)) == 3 * 2


def test_pools_spin_alone_and_sleep_in_company(diary: list[tuple[str, int, int]]) -> None:
    def spinning(threads: int) -> tuple[bool, bool]:
        options = MeasureOptions(runs=4, threads=threads)
        return measure(QUICK, options).spinning, measure_against(QUICK, SLOW, options)[0].spinning

    assert spinning(threads=1) == (True, True)  # one thread has no pool
    assert spinning(threads=4) == (True, False)


def test_report_carries_what_a_reader_must_know(diary: list[tuple[str, int, int]]) -> None:
    report = measure(QUICK, MeasureOptions(runs=20, batch=8, warmup=30, threads=2))
    assert report.batch == 8
    assert report.throughput_fps == pytest.approx(8 * 1000 / 10.0)
    assert report.warmup >= 30 and report.settled
    assert (report.peak_rss_mb, report.threads, report.inputs) == (123.0, 2, "random")
    assert len(report.samples_ms) == 20


@pytest.mark.parametrize(
    "wrong", [{"runs": 0}, {"seconds": 0.0}, {"threads": -1}, {"batch": 0}, {"warmup": -1}]
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        MeasureOptions(**wrong)


def test_options_from_a_profile() -> None:
    options = MeasureOptions.from_profile(
        Measure(threads=4, warmup=3, iterations=50, cooldown_s=1.5)
    )
    assert (options.threads, options.warmup, options.runs, options.cooldown_s) == (4, 3, 50, 1.5)


def test_pinning_to_a_cpu_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="CPU 4096"):
        measure(QUICK, MeasureOptions(affinity=(4096,)))


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", (0,)), ("1,0", (0, 1)), ("0-2,5", (0, 1, 2, 5)), (" 3 , 3", (3,))]
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["", "x", "0-", "-1", "3-1", "0,,1", "0-9999999999"])
def test_cpu_lists_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--affinity"):
        cpu_list(text)


# --- inputs

IMAGE = TensorSpec(name="images", shape=(1, 3, 8, 6), dtype="float32")
FREE = TensorSpec(name="images", shape=("batch", 3, "h", "w"), dtype="float32")
CONTRACT = Preprocess(height=8, width=6, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def feeds_of(
    spec: TensorSpec, batch: int = 1, contract: Preprocess | None = None, file: Path | None = None
) -> list[Any]:
    feeds = make_feeds([spec], batch, contract=contract, file=file, name="m.onnx")
    return [feed[spec.name] for feed in feeds]


def test_noise_stays_within_the_contract() -> None:
    for array in feeds_of(FREE, 2, CONTRACT):
        assert array.shape == (2, 3, 8, 6) and array.dtype == np.float32
        for channel, (mean, std) in enumerate(zip(CONTRACT.mean, CONTRACT.std, strict=True)):
            low, high = -mean / std, (1 - mean) / std
            plane = array[:, channel]
            assert low - 1e-6 <= plane.min() < plane.max() <= high + 1e-6
            assert np.ptp(plane) > 0.8 * (high - low)


def test_noise_of_other_layouts_and_types() -> None:
    nhwc = TensorSpec(name="images", shape=(1, 8, 6, 3), dtype="float32")
    contract = CONTRACT.replace(layout="nhwc")
    (array, _) = feeds_of(nhwc, contract=contract)
    assert array[..., 2].min() >= -0.3 / 0.4 - 1e-6
    raw = TensorSpec(name="images", shape=(1, 3, 8, 6), dtype="uint8")
    (pixels, _) = feeds_of(raw, contract=CONTRACT.replace(dtype="uint8"))
    assert pixels.dtype == np.uint8 and pixels.max() > 128
    half = TensorSpec(name="x", shape=(1, 64), dtype="float16")
    assert feeds_of(half)[0].dtype == np.float16
    tokens = TensorSpec(name="x", shape=(1, 64), dtype="int64")
    assert set(np.unique(feeds_of(tokens)[0])) == {0, 1}


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int64", "bool"])
def test_noise_is_never_all_zeros_and_repeats_with_its_seed(dtype: str) -> None:
    spec = TensorSpec(name="x", shape=(1, 256), dtype=dtype)
    first, second = feeds_of(spec)
    assert np.count_nonzero(first) > 64
    assert not np.array_equal(first, second)
    assert np.array_equal(first, feeds_of(spec)[0])


def test_free_dimensions_need_a_contract_or_inputs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="free dimensions h, w"):
        feeds_of(FREE)
    np.save(tmp_path / "x.npy", np.ones((3, 3, 10, 12), np.float32))
    assert [array.shape for array in feeds_of(FREE, 1, None, tmp_path / "x.npy")] == [
        (1, 3, 10, 12)
    ] * 3


def test_given_arrays_become_batches(tmp_path: Path) -> None:
    data = np.arange(5 * 3 * 8 * 6, dtype=np.float32).reshape(5, 3, 8, 6)
    np.save(tmp_path / "five.npy", data)
    pairs = feeds_of(FREE, 2, None, tmp_path / "five.npy")
    assert [array[0, 0, 0, 0] for array in pairs] == [data[0, 0, 0, 0], data[2, 0, 0, 0]]
    (repeated,) = feeds_of(FREE, 8, None, tmp_path / "five.npy")
    assert np.array_equal(repeated[5:], data[:3])  # fewer samples than the batch: again from 0
    np.savez(tmp_path / "many.npz", images=np.repeat(data, 20, axis=0).astype(np.float64))
    many = feeds_of(IMAGE, 1, None, tmp_path / "many.npz")
    assert len(many) == MOST_FEEDS and many[0].dtype == np.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3, 9, 6), np.float32), r"\[1, 3, 8, 6\].*\[2, 3, 9, 6\]"),
        (np.ones((3, 8, 6), np.float32), r"\[3, 8, 6\]"),
        (np.ones((1, 3, 8, 6), np.uint8), "takes float32.*holds uint8"),
        (np.ones((0, 3, 8, 6), np.float32), r"\[0, 3, 8, 6\]"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(BadInput, match=message):
        feeds_of(IMAGE, 1, None, tmp_path / "x.npy")


def test_files_that_hold_no_arrays(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        feeds_of(IMAGE, 1, None, tmp_path / "gone.npy")
    for name, content in (("a.npy", b"hello"), ("b.npz", b"PK\x03\x04broken"), ("c.npy", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="is not a file of arrays"):
            feeds_of(IMAGE, 1, None, tmp_path / name)
    pickled = tmp_path / "d.npy"
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="is not a file of arrays"):
        feeds_of(IMAGE, 1, None, pickled)


def test_an_archive_needs_the_inputs_names(tmp_path: Path) -> None:
    two = [TensorSpec(name=name, shape=("batch", 4), dtype="float32") for name in ("left", "right")]
    np.savez(
        tmp_path / "x.npz", left=np.ones((1, 4), np.float32), wrong=np.ones((1, 4), np.float32)
    )
    with pytest.raises(BadInput, match="no array for input 'right'"):
        make_feeds(two, 1, contract=None, file=tmp_path / "x.npz", name="m")


def test_batch() -> None:
    assert batch_of([IMAGE], None, "m") == 1
    assert batch_of([FREE], None, "m") == 1
    assert batch_of([FREE], 8, "m") == 8
    with pytest.raises(NotPossible, match="fixed to batch 1; batch 4"):
        batch_of([IMAGE], 4, "m")


# --- the machine's load


def stat(path: Path, busy: int, idle: int) -> None:
    """A /proc/stat: a third of the busy ticks each as user, system and steal."""
    third = busy // 3
    path.write_text(f"cpu  {third} 0 {third} {idle} 0 0 0 {third} 999 0\ncpu0 1 2 3\n")


def test_load_is_what_others_used(tmp_path: Path) -> None:
    file = tmp_path / "stat"
    tick = 1 / os.sysconf("SC_CLK_TCK")
    stat(file, busy=3000, idle=1000)
    meter = LoadMeter(file)
    stat(file, busy=3000 + 300, idle=1000 + 100)
    assert meter.share(0.0) == pytest.approx(0.75)
    assert meter.share(200 * tick) == pytest.approx(0.25)  # 200 of the 300 ticks were our own
    assert meter.share(1e6) == 0.0  # ticks are coarse: never below 0


def test_load_is_unknown_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert math.isnan(LoadMeter(tmp_path / "gone").share(0.0))
    file = tmp_path / "stat"
    stat(file, busy=30, idle=10)
    assert math.isnan(LoadMeter(file).share(0.0))  # no tick has passed


def test_load_of_this_machine_is_a_share() -> None:
    meter = LoadMeter()
    total = sum(random.random() for _ in range(300_000))
    share = meter.share(0.0)
    assert total > 0
    assert math.isnan(share) or 0.0 <= share <= 1.0
