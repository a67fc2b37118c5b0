"""`edgekit evaluate` on a model of one operator, whose answers are known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit import onnx_file
from edgekit.cli import run
from edgekit.preprocess import Preprocess

CONTRACT = Preprocess(height=8, width=8, resize="none")
FLAGS = [
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


def write_model(path: Path, contract: Preprocess | None = None) -> Path:
    """Logits = the mean of each channel: red, green or blue."""
    from onnx import TensorProto, helper

    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    graph = helper.make_graph(
        [node],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if contract is not None:
        entries = onnx_file.contract_metadata(
            contract, "classify", "logits", ("red", "green", "blue")
        )
        onnx_file.set_metadata(model, entries)
    onnx_file.save(model, path)
    return path


def write_data(path: Path, count: int = 12) -> Path:
    """Colour fields; every fourth label is wrong on purpose."""
    images = np.zeros((count, 8, 8, 3), np.uint8)
    labels = np.arange(count) % 3
    images[np.arange(count), :, :, labels] = 200
    labels[::4] = (labels[::4] + 1) % 3
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture
def files(tmp_path):
    model = write_model(tmp_path / "model.onnx", CONTRACT)
    return str(model), str(write_data(tmp_path / "data.npz"))


def test_json_is_one_object_with_the_promised_keys(files, capsys):
    model, data = files
    assert run(["evaluate", model, "--data", data, "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["task"], answer["images"], answer["top1"]) == ("classify", 12, 0.75)
    assert answer["top5"] == 1.0 and answer["map50_95"] is None
    assert answer["intervals"]["top1"][0] < 0.75 < answer["intervals"]["top1"][1]
    assert np.array(answer["confusion"]).sum() == 12
    assert answer["settings"]["head"] == "logits"
    assert answer["preprocess"]["resize"] == "none"
    assert err == ""


def test_the_table_for_people(files, capsys):
    model, data = files
    assert run(["evaluate", model, "--data", data, "--resamples", "0", "--batch", "5"]) == 0
    out, err = capsys.readouterr()
    assert "model.onnx on 12 images of data.npz" in out
    assert "top-1" in out and "75.00" in out and "mAP" not in out
    assert "evaluate" in err  # progress


def swapped(path: Path, source: str) -> str:
    """The model with its answers for red and green exchanged."""
    from onnx import helper, numpy_helper

    model = onnx_file.load(Path(source))
    model.graph.node[-1].output[0] = "straight"
    order = numpy_helper.from_array(np.array([1, 0, 2]), "order")
    model.graph.initializer.append(order)
    model.graph.node.append(helper.make_node("Gather", ["straight", "order"], ["y"], axis=1))
    onnx_file.save(model, path)
    return str(path)


def test_two_models_on_the_same_images(files, tmp_path, capsys):
    model, data = files
    other = swapped(tmp_path / "other.onnx", model)
    command = ["evaluate", model, "--data", data, "--against", other]
    assert run([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    found = answer["against"]
    assert (found["model"], found["metric"]) == ("other.onnx", "top1")
    assert answer["top1"] == 0.75
    assert found["difference"] == pytest.approx(0.75 - found["value"])
    assert found["low"] <= found["difference"] <= found["high"] and found["value"] < 0.75
    assert run([*command[:3], data, "--against", model, "--json"]) == 0
    same = json.loads(capsys.readouterr().out)["against"]
    assert (same["difference"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    assert run(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Against other.onnx" in text and "points in top1 on the same images" in text
    assert run(["evaluate", model, "--data", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"] is None


def test_a_limit_is_said(files, capsys):
    model, data = files
    assert run(["evaluate", model, "--data", data, "--limit", "4"]) == 0
    out, err = capsys.readouterr()
    assert "on 4 images" in out
    assert "4 of 12 images are used" in err


def test_an_assumed_contract_is_warned_of_and_flags_silence_it(tmp_path, capsys):
    model = str(write_model(tmp_path / "bare.onnx"))
    data = str(write_data(tmp_path / "data.npz"))
    assert run(["evaluate", model, "--data", data, "--imgsz", "8", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["preprocess"]["resize"] == "letterbox"
    assert "Warning" in err and "--mean" in err
    assert run(["evaluate", model, "--data", data, "--imgsz", "8", "--json", *FLAGS]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["preprocess"]["resize"] == "none"
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "gone.npz"], 8, "does not exist"),
        (["--head", "yolo8"], 2, "Unknown head"),
        (["--head", "yolov8"], 8, "for the task detect"),
        (["--split", "vall"], 2, "Unknown split"),
        (["--limit", "0"], 2, "limit"),
        (["--conf", "1.5"], 2, "conf"),
        (["--imgsz", "eight"], 2, "cannot be read"),
        (["--resize", "letterbox", "--imgsz", "16"], 8, "The model takes x"),
        (["--no-such"], 2, "No such option"),
    ],
)
def test_failures_are_objects_too(files, capsys, arguments, code, message):
    model, data = files
    given = arguments if "--data" in arguments else ["--data", data, *arguments]
    assert run(["evaluate", model, *given, "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert message in answer["error"] and answer["exit_code"] == code


def test_what_is_no_model(files, tmp_path, capsys):
    _, data = files
    assert run(["evaluate", str(tmp_path / "gone.onnx"), "--data", data]) == 8
    (tmp_path / "text.onnx").write_text("not a model")
    assert run(["evaluate", str(tmp_path / "text.onnx"), "--data", data]) == 8
    out, err = capsys.readouterr()
    assert out == "" and err.count("Error: ") == 2


def test_help_is_light_and_shows_an_example():
    script = (
        "import sys; from edgekit.cli import run; code = run(['evaluate', '--help']);"
        "heavy = {'numpy', 'torch', 'onnx', 'cv2', 'onnxruntime'} & set(sys.modules);"
        "sys.exit(code or str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "edgekit evaluate yolov5n.onnx --data" in done.stdout
