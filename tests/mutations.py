"""Mutations of checkpoint files: bytes, pickle instructions, JSON values, ONNX fields, zip members."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import struct
import zipfile
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535, 1 << 20, (1 << 31) - 1, -(1 << 31))
LARGE = (1 << 31, 1 << 32, (1 << 63) - 1, -(1 << 63), 1 << 64)


# --- mutations of bytes -----------------------------------------------------------------------


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled or zeroed."""
    if not data:
        return bytes([rng.randrange(256)])
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out)) if out else 0
        length = min(len(out) - at, rng.choice((1, 2, 4, 8, 64, 512)))
        way = rng.randrange(6)
        if way == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif way == 1 and out:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif way == 2:
            del out[at : at + length]
        elif way == 3:
            out[at:at] = out[at : at + length]
        elif way == 4:
            out[at : at + length] = bytes(length)
        else:
            del out[at + length :]
    return bytes(out)


# --- mutations of pickles ---------------------------------------------------------------------


def opcodes(data: bytes) -> list[bytes]:
    """The pickle cut into its instructions."""
    starts = [position for _, _, position in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def _changed_instruction(code: bytes, codes: list[bytes], rng: random.Random) -> bytes:
    kind = code[:1]
    if kind == b"K":
        return b"K" + bytes([rng.choice((0, 1, 2, 255, rng.randrange(256)))])
    if kind == b"M":
        return b"M" + struct.pack("<H", rng.choice((0, 1, 65535, rng.randrange(65536))))
    if kind == b"J":
        return b"J" + struct.pack("<i", rng.choice(NUMBERS))
    if kind == b"\x8a":
        value = rng.choice((*NUMBERS, *LARGE))
        raw = value.to_bytes(9, "little", signed=True) if abs(value) < 1 << 70 else b"\x00"
        return b"\x8a" + bytes([len(raw)]) + raw
    if kind == b"G":
        return b"G" + struct.pack(">d", rng.choice((0.0, -1.0, 1e308, float("nan"), float("inf"))))
    if kind == b"X":
        others = [c for c in codes if c[:1] == b"X"]
        text = rng.choice((b"", b"\xff\xfe", b"a" * 300, b"weight", change_bytes(code[5:], rng)))
        return rng.choice((rng.choice(others), b"X" + struct.pack("<I", len(text)) + text))
    if kind == b"c":
        others = [c for c in codes if c[:1] == b"c"]
        return rng.choice(
            (rng.choice(others), b"ctorch.nn.modules.conv\nConv2d\n", b"cos\nsystem\n")
        )
    if kind in b"q":
        return b"q" + bytes([rng.randrange(256)])
    if kind in b"h":
        return b"h" + bytes([rng.randrange(256)])
    return rng.choice(
        (b"N", b"}", b"]", b")", b"(", b"0", b"2", b"K\x00", b"\x88", b"\x89", b"R", b"b", b"\x81", b"t",
         b"s", b"u", b"a", b"e", b"\x85", b"\x86", b"\x87", b"Q", b"\x8f", b".")
    )  # fmt: skip


def change_pickle(data: bytes, rng: random.Random) -> bytes:
    """Instructions changed, dropped, doubled, moved, or replaced by others of the same pickle."""
    try:
        codes = opcodes(data)
    except ValueError:
        return change_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(codes))
        way = rng.randrange(7)
        if way <= 2:
            codes[at] = _changed_instruction(codes[at], codes, rng)
        elif way == 3:
            del codes[at : at + rng.choice((1, 1, 2, 5))]
        elif way == 4:
            codes[at:at] = codes[at : at + rng.choice((1, 2, 5))]
        elif way == 5:
            other = rng.randrange(len(codes))
            codes[at], codes[other] = codes[other], codes[at]
        else:
            codes[at] = rng.choice(codes)
        if not codes:
            codes = [b"N", b"."]
    return b"".join(codes)


# --- mutations of JSON, protobuf and source -----------------------------------------------------


def _json_values(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    paths = [path] if path else []
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            paths += _json_values(item, (*path, key))
    return paths


def _strange(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return rng.choice((not value, None, 1))
    if isinstance(value, int):
        return rng.choice((*NUMBERS, *LARGE, value + 1, value - 1, None, "x", [], 1.5))
    if isinstance(value, str):
        return rng.choice(
            ("", "x", value + "_", value[:-1], "torch.os.system", None, 3, "../" + value)
        )
    return rng.choice((None, [], {}, 0, "x", [value], {"as_int": 3}, True))


def change_json(data: bytes, rng: random.Random) -> bytes:
    """Values replaced, removed, doubled or exchanged."""
    try:
        value = json.loads(data)
    except ValueError:
        return change_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        paths = _json_values(value)
        if not paths:
            break
        *way, last = rng.choice(paths)
        owner = value
        for key in way:
            owner = owner[key]
        action = rng.randrange(4)
        if action <= 1:
            owner[last] = _strange(owner[last], rng)
        elif action == 2:
            del owner[last]
        else:
            *other, end = rng.choice(paths)
            source = value
            for key in other:
                source = source[key]
            owner[last] = copy.deepcopy(source[end])
    return json.dumps(value).encode()


def change_source(data: bytes, rng: random.Random) -> bytes:
    """Words of a TorchScript source exchanged, dropped or doubled."""
    lines = data.decode("utf-8", "ignore").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        words = lines[at].split(" ")
        word = rng.randrange(len(words))
        action = rng.randrange(4)
        if action == 0:
            words[word] = rng.choice(" ".join(lines).split(" "))
        elif action == 1:
            del words[word]
        elif action == 2:
            words[word] = rng.choice(
                ("None", "0", "[", "(", "-1", "99999999999999999999", "torch.foo(x)")
            )
        else:
            lines[at:at] = [rng.choice(lines)]
            continue
        lines[at] = " ".join(words)
    return "\n".join(lines).encode()


def _messages(message: Any) -> list[Any]:
    """`message` and every message inside of it."""
    found = [message]
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            inner = [value] if hasattr(value, "ListFields") else list(value)
            for item in inner:
                if hasattr(item, "ListFields"):
                    found += _messages(item)
    return found


def _change_field(message: Any, rng: random.Random) -> None:
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    repeated = not isinstance(value, (int, float, str, bytes)) and not hasattr(value, "ListFields")
    if rng.random() < 0.2 or field.type == field.TYPE_MESSAGE:
        if not repeated or not len(value):
            message.ClearField(field.name)
        elif rng.random() < 0.5:
            del value[rng.randrange(len(value))]
        elif field.type == field.TYPE_MESSAGE:
            value.add().CopyFrom(value[rng.randrange(len(value))])
        return
    old = value[rng.randrange(len(value))] if repeated and len(value) else value
    if isinstance(old, (bool, int)):
        new: Any = rng.choice((*NUMBERS, int(old) + 1, int(old) - 1))
    elif isinstance(old, float):
        new = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    elif isinstance(old, str):
        new = rng.choice(("", "x", old + "x", "../../etc/passwd", "Loop", "If", "Conv"))
    elif isinstance(old, bytes):
        new = change_bytes(old, rng)
    else:
        return
    if repeated:
        value[rng.randrange(len(value))] = new
    else:
        setattr(message, field.name, new)


def change_onnx(data: bytes, rng: random.Random) -> bytes:
    """Fields of the parsed model changed, cleared, doubled."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        try:
            _change_field(rng.choice(_messages(model)), rng)
        except (ValueError, TypeError):
            continue  # a value that protobuf itself does not take
    return bytes(model.SerializeToString())


# --- containers ---------------------------------------------------------------------------------


def change_member(name: str, data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.15:
        return change_bytes(data, rng)
    if name.endswith((".pkl", "debug_pkl")):
        return change_pickle(data, rng)
    if name.endswith(".json"):
        return change_json(data, rng)
    if name.endswith(".py"):
        return change_source(data, rng)
    return change_bytes(data, rng)


def change_zip(data: bytes, rng: random.Random) -> bytes:
    """A valid zip with one or two members changed, dropped, renamed or exchanged."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    speaking = [n for n in members if n.endswith((".pkl", ".json", ".py"))]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(speaking if rng.random() < 0.85 else list(members))
        if name not in members:
            continue
        action = rng.random()
        if action < 0.9:
            members[name] = change_member(name, members[name], rng)
        elif action < 0.93:
            del members[name]
        elif action < 0.96:
            members[name + "x"] = members.pop(name)
        else:
            members[name] = members[rng.choice(list(members))]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def change_legacy(data: bytes, rng: random.Random) -> bytes:
    """One of the five pickles of torch's old format changed, or the storages behind them."""
    pieces, position = [], 0
    for _ in range(5):
        stream = io.BytesIO(data[position:])
        for _ in pickletools.genops(stream):
            pass
        pieces.append(data[position : position + stream.tell()])
        position += stream.tell()
    pieces.append(data[position:])
    at = rng.choice((0, 1, 2, 3, 3, 3, 3, 3, 3, 4, 4, 5))
    pieces[at] = (change_bytes if at == 5 else change_pickle)(pieces[at], rng)
    return b"".join(pieces)


def change_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header changed, with its length corrected."""
    length = int.from_bytes(data[:8], "little")
    header = change_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
