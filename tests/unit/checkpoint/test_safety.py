"""Files that would run code, or make torch read outside of its memory, are refused unread."""

from __future__ import annotations

import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgekit.checkpoint import LoadOptions, load  # noqa: E402
from edgekit.checkpoint.pickle_scan import scan  # noqa: E402
from edgekit.checkpoint.pickle_tree import PickleError, walk  # noqa: E402
from edgekit.errors import BadInput, EdgekitError  # noqa: E402
from tests.unit.checkpoint import making  # noqa: E402

OPTIONS = LoadOptions(arch=making.ARCH)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("place", ["bare", "in a state_dict", "beside a module"])
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(
    tmp_path: Path, place: str, new_format: bool
) -> None:
    trace = tmp_path / "it-ran"
    evil: Any = making.RunsCommand(f"touch {trace}")
    if place == "in a state_dict":
        evil = {**making.small().state_dict(), "extra": evil}
    elif place == "beside a module":
        evil = {"model": making.small(), "extra": evil}
    path = tmp_path / "evil.pt"
    torch.save(evil, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(BadInput) as refusal:
        load(path, OPTIONS)
    assert not trace.exists()
    if place != "beside a module" or new_format:
        assert "system" in refusal.value.message
        assert "--trust-checkpoint" in refusal.value.hint
    # the file is what it is meant to be: trusted, it does run
    with pytest.raises(EdgekitError):
        load(path, LoadOptions(arch=making.ARCH, trust=True, weights="ema"))
    assert trace.exists()


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    torch.save(making.OwnNet(), tmp_path / "own.pt")
    with pytest.raises(BadInput) as refusal:
        load(tmp_path / "own.pt")
    assert "making.OwnNet" in refusal.value.message
    assert "--trust-checkpoint" in refusal.value.hint


@pytest.mark.parametrize(
    "call",
    [
        making.CallsGlobal("builtins", "eval", "__import__('os').system('true')"),
        making.CallsGlobal("builtins", "getattr", "text", "upper"),
        making.CallsGlobal("torch.nn.modules.linear", "Linear", 10**6, 10**6),
        making.CallsGlobal("ultralytics.nn.tasks", "DetectionModel", {"activation": "exit(1)"}),
        making.CallsGlobal("torch", "Tensor", 10**12),
        making.CallsGlobal("builtins", "bytearray", 10**12),
        making.CallsGlobal("torch.hub", "load", "somebody/something", "model"),
        making.CallsGlobal("torch._utils", "_rebuild_wrapper_subclass", 1),
        making.CallsGlobal("torch.jit._script", "unpackage_script_module", 1),
        making.CallsGlobal("numpy", "fromfile", "/etc/passwd"),
        making.CallsGlobal("torch.serialization", "load", "/etc/passwd"),
        making.CallsGlobal("functools", "partial", 1),
    ],
    ids=lambda call: f"{call.module}.{call.name}",
)
def test_calls_are_refused(tmp_path: Path, call: making.CallsGlobal) -> None:
    path = making.torch_zip(tmp_path / "call.pt", making.forged({"state_dict": {"x": call}}))
    with pytest.raises(BadInput) as refusal:
        load(path, OPTIONS)
    assert call.name in refusal.value.message or "forward" in refusal.value.message


def _module_state(module: nn.Module, **changes: Any) -> bytes:
    """`module` pickled with fields of its state replaced."""
    module.__dict__.update(changes)
    return making.forged(module)


def _clean(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        layer._parameters.clear()
        layer._buffers.clear()
    return module


def test_a_module_class_must_not_be_called_even_to_make_a_module(tmp_path: Path) -> None:
    # NEWOBJ makes modules without their constructor; REDUCE on the class would run it
    data = making.forged({"model": making.CallsGlobal("torch.nn.modules.activation", "ReLU")})
    with pytest.raises(BadInput, match="may only be named"):
        load(making.torch_zip(tmp_path / "x.pt", data))


def test_hooks_are_refused(tmp_path: Path) -> None:
    model = _clean(nn.Sequential(nn.ReLU()))
    model._forward_pre_hooks[0] = making.CallsGlobal("torch.optim.sgd", "SGD")  # dead data as hook
    path = making.torch_zip(tmp_path / "hook.pt", making.forged(model))
    with pytest.raises(BadInput, match="hook"):
        load(path)


def test_a_replaced_method_is_refused(tmp_path: Path) -> None:
    model = _clean(nn.Sequential(nn.ReLU()))
    model.__dict__["forward"] = torch.nn.functional.relu
    path = making.torch_zip(tmp_path / "method.pt", making.forged(model))
    with pytest.raises(BadInput, match="'forward' is replaced"):
        load(path)


def _tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...], numel: int = 4) -> bytes:
    """A pickled {"weight": tensor} of the given geometry over the storage "0"."""

    class WithStorage(making.Forger):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", numel)
            return None

    class Storage:
        pass

    import io

    call = making.CallsGlobal(
        "torch._utils", "_rebuild_tensor_v2", Storage(), offset, size, stride, False, {}
    )
    stream = io.BytesIO()
    WithStorage(stream, 2).dump({"weight": call})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "numel"),
    [
        (0, (5,), (1,), 4),
        (1, (4,), (1,), 4),
        (0, (2, 2), (1 << 60, 1), 4),
        (0, (1 << 61, 2), (1, 1), 4),
        (0, (4,), (-1,), 4),
        (-4, (4,), (1,), 4),
        (0, (1 << 40,), (0,), 4),
        (0, (5,), (1,), 5),
    ],
    ids=[
        "longer than its storage",
        "beyond the end",
        "stride outside",
        "size overflows",
        "negative stride",
        "negative offset",
        "endless repetition",
        "storage longer than the file",
    ],
)
def test_tensors_outside_of_their_storage_are_refused(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...], numel: int
) -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    path = making.torch_zip(
        tmp_path / "t.pt", _tensor(offset, size, stride, numel), {"data/0": data}
    )
    with pytest.raises(BadInput, match="damaged or was tampered with"):
        load(path, OPTIONS)


def test_the_forged_geometry_is_read_when_it_is_right(tmp_path: Path) -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    path = making.torch_zip(tmp_path / "t.pt", _tensor(0, (4,), (1,)), {"data/0": data})
    with pytest.raises(BadInput, match="another architecture"):
        load(path, OPTIONS)


def test_a_key_that_takes_forever_to_hash_is_refused_at_once(tmp_path: Path) -> None:
    key: Any = ()
    for _ in range(60):  # hashing it takes 2^60 steps
        key = (key, key)

    class Keyed(making.Forger):
        pass

    import io

    stream = io.BytesIO()
    pickler = Keyed(stream, 2)
    pickler.write(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT)
    pickler.save(key)
    pickler.write(pickle.BININT1 + b"\x01" + pickle.SETITEM + pickle.STOP)
    path = making.torch_zip(tmp_path / "slow.pt", stream.getvalue())
    started = time.monotonic()
    with pytest.raises(BadInput, match="dictionary key"):
        load(path, OPTIONS)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("trusted", [False, True])
def test_deep_nesting_is_refused(tmp_path: Path, trusted: bool) -> None:
    data = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    path = making.torch_zip(tmp_path / "deep.pt", data)
    with pytest.raises(EdgekitError):
        load(path, LoadOptions(arch=making.ARCH, trust=trusted))


def test_scan_reads_every_protocol_without_calling() -> None:
    value = {"a": [1, 2.5, "x", b"y", None, True, (1, 2, 3, 4)], "b": {1, 2}, "c": frozenset({3})}
    for protocol in range(6):
        tree = scan(pickle.dumps(value, protocol)).tree
        assert tree["a"][:3] == [1, 2.5, "x"]
        assert tree["a"][6] == (1, 2, 3, 4)
    tree = scan(pickle.dumps(making.RunsCommand("false"), 2)).tree
    assert tree.path in ("posix.system", "nt.system")
    assert tree.args == ("false",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}",
        b"(.",
        b"\x80\x02h\x05.",
        b"\x80\x02e.",
        b"0.",
        b"N}b.",
        b"}u.",
    ],
)
def test_scan_names_damage(data: bytes) -> None:
    with pytest.raises(PickleError):
        scan(data)


def test_walk_meets_shared_and_circular_values_once() -> None:
    circle: list[Any] = []
    circle.append(circle)
    shared = [1]
    assert len(walk([circle, shared, shared])) == 3


class _Raw:
    """Pickle instructions put together by hand."""

    STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"

    @classmethod
    def tensor(cls, size: bytes, stride: bytes = b"(K\x01t") -> bytes:
        """Instructions that make a tensor over the storage "0" of four floats."""
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + cls.STORAGE + b"K\x00" + size + stride
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )  # fmt: skip

    @staticmethod
    def state(*instructions: bytes) -> bytes:
        return b"\x80\x02}" + b"".join(instructions) + b"."


def _four_floats(tmp_path: Path, pickled: bytes) -> Path:
    return making.torch_zip(
        tmp_path / "raw.pt", pickled, {"data/0": struct.pack("<4f", 1, 2, 3, 4)}
    )


def _item(name: str, value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(name)) + name.encode() + value + b"s"


GOOD = _Raw.tensor(b"(K\x04t")
FAR = _Raw.tensor(b"(J\x00\x00\x00\x10t")


def test_handmade_pickles_are_read_when_they_are_right(tmp_path: Path) -> None:
    path = _four_floats(tmp_path, _Raw.state(_item("w", GOOD)))
    with pytest.raises(BadInput, match="another architecture"):
        load(path, OPTIONS)
    assert torch.load(path, weights_only=True)["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "pickled",
    [
        _Raw.state(_item("w", FAR), _item("w", GOOD)),
        b"\x80\x02" + FAR + b"q\x00" + b"0}" + _item("w", GOOD) + b".",
        _Raw.state(_item("w", GOOD + b"(" + _Raw.STORAGE + b"K\x00(J\x00\x00\x00\x10t(K\x01ttb")),
        # a size that is a list can be made harmless after it was used
        _Raw.state(
            _item("s", b"]q\x01J\x00\x00\x00\x10a"),
            _item("t", b"]q\x02K\x01a"),
            _item("w", _Raw.tensor(b"h\x01", b"h\x02")),
            _item("x", b"h\x01K\x00a"),
            _item("y", b"h\x02K\x00a"),
        ),
    ],
    ids=["overwritten", "dropped", "rebuilt", "shape changed afterwards"],
)
def test_tensors_that_the_result_does_not_show_are_checked_too(
    tmp_path: Path, pickled: bytes
) -> None:
    with pytest.raises(BadInput, match="damaged or was tampered with"):
        load(_four_floats(tmp_path, pickled), OPTIONS)


def test_every_pickle_of_the_old_format_is_checked(tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    path = tmp_path / "old.pt"
    torch.save(making.small().state_dict(), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    system = data.index(b"}", 20)  # the third pickle, a dictionary about the system
    evil = pickle.dumps(making.RunsCommand(f"touch {trace}"), 2)
    end = data.index(b".", data.index(b"little_endian")) + 1
    assert data[system - 2 : system] == b"\x80\x02"
    path.write_bytes(data[: system - 2] + evil + data[end:])
    with pytest.raises(BadInput, match="system"):
        load(path, OPTIONS)
    assert not trace.exists()


def test_an_archive_that_two_readers_see_differently_is_refused(tmp_path: Path) -> None:
    from edgekit.checkpoint.sniff import sniff
    from edgekit.checkpoint.torch_file import check_reader

    torch.save({"w": torch.ones(3)}, tmp_path / "model.pt")
    head = sniff(tmp_path / "model.pt")
    check_reader(head)
    assert head.members
    other = {"w": torch.ones(4)}
    torch.save(other, tmp_path / "model.pt")
    with pytest.raises(BadInput, match="two different listings"):
        check_reader(head)
