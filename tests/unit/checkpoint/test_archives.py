"""TorchScript, torch.export and safetensors: loaded, compared, and refused when they are spoiled."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgekit.checkpoint import LoadOptions, load  # noqa: E402
from edgekit.errors import BadInput, NotPossible, UsageError  # noqa: E402
from tests.unit.checkpoint import making, networks  # noqa: E402

OPTIONS = LoadOptions(arch=making.ARCH)


# --- TorchScript ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.parametrize("half", [False, True])
def test_torchscript(tmp_path: Path, way: str, half: bool) -> None:
    model = making.small()
    made = torch.jit.script(model) if way == "script" else torch.jit.trace(model, making.image())
    made = made.half() if half else made
    made.save(str(tmp_path / "m.pt"))
    loaded = load(tmp_path / "m.pt")
    expected = making.small()(making.image())
    assert loaded.kind == "torchscript"
    assert loaded.input_shape == ((1, 3, 8, 8) if way == "trace" else None)
    assert loaded.parameters == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        assert float((loaded.module(making.image()) - expected).abs().max()) < (
            2e-2 if half else 1e-6
        )
    assert not any(p.requires_grad for p in loaded.module.parameters())


def test_torchscript_says_what_ultralytics_wrote_into_it(tmp_path: Path) -> None:
    config = {"task": "detect", "imgsz": [64, 96], "names": {"0": "a", "1": "b"}, "stride": 32}
    torch.jit.script(making.small()).save(
        str(tmp_path / "m.pt"), _extra_files={"config.txt": json.dumps(config)}
    )
    loaded = load(tmp_path / "m.pt")
    assert loaded.input_shape == (1, 3, 64, 96)
    assert (loaded.task, loaded.names) == ("detect", ("a", "b"))


class ReadsFile(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/hostname", False, 1)


def test_torchscript_that_reads_files_is_refused(tmp_path: Path) -> None:
    torch.jit.script(ReadsFile()).save(str(tmp_path / "m.pt"))
    with pytest.raises(BadInput, match="from_file"):
        load(tmp_path / "m.pt")


def test_torchscript_of_which_a_member_is_damaged(tmp_path: Path) -> None:
    torch.jit.script(making.small()).save(str(tmp_path / "m.pt"))
    for member in ("data.pkl", "constants.pkl", ".py", "data/0"):
        path = making.rewritten(
            tmp_path / "m.pt", tmp_path / "x.pt", member, lambda d: d[: len(d) // 2]
        )
        with pytest.raises(BadInput):
            load(path)


# --- torch.export ------------------------------------------------------------------------------


def _exported(tmp_path: Path, model: nn.Module, image: Any, **options: Any) -> Path:
    torch.export.save(torch.export.export(model, (image,), **options), tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (making.small, (1, 3, 8, 8)),
        (lambda: networks.randomized(networks.mobilenet_v3_small()), (1, 3, 64, 64)),
        (lambda: networks.randomized(networks.mixed()), (1, 3, 32, 32)),
        (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), (1, 5, 16)),
    ],
    ids=["small", "mobilenet", "mixed", "transformer"],
)
def test_exported_program(tmp_path: Path, model: Callable[[], nn.Module], shape: Any) -> None:
    torch.manual_seed(0)
    made, image = model(), torch.randn(shape)
    loaded = load(_exported(tmp_path, made, image))
    assert loaded.kind == "exported_program"
    assert loaded.input_shape == shape
    assert loaded.parameters == sum(p.numel() for p in made.parameters())
    assert {n for n, _ in loaded.module.named_parameters()} == {
        n for n, _ in made.named_parameters()
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(image), made(image), rtol=1e-6, atol=1e-6)


def test_exported_program_with_a_free_batch(tmp_path: Path) -> None:
    model = making.small()
    batch = torch.export.Dim("batch", min=1, max=16)
    path = _exported(tmp_path, model, making.image(), dynamic_shapes=({0: batch},))
    loaded = load(path)
    assert loaded.input_shape == (1, 3, 8, 8)
    for count in (1, 5):
        image = torch.randn(count, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(loaded.module(image), model(image))


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            low, high = self.conv(x).chunk(2, 1)
        return low * high


def test_exported_program_with_a_block_inside(tmp_path: Path) -> None:
    model = NoGrad().eval()
    loaded = load(_exported(tmp_path, model, making.image()))
    torch.testing.assert_close(loaded.module(making.image()), model(making.image()))


def test_exported_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    path = _exported(tmp_path, making.small().train(), making.image())
    with pytest.raises(BadInput, match="training mode"):
        load(path)


def _spoiled(tmp_path: Path, member: str, old: str, new: str) -> Path:
    source = _exported(tmp_path, making.small(), making.image())

    def change(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode(), 1)

    return making.rewritten(source, tmp_path / "spoiled.pt2", member, change)


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.no_such.default",
        "torch.ops.aten.relu.__class__",
        "torch.hub.load",
        "math.__loader__",
        "_operator.attrgetter",
        "#something",
    ],
)
def test_exported_program_with_another_operator_is_refused(tmp_path: Path, target: str) -> None:
    path = _spoiled(tmp_path, "model.json", "torch.ops.aten.relu.default", target)
    with pytest.raises(BadInput, match=r"refused.*operator"):
        load(path)


@pytest.mark.parametrize(
    ("member", "old", "new"),
    [
        ("weights_config.json", '"use_pickle": false', '"use_pickle": true'),
        ("weights_config.json", '"as_int": 256', '"as_int": 257'),
        ("weights_config.json", '"as_int": 256', '"as_int": -1'),
        ("weights_config.json", '"dtype": 7', '"dtype": 8'),
        ("weights_config.json", '"dtype": 7', '"dtype": 5'),
        ("weights_config.json", "weight_0", "weight_1"),
        ("weights_config.json", "weight_0", "../../x"),
        ("weights_config.json", "0.weight", "0.wight"),
        ("model.json", '"p_0_weight"', '"p_0_w"'),
        ("model.json", '"graph_module"', '"graph"'),
        ("model.json", "{", "["),
        ("weight_0", "", ""),
    ],
)
def test_exported_program_of_which_a_part_is_wrong(
    tmp_path: Path, member: str, old: str, new: str
) -> None:
    if not old:
        source = _exported(tmp_path, making.small(), making.image())
        path = making.rewritten(source, tmp_path / "s.pt2", member, lambda data: data[:-4])
    else:
        path = _spoiled(tmp_path, member, old, new)
    with pytest.raises(BadInput):
        load(path)


def test_exported_program_in_the_old_format(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("version", "8.2")
    with pytest.raises(NotPossible, match=r"before torch 2\.8"):
        load(tmp_path / "old.pt2")


# --- safetensors -------------------------------------------------------------------------------


def safetensors(state: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """The format's bytes, written here so that tests need no package."""
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.bfloat16: "BF16"}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, tensor in state.items():
        raw = (
            bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            if tensor.dim()
            else (struct.pack("<q", int(tensor)))
        )
        header[name] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("name", ["m.safetensors", "m.bin"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_safetensors(tmp_path: Path, name: str, dtype: str) -> None:
    model = making.small().to(getattr(torch, dtype))
    metadata = {"format": "pt", "names": '["a", "b"]', "imgsz": "8"}
    (tmp_path / name).write_bytes(safetensors(model.state_dict(), metadata))
    loaded = load(tmp_path / name, OPTIONS)
    assert loaded.kind == "safetensors"
    assert loaded.names == ("a", "b")
    assert loaded.input_shape == (1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.module(making.image()), model.float()(making.image()))
    with pytest.raises(UsageError, match="state_dict"):
        load(tmp_path / name)


def _entry(**changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    text = json.dumps({"x": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.mark.parametrize(
    "data",
    [
        _entry(shape=[2, 3]),
        _entry(shape=[-2, -2]),
        _entry(shape=[2, 2.0]),
        _entry(shape=[1 << 62, 1 << 62]),
        _entry(shape=4),
        _entry(dtype="F99"),
        _entry(dtype=["F32"]),
        _entry(data_offsets=[4, 20]),
        _entry(data_offsets=[0, 32]),
        _entry(data_offsets=[16, 0]),
        _entry(data_offsets=[0]),
        _entry() + b"more",
        _entry()[:-1],
        struct.pack("<Q", 1 << 40) + b'{"x":1}',
        struct.pack("<Q", 7) + b'{"x":1}',
        struct.pack("<Q", 7) + b'["x",1]',
        struct.pack("<Q", 5) + b"{\xff\xff\xff}",
        struct.pack("<Q", 14) + b'{"a":1, "a":2}',
        struct.pack("<Q", 40_000) + b'{"x":' + b"[" * 39_995,
    ],
)
def test_safetensors_that_do_not_hold(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(BadInput):
        load(tmp_path / "x.safetensors", OPTIONS)
