"""Records survive the way through JSON exactly, infinities included."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edgekit.codec import from_json, to_record
from edgekit.errors import BadInput
from edgekit.pipeline.records import Exported, relocate
from edgekit.preprocess import Preprocess
from edgekit.stages.search import Choice, Trial
from edgekit.types import BlockParity, OnnxModel, ParityReport, TensorSpec


def _exported(path: Path) -> Exported:
    block = BlockParity(
        name="boxes", cosine=1.0, sqnr_db=math.inf, max_abs_error=0.0, max_rel_error=0.0
    )
    return Exported(
        model=OnnxModel(
            path=path,
            sha256="ab",
            inputs=(TensorSpec(name="x", shape=("batch", 3, 8, 8), dtype="float32"),),
            outputs=(),
            opset=17,
            metadata={"a": "ä"},
        ),
        contract=Preprocess(height=8, width=8, mean=(0.1, 0.2, 0.3)),
        origin="flags",
        warning="",
        kind="onnx",
        names=("one", "two"),
        parity=ParityReport(blocks=(block,), samples=4),
    )


def test_round_trip() -> None:
    value = _exported(Path("/somewhere/model.onnx"))
    assert from_json(Exported, json.loads(json.dumps(to_record(value)))) == value


def test_nested_tuples_and_defaults() -> None:
    trial = Trial(choice=Choice(method="mse", keep_float=("a",)), agreement=0.5, int8_mac_share=1.0)
    assert from_json(Trial, to_record(trial)) == trial
    assert from_json(Choice, {"method": "mse"}) == Choice(method="mse")


@pytest.mark.parametrize(
    "broken",
    [
        [],
        {"choice": {"method": "mse"}},
        {"choice": 3, "agreement": 0.5, "int8_mac_share": 1.0},
        {"choice": {"method": "mse"}, "agreement": "high", "int8_mac_share": 1.0},
        {"choice": {"method": 7}, "agreement": 0.5, "int8_mac_share": 1.0},
    ],
)
def test_what_does_not_fit_is_bad_input(broken: object) -> None:
    with pytest.raises(BadInput):
        from_json(Trial, broken)


def test_records_move_with_their_files() -> None:
    value = _exported(Path("/tmp-place/model.onnx"))
    stored = relocate(value, Path("/tmp-place"), None)
    assert stored.model.path == Path("model.onnx")
    assert relocate(stored, None, Path("/cache/x")).model.path == Path("/cache/x/model.onnx")
    outside = _exported(Path("/user/model.onnx"))
    assert relocate(relocate(outside, Path("/tmp-place"), None), None, Path("/c")) == outside
