"""Which models an argument list names, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import BadInput, UsageError
from edgekit.pipeline.compare.request import CompareRequest, listed
from edgekit.pipeline.report import raw
from edgekit.target_files import load_target


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_folder_is_its_checkpoints_in_natural_order(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("p10.pt", "p9.onnx", "notes.txt", ".hidden.pt", "a.TH")))
    touch(tmp_path / "bundle" / "manifest.json", tmp_path / "other" / "file.pt")
    found = listed((tmp_path,), None)
    assert [model.name for model in found] == ["a", "bundle", "p9", "p10"]


def test_the_baseline_comes_first_and_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.pt", tmp_path / "b.pt")
    found = listed((tmp_path / "a.pt", tmp_path / "b.pt"), tmp_path / "b.pt")
    assert [model.name for model in found] == ["b", "a"]


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    touch(
        tmp_path / "one" / "best.pt", tmp_path / "two" / "best.pt", tmp_path / "one" / "best.onnx"
    )
    found = listed(
        (tmp_path / "one" / "best.pt", tmp_path / "two" / "best.pt", tmp_path / "one"), None
    )
    names = [model.name for model in found]
    assert len(set(names)) == 3
    assert set(names) == {"one/best.pt", "two/best.pt", "one/best.onnx"}


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_compare_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput):
        listed((tmp_path / name,), None)


def request(**changes: object) -> CompareRequest:
    values = {"models": (Path("a"),), "target": load_target("x86-fp32"), **changes}
    return CompareRequest(**values)  # type: ignore[arg-type]


def test_unknown_presets_name_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        request(preset="prunning")
    assert "pruning" in caught.value.hint


def test_an_ablation_is_of_one_model() -> None:
    with pytest.raises(UsageError, match="one model"):
        request(preset="ablation", models=(Path("a"), Path("b")))


@pytest.mark.parametrize("batches", [(), (0,)])
def test_batches_are_positive(batches: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        request(batches=batches)


# --- reading what a foreign manifest may hold


STRANGE = [None, 7, "text", [], {}, True, float("nan"), [1, "a", None, {"x": 1}], {"a": {"b": [1]}}]


@pytest.mark.parametrize("value", STRANGE)
def test_whatever_stands_in_a_manifest_is_read_or_left(value: object) -> None:
    for reader, kind in (
        (raw.number, (float, type(None))),
        (raw.text, str),
        (raw.objects, list),
        (raw.texts, tuple),
        (raw.numbers, tuple),
    ):
        for keys in ((), ("a",), ("a", "b")):
            assert isinstance(reader(value, *keys), kind)  # type: ignore[operator]


def test_known_parts_are_found() -> None:
    value = {
        "a": {"n": 3, "bad": True, "inf": float("inf"), "list": [{"x": 1}, 2], "words": ["u", 1]}
    }
    assert raw.number(value, "a", "n") == 3.0
    assert raw.number(value, "a", "bad") is None
    assert raw.number(value, "a", "inf") is None
    assert raw.objects(value, "a", "list") == [{"x": 1}]
    assert raw.texts(value, "a", "words") == ("u",)
