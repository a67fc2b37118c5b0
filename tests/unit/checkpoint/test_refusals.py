"""Every unusable file and option has its own clear error, and none leaves torch's own words alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from edgekit.checkpoint import LoadOptions, load, options_key  # noqa: E402
from edgekit.errors import BadInput, EdgekitError, UsageError  # noqa: E402
from tests.unit.checkpoint import making  # noqa: E402

OPTIONS = LoadOptions(arch=making.ARCH)


def _save(tmp_path: Path, value: Any, name: str = "model.pt") -> Path:
    torch.save(value, tmp_path / name)
    return tmp_path / name


def _state() -> dict[str, Any]:
    return dict(making.small().state_dict())


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        load(tmp_path / "nothing.pt")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        load(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    with pytest.raises(BadInput, match="0 bytes"):
        load(tmp_path / "empty.pt")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_zip(tmp_path: Path, share: float) -> None:
    data = _save(tmp_path, making.small()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput, match="damaged or incomplete zip"):
        load(tmp_path / "cut.pt")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_legacy_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "old.pt"
    torch.save(_state(), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput, match="damaged"):
        load(path, OPTIONS)


@pytest.mark.parametrize(
    "data", [b"GIF89a" + bytes(60), b"hello", b"\x00" * 100, b"{}", b"\x80\x02}."]
)
def test_unknown_format(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "strange.pt").write_bytes(data)
    with pytest.raises(BadInput, match="no known kind"):
        load(tmp_path / "strange.pt")


def test_state_dict_without_arch(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load(_save(tmp_path, _state()))
    assert "--arch package.module:factory" in error.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, whole: bool) -> None:
    model = making.small()
    with torch.no_grad():
        model[4].weight[2, 7] = value
    path = _save(tmp_path, model if whole else model.state_dict())
    with pytest.raises(BadInput, match=r"'4\.weight' holds 1 values that are NaN or infinite"):
        load(path, OPTIONS)


def test_running_statistics_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = _state()
    state["1.running_var"][0] = float("inf")
    with pytest.raises(BadInput, match=r"'1\.running_var'"):
        load(_save(tmp_path, state), OPTIONS)


def _half_where(state: dict[str, Any], keys: Any) -> dict[str, Any]:
    return {
        key: value.half() if value.is_floating_point() and keys(key) else value
        for key, value in state.items()
    }


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (lambda key: key.startswith("0."), r"2 are float16 \('0\.weight'\), \d+ are float32"),
        (lambda key: key == "4.weight", r"1 are float16 \('4\.weight'\), \d+ are float32"),
        (lambda key: not key.startswith("1."), r"\d+ are float16 .* 4 are float32 \('1\.weight'\)"),
    ],
    ids=["a layer", "a weight", "all but the normalization"],
)
def test_mixed_float_types_are_refused_and_converted_on_demand(
    tmp_path: Path, keys: Any, told: str
) -> None:
    path = _save(tmp_path, _half_where(_state(), keys))
    with pytest.raises(BadInput, match=f"mixes float types: .*{told}") as raised:
        load(path, OPTIONS)
    assert "--dtype float32" in raised.value.hint
    loaded = load(path, dataclasses.replace(OPTIONS, dtype="float32"))
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert any("half precision tensors widened to float32" in note for note in loaded.notes)
    stored = torch.load(path)
    assert all(torch.equal(v, stored[k].float()) for k, v in loaded.module.named_parameters())


def test_mixed_types_of_a_whole_module_are_refused(tmp_path: Path) -> None:
    model = making.small()
    model[4].weight.data = model[4].weight.data.double()
    with pytest.raises(BadInput, match=r"1 are float64 \('4\.weight'\)"):
        load(_save(tmp_path, model), OPTIONS)
    assert load(_save(tmp_path, model), dataclasses.replace(OPTIONS, dtype="float32"))


def test_statistics_of_another_type_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, _half_where(_state(), lambda key: "running" not in key))
    with pytest.raises(BadInput, match=r"2 are float32 \('1\.running_mean'\)"):
        load(path, OPTIONS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_one_type_throughout_is_widened_with_a_note(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in _state().items()}
    assert state["1.num_batches_tracked"].dtype == torch.int64  # no weight: counts for nothing
    loaded = load(_save(tmp_path, state), OPTIONS)
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert any("float32" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "convert",
    [
        lambda t: t.to(torch.int32),
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to_sparse(),
    ],
    ids=["integers", "complex", "float8", "sparse"],
)
def test_weights_that_nothing_explains_are_refused(tmp_path: Path, convert: Any) -> None:
    state = _state()
    state["4.weight"] = convert(state["4.weight"])
    with pytest.raises(BadInput, match=r"4\.weight|_rebuild_sparse_tensor"):
        load(_save(tmp_path, state), OPTIONS)


def test_another_architecture_names_what_differs(tmp_path: Path) -> None:
    state = _state()
    state["7.weight"] = state.pop("4.weight")
    with pytest.raises(BadInput) as error:
        load(_save(tmp_path, state), OPTIONS)
    assert "4.weight" in error.value.message
    assert "7.weight" in error.value.message
    state = _state()
    state["4.weight"] = torch.zeros(5, 256, 1, 1)
    with pytest.raises(BadInput, match=r"'4\.weight' has the shape \[5, 256, 1, 1\]"):
        load(_save(tmp_path, state), OPTIONS)


@pytest.mark.parametrize(
    "value", [[1, 2], "text", 3, {"epoch": 3}, {}, {"model": "yolo"}, torch.ones(3)]
)
def test_a_file_without_a_model(tmp_path: Path, value: Any) -> None:
    with pytest.raises(EdgekitError) as error:
        load(_save(tmp_path, value), OPTIONS)
    assert error.value.hint


@pytest.mark.parametrize(
    ("arch", "kind", "text"),
    [
        ("no_colon", UsageError, "names no factory"),
        ("a b:c", UsageError, "names no factory"),
        (":build", UsageError, "names no factory"),
        ("no_such_module_anywhere:build", BadInput, "'no_such_module_anywhere' is not found"),
        ("tests.unit.checkpoint.making:fctory", BadInput, "has no 'fctory'"),
        ("tests.unit.checkpoint.making:not_callable", BadInput, "is a int"),
        ("tests.unit.checkpoint.making:raises", BadInput, "weights of 1999 not found"),
        ("tests.unit.checkpoint.making:returns_text", BadInput, "returned a str"),
    ],
)
def test_factories_that_do_not_work(
    tmp_path: Path, arch: str, kind: type[EdgekitError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        load(_save(tmp_path, _state()), LoadOptions(arch=arch))


def test_a_broken_module_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken_arch.py").write_text("x = 1\nraise ValueError('no GPU')\n")
    (tmp_path / "needy_arch.py").write_text("import surely_not_installed\n")
    (tmp_path / "torn_arch.py").write_text("def f(:\n")
    (tmp_path / "leaving_arch.py").write_text("import sys\nsys.exit('usage: train.py')\n")
    path = _save(tmp_path, _state())
    for name, text in (
        ("broken_arch", r"ValueError: no GPU .*broken_arch\.py:2"),
        ("needy_arch", "'surely_not_installed', which is not installed"),
        ("torn_arch", "SyntaxError"),
        ("leaving_arch", "SystemExit"),
    ):
        with pytest.raises(BadInput, match=text):
            load(path, LoadOptions(arch=f"{name}:f", code=(tmp_path,)))


def test_unknown_arguments_of_the_factory_are_named(tmp_path: Path) -> None:
    path = _save(tmp_path, _state())
    with pytest.raises(UsageError) as error:
        load(path, LoadOptions(arch=making.ARCH, arch_args={"widht": "4"}))
    assert "'width'" in error.value.hint
    with pytest.raises(BadInput, match="raised TypeError"):
        load(path, LoadOptions(arch=making.ARCH, arch_args={"width": "four"}))


def test_a_code_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a folder"):
        load(_save(tmp_path, _state()), LoadOptions(arch="a:b", code=(tmp_path / "none",)))


def test_what_the_factory_prints_stays_off_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talking_arch.py").write_text(
        "from tests.unit.checkpoint.making import factory\n"
        "print('hello')\ndef build():\n    print('building')\n    return factory()\n"
    )
    load(_save(tmp_path, _state()), LoadOptions(arch="talking_arch:build", code=(tmp_path,)))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "building" in captured.err


def test_the_key_follows_the_source_and_imports_nothing(tmp_path: Path) -> None:
    package = tmp_path / "keyed_arch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "net.py").write_text("from .blocks import Block\nfrom torch import nn\n")
    (package / "blocks.py").write_text("class Block: pass\n")
    options = LoadOptions(arch="keyed_arch.net:build", code=(tmp_path,))
    before = options_key(options)
    assert set(before["sources"]) == {"keyed_arch", "keyed_arch.net", "keyed_arch.blocks"}
    (package / "blocks.py").write_text("class Block: pass  # changed\n")
    assert options_key(options)["sources"] != before["sources"]
    assert options_key(LoadOptions(arch="nowhere_at_all:build"))["sources"] == {}


def test_sniffing_and_the_package_need_no_torch(tmp_path: Path) -> None:
    path = _save(tmp_path, _state())
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from edgekit.checkpoint import recognize, options_key, LoadOptions\n"
        f"assert recognize(Path({str(path)!r}))[0] == 'state_dict'\n"
        "options_key(LoadOptions(arch='tests.unit.checkpoint.making:factory'))\n"
        "assert not {'torch', 'onnx', 'ultralytics'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
