"""A search on a real graph: it resumes, and what it chose is replayed bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit import cli, onnx_file
from edgekit.preprocess import Preprocess
from edgekit.stages import calibrate, search_int8
from edgekit.stages.quantize import QuantizeOptions, observed_channels, observed_tensors
from edgekit.stages.search import Choice, SearchOptions, Trial
from edgekit.target_files import load_target
from tests.graphs import GraphMaker
from tests.integration.conftest import cache_in

PLAIN = [
    "--color",
    "rgb",
    "--resize",
    "none",
    "--scale",
    "1/255",
    "--mean",
    "0,0,0",
    "--std",
    "1,1,1",
]


def _network(path: Path) -> Path:
    """Strided RGB convolution, SiLU, depthwise with uneven channels, residual, join, two outputs."""
    maker = GraphMaker(11)
    maker.conv("x", "c1", (16, 3), strides=[2, 2])
    maker.node("Sigmoid", ["c1"], "s1")
    maker.node("Mul", ["c1", "s1"], "m1")
    maker.conv("m1", "c2", (16, 16), groups=16, spread=12.0)
    maker.node("Relu", ["c2"], "r2")
    maker.conv("r2", "c3", (16, 16), kernel=1)
    maker.node("Add", ["c3", "m1"], "a3")
    maker.node("MaxPool", ["a3"], "p3", kernel_shape=[2, 2], strides=[2, 2])
    maker.conv("p3", "c4", (32, 16))
    maker.node("Relu", ["c4"], "r4")
    maker.conv("r4", "c5", (32, 32))
    maker.node("Concat", ["r4", "c5"], "j", axis=1)
    maker.conv("j", "boxes", (4, 64), kernel=1, spread=4.0)
    maker.conv("j", "scores", (6, 64), kernel=1)
    shapes: dict[str, Any] = {"boxes": [1, 4, 8, 8], "scores": [1, 6, 8, 8]}
    onnx.save(maker.model({"x": [1, 3, 32, 32]}, shapes), str(path))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
    file = tmp_path_factory.mktemp("pictures") / "images.npz"
    np.savez(file, images=np.repeat(np.repeat(small, 4, axis=1), 4, axis=2))
    return file


def _export(model: Path, pictures: Path, out: Path, *more: str) -> int:
    arguments = ["export", str(model), "--target", "x86-int8", "--images", str(pictures), *PLAIN]
    with cache_in(pictures.parent / "cache"):
        return cli.run([*arguments, "--out", str(out), "--json", *more])


def test_a_replayed_choice_gives_the_same_bytes(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _network(tmp_path / "net.onnx")
    assert _export(model, pictures, tmp_path / "first") == 0
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    (step,) = (step for step in manifest["chain"] if step["name"] == "quantize")
    options = step["options"]
    # a plain list, and the trials that led there
    assert options["method"] == options["choice"]["method"]
    assert options["keep_float"] == options["choice"]["keep_float"]
    tried = manifest["details"]["quantization"]["search"]
    assert len(tried) >= 3 and all("agreement" in trial for trial in tried)
    first = step["output_sha256"]
    capsys.readouterr()
    # nothing but the manifest tells what was chosen
    lone = tmp_path / "lone" / "manifest.json"
    lone.parent.mkdir()
    lone.write_text(json.dumps(manifest))
    assert _export(model, pictures, tmp_path / "second", "--replay", str(lone)) == 0
    again = json.loads((tmp_path / "second" / "manifest.json").read_text())
    (replayed,) = (step for step in again["chain"] if step["name"] == "quantize")
    assert replayed["output_sha256"] == first
    assert replayed["options"] == options
    assert again["details"]["quantization"]["search"] == []
    name = "onnxruntime/model.onnx"
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_what_cannot_be_replayed_is_refused(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _network(tmp_path / "net.onnx")
    empty = tmp_path / "nothing.json"
    empty.write_text("{}")
    for more, code, words in (
        (["--replay", str(empty)], 8, "manifest.json"),
        (["--replay", str(tmp_path / "absent")], 8, "manifest.json"),
    ):
        assert _export(model, pictures, tmp_path / "out", *more) == code
        assert words in json.loads(capsys.readouterr().out)["error"]
    good = tmp_path / "good.json"
    choice = {"method": "mse", "behind": False, "keep_float": ["gone"], "bias_correction": False}
    step = {"name": "quantize", "options": {"choice": choice}}
    good.write_text(json.dumps({"chain": [step]}))
    assert _export(model, pictures, tmp_path / "out", "--replay", str(good), "--method", "mse") == 2
    assert "--method" in json.loads(capsys.readouterr().out)["error"]
    assert _export(model, pictures, tmp_path / "out", "--replay", str(good)) == 8
    assert "gone" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path, pictures: Path) -> None:
    model = onnx_file.describe(_network(tmp_path / "net.onnx"))
    profile = load_target("x86-int8")
    contract = Preprocess(height=32, width=32, resize="none")
    calibration = calibrate.run(
        model,
        pictures,
        contract,
        tmp_path / "calibration.npz",
        calibrate.CalibrateOptions(
            tensors=observed_tensors(model, profile), channels=observed_channels(model, profile)
        ),
    )
    with np.load(pictures) as archive:
        images = list(archive["images"][:4])
    limits = SearchOptions(enough=2.0, least_share=0.0, seconds=600)
    asked: list[list[Choice]] = []

    def search(stop_after: int | None) -> Any:
        subject = search_int8.Int8Search(
            model, calibration, profile, contract, images, QuantizeOptions()
        )
        attempt = subject._attempt
        asked.append([])

        def counted(choice: Choice) -> Trial:
            if stop_after is not None and len(asked[-1]) == stop_after:
                raise KeyboardInterrupt
            asked[-1].append(choice)
            return attempt(choice)

        subject._attempt = counted  # type: ignore[method-assign]
        return subject.run(limits, tmp_path)

    with pytest.raises(KeyboardInterrupt):
        search(3)
    rest = search(None)
    assert not set(asked[0]) & set(asked[1]) and asked[1]
    whole = search(None)
    assert asked[2] == []
    assert whole.best.choice == rest.best.choice
    assert whole.sensitivity_db == rest.sensitivity_db and rest.sensitivity_db
    # a file that is damaged is found anew, not believed
    (tmp_path / "search.json").write_text('{"trials": [{"choice": 3}], "paces": 1}')
    search(None)
    assert len(asked[3]) == len(asked[0]) + len(asked[1])


def test_the_search_command_writes_what_it_tried(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _network(tmp_path / "net.onnx")
    statistics = tmp_path / "calibration.npz"
    shared = [*PLAIN, "--images", str(pictures)]

    def run(*arguments: str) -> dict[str, Any]:
        with cache_in(tmp_path / "cache"):
            code = cli.run([*arguments, "--json"])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return {**answer, "code": code}

    run("calibrate", str(model), *shared, "--target", "x86-int8", "--out", str(statistics))
    quantize = ["quantize", str(model), "--calibration", str(statistics)]
    found = run(*quantize, *shared, "--search", "--out", str(tmp_path / "a.onnx"))
    assert found["code"] == 0 and 0.5 < found["agreement"] <= 1
    record = json.loads(Path(found["search"]).read_text())
    assert record["agreement"] == found["agreement"]
    assert record["choice"] in [trial["choice"] for trial in record["trials"]]
    ranking = [float(value) for value in record["sensitivity_db"].values()]
    assert ranking == sorted(ranking)
    # its result is a plain list: another run makes the same bytes of it
    again = run(*quantize, *shared, "--replay", found["search"], "--out", str(tmp_path / "b.onnx"))
    assert again["code"] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    # a budget that nothing meets: said, and no model is written
    missed = run(
        *quantize, *shared, "--search", "--max-drop", "0", "--out", str(tmp_path / "c.onnx")
    )
    assert missed["code"] == missed["exit_code"] == 6
    assert not (tmp_path / "c.onnx").exists() and (tmp_path / "c.search.json").is_file()
    assert run(*quantize, "--search")["exit_code"] == 2
