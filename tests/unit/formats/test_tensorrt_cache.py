"""The calibration cache: exact bits, and clear refusals of what TensorRT would not take."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BadInput
from edgekit.formats import tensorrt_cache
from edgekit.formats.tensorrt_cache import ENTROPY, MINMAX, CalibrationCache


def test_a_cache_reads_as_tensorrt_writes_it() -> None:
    # header and rows of a cache that TensorRT 8.5 wrote for a network with an input named "data"
    text = "TRT-8503-EntropyCalibration2\ndata: 3c010a14\n(Unnamed Layer* 1) [Convolution]_output: 3dd6c1f2\n"
    cache = tensorrt_cache.parse(text)
    assert (cache.version, cache.algorithm) == ("8503", ENTROPY)
    assert list(cache.scales) == ["data", "(Unnamed Layer* 1) [Convolution]_output"]
    assert cache.scales["data"] == pytest.approx(1.0 / 127, rel=1e-3)
    assert tensorrt_cache.text_of(cache) == text


def test_every_float32_survives_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(1, 0x7F7FFFFF, 500, dtype=np.uint32)
    scales = {f"t:{i}: x": float(value) for i, value in enumerate(bits.view(np.float32))}
    cache = CalibrationCache(algorithm=MINMAX, scales=scales)
    tensorrt_cache.write(cache, tmp_path / "a.cache")
    back = tensorrt_cache.read(tmp_path / "a.cache")
    assert back.algorithm == MINMAX and list(back.scales) == list(scales)
    found = np.array(list(back.scales.values()), np.float32).view(np.uint32)
    assert np.array_equal(found, bits)


def test_the_bits_are_big_endian() -> None:
    assert tensorrt_cache.scale_bits(1.0) == "3f800000"
    assert bytes.fromhex(tensorrt_cache.scale_bits(0.1)) == struct.pack(">f", 0.1)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-60])
def test_what_is_no_scale_is_not_written(scale: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        tensorrt_cache.text_of(CalibrationCache(algorithm=ENTROPY, scales={"x": scale}))


def test_a_name_that_would_break_a_line_is_not_written() -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        tensorrt_cache.text_of(CalibrationCache(algorithm=ENTROPY, scales={"a\nb": 1.0}))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1"),
        ("TRT-x-EntropyCalibration2\n", "line 1"),
        ("TRT-8503-EntropyCalibration2\nx 3c010a14\n", "line 2"),
        ("TRT-8503-EntropyCalibration2\nx: 3c010a1\n", "line 2"),
        ("TRT-8503-EntropyCalibration2\nx: 3c010a14\nx: 3c010a14\n", "second row"),
        ("TRT-8503-EntropyCalibration2\nx: 7fc00000\n", "the scale of 'x' is nan"),
        ("TRT-8503-EntropyCalibration2\nx: bf800000\n", "the scale of 'x' is -1"),
    ],
)
def test_broken_caches_are_refused_with_their_line(text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        tensorrt_cache.parse(text)


def test_a_missing_or_binary_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        tensorrt_cache.read(tmp_path / "none.cache")
    (tmp_path / "b.cache").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not text"):
        tensorrt_cache.read(tmp_path / "b.cache")
