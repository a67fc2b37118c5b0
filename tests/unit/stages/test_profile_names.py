"""Giving the runtime's nodes back to the file's."""

from __future__ import annotations

import pytest

from edgekit.stages.profile import _origin, assemble

NAMES = {"/a/Conv": ("t",), "/a/Conv_1": ("u",), "/a/Slice_1": ("v",), "/a/act/Mul": ("w",)}


@pytest.mark.parametrize(
    ("label", "node"),
    [
        ("/a/Conv", "/a/Conv"),
        ("/a/Conv_token_105", "/a/Conv"),
        ("/a/Conv_output_0_nchwc", "/a/Conv"),
        ("/a/Conv_1_quant_token_7", "/a/Conv_1"),
        ("/a/Slice_1/GatherSliceToSplitFusion", "/a/Slice_1"),
        ("/a/act/Mul/QuickGeluFusion/", "/a/act/Mul"),
        ("/a/Conv_10", None),  # another node, not the first with something behind it
        ("ReorderOutput_token_343", None),
    ],
)
def test_suffixes_of_the_optimizer_are_taken_off(label: str, node: str | None) -> None:
    assert _origin(label, NAMES) == node


def test_shares_add_up_and_kinds_are_summed() -> None:
    layers = [("a", "Conv", 3.0, ("t",)), ("b", "Conv", 1.0, ()), ("c", "Add", 4.0, ())]
    profile = assemble("onnxruntime", layers, runs=5, threads=1, total_ms=9.0)
    assert [layer.share for layer in profile.layers] == [0.375, 0.125, 0.5]
    assert [(kind.op_type, kind.count, kind.ms) for kind in profile.operators] == [
        ("Conv", 2, 4.0),
        ("Add", 1, 4.0),
    ]
    assert sum(kind.share for kind in profile.operators) == pytest.approx(1.0)
    assert profile.total_ms == 9.0
