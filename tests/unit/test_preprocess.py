"""The preprocessing contract: its arithmetic, its checks, and its way through JSON."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import BadInput, UsageError
from edgekit.preprocess import Preprocess, apply, fit, lookup_table


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), np.uint8
    )


def test_normalization_is_the_formula_rounded_once() -> None:
    contract = Preprocess(
        height=4, width=6, resize="none", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    image = _image(4, 6)
    tensor, _ = apply(image, contract)
    exact = (image.astype(np.float64) / 255 - np.array(contract.mean)) / np.array(contract.std)
    assert tensor.shape == (1, 3, 4, 6)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0], exact.transpose(2, 0, 1), rtol=3e-7, atol=1e-7)
    table = lookup_table(contract)
    assert np.array_equal(tensor[0, 1], table[1][image[:, :, 1]])


def test_letterbox_pads_where_it_says() -> None:
    image = np.full((50, 100, 3), 200, np.uint8)
    fitted, placement = fit(image, Preprocess(height=64, width=64))
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:16] == 114).all() and (fitted[48:] == 114).all()
    assert (fitted[16:48] == 200).all()
    assert (placement.offset_y, placement.scale_x) == (16.0, 0.64)
    corner, _ = fit(image, Preprocess(height=64, width=64, pad_place="bottom_right", pad_value=0))
    assert (corner[:32] == 200).all() and (corner[32:] == 0).all()


def test_boxes_return_to_the_source_image() -> None:
    for resize in ("letterbox", "stretch", "center_crop"):
        contract = Preprocess(height=64, width=96, resize=resize)
        _, placement = fit(_image(111, 77), contract)
        inside = np.array([[10.0, 20.0, 50.0, 60.0]])
        network = inside.copy()
        network[:, 0::2] = network[:, 0::2] * placement.scale_x + placement.offset_x
        network[:, 1::2] = network[:, 1::2] * placement.scale_y + placement.offset_y
        np.testing.assert_allclose(placement.to_source(network), inside, atol=1e-9)


def test_colour_orders() -> None:
    image = _image(8, 8)
    rgb, _ = fit(image, Preprocess(height=8, width=8, resize="none"))
    bgr, _ = fit(image, Preprocess(height=8, width=8, resize="none", color="bgr"))
    gray, _ = fit(
        image, Preprocess(height=8, width=8, resize="none", color="gray", mean=(0.0,), std=(1.0,))
    )
    assert np.array_equal(rgb, image)
    assert np.array_equal(bgr, image[:, :, ::-1])
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray[:, :, 0] - luma).max() <= 1.0


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (3000, 1), (7, 5)])
def test_extreme_sizes_still_fill_the_input(size: tuple[int, int]) -> None:
    for resize in ("letterbox", "stretch", "center_crop"):
        tensor, _ = apply(_image(*size), Preprocess(height=32, width=48, resize=resize))
        assert tensor.shape == (1, 3, 32, 48)
        assert np.isfinite(tensor).all()


def test_nhwc_uint8_is_the_fitted_image() -> None:
    contract = Preprocess(height=8, width=8, resize="none", layout="nhwc", dtype="uint8")
    image = _image(8, 8)
    tensor, _ = apply(image, contract)
    assert tensor.dtype == np.uint8
    assert np.array_equal(tensor[0], image)


def test_json_round_trip() -> None:
    contract = Preprocess(height=10, width=20, color="bgr", mean=(1.0, 2.0, 3.0), upscale=False)
    assert Preprocess.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"color": "rbg"}, "rgb"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"mean": (0.0, 1.0)}, "mean"),
        ({"pad_value": 300}, "pad_value"),
        ({"crop_fraction": 0.0}, "crop_fraction"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Preprocess(height=8, width=8, **change)  # type: ignore[arg-type]
    assert words in caught.value.message + caught.value.hint


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="colour"):
        Preprocess.from_dict({"height": 8, "width": 8, "colour": "rgb"})
    with pytest.raises(BadInput):
        Preprocess.from_json("{")


def test_resize_none_demands_the_size() -> None:
    with pytest.raises(BadInput, match="exactly"):
        apply(_image(9, 8), Preprocess(height=8, width=8, resize="none"))
