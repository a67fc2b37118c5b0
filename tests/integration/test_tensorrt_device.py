"""A real engine on a real GPU: built, verified, timed. Skipped, never passed, where there is none.

This is the one place where a skip stays a skip under EDGEKIT_STRICT: what it leaves unproved stands in
DESIGN.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.board import trt
from edgekit.board.errors import DeviceError
from edgekit.board.trt.features import Features, features, load
from edgekit.cli import run
from edgekit.formats import tensorrt_cache
from tests.integration.test_ncnn_export import CIFAR


@pytest.fixture(scope="module")
def have() -> Features:
    """What the TensorRT of this machine can do; skips where there is none, or no driver."""
    found = trt.available()
    if not found.ok:
        pytest.skip(f"no NVIDIA driver: {found.why}")
    return features(load())


def _json(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    found = run([*arguments, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert found == code, answer
    return answer


def test_a_bundle_is_built_verified_evaluated_and_timed(
    have: Features, assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    model = str(assets / "models" / "resnet20-12fca82f.th")
    data = str(assets / "cifar10" / "test.npz")
    images = str(assets / "cifar10" / "calib.npz")
    export = ["export", model, *CIFAR, "-t", "cuda-int8", "-o", str(out), "--images", images]
    exported = _json([*export, "--method", "percentile", "--data", data], capsys)
    methods = ["qdq", *(["entropy"] if have.entropy else []), *(["minmax"] if have.minmax else [])]
    for method in methods:
        built = _json(["build", str(out), "--method", method, "--force"], capsys)
        assert built["method"] == method and built["timing_ms"]["gpu_compute"] > 0
        checks = {c["name"]: c for c in _json(["verify", str(out)], capsys)["checks"]}
        assert not checks["golden outputs (tensorrt)"]["skipped"]
        found = _json(["evaluate", str(out), "--runtime", "tensorrt", "--data", data], capsys)
        assert abs(found["expected"]["points"]) < 0.5
        assert found["expected"]["value"] == exported["accuracy"]["int8"]
    timed = _json(["bench", str(out), "--runs", "200"], capsys)
    assert 0 < timed["device_ms"]["gpu_compute"] <= timed["device_ms"]["wall"]
    layers = _json(["profile", str(out)], capsys)["layers"]
    assert len(layers) > 5 and all(layer["ms"] >= 0 for layer in layers)
    report = json.loads((out / "built" / "tensorrt.layers").read_text())
    assert "Int8" in json.dumps(report) or "INT8" in json.dumps(report)


def test_tensorrts_own_calibration_writes_a_cache_that_is_read(
    have: Features, assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The format of the cache, from TensorRT's own hand."""
    if not have.entropy:
        return  # this TensorRT has no calibrators: nothing of theirs is to be read
    import onnx

    from edgekit.board.session import BuildOptions
    from edgekit.board.trt.builder import build_engine
    from edgekit.board.trt.cuda_routes import open_cuda
    from edgekit.board.trt.plan import choose
    from edgekit.golden import npy_bytes
    from tests import tensorrt_graphs

    onnx.save(tensorrt_graphs.residual_network(), tmp_path / "net.onnx")
    batch = tmp_path / "batch.npy"
    batch.write_bytes(npy_bytes(tensorrt_graphs.feeds()["x"].astype(np.float32)))
    options = BuildOptions(method="entropy")
    plan = choose({"float": "net.onnx", "entropy": "none"}, have, options)
    cuda = open_cuda()
    try:
        made = build_engine(
            load(), plan, tmp_path / "net.onnx", options, print, batches=[batch], cuda=cuda
        )
    except DeviceError as error:
        pytest.fail(f"{error.message} {error.hint}")
    finally:
        cuda.close()
    assert made.written_cache is not None
    cache = tensorrt_cache.parse(made.written_cache.decode())
    assert cache.algorithm == tensorrt_cache.ENTROPY and "x" in cache.scales
