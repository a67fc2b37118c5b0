"""The board and the host accept the same manifests, and the same files made on the board."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit import bundle
from edgekit import integrity as host_integrity
from edgekit import manifest as host
from edgekit.board import built, integrity, manifest
from edgekit.board.cpu import detect
from edgekit.board.errors import BadInput, DeviceError, NoSpace
from edgekit.cpu import detect as host_detect
from edgekit.errors import EdgekitError
from edgekit.manifest_json import cpu_text
from edgekit.onnx_file import describe
from tests.bundles import contents
from tests.disk import SmallDisk, small_disk


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    bundle.write(folder / "small", contents(folder / "parts"))
    return folder / "small"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "small"))


def _accepted(read: Callable[[Path], object], folder: Path) -> bool:
    try:
        read(folder)
    except (EdgekitError, DeviceError):
        return False
    return True


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from _places(item, (*path, key))


_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 1.5, 1e300, 1 << 70, "", "x", "../x", "built/x", "nchw", [], {},
    [1], ["x"], [[0, 1, 1]], [[[0, 1, 1]]], {"x": 1}, [{}], [None], [0.5, 0.5, 0.5], [0, 0, 0], ["1"],
]  # fmt: skip


def test_both_accept_the_same_manifests(folder: Path) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    generator = random.Random(8)
    places = list(_places(value))
    accepted = 0
    for number in range(600):
        changed = copy.deepcopy(value)
        path = generator.choice(places)
        target = changed
        for key in path[:-1]:
            target = target[key]
        if number % 5 == 0 and isinstance(target, dict):
            del target[path[-1]]
        elif number % 7 == 0 and isinstance(target, dict):
            target[f"{path[-1]}x"] = target.pop(path[-1])
        else:
            target[path[-1]] = generator.choice(_VALUES)
        (folder / "manifest.json").write_text(json.dumps(changed))
        both = (_accepted(host.read_manifest, folder), _accepted(manifest.read_manifest, folder))
        assert both[0] == both[1], (
            path,
            both,
            target.get(path[-1]) if isinstance(target, dict) else target,
        )
        accepted += both[0]
    assert 80 < accepted < 560


@pytest.mark.parametrize(
    "name", ["built/engine", "Built/x", "a/../b", "/x", "C:x", "a b", "-x", "x" * 201]
)
def test_both_refuse_the_same_paths(folder: Path, name: str) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    value["files"][name] = value["files"].pop("tables/conv.txt")
    (folder / "manifest.json").write_text(json.dumps(value))
    for read in (host.read_manifest, manifest.read_manifest):
        with pytest.raises((EdgekitError, DeviceError), match="the path"):
            read(folder)


def test_onnx_metadata_is_read_without_onnx(original: Path, tmp_path: Path) -> None:
    path = original / "onnxruntime/model.onnx"
    assert integrity.onnx_metadata(path) == describe(path).metadata
    data = path.read_bytes()
    refused = 0
    for cut in range(0, len(data), 7):
        (tmp_path / "x.onnx").write_bytes(data[:cut])
        try:
            integrity.onnx_metadata(tmp_path / "x.onnx")
        except BadInput:
            refused += 1
    assert refused > len(data) // 7 * 0.9
    generator = random.Random(2)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(4):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        (tmp_path / "x.onnx").write_bytes(changed)
        try:
            integrity.onnx_metadata(tmp_path / "x.onnx")
        except BadInput:
            continue


def test_the_cpu_is_the_hosts() -> None:
    wanted = host_detect()
    found = detect()
    assert (found.arch, found.model, found.isa, found.cores) == (
        wanted.arch,
        wanted.model,
        wanted.isa,
        wanted.cores,
    )
    assert found.text == cpu_text(wanted.arch, wanted.isa)


def _add(folder: Path, name: str = "model.engine", data: bytes = b"engine") -> Path:
    return built.add(
        manifest.read_manifest(folder),
        name,
        data,
        made_from=["onnxruntime/model.onnx"],
        device={"gpu": "Orin", "sm": "8.7"},
        versions={"tensorrt": "10.3.0"},
        flags=["fp16"],
    )


def test_what_is_made_on_the_board_says_what_it_is(folder: Path) -> None:
    assert built.problems(manifest.read_manifest(folder)) == []
    path = _add(folder)
    assert path.read_bytes() == b"engine"
    sidecar = built.read_sidecar(folder, "model.engine")
    assert (sidecar["device"]["sm"], sidecar["flags"], sidecar["size"]) == ("8.7", ["fp16"], 6)
    source = manifest.read_manifest(folder).files["onnxruntime/model.onnx"].sha256
    assert sidecar["from"] == {"onnxruntime/model.onnx": source}
    _add(folder, data=b"another")
    assert built.problems(manifest.read_manifest(folder)) == []
    assert sorted(p.name for p in (folder / "built").iterdir()) == [
        "model.engine",
        "model.engine.json",
    ]
    for name in ("../x", "a/b", "x.json", "", "-x"):
        with pytest.raises(ValueError, match="cannot be a file"):
            _add(folder, name)


def _edit(**values: Any) -> Callable[[Path], object]:
    def change(place: Path) -> None:
        path = place / "model.engine.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place: (place / "model.engine").write_bytes(b"enginE"), "has changed"),
        (lambda place: (place / "model.engine").write_bytes(b""), "0 bytes, not 6"),
        (lambda place: (place / "model.engine").unlink(), "belongs to no file"),
        (lambda place: (place / "model.engine.json").unlink(), "has no sidecar"),
        (lambda place: (place / "model.engine.json").write_text("{"), "is not JSON"),
        (lambda place: (place / "model.engine.json").write_text("[]"), "does not describe"),
        (lambda place: (place / "cache").write_bytes(b""), "has no sidecar"),
        (lambda place: (place / "folder").mkdir(), "is not a plain file"),
        (lambda place: (place / "link").symlink_to("/etc/passwd"), "is not a plain file"),
        (lambda place: (place / "a b").write_bytes(b""), "is not a name"),
        (_edit(schema=2), "schema 2"),
        (_edit(sha256="0"), "gives no sha256"),
        (_edit(size=True), "gives no size"),
        (_edit(**{"from": {"onnxruntime/model.onnx": "0" * 64}}), "build again"),
        (_edit(**{"from": {"gone.onnx": "0" * 64}}), "build again"),
        (_edit(**{"from": 3}), "'from' must be an object"),
    ],
)
def test_what_is_wrong_there_is_named(
    folder: Path, change: Callable[[Path], object], words: str
) -> None:
    _add(folder)
    change(folder / "built")
    found = built.problems(manifest.read_manifest(folder))
    assert len(found) == 1
    assert words in found[0]


def test_a_link_in_place_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "built").symlink_to(tmp_path / "elsewhere")
    assert built.problems(manifest.read_manifest(folder)) == ["built is a link"]
    assert integrity.unlisted(manifest.read_manifest(folder)) == ["built"]
    assert host_integrity.unlisted(host.read_manifest(folder)) == ["built"]


def test_a_full_disk_leaves_what_was_there(folder: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        place = Path(shutil.copytree(folder, disk.folder / "small"))
        _add(place)
        _fill(disk, place)
        assert built.problems(manifest.read_manifest(place)) in (
            [],
            ["built/model.engine has no sidecar model.engine.json: nothing says what it is"],
        )
        assert not [path for path in (place / "built").iterdir() if path.name.startswith(".")]


def _fill(disk: SmallDisk, place: Path) -> None:
    with disk.full(), pytest.raises(NoSpace):
        _add(place, data=bytes(disk.too_much))


def test_a_folder_that_cannot_be_written_to(folder: Path) -> None:
    if os.geteuid() == 0:
        (folder / "built").write_text("in the way")
    else:
        folder.chmod(0o555)
    with pytest.raises(BadInput, match="Cannot write"):
        _add(folder)
