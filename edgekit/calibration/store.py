"""Statistics on disk: one .npz without pickles that says what it is and proves that it is whole.

Members (numpy's .npy in a zip):

- meta      uint8: JSON (UTF-8, sorted keys) with format, schema, origin, images, skipped and, per
            tensor, what is not an array
- counts    int64: for every tensor and half the used stretch of bins, one after the other
- channel_minimum, channel_maximum float32: the channels of the tensors that have them
- sha256    uint8: hex sha256 over the members above, the identity of the content

The same statistics give the same content hash wherever and in whatever order they were collected,
and the same file with the same zlib.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.atomic import replacing
from edgekit.calibration.channels import ChannelStatistics
from edgekit.calibration.histogram import BINS, MIN_EXPONENT, Histogram
from edgekit.calibration.statistics import Origin, Statistics, TensorStatistics
from edgekit.errors import BadInput

FORMAT = "edgekit-calibration"
SCHEMA = 1

_ARRAYS = {"counts": np.int64, "channel_minimum": np.float32, "channel_maximum": np.float32}
_MAX_MEMBER_BYTES = 1 << 30
_MAX_EXPONENT = 128

_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
)
"""What zipfile, zlib, numpy and our own reading raise on bytes that are not what they should be."""


def _half(histogram: Histogram) -> tuple[dict[str, Any], NDArray[np.int64]]:
    used = np.flatnonzero(histogram.counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
    fields = {
        "exponent": histogram.exponent,
        "first": first,
        "bins": last - first,
        "minimum": float(histogram.minimum).hex() if histogram.count else None,
        "maximum": float(histogram.maximum).hex() if histogram.count else None,
        "count": histogram.count,
        "sum": hex(histogram.sum_units),
        "nan": histogram.nan_count,
        "inf": histogram.inf_count,
    }
    return fields, histogram.counts[first:last]


def _pack(statistics: Statistics) -> dict[str, NDArray[Any]]:
    """The members of the file, in order, without the hash."""
    tensors: list[dict[str, Any]] = []
    counts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    low: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    high: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    for name, tensor in statistics.tensors.items():
        entry: dict[str, Any] = {"name": name, "halves": []}
        for histogram in tensor.halves:
            fields, used = _half(histogram)
            entry["halves"].append(fields)
            counts.append(used)
        if tensor.channels is not None:
            entry["channels"] = {
                "axis": tensor.channels.axis,
                "channels": tensor.channels.channels,
                "count": tensor.channels.count,
                "sums": [hex(int(units)) for units in tensor.channels.sum_units],
            }
            low.append(tensor.channels.minimum)
            high.append(tensor.channels.maximum)
        tensors.append(entry)
    origin = statistics.origin
    meta = {
        "format": FORMAT,
        "schema": SCHEMA,
        "histogram_bins": BINS,
        "graph_sha256": origin.graph_sha256,
        "weights_sha256": origin.weights_sha256,
        "preprocess": origin.preprocess,
        "versions": dict(origin.versions),
        "images": list(statistics.images),
        "skipped": dict(statistics.skipped),
        "tensors": tensors,
    }
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return {
        "meta": np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8),
        "counts": np.concatenate(counts),
        "channel_minimum": np.concatenate(low),
        "channel_maximum": np.concatenate(high),
    }


def _content_hash(members: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in ("meta", *_ARRAYS):
        # little-endian on every machine
        data = np.ascontiguousarray(members[name], members[name].dtype.newbyteorder("<"))
        digest.update(f"{name}:{data.nbytes};".encode())
        digest.update(data.data if data.size else b"")
    return digest.hexdigest()


def content_sha256(statistics: Statistics) -> str:
    """Hex sha256 of the content: equal statistics have equal hashes."""
    return _content_hash(_pack(statistics))


def write(statistics: Statistics, path: Path, *, compress: bool = True) -> str:
    """Write `statistics` to `path` atomically; returns the content's sha256.

    `compress` False trades size for speed: for what an interrupted run leaves behind.
    """
    members = _pack(statistics)
    digest = _content_hash(members)
    members["sha256"] = np.frombuffer(digest.encode("ascii"), np.uint8)
    save = np.savez_compressed if compress else np.savez
    with replacing(path) as temporary, open(temporary, "wb") as file:
        save(file, allow_pickle=False, **members)
    return digest


def read(path: Path) -> tuple[Statistics, str]:
    """Read statistics and their content's sha256.

    Raises BadInput for what is missing, damaged, foreign or of a newer schema. Nothing in the file
    is run, and its sizes are checked before they are believed.
    """
    path = Path(path)
    try:
        members = _members(path)
        digest = bytes(members["sha256"]).decode("ascii")
        if digest != _content_hash(members):
            raise ValueError("its sha256 does not match its content")
        return _unpack(members), digest
    except FileNotFoundError as error:
        raise BadInput(
            f"The calibration {path} does not exist.", hint="Collect it with `edgekit calibrate`."
        ) from error
    except OSError as error:
        raise BadInput(
            f"The calibration {path} cannot be read: {error.strerror or error}."
        ) from error
    except _DAMAGED as error:
        raise BadInput(
            f"The calibration {path} is damaged or incomplete: {_words(error)}.",
            hint="Collect it again with `edgekit calibrate`.",
        ) from error


def _words(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{text} is missing" if isinstance(error, KeyError) else text.rstrip(".")


def _members(path: Path) -> dict[str, NDArray[Any]]:
    with open(path, "rb") as file:
        head = file.read(4)
        if not zipfile.is_zipfile(file):
            raise BadInput(
                f"{path} is not a calibration file"
                + (", or is cut off." if head == b"PK\x03\x04" else "."),
                hint="Give an .npz that `edgekit calibrate` wrote; collect it again if it was one.",
            )
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if "meta.npy" not in entries or "sha256.npy" not in entries:
            raise BadInput(
                f"{path} is an .npz, but not one of edgekit's calibrations.",
                hint="Give a file that `edgekit calibrate` wrote.",
            )
        members = {}
        for name in ("meta", *_ARRAYS, "sha256"):
            info = entries[f"{name}.npy"]
            if info.file_size > _MAX_MEMBER_BYTES:
                raise ValueError(f"{name} is too large ({info.file_size} bytes)")
            members[name] = _array(archive.read(info), _ARRAYS.get(name, np.uint8), name)
    return members


def _array(data: bytes, dtype: type[Any], name: str) -> NDArray[Any]:
    """A one-dimensional .npy from bytes; its header must agree with their number."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name} has .npy version {version}")
    shape, _, stored = np.lib.format.read_array_header_1_0(stream)
    body = data[stream.tell() :]
    if stored.newbyteorder("=") != np.dtype(dtype) or len(shape) != 1:
        raise ValueError(f"{name} is {stored} {list(shape)}")
    if shape[0] * stored.itemsize != len(body):
        raise ValueError(f"{name} has {len(body)} bytes for {shape[0]} values")
    return np.frombuffer(body, stored).astype(dtype)


class _Reader:
    """Hands out the next stretch of a concatenated array."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array, self._at = array, 0

    def take(self, size: int) -> NDArray[Any]:
        if size < 0 or self._at + size > self._array.size:
            raise ValueError("an array is too short")
        self._at += size
        stretch: NDArray[Any] = self._array[self._at - size : self._at].copy()
        return stretch

    def end(self) -> None:
        if self._at != self._array.size:
            raise ValueError("an array is too long")


def _unpack(members: Mapping[str, NDArray[Any]]) -> Statistics:
    meta = json.loads(bytes(members["meta"]).decode("utf-8", "surrogateescape"))
    if meta["format"] != FORMAT:
        raise ValueError(f"its format is {meta['format']!r}")
    if meta["schema"] != SCHEMA or meta["histogram_bins"] != BINS:
        raise BadInput(
            f"The calibration has schema {meta['schema']}, this edgekit reads {SCHEMA}.",
            hint="Collect it again, or use the edgekit version that wrote it.",
        )
    entries: Sequence[Mapping[str, Any]] = meta["tensors"]
    statistics = Statistics(
        Origin(
            graph_sha256=str(meta["graph_sha256"]),
            weights_sha256=str(meta["weights_sha256"]),
            preprocess=str(meta["preprocess"]),
            versions={str(k): str(v) for k, v in meta["versions"].items()},
            tensors=tuple(str(entry["name"]) for entry in entries),
            channels={
                str(entry["name"]): int(entry["channels"]["axis"])
                for entry in entries
                if "channels" in entry
            },
        )
    )
    if len(statistics.tensors) != len(entries):
        raise ValueError("a tensor stands twice in it")
    counts = _Reader(members["counts"])
    low, high = _Reader(members["channel_minimum"]), _Reader(members["channel_maximum"])
    for entry in entries:
        first, second = entry["halves"]
        channels = entry.get("channels")
        statistics.tensors[entry["name"]] = TensorStatistics(
            halves=(_histogram(first, counts), _histogram(second, counts)),
            channels=None if channels is None else _channels(channels, low, high),
        )
    for reader in (counts, low, high):
        reader.end()
    statistics.restore_images(str(image) for image in meta["images"])
    for image, reason in meta["skipped"].items():
        statistics.skip(str(image), str(reason))
    return statistics


def _histogram(fields: Mapping[str, Any], counts: _Reader) -> Histogram:
    first, bins, exponent = int(fields["first"]), int(fields["bins"]), int(fields["exponent"])
    if not (0 <= first <= first + bins <= BINS and MIN_EXPONENT <= exponent <= _MAX_EXPONENT):
        raise ValueError("a histogram lies outside its range")
    histogram = Histogram(exponent=exponent, count=int(fields["count"]))
    histogram.counts[first : first + bins] = counts.take(bins)
    if histogram.count:
        histogram.minimum = float.fromhex(fields["minimum"])
        histogram.maximum = float.fromhex(fields["maximum"])
    if int(histogram.counts.sum()) != histogram.count or (histogram.counts < 0).any():
        raise ValueError("the counts of a histogram do not add up")
    histogram.sum_units = int(fields["sum"], 16)
    histogram.nan_count, histogram.inf_count = int(fields["nan"]), int(fields["inf"])
    return histogram


def _channels(fields: Mapping[str, Any], low: _Reader, high: _Reader) -> ChannelStatistics:
    size = int(fields["channels"])
    sums = np.empty(size, object)
    if len(fields["sums"]) != size:
        raise ValueError("the sums of a tensor's channels are not complete")
    sums[:] = [int(text, 16) for text in fields["sums"]]
    return ChannelStatistics(
        axis=int(fields["axis"]),
        minimum=low.take(size),
        maximum=high.take(size),
        count=int(fields["count"]),
        sum_units=sums,
    )
