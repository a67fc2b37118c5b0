"""The preprocessing contract on the board gives the bits of edgekit's own."""

from __future__ import annotations

import json
import random
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest

from edgekit import preprocess
from edgekit.board import resize
from edgekit.board.contract import Contract, apply, is_resampled
from edgekit.board.errors import BadInput
from edgekit.board.png import Image, decode
from edgekit.preprocess import Preprocess


def _image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png(filters: list[int], width: int, rows: list[bytes], color: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), 8, color, 0, 0, 0)
    raw = b"".join(bytes([kind]) + row for kind, row in zip(filters, rows, strict=True))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tEXt", b"Comment\0anything")
        + chunk(b"IDAT", zlib.compress(raw)[:7])
        + chunk(b"IDAT", zlib.compress(raw)[7:])
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("strategy", range(5))
def test_png_files_of_opencv_decode_to_the_same_pixels(strategy: int) -> None:
    smooth = cv2.resize(_image(6, 5), (37, 23), interpolation=cv2.INTER_CUBIC)
    for image in (_image(23, 37, strategy), smooth, np.zeros((1, 1, 3), np.uint8)):
        done, data = cv2.imencode(".png", image[:, :, ::-1], [cv2.IMWRITE_PNG_STRATEGY, strategy])
        assert done
        found = decode(data.tobytes(), "x.png")
        assert (found.height, found.width) == image.shape[:2]
        assert found.rgb == image.tobytes()


def test_every_filter_is_undone_as_opencv_does() -> None:
    rows = [_image(1, 9, seed).tobytes() for seed in range(10)]
    data = _png([0, 1, 2, 3, 4, 4, 3, 2, 1, 0], 9, rows)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert decode(data, "x.png").rgb == expected.tobytes()
    with pytest.raises(BadInput, match="filter 5"):
        decode(_png([5], 9, rows[:1]), "x.png")


def test_damaged_png_files_are_refused() -> None:
    whole = _png([0, 1], 9, [bytes(27), bytes(27)])
    for cut in range(len(whole)):
        with pytest.raises(BadInput):
            decode(whole[:cut], "x.png")
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 4
        with pytest.raises(BadInput):
            decode(bytes(changed), "x.png")
    with pytest.raises(BadInput, match="8-bit RGB"):
        decode(_png([0], 9, [bytes(27)], color=6), "x.png")
    with pytest.raises(BadInput, match="does not hold"):
        decode(_png([0, 0], 9, [bytes(27), bytes(20)]), "x.png")


_CASES: list[dict[str, Any]] = [
    {},
    {"color": "bgr", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"color": "gray", "mean": (0.1,), "std": (0.3,)},
    {"layout": "nhwc"},
    {"layout": "nhwc", "dtype": "uint8"},
    {"dtype": "uint8"},
    {"dtype": "float16", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0)},
    {"pad_place": "bottom_right", "pad_value": 7},
    {"resize": "stretch"},
    {"resize": "none"},
    {"resize": "center_crop"},
    {"upscale": False},
    {"interpolation": "nearest"},
    {"resize": "center_crop", "crop_fraction": 0.875},
]


@pytest.mark.parametrize("changes", _CASES, ids=str)
@pytest.mark.parametrize("size", [(24, 32), (24, 27), (19, 32), (24, 41), (10, 11)])
def test_the_tensor_is_that_of_the_host(changes: dict[str, Any], size: tuple[int, int]) -> None:
    host = Preprocess(height=24, width=32, **changes)
    contract = Contract.from_value(json.loads(host.to_json()))
    image = _image(*size)
    try:
        expected, placement = preprocess.apply(image, host)
    except preprocess.BadInput:
        with pytest.raises(BadInput, match="exactly"):
            apply(Image(*size, image.tobytes()), contract)
        return
    source = Image(*size, image.tobytes())
    found = apply(source, contract)
    assert found is not None
    assert (found.shape, found.dtype) == (expected.shape, str(expected.dtype))
    assert bytes(found.data) == expected.tobytes()
    assert is_resampled(source, contract) or (placement.scale_x, placement.scale_y) == (1.0, 1.0)


def test_resizing_is_that_of_opencv_for_every_size() -> None:
    generator = random.Random(1)
    for number in range(250):
        size = (generator.randint(1, 40), generator.randint(1, 40))
        target = (generator.randint(1, 40), generator.randint(1, 40))
        image = _image(*size, number)
        for name, function, flag in (
            ("bilinear", resize.bilinear, cv2.INTER_LINEAR),
            ("nearest", resize.nearest, cv2.INTER_NEAREST),
        ):
            found = function(Image(*size, image.tobytes()), *target)
            expected = cv2.resize(image, target[::-1], interpolation=flag)
            assert found.rgb == expected.tobytes(), (name, size, target)


def test_real_sizes_are_resized_as_by_opencv() -> None:
    smooth = cv2.resize(_image(30, 40), (500, 333), interpolation=cv2.INTER_CUBIC)
    for height, width in ((213, 320), (640, 640), (32, 32), (333, 320)):
        found = resize.bilinear(Image(333, 500, smooth.tobytes()), height, width)
        expected = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
        assert found.rgb == expected.tobytes()


@pytest.mark.parametrize("interpolation", ["area", "bicubic"])
def test_what_is_not_computed_is_not_guessed(interpolation: str) -> None:
    contract = Contract(height=24, width=32, interpolation=interpolation)
    assert apply(Image(40, 40, bytes(4800)), contract) is None
    assert apply(Image(24, 32, bytes(2304)), contract) is not None


def test_luma_of_every_colour_is_that_of_opencv() -> None:
    values = np.arange(0, 256, 5, dtype=np.uint8)
    grid = np.stack(np.meshgrid(values, values, values), axis=-1).reshape(52, -1, 3)
    height, width = grid.shape[:2]
    host = Preprocess(
        height=height, width=width, color="gray", mean=(0.0,), std=(1.0,), dtype="uint8"
    )
    found = apply(
        Image(height, width, grid.tobytes()), Contract.from_value(json.loads(host.to_json()))
    )
    assert found is not None
    assert bytes(found.data) == preprocess.apply(grid, host)[0].tobytes()
