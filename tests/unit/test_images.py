"""The image reader takes whole images of every kind and refuses halves."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgekit import images
from edgekit.errors import BadInput


def _photo(size: int = 64) -> np.ndarray:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)


def _encoded(suffix: str, image: np.ndarray, *flags: int) -> bytes:
    done, data = cv2.imencode(suffix, image, list(flags))
    assert done
    return data.tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_whole_files_are_read_as_rgb(suffix: str, tmp_path: Path) -> None:
    bgr = _photo()
    path = tmp_path / f"größe 1{suffix}"
    path.write_bytes(_encoded(suffix, bgr))
    rgb = images.read(path)
    assert rgb.shape == (64, 64, 3)
    assert np.abs(rgb.astype(int) - bgr[:, :, ::-1]).mean() < 8


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.98])
def test_truncated_files_are_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    data = _encoded(suffix, _photo())
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BadInput) as caught:
        images.read(path)
    assert "cut" in caught.value.message


def test_a_progressive_jpeg_is_whole_and_its_cut_is_not() -> None:
    data = _encoded(".jpg", _photo(200), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert images.container_problem(data) is None
    assert images.container_problem(data[:-2]) is not None
    assert images.container_problem(data + b"\0\0trailing") is None


def test_an_end_marker_inside_a_thumbnail_does_not_count() -> None:
    data = _encoded(".jpg", _photo())
    thumbnail = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    whole = data[:2] + thumbnail + data[2:]
    assert images.container_problem(whole) is None
    assert images.container_problem(whole[:-300]) is not None


def test_grey_sixteen_bit_and_alpha_become_rgb(tmp_path: Path) -> None:
    grey = _photo()[:, :, 0]
    for name, array in {
        "grey": grey,
        "deep": grey.astype(np.uint16) * 257,
        "alpha": np.dstack([_photo(), grey]),
    }.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(_encoded(".png", array))
        image = images.read(path)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        if name != "alpha":
            assert np.array_equal(image[:, :, 0], grey)


def test_exif_rotation_is_applied() -> None:
    data = _encoded(".jpg", cv2.resize(_photo(), (80, 40)))
    # TIFF header, one entry: Orientation (0x0112) = 6, a quarter turn
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    assert images.decode(data, "flat").shape == (40, 80, 3)
    assert images.decode(turned, "turned").shape == (80, 40, 3)


def test_listing_is_sorted_recursive_and_clear_about_nothing(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("z.jpg", "a.PNG", "b/m.bmp", "notes.txt", ".hidden/x.jpg"):
        (tmp_path / name).write_bytes(b"x")
    found = [str(path.relative_to(tmp_path)) for path in images.list_images(tmp_path)]
    assert found == ["a.PNG", "b/m.bmp", "z.jpg"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match="No image"):
        images.list_images(empty)
    with pytest.raises(BadInput, match="does not exist"):
        images.list_images(tmp_path / "nowhere")


def test_bad_share() -> None:
    images.check_bad_share(["one"], 10, 0.1)
    with pytest.raises(BadInput, match="2 of 10"):
        images.check_bad_share(["one", "two"], 10, 0.1)
