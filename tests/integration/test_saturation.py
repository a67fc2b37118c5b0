"""CPUs without VNNI: full-range INT8 weights overflow there, and the profile for them does not.

VPMADDUBSW adds two products of uint8 and int8 in 16 bits and saturates: 2 * 255 * 127 > 2^15. The
graphs run in ONNX Runtime inside an emulated Python on a Haswell (AVX2, no AVX-512, no VNNI).
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.cli import run
from tests.graphs import GraphMaker, sqnr_db
from tests.graphs import run as run_here

_EMULATED = """
import json, sys
import numpy as np
import onnxruntime as ort

core = getattr(np, "_core", None) or np.core
features = core._multiarray_umath.__cpu_features__
options = ort.SessionOptions()
options.intra_op_num_threads = 1
folder, *names = sys.argv[1:]
feed = {"x": np.load(folder + "/x.npy")}
for name in names:
    session = ort.InferenceSession(f"{folder}/{name}.onnx", options)
    np.save(f"{folder}/{name}.npy", session.run(None, feed)[0])
print(json.dumps([name for name, there in features.items() if there]))
"""


@pytest.fixture(scope="module")
def qemu() -> str:
    program = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if program is None:
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    if platform.machine() != "x86_64":
        pytest.skip("this machine's Python is not an x86-64 program")
    return program


def emulated(qemu: str, folder: Path, names: list[str]) -> tuple[set[str], dict[str, np.ndarray]]:
    """The CPU features that numpy sees on an emulated Haswell, and what each graph gives there."""
    done = subprocess.run(
        [qemu, "-cpu", "Haswell", sys.executable, "-c", _EMULATED, str(folder), *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    features = set(json.loads(done.stdout.splitlines()[-1]))
    return features, {name: np.load(folder / f"{name}.npy") for name in names}


def loud_model(path: Path) -> onnx.ModelProto:
    """A convolution whose weights are all large and positive: neighbouring products add up."""
    maker = GraphMaker(1)
    weight = np.clip(np.abs(maker.rng.normal(0, 1, (8, 16, 3, 3))), 0.7, 1.0)
    maker.conv("x", "a", (16, 3))
    maker.node(
        "Clip", ["a", maker.weight("lo", np.float32(0.0)), maker.weight("hi", np.float32(1.0))], "b"
    )
    maker.weight("w", weight.astype(np.float32))
    maker.node("Conv", ["b", "w"], "y", pads=[1, 1, 1, 1])
    model = maker.model({"x": [1, 3, 16, 16]}, {"y": [1, 8, 16, 16]})
    # the first convolution only makes the second one's input large
    for item in model.graph.initializer:
        if item.name == "a.b":
            item.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 0.9, np.float32), "a.b"))
    onnx.save(model, str(path))
    return model


def test_full_range_weights_saturate_without_vnni_and_the_profile_avoids_it(
    qemu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loud_model(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    common = [str(tmp_path / "m.onnx")]
    statistics = str(tmp_path / "c.npz")
    assert (
        run(["calibrate", *common, "--images", str(tmp_path / "images.npz"), "-o", statistics]) == 0
    )
    for target in ("x86-int8-vnni", "x86-int8-avx2"):
        made = [
            "quantize",
            *common,
            "--calibration",
            statistics,
            "-t",
            target,
            "--method",
            "minmax",
        ]
        assert run([*made, "-o", str(tmp_path / f"{target}.onnx")]) == 0
    capsys.readouterr()

    feed = (pixels[:1].transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    np.save(tmp_path / "x.npy", feed)
    reference = run_here(model, {"x": feed})[0]
    features, there = emulated(qemu, tmp_path, ["m", "x86-int8-vnni", "x86-int8-avx2"])
    assert "AVX2" in features
    assert not {name for name in features if "AVX512" in name or "VNNI" in name}

    # the emulated machine computes float as this one does
    assert sqnr_db(reference, there["m"]) > 100
    assert sqnr_db(reference, there["x86-int8-vnni"]) < 15
    assert sqnr_db(reference, there["x86-int8-avx2"]) > 35
    here: dict[str, Any] = {
        name: run_here(onnx.load(str(tmp_path / f"{name}.onnx")), {"x": feed})[0]
        for name in ("x86-int8-avx2",)
    }
    # 7-bit weights give the same integers on both
    assert sqnr_db(here["x86-int8-avx2"], there["x86-int8-avx2"]) > 60
