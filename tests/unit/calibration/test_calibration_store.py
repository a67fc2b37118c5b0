"""Statistics: merging, refusals, the file that proves itself, and how stable the ranges are."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgekit.calibration import store
from edgekit.calibration.methods import METHODS
from edgekit.calibration.source import ArraySource, FileSource, open_source
from edgekit.calibration.stability import stability
from edgekit.calibration.statistics import Origin, Statistics, half_of
from edgekit.errors import BadInput, NoSpace
from edgekit.preprocess import Preprocess
from tests.disk import small_disk

CONTRACT = Preprocess(height=8, width=8)
ORIGIN = Origin(
    graph_sha256="a" * 64,
    preprocess=CONTRACT.to_json(),
    versions={"onnxruntime": "1.31.1", "calibrate": "1"},
    tensors=("input", "conv", "relu"),
    channels={"conv": 1},
)


def image(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def values_of(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    conv = rng.normal(0, 1 + number, (1, 4, 6, 6)).astype(np.float32)
    return {
        "input": rng.random((1, 3, 8, 8)).astype(np.float32),
        "conv": conv,
        "relu": np.maximum(conv, 0),
    }


def collected(numbers: list[int], origin: Origin = ORIGIN) -> Statistics:
    statistics = Statistics(origin)
    for number in numbers:
        statistics.add(image(number), f"{number}.jpg", values_of(number))
    return statistics


# --- merging ----------------------------------------------------------------------------------


def test_order_split_and_threads_give_the_same_bits(tmp_path: Path) -> None:
    numbers = list(range(12))
    reference = collected(numbers)
    digest = store.write(reference, tmp_path / "reference.npz")
    shuffler = random.Random(0)
    with ThreadPoolExecutor(3) as pool:
        for trial in range(8):
            shuffler.shuffle(numbers)
            cut = shuffler.randint(0, 12)
            one, two = Statistics(ORIGIN), Statistics(ORIGIN)
            for number in numbers:
                part = one if number < cut else two
                part.add(image(number), "", values_of(number), pool.map if trial % 2 else map)
            one.merge(two)
            assert one.same_as(reference)
            assert store.write(one, tmp_path / "other.npz") == digest
            assert (tmp_path / "other.npz").read_bytes() == (
                tmp_path / "reference.npz"
            ).read_bytes()


def test_halves_follow_the_hash_and_add_up() -> None:
    statistics = collected(list(range(10)))
    counts = [sum(half_of(image(n)) == half for n in range(10)) for half in (0, 1)]
    tensor = statistics.tensors["input"]
    assert [half.count for half in tensor.halves] == [192 * count for count in counts]
    assert tensor.histogram.count == 1920
    assert [half.count for half in tensor.halves] == [192 * count for count in counts]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"graph_sha256": "b" * 64}, "the graph"),
        ({"weights_sha256": "b" * 64}, "the weights"),
        ({"preprocess": CONTRACT.replace(color="bgr").to_json()}, "preprocessing color"),
        ({"preprocess": CONTRACT.replace(width=16).to_json()}, "preprocessing width"),
        ({"versions": {"onnxruntime": "1.30.0", "calibrate": "1"}}, "version of onnxruntime"),
        ({"tensors": ("input", "conv", "relu", "last")}, "observed tensors: 'last'"),
        ({"channels": {}}, "per-channel"),
    ],
)
def test_merging_other_origins_names_the_difference(change: dict[str, object], word: str) -> None:
    other = Statistics(dataclasses.replace(ORIGIN, **change))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=word):
        collected([1]).merge(other)


def test_merging_shared_images_is_refused() -> None:
    with pytest.raises(BadInput, match="1 images are in both"):
        collected([1, 2]).merge(collected([2, 3]))


def test_an_image_counts_once() -> None:
    statistics = collected([1])
    with pytest.raises(ValueError, match="added before"):
        statistics.add(image(1), "again", values_of(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error_that_names_tensor_and_image(bad: float) -> None:
    values = values_of(3)
    values["relu"] = values["relu"].copy()
    values["relu"][0, 1, 2, 3] = bad
    values["conv"] = values["conv"].copy()
    values["conv"][0, 0, 0, :2] = bad
    with pytest.raises(BadInput, match=r"'conv' has 2 (NaN|infinite) of 144 values for .* 3\.jpg"):
        Statistics(ORIGIN).add(image(3), "3.jpg", values)


# --- the file ---------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    statistics = collected([1, 2, 3])
    statistics.skip(image(9), "The image café \udcff.jpg is truncated.")
    for compress in (True, False):
        path = tmp_path / f"{compress}.npz"
        digest = store.write(statistics, path, compress=compress)
        again, read_digest = store.read(path)
        assert again.same_as(statistics)
        assert again.skipped == statistics.skipped
        assert again.images == statistics.images
        assert digest == read_digest == store.content_sha256(statistics)
        again.merge(collected([4]))
        direct = collected([4, 3, 2, 1])
        assert again.histogram("conv").same_as(direct.histogram("conv"))


def test_numpy_reads_the_file_without_pickles(tmp_path: Path) -> None:
    store.write(collected([1]), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        meta = json.loads(bytes(archive["meta"]))
        assert meta["format"] == "edgekit-calibration"
        assert archive["counts"].sum() == 192 + 144 + 144


def test_empty_statistics_survive(tmp_path: Path) -> None:
    store.write(Statistics(ORIGIN), tmp_path / "a.npz")
    again, _ = store.read(tmp_path / "a.npz")
    assert again.same_as(Statistics(ORIGIN))


def test_every_cut_and_many_flips_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    store.write(collected([1]), path)
    good = path.read_bytes()
    shuffler = random.Random(1)
    for length in [0, 1, 3, 30, *(shuffler.randrange(len(good)) for _ in range(40))]:
        path.write_bytes(good[:length])
        with pytest.raises(BadInput) as error:
            store.read(path)
        assert error.value.hint
    reference = store.content_sha256(collected([1]))
    for _ in range(300):
        flipped = bytearray(good)
        flipped[shuffler.randrange(len(good))] ^= 1 << shuffler.randrange(8)
        path.write_bytes(bytes(flipped))
        try:
            found, digest = store.read(path)
        except BadInput:
            continue
        # a flip in a part of the zip that carries nothing, a time stamp say
        assert digest == reference
        assert found.same_as(collected([1]))


def repacked(path: Path, **members: np.ndarray) -> None:
    """Rewrite members and make the hash right again: what is wrong then is the content."""
    with np.load(path) as archive:
        all_members = {**{name: archive[name] for name in archive.files}, **members}
    digest = hashlib.sha256()
    for name in ("meta", "counts", "channel_minimum", "channel_maximum"):
        data = np.ascontiguousarray(all_members[name])
        digest.update(f"{name}:{data.nbytes};".encode() + data.tobytes())
    all_members["sha256"] = np.frombuffer(digest.hexdigest().encode(), np.uint8)
    np.savez(path, **all_members)


def changed_meta(path: Path, **changes: object) -> np.ndarray:
    with np.load(path) as archive:
        meta = json.loads(bytes(archive["meta"]))
    first = meta["tensors"][0]["halves"]
    for key, value in changes.items():
        if key in meta:
            meta[key] = value
        else:
            for half in first:
                half[key] = value
    return np.frombuffer(json.dumps(meta).encode(), np.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "something else"},
        {"exponent": 100_000_000},
        {"exponent": -500},
        {"first": -1},
        {"first": 8192},
        {"bins": 10**9},
        {"bins": -3},
        {"count": 7},
        {"minimum": "soup"},
        {"sum": 3},
        {"tensors": {"no": "list"}},
        {"tensors": [{}]},
        {"images": None},
        {"versions": ["x"]},
    ],
)
def test_content_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "a.npz"
    store.write(collected([1, 2, 3, 4]), path)
    repacked(path, meta=changed_meta(path, **changes))
    with pytest.raises(BadInput, match="damaged or incomplete"):
        store.read(path)


def test_arrays_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for counts in (np.zeros(5), np.zeros((3, 4), np.int64), np.zeros(10**6, np.int64)):
        store.write(collected([1]), path)
        repacked(path, counts=counts)
        with pytest.raises(BadInput, match="damaged or incomplete"):
            store.read(path)


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    store.write(collected([1]), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": (1 << 50,)}
    )
    members["counts.npy"] = header.getvalue() + b"\0" * 64
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(BadInput, match="64 bytes for 1125899906842624 values"):
        store.read(path)


def test_a_newer_schema_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    store.write(collected([1]), path)
    repacked(path, meta=changed_meta(path, schema=99))
    with pytest.raises(BadInput, match="schema 99, this edgekit reads 1"):
        store.read(path)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        store.read(tmp_path / "none.npz")
    with pytest.raises(BadInput, match="cannot be read"):
        store.read(tmp_path)
    foreign = tmp_path / "images.npz"
    np.savez(foreign, images=np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(BadInput, match="not one of edgekit's calibrations"):
        store.read(foreign)
    foreign.write_bytes(b"just some bytes")
    with pytest.raises(BadInput, match="is not a calibration file"):
        store.read(foreign)
    # pickled objects inside are never opened
    np.savez(foreign, meta=np.array([{"a": 1}], object), sha256=np.zeros(64, np.uint8))
    with pytest.raises(BadInput):
        store.read(foreign)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    store.write(collected([1]), path)
    good = path.read_bytes()

    def failing(file: object, **arrays: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", failing)
    with pytest.raises(KeyboardInterrupt):
        store.write(collected([2]), path)
    assert path.read_bytes() == good
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


# --- images -----------------------------------------------------------------------------------


def test_arrays_of_images_are_a_source(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "rgb.npz", images=pixels, labels=np.arange(3))
    np.savez(tmp_path / "grey.npz", images=pixels[..., :1])
    source = open_source(tmp_path / "rgb.npz")
    assert isinstance(source, ArraySource)
    assert len(source) == 3
    digest, first = source.read(1)
    assert np.array_equal(first, pixels[1])
    assert digest == source.fingerprint(1) != source.fingerprint(2)
    grey = open_source([tmp_path / "grey.npz"])
    assert np.array_equal(grey.read(0)[1], np.repeat(pixels[0][..., :1], 3, axis=2))
    np.savez(tmp_path / "wrong.npz", images=pixels.astype(np.float32))
    for name in ("wrong.npz", "none.npz"):
        with pytest.raises(BadInput):
            len(open_source(tmp_path / name))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "rgb.npz").read_bytes()[:100])
    with pytest.raises(BadInput, match=r"not an \.npz of images"):
        len(open_source(tmp_path / "cut.npz"))


def test_files_are_a_source(tmp_path: Path) -> None:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[:, :, ::-1])
    source = open_source(tmp_path)
    assert isinstance(source, FileSource)
    digest, found = source.read(0)
    assert np.array_equal(found, pixels)
    assert digest == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert digest == source.fingerprint(0)
    with pytest.raises(BadInput, match="no calibration images"):
        open_source([])


# --- stability --------------------------------------------------------------------------------


def spread_statistics(images: int, spread: float) -> Statistics:
    """Every image has its own scale, drawn with the given relative spread."""
    origin = Origin(graph_sha256="g", preprocess="{}", versions={}, tensors=("a", "b"))
    statistics = Statistics(origin)
    for number in range(images):
        rng = np.random.default_rng(number)
        scale = np.exp(spread * rng.normal())
        noise = rng.normal(0, scale, 4000).astype(np.float32)
        statistics.add(image(number), "", {"a": noise, "b": np.abs(noise)})
    return statistics


def test_equal_images_need_no_more_and_different_ones_do() -> None:
    steady = stability(spread_statistics(32, 0.0), "percentile=99.9", symmetric=False)
    assert steady.warning == ""
    assert steady.p90 < 0.03
    assert steady.needed_images is not None and steady.needed_images <= 32
    wild = stability(spread_statistics(32, 1.5), "percentile=99.9", symmetric=False)
    assert wild.p90 > steady.p90
    assert wild.needed_images is not None and wild.needed_images > 32
    assert "more images would bring" in wild.warning
    assert wild.worst[0][0] in ("a", "b")
    assert wild.halves[0] + wild.halves[1] == 32


@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_is_near_the_error_against_many_images(method: str) -> None:
    few = stability(spread_statistics(64, 0.6), method, symmetric=True)
    many = spread_statistics(600, 0.6)
    truth = METHODS[method](many.histogram("a"), symmetric=True, levels=256)
    found = METHODS[method](spread_statistics(64, 0.6).histogram("a"), symmetric=True, levels=256)
    error = abs(found.high - truth.high) / truth.high
    # an estimate of a standard error from one difference: right within a small factor
    assert few.p90 < 5 * error + 0.1
    assert error < 5 * few.p90 + 0.35


def test_too_few_images_are_said_to_be_too_few() -> None:
    for images in (1, 4):
        found = stability(spread_statistics(images, 0.1), "minmax", symmetric=False)
        assert "use 32 or more" in found.warning
        assert found.needed_images is None


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    names = tuple(f"t{number}" for number in range(80))
    statistics = Statistics(dataclasses.replace(ORIGIN, tensors=names, channels={}))
    values = np.random.default_rng(0).uniform(-1, 1, 60_000).astype(np.float32)
    statistics.add(image(1), "", dict.fromkeys(names, values))
    with small_disk(tmp_path / "disk") as disk:
        with disk.full(), pytest.raises(NoSpace):
            store.write(statistics, disk.folder / "a.npz", compress=False)
        assert list(disk.folder.iterdir()) == []
