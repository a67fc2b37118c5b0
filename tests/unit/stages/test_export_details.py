"""Small things of the export stage that a real network only meets by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from torch import Tensor, nn

from edgekit.checkpoint import LoadOptions
from edgekit.pipeline.request import ExportRequest
from edgekit.pipeline.steps_float import _with_shape
from edgekit.preprocess import Preprocess
from edgekit.stages import export
from edgekit.target_files import load_target
from edgekit.types import Checkpoint
from tests.graphs import GraphMaker

CONTRACT = Preprocess(height=8, width=8, resize="stretch")


class Halves(nn.Module):
    """Splits its channels in two uneven uses: the dynamo exporter writes Split for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).chunk(2, 1)
        return first * 2 + second.relu()


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_the_dynamo_rung_splits(
    tmp_path: Path, opset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LADDER", export.LADDER[1:])
    module = Halves().eval()
    loaded = Checkpoint(path=tmp_path / "m.pt", sha256="", kind="whole_module", module=module)
    feeds = [np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)]
    options = export.ExportOptions(opset=opset)
    done = export.run(loaded, CONTRACT, feeds, tmp_path / "m.onnx", options)
    assert done.parity is not None and done.parity.max_rel_error < 1e-5


def test_split_loses_what_its_opset_does_not_know() -> None:
    for opset, kept in ((17, []), (18, ["num_outputs"])):
        maker = GraphMaker()
        maker.node("Relu", ["x"], "y")
        model = maker.model({"x": (1, 4)}, {"y": (1, 4)}, opset=opset)
        node = helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2)
        model.graph.node.append(node)
        export._drop_newer_attributes(model)
        names = [item.name for item in model.graph.node[-1].attribute]
        assert sorted(names) == sorted(["axis", *kept])
        assert isinstance(model, onnx.ModelProto)


def test_a_pruned_network_is_tried_with_the_size_that_was_asked_for(tmp_path: Path) -> None:
    request = ExportRequest(
        checkpoint=tmp_path / "m.pt", target=load_target("x86-fp32"), out=tmp_path, size=(96, 64)
    )
    assert _with_shape(request).input_shape == (1, 3, 96, 64)
    gray = ExportRequest(
        checkpoint=tmp_path / "m.pt",
        target=load_target("x86-fp32"),
        out=tmp_path,
        size=(28, 28),
        overrides={"color": "gray"},
    )
    assert _with_shape(gray).input_shape == (1, 1, 28, 28)
    own = ExportRequest(
        checkpoint=tmp_path / "m.pt",
        target=load_target("x86-fp32"),
        out=tmp_path,
        size=(28, 28),
        load=LoadOptions(input_shape=(1, 3, 32, 32)),
    )
    assert _with_shape(own).input_shape == (1, 3, 32, 32)
