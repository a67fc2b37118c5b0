"""ncnn's calibration tables: the stock tool's, ours, and refusals that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import BadInput
from edgekit.formats import ncnn_table
from edgekit.formats.ncnn_table import Table

# as ncnn2table lays it out: weights first, then activations
STOCK = """conv_1_param_0 127.500000 31.000000 0.250000
fc_3_param_0 63.500000 12.000000
conv_1 25.400000
fc_3 8.123457
"""


def test_the_stock_tools_table() -> None:
    table = ncnn_table.parse(STOCK)
    assert table.weights == {"conv_1": (127.5, 31.0, 0.25), "fc_3": (63.5, 12.0)}
    assert table.activations == {"conv_1": 25.4, "fc_3": 8.123457}
    assert table.layers == ("conv_1", "fc_3")
    assert ncnn_table.text_of(table) == STOCK


def test_a_layer_without_one_of_its_rows_stays_float() -> None:
    table = ncnn_table.parse(STOCK.replace("conv_1 25.400000\n", ""))
    assert table.layers == ("fc_3",)


def test_an_older_tools_repeated_activation_scale() -> None:
    assert ncnn_table.parse("dw_param_0 1 2\ndw 3.5 3.5\n").activations == {"dw": 3.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no row"),
        ("conv_1\n", "line 1"),
        ("conv_1_param_0 1 2\nconv_1 x\n", "line 2"),
        ("conv_1 1\nconv_1 2\n", "second row"),
        ("conv_1_param_0 1\nconv_1_param_0 1\n", "second row"),
        ("conv_1 nan\n", "line 1"),
        ("conv_1 -1.0\n", "not below 0"),
        ("conv_1 1e999\n", "finite"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        ncnn_table.parse(text)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "model.table"
    table = Table(weights={"a": (1.0, 2.0)}, activations={"a": 3.0})
    ncnn_table.write(table, path)
    assert ncnn_table.read(path) == table
    with pytest.raises(BadInput, match="does not exist"):
        ncnn_table.read(tmp_path / "none.table")
    path.write_bytes(b"\xff\xd8\xff\xe0 a jpeg")
    with pytest.raises(BadInput, match="not text"):
        ncnn_table.read(path)
