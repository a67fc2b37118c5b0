"""INT8 models that other tools made: loaded, run, reported and compared as they are, in one table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit import cli
from tests.architectures import resnet20
from tests.integration.conftest import Exported

CONTRACT = [
    *("--imgsz", "32", "--color", "rgb", "--resize", "stretch", "--scale", "1/255"),
    *("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"),
]
IMAGES = 150


@pytest.fixture(scope="module")
def models(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published ResNet-20 as float, QDQ, QOperator and dynamic ONNX, and torch's dynamic Linear."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        quantize_dynamic,
        quantize_static,
    )

    folder = tmp_path_factory.mktemp("foreign")
    published = torch.load(
        assets / "models" / "resnet20-12fca82f.th", map_location="cpu", weights_only=False
    )
    network = resnet20().eval()
    network.load_state_dict(
        {key.removeprefix("module."): value for key, value in published["state_dict"].items()}
    )
    plain = folder / "a_float.onnx"
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(
        network, (torch.zeros(1, 3, 32, 32),), str(plain), opset_version=17, dynamo=False, **names
    )
    with np.load(assets / "cifar10" / "calib.npz") as file:
        pixels = file["images"][:64].transpose(0, 3, 1, 2) / 255
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    feeds = ((pixels - mean) / std).astype(np.float32)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds: Iterator[np.ndarray] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self._feeds, None)
            return None if feed is None else {"x": feed[None]}

    quantize_static(plain, folder / "b_qdq.onnx", Reader(), quant_format=QuantFormat.QDQ)
    quantize_static(
        plain, folder / "c_qoperator.onnx", Reader(), quant_format=QuantFormat.QOperator
    )
    quantize_dynamic(plain, folder / "d_dynamic.onnx")
    dynamic = torch.ao.quantization.quantize_dynamic(network, {torch.nn.Linear})
    torch.save(dynamic.state_dict(), folder / "e_linear.pt")
    return folder


def test_all_of_them_in_one_table(
    models: Path,
    resnet_bundle: Exported,
    assets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "f_board.engine").write_bytes(b"ftrt" + bytes(64))
    data = ["--data", str(assets / "cifar10" / "test.npz"), "--limit", str(IMAGES)]
    arguments = [
        *("compare", str(models), str(resnet_bundle.bundle), str(tmp_path / "f_board.engine")),
        *("--arch", "tests.architectures:resnet20", *CONTRACT, *data),
        *("--runs", "4", "--resamples", "50"),
    ]
    code = cli.run([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.out + captured.err
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(captured.out)["rows"]}
    board = rows.pop("f_board")
    assert "needs the board" in board["errors"][0] and board["timings"] == []
    assert len(rows) == 6
    plain = rows["a_float"]
    for name, row in rows.items():
        assert row["errors"] == [], row
        assert abs(row["accuracy"]["top1"] - plain["accuracy"]["top1"]) < 0.05, name
        (timing,) = [t for t in row["timings"] if t["runtime"] == "onnxruntime"]
        assert timing["latency"]["p50_ms"] > 0 and timing["latency"]["peak_rss_mb"] > 20
    # the same network in every form: as many operations, as many parameters
    for name in ("b_qdq", "c_qoperator", "d_dynamic"):
        assert rows[name]["precision"] == "int8"
        assert rows[name]["macs"] == plain["macs"] == pytest.approx(40.55e6, rel=0.001)
        assert rows[name]["parameters"] == plain["parameters"] == 269034
        assert rows[name]["size_mb"] < 0.35 * plain["size_mb"]
        assert rows[name]["drop"]["low"] <= rows[name]["drop"]["difference"]
    assert any("int8 weights of torch turned into float" in n for n in rows["e_linear"]["notes"])
    assert {t["runtime"] for t in rows["e_linear"]["timings"]} == {"torch", "onnxruntime"}

    assert cli.run([*arguments, "--format", "md"]) == 0
    table = capsys.readouterr().out
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 7
    assert "f_board failed: f_board.engine is a TensorRT engine, which needs the board" in table


@pytest.mark.parametrize(
    ("name", "kind"),
    [("b_qdq", "int8"), ("c_qoperator", "int8"), ("d_dynamic", "int8"), ("e_linear", "float")],
)
def test_inspect_says_what_each_is(
    models: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    (path,) = models.glob(f"{name}.*")
    flags = ["--arch", "tests.architectures:resnet20"] if path.suffix == ".pt" else []
    assert cli.run(["inspect", str(path), "--imgsz", "32", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macs"] == pytest.approx(40.55e6, rel=0.001)
    assert (found["int8_share"] > 0.99) is (kind == "int8")
