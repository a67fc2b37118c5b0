"""`edgekit bench` with the real runtime: its answer, its gates, and what becomes of its processes.

No test asserts how long anything takes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit import cli
from edgekit.errors import BadInput, BuildFailed, DeviceUnreachable, UsageError
from edgekit.stages.measure import MeasureOptions, ModelToTime, measure
from edgekit.stages.timing_inputs import make_feeds, write_feeds
from edgekit.stages.timing_process import TimingProcess

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

KEYS = {
    "p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "std_ms", "min_ms", "max_ms", "runs",
    "threads", "batch", "throughput_fps", "peak_rss_mb", "load",
}  # fmt: skip


def save_matmuls(path: Path, size: int, layers: int = 1, batch: int | str = 1) -> Path:
    """A chain of matrix products with weights of its own: 4 * size^2 bytes a layer."""
    helper = onnx.helper
    generator = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(
            generator.standard_normal((size, size), dtype=np.float32) / np.float32(size), f"w{i}"
        )
        for i in range(layers)
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(layers)]
    graph = helper.make_graph(
        nodes,
        "matmuls",
        [helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, [batch, size])],
        [helper.make_tensor_value_info(f"x{layers}", onnx.TensorProto.FLOAT, [batch, size])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=opsets), str(path))
    return path


def save_failing(path: Path) -> Path:
    """A model that opens, and fails whenever it runs: a reshape to the wrong number of elements."""
    helper = onnx.helper
    shape = onnx.numpy_helper.from_array(np.array([7, 5], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "failing",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [7, 5])],
        [shape],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=opsets), str(path))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_matmuls(tmp_path_factory.mktemp("models") / "small.onnx", 64)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes some milliseconds a run, so that 10^7 runs outlast any test."""
    return save_matmuls(tmp_path_factory.mktemp("models") / "endless.onnx", 1024, layers=4)


def to_time(path: Path) -> ModelToTime:
    return ModelToTime(name=path.name, runtime="onnxruntime", files=(path,))


def open_process(path: Path, folder: Path, timeout_s: float = 60.0) -> TimingProcess:
    process = TimingProcess(
        path.name, "onnxruntime", [path], threads=1, spinning=True, affinity=(), timeout_s=timeout_s
    )
    feeds = make_feeds(process.inputs, 1, contract=None, file=None, name=path.name)
    write_feeds(feeds, process.inputs, folder / "feeds.npz")
    process.feed(folder / "feeds.npz")
    return process


def alive(pid: int) -> bool:
    """Whether the process exists and is not only waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# --- the answer


def test_json_of_a_real_detector(assets: Path, run: Run) -> None:
    model = assets / "models" / "yolov5n.onnx"
    code, out, _ = run("bench", model, "--runs", 8, "--warmup", 2, "--json")
    answer = json.loads(out)
    assert code == 0
    assert set(answer) >= KEYS
    assert (answer["runs"], answer["threads"], answer["batch"]) == (8, 1, 1)
    assert 0 < answer["min_ms"] <= answer["p50_ms"] <= answer["p99_ms"] <= answer["max_ms"]
    assert answer["throughput_fps"] == pytest.approx(1000 / answer["mean_ms"])
    assert answer["peak_rss_mb"] > 20
    assert answer["load"] is None or 0 <= answer["load"] <= 1
    assert "samples_ms" not in answer and "against" not in answer


def test_against_gives_a_ratio_with_its_interval(small: Path, endless: Path, run: Run) -> None:
    code, out, _ = run("bench", small, "--against", endless, "--runs", 24, "--json")
    answer = json.loads(out)
    assert code == 0 and set(answer) >= KEYS
    against = answer["against"]
    assert 0 < against["low"] <= against["ratio"] <= against["high"]
    assert against["ratio"] == pytest.approx(against["other"]["p50_ms"] / answer["p50_ms"])
    # 1,000 times the arithmetic: whatever the machine does, the small one is faster
    assert against["low"] > 1.0
    assert set(against["other"]) >= KEYS


def test_the_table_for_people(small: Path, run: Run) -> None:
    code, out, err = run("bench", small, "--against", small, "--runs", 12)
    assert code == 0
    for word in ("p50", "p99", "throughput", "peak memory", "interval"):
        assert word in out
    assert "noise" in err


def test_batch_and_inputs(tmp_path: Path, run: Run) -> None:
    model = save_matmuls(tmp_path / "free.onnx", 32, batch="n")
    np.save(tmp_path / "x.npy", np.ones((40, 32), np.float32))
    code, out, _ = run(
        "bench", model, "--batch", 16, "--inputs", tmp_path / "x.npy", "--runs", 5, "--json"
    )
    answer = json.loads(out)
    assert (code, answer["batch"], answer["inputs"]) == (0, 16, "given")
    assert answer["throughput_fps"] == pytest.approx(16 * 1000 / answer["mean_ms"])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
def test_affinity_pins_the_process(small: Path, run: Run) -> None:
    cpu = max(os.sched_getaffinity(0))
    code, out, _ = run("bench", small, "--affinity", cpu, "--runs", 5, "--json")
    assert (code, json.loads(out)["affinity"]) == (0, [cpu])
    process = TimingProcess(
        "m", "onnxruntime", [small], threads=1, spinning=True, affinity=[cpu], timeout_s=60
    )
    with process:
        assert os.sched_getaffinity(process._process.pid) == {cpu}


def test_seconds_end_the_measurement(small: Path) -> None:
    report = measure(to_time(small), MeasureOptions(seconds=0.3, warmup=1))
    assert report.runs == len(report.samples_ms) > 0


def test_peak_memory_is_the_models_own(tmp_path: Path) -> None:
    light = measure(to_time(save_matmuls(tmp_path / "light.onnx", 256)), MeasureOptions(runs=2))
    heavy = measure(
        to_time(save_matmuls(tmp_path / "heavy.onnx", 2048, layers=4)), MeasureOptions(runs=2)
    )
    weights_mb = 4 * 4 * 2048**2 / 1e6
    assert light.peak_rss_mb > 10
    # the file is read and its weights copied: at least once, hardly ever more than four times
    assert 0.9 * weights_mb < heavy.peak_rss_mb - light.peak_rss_mb < 4 * weights_mb


def save_bundle(folder: Path, work: Path) -> Path:
    """A bundle around a one-convolution model, with a golden sample; returns its folder."""
    from edgekit import bundle, golden
    from edgekit.atomic import sha256_file
    from edgekit.preprocess import Preprocess, apply
    from edgekit.runtimes import open_session
    from edgekit.types import Engine

    helper = onnx.helper
    weight = np.random.default_rng(1).standard_normal((4, 3, 3, 3), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "w"], ["scores"])],
        "conv",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 4, 30, 30])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    path = work / "model.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=opsets), str(path))
    digest = sha256_file(path)
    contract = Preprocess(height=32, width=32)
    image = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tensor, _ = apply(image, contract)
    with open_session("onnxruntime", path) as session:
        outputs = session.run({"images": tensor})
        inputs, output_specs = session.inputs, session.outputs
    engine = Engine(runtime="onnxruntime", files=(path,), precision="fp32", sha256=digest)
    bundle.write(
        folder,
        bundle.BundleContents(
            name="conv",
            target={"name": "x86-fp32"},
            checkpoint={"sha256": digest},
            chain=(
                bundle.ChainStep(name="export", input_sha256=(digest,), output_sha256=(digest,)),
            ),
            models=(bundle.BundleModel(engine=engine, inputs=inputs, outputs=output_specs),),
            preprocess=contract,
            golden=(golden.GoldenSample(image=image, input=tensor, outputs=outputs),),
            golden_runtime="onnxruntime",
            golden_runtime_version="1",
            blocks=(bundle.Block(name="scores", output="scores"),),
            verdict="float",
        ),
    )
    return folder


def test_a_bundle_is_timed_on_its_golden_sample(tmp_path: Path, run: Run) -> None:
    folder = save_bundle(tmp_path / "bundle", tmp_path)
    code, out, _ = run("bench", folder, "--runs", 5, "--json")
    answer = json.loads(out)
    assert (code, answer["runtime"], answer["inputs"]) == (0, "onnxruntime", "given")
    (model,) = folder.rglob("*.onnx")
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    code, out, _ = run("bench", folder, "--json")
    assert code == 9 and model.name in json.loads(out)["error"]


# --- gates


def test_a_budget_that_nothing_meets(small: Path, run: Run) -> None:
    code, out, _ = run("bench", small, "--runs", 5, "--max-p99-ms", 0.0001, "--json")
    answer = json.loads(out)  # one object: the result and the error together
    assert code == answer["exit_code"] == 7
    assert set(answer) >= KEYS
    assert "p99 is" in answer["error"] and answer["hint"]
    code, out, err = run("bench", small, "--runs", 5, "--max-p50-ms", 0.0001)
    assert code == 7
    assert "p50" in out  # the result is shown first
    assert "above the budget of 0.0001 ms" in err


def test_a_budget_that_everything_meets(small: Path, run: Run) -> None:
    code, out, _ = run(
        "bench", small, "--runs", 5, "--max-p99-ms", 1e6, "--max-p50-ms", 1e6, "--json"
    )
    assert code == 0
    assert "error" not in json.loads(out)


# --- what goes wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.onnx", "does not exist"),
        ("text.onnx", "is not an ONNX model"),
        ("notes.txt", "of no known kind of checkpoint"),
        ("empty", "is not a bundle"),
    ],
)
def test_things_that_are_no_model(tmp_path: Path, run: Run, name: str, message: str) -> None:
    (tmp_path / "text.onnx").write_text("this is not protobuf")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    code, out, _ = run("bench", tmp_path / name, "--json")
    answer = json.loads(out)
    assert code == answer["exit_code"] == 8
    assert message in answer["error"]


def test_a_model_that_does_not_open_gives_the_runtimes_error(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01\x02 not a model")
    with pytest.raises(BadInput, match=r"ONNX Runtime cannot load .*bad.onnx"):
        measure(to_time(tmp_path / "bad.onnx"))


def test_a_model_that_fails_when_it_runs_gives_the_runtimes_error(tmp_path: Path, run: Run) -> None:
    model = save_failing(tmp_path / "failing.onnx")
    with pytest.raises(BadInput, match=r"(?i)reshape"):
        measure(to_time(model), MeasureOptions(batch=3))
    code, out, _ = run("bench", model, "--batch", 3, "--json")
    assert code == 8 and "eshape" in json.loads(out)["error"]


def test_an_unknown_runtime(small: Path) -> None:
    model = ModelToTime(name="m", runtime="onnxruntim", files=(small,))
    with pytest.raises(UsageError, match="Unknown runtime") as caught:
        measure(model)
    assert "onnxruntime" in caught.value.hint  # the hint crosses the process border, too


# --- the processes


@pytest.fixture
def process(endless: Path, tmp_path: Path) -> Iterator[TimingProcess]:
    with open_process(endless, tmp_path) as opened:
        yield opened


def test_a_process_that_is_killed_is_reported_as_killed(process: TimingProcess) -> None:
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(BuildFailed, match="died of SIGKILL") as caught:
        process.run(1)
    assert "memory" in caught.value.hint


def test_a_process_that_does_not_answer_is_given_up_and_ended(
    endless: Path, tmp_path: Path
) -> None:
    process = open_process(endless, tmp_path)
    process._timeout_s = 0.5
    with process, pytest.raises(DeviceUnreachable, match=r"within 0.5 s while running"):
        process.run(10_000_000)
    assert not alive(process._process.pid)


def test_leaving_ends_a_process_in_the_middle_of_a_run(endless: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    process = open_process(endless, tmp_path)
    assert process._process.stdin is not None
    with pytest.raises(Stop), process:
        process._process.stdin.write(b'{"do": "run", "timed": 10000000, "untimed": 0}\n')
        process._process.stdin.flush()
        raise Stop
    assert not alive(process._process.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("doing", ["waiting", "running"])
def test_the_process_dies_with_its_parent(endless: Path, tmp_path: Path, doing: str) -> None:
    # a parent that opens the model, says its child's process id, and is then killed without notice
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_bench import open_process\n"
        "process = open_process(Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "print(process._process.pid, flush=True)\n"
        "process.run(10_000_000) if sys.argv[4] == 'running' else time.sleep(600)\n"
    )
    here = str(Path(__file__).parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, here, str(endless), str(tmp_path), doing],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent:
        child = int(parent.stdout.readline())
        time.sleep(0.3)  # let the run begin
        assert alive(child)
        parent.kill()
        parent.wait()
        assert gone_within(child, 10.0)


def test_what_a_library_prints_does_not_reach_the_protocol(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ONNX Runtime behind a wrapper that prints, from Python and from below it
    chatty = tmp_path / "chatty"
    chatty.mkdir()
    (chatty / "noisy_runtime.py").write_text(
        "import os\n"
        "from edgekit.runtimes.onnxruntime import open as real_open\n"
        "def open(files, options):\n"
        "    print('loading'); os.write(1, b'native text\\n')\n"
        "    return real_open(files, options)\n"
    )
    monkeypatch.syspath_prepend(str(chatty))
    starts = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "from edgekit.runtimes import RUNTIMES; RUNTIMES['noisy'] = 'noisy_runtime'; "
        "from edgekit.stages.timing_worker import main; main()"
    )
    monkeypatch.setattr("edgekit.stages.timing_process._START", starts)
    report = measure(ModelToTime(name="m", runtime="noisy", files=(small,)), MeasureOptions(runs=3))
    assert report.runs == 3
