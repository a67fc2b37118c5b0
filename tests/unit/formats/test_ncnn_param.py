"""ncnn's .param: every form of value, the bytes that pnnx writes, and refusals that name the line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edgekit.errors import BadInput
from edgekit.formats import ncnn_param

TEXT = """7767517
6 7
Input                    in0                      0 1 in0
Convolution              conv_1                   1 1 in0 1 0=16 1=3 11=3 12=1 13=2 14=1 2=1 3=2 4=1 5=1 6=432
Slice                    tensor_split_0           1 2 1 2 3 -23300=2,8,-233 1=0
Split                    splitncnn_0              1 1 2 4
Reshape                  reshape_3                1 1 4 5 6="1,1,//(8,0n),0n"
BinaryOp                 add_0                    2 1 5 3 out0 0=0 2=1.702000e+00
"""


def test_what_pnnx_writes_comes_back_byte_for_byte() -> None:
    graph = ncnn_param.parse(TEXT)
    assert ncnn_param.text_of(graph) == TEXT
    assert graph.inputs == ("in0",)
    assert graph.outputs == ("out0",)
    assert graph.blobs == ("in0", "1", "2", "3", "4", "5", "out0")
    assert [layer.name for layer in graph.consumers("1")] == ["tensor_split_0"]
    producer = graph.producer("3")
    assert producer is not None and producer.name == "tensor_split_0"
    assert graph.producer("nothing") is None


def test_values_of_every_form() -> None:
    convolution, split, reshape, add = (ncnn_param.parse(TEXT).layers[n] for n in (1, 2, 4, 5))
    assert convolution.integer(0) == 16
    assert convolution.integer(8, 7) == 7
    assert split.integers(0) == (8, -233)
    assert split.integers(5) == ()
    assert reshape.params[6] == '"1,1,//(8,0n),0n"'
    assert add.number(2) == pytest.approx(1.702)
    with pytest.raises(BadInput, match="not an integer"):
        add.integer(2)
    with pytest.raises(BadInput, match="not an array"):
        reshape.numbers(6)


def test_the_newer_form_of_arrays() -> None:
    text = "7767517\n2 2\nInput in0 0 1 in0\nSlice s 1 1 in0 a 0=3,4,5 2=7,\n"
    layer = ncnn_param.parse(text).layers[1]
    assert layer.integers(0) == (3, 4, 5)
    assert layer.integers(2) == (7,)


def test_changed_values_keep_their_place() -> None:
    layer = ncnn_param.parse(TEXT).layers[1].with_params({5: None, 6: 9, 8: 2, 31: 64, 10: 0.5})
    assert list(layer.params)[-3:] == [8, 31, 10]
    assert 5 not in layer.params
    assert (layer.integer(6), layer.integer(8), layer.number(10)) == (9, 2, 0.5)


def _with(number: int, line: str) -> str:
    lines = TEXT.split("\n")
    lines[number - 1] = line
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line"),
        (TEXT.replace("7767517", "7767516"), "first line"),
        (_with(2, "6"), "second line"),
        (_with(2, "0 0"), "cannot be"),
        (_with(2, "99999999 7"), "cannot be"),
        (_with(2, "7 7"), "only 6"),
        (_with(2, "5 7"), "more"),
        (_with(2, "6 8"), "8 blobs"),
        (_with(4, "Convolution conv_1 1 1 nowhere 1 0=16"), "line 4.*'nowhere'"),
        (_with(4, "Convolution conv_1 1 1 in0 in0 0=16"), "line 4.*a second time"),
        (_with(4, "Convolution conv_1 1 1 in0"), "cut off"),
        (_with(4, "Convolution conv_1 1"), "two counts"),
        (_with(4, "Convolution conv_1 -1 1 in0 1"), "numbers of inputs"),
        (_with(4, "Convolution conv_1 1 1 in0 1 0=16 0=17"), "stands twice"),
        (_with(4, "Convolution conv_1 1 1 in0 1 77=16"), "cannot be"),
        (_with(4, "Convolution conv_1 1 1 in0 1 0=1,x"), "not an array"),
        (_with(4, "Convolution conv_1 1 1 in0 1 0=-"), "not a value"),
        (_with(4, "Convolution conv_1 1 1 in0 1 0"), "not 'id=value'"),
        (_with(4, "Convolution conv_1 1 1 in0 1 zero=1"), "not 'id=value'"),
        (_with(5, "Slice s 1 2 1 2 3 -23300=3,8,-233"), "has 2 elements"),
        (_with(4, "Convolution conv\x00_1 1 1 in0 1 0=16"), "not ASCII"),
        (_with(4, f"Convolution {'n' * 256} 1 1 in0 1 0=16"), "too long"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        ncnn_param.parse(text)


def test_a_file_cut_off_anywhere_is_refused() -> None:
    # within the last name and behind it: a shorter name is a name, and values may be left out
    for size in range(TEXT.rindex("out0") + 1):
        with pytest.raises(BadInput):
            ncnn_param.parse(TEXT[:size])


def test_no_mutation_does_anything_but_parse_or_refuse() -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(3000):
        data = bytearray(TEXT.encode())
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data))
            action = chance.randrange(3)
            if action == 0:
                data[place] = (
                    chance.choice(b'0123456789 -=,.\n"e') if chance.random() < 0.8 else 200
                )
            elif action == 1:
                del data[place : place + chance.randint(1, 20)]
            else:
                data[place:place] = data[place : place + chance.randint(1, 20)]
            if not data:
                break
        try:
            graph = ncnn_param.parse(data.decode("latin-1"))
        except BadInput:
            refused += 1
            continue
        assert ncnn_param.parse(ncnn_param.text_of(graph)) == graph
    assert refused > 1000


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "model.param"
    ncnn_param.write(ncnn_param.parse(TEXT), path)
    assert path.read_text() == TEXT
    assert ncnn_param.text_of(ncnn_param.read(path)) == TEXT
    with pytest.raises(BadInput, match="does not exist"):
        ncnn_param.read(tmp_path / "none.param")
    path.write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(BadInput, match="not text"):
        ncnn_param.read(path)
    with pytest.raises(BadInput, match="cannot be read"):
        ncnn_param.read(tmp_path)


def test_outputs_come_in_the_order_of_the_model() -> None:
    assert ncnn_param.sorted_outputs(["out10", "out2", "out0"]) == ["out0", "out2", "out10"]
    with pytest.raises(BadInput, match="'7'"):
        ncnn_param.sorted_outputs(["out0", "7"])
