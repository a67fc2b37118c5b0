"""The preprocessing contract on the board: from a golden image to the input tensor, in pure Python.

The arithmetic is that of edgekit.preprocess; what is not done here is resampling by area and by cubics.
"""

from __future__ import annotations

import array
import math
import struct
import sys
from dataclasses import dataclass, fields
from typing import Any

from edgekit.board import resize
from edgekit.board.errors import BadInput
from edgekit.board.png import Image
from edgekit.board.tensor import Tensor

_MOST_PIXELS = 1 << 26
_CHOICES: dict[str, tuple[str, ...]] = {
    "color": ("rgb", "bgr", "gray"),
    "resize": ("letterbox", "stretch", "center_crop", "none"),
    "pad_place": ("center", "bottom_right"),
    "interpolation": ("bilinear", "nearest", "area", "bicubic"),
    "layout": ("nchw", "nhwc"),
    "dtype": ("float32", "float16", "uint8"),
}


@dataclass(frozen=True)
class Contract:
    """How an image becomes the model's input tensor; the fields are those of preprocess.json."""

    height: int
    width: int
    color: str = "rgb"
    resize: str = "letterbox"
    pad_value: int = 114
    pad_place: str = "center"
    upscale: bool = True
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: str = "nchw"
    dtype: str = "float32"

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor for one image, batch axis included."""
        if self.layout == "nchw":
            return (1, self.channels, self.height, self.width)
        return (1, self.height, self.width, self.channels)

    @classmethod
    def from_value(cls, value: Any, where: str = "preprocess") -> Contract:
        """Read and check the JSON object of a contract. Raises BadInput."""
        if not isinstance(value, dict):
            raise BadInput(f"{where}: expected an object with height and width.")
        known = {field.name for field in fields(cls)}
        for name in value:
            if name not in known:
                raise BadInput(f"{where}: unknown key '{name}'.")
        plain = dict(value)
        for name in ("height", "width", "pad_value"):
            if name in plain:
                plain[name] = _whole(plain[name], f"{where}: '{name}'")
            elif name != "pad_value":
                raise BadInput(f"{where}: '{name}' is missing.")
        for name in ("scale", "crop_fraction"):
            if name in plain:
                plain[name] = _number(plain[name], f"{where}: '{name}'")
        for name in ("mean", "std"):
            if name in plain:
                if not isinstance(plain[name], list):
                    raise BadInput(f"{where}: '{name}' must be a list of numbers.")
                plain[name] = tuple(_number(item, f"{where}: '{name}'") for item in plain[name])
        for name, choices in _CHOICES.items():
            if name in plain and plain[name] not in choices:
                raise BadInput(f"{where}: {name} is {plain[name]!r}, not one of {choices}.")
        if not isinstance(plain.get("upscale", True), bool):
            raise BadInput(f"{where}: 'upscale' must be true or false.")
        if plain.get("color") == "gray":
            for name, default in (("mean", 0.0), ("std", 1.0)):
                values = plain.get(name, (default,) * 3)
                plain[name] = values[:1] if len(values) == 3 and len(set(values)) == 1 else values
        contract = cls(**plain)
        if len(contract.mean) != contract.channels or len(contract.std) != contract.channels:
            raise BadInput(f"{where}: mean and std must hold {contract.channels} numbers each.")
        if 0.0 in contract.std:
            raise BadInput(f"{where}: std must not contain 0.")
        if contract.height < 1 or contract.width < 1:
            raise BadInput(f"{where}: input size {contract.height}x{contract.width}.")
        if not 0 <= contract.pad_value <= 255 or not 0.0 < contract.crop_fraction <= 1.0:
            raise BadInput(f"{where}: pad_value or crop_fraction is out of its range.")
        return contract


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        raise BadInput(f"{what} must be a finite number, not {value!r}.")
    return float(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _whole(value: Any, what: str) -> int:
    number = _number(value, what)
    if number != int(number):
        raise BadInput(f"{what} must be a whole number, not {value!r}.")
    return int(number)


def apply(image: Image, contract: Contract) -> Tensor | None:
    """The input tensor of `image`; None where the contract resamples it by "area" or "bicubic".

    Raises BadInput when `resize` is "none" and the image has another size.
    """
    placed = _fit(image, contract)
    if placed is None:
        return None
    planes = _planes(placed, contract.color)
    dtype = contract.dtype
    if dtype == "uint8":
        mapped: list[Any] = [array.array("B", plane) for plane in planes]
    else:
        mapped = []
        for plane, table in zip(planes, _tables(contract)):
            mapped.append(array.array(table.typecode, [table[value] for value in plane]))
    if contract.layout == "nhwc":
        joined = array.array(mapped[0].typecode, bytes(len(mapped) * len(mapped[0].tobytes())))
        for channel, plane in enumerate(mapped):
            joined[channel :: len(mapped)] = plane
        mapped = [joined]
    if sys.byteorder == "big":
        for plane in mapped:
            plane.byteswap()
    return Tensor(contract.input_shape, dtype, b"".join(plane.tobytes() for plane in mapped))


def _round_half_up(value: float) -> int:
    return max(1, math.floor(value + 0.5))


def is_resampled(image: Image, contract: Contract) -> bool:
    """Whether the contract makes new pixels of `image`'s, rather than placing or cutting them."""
    return (image.height, image.width) != _resized_to(image, contract)


def _resized_to(image: Image, contract: Contract) -> tuple[int, int]:
    """Height and width to which the image is resized before it is padded or cut."""
    if contract.resize == "none":
        return image.height, image.width
    if contract.resize == "stretch":
        return contract.height, contract.width
    if contract.resize == "letterbox":
        ratio = min(contract.height / image.height, contract.width / image.width)
        if not contract.upscale:
            ratio = min(ratio, 1.0)
        height, width = _round_half_up(image.height * ratio), _round_half_up(image.width * ratio)
        return min(contract.height, height), min(contract.width, width)
    ratio = max(
        contract.height / contract.crop_fraction / image.height,
        contract.width / contract.crop_fraction / image.width,
    )
    height, width = _round_half_up(image.height * ratio), _round_half_up(image.width * ratio)
    return max(contract.height, height), max(contract.width, width)


def _fit(image: Image, contract: Contract) -> Image | None:
    """Step 1 of the contract: resize, then pad or cut. None where the resampling is not done here."""
    exact = (contract.height, contract.width)
    if contract.resize == "none" and (image.height, image.width) != exact:
        raise BadInput(
            f"an image of {image.height}x{image.width} pixels where the model takes exactly "
            f"{contract.height}x{contract.width}"
        )
    if is_resampled(image, contract):
        height, width = _resized_to(image, contract)
        if height * width > _MOST_PIXELS:
            raise BadInput(f"resized to {height}x{width} pixels it would be too large")
        if contract.interpolation == "bilinear":
            image = resize.bilinear(image, height, width)
        elif contract.interpolation == "nearest":
            image = resize.nearest(image, height, width)
        else:
            return None
    if contract.resize == "letterbox":
        return _padded(image, contract)
    return _cut(image, contract)


def _padded(image: Image, contract: Contract) -> Image:
    spare_y, spare_x = contract.height - image.height, contract.width - image.width
    top, left = (spare_y // 2, spare_x // 2) if contract.pad_place == "center" else (0, 0)
    pad = bytes([contract.pad_value])
    empty = pad * (3 * contract.width)
    before, after = pad * (3 * left), pad * (3 * (spare_x - left))
    size = 3 * image.width
    rows = [before + image.rgb[size * y : size * (y + 1)] + after for y in range(image.height)]
    rows = [empty] * top + rows + [empty] * (spare_y - top)
    return Image(contract.height, contract.width, b"".join(rows))


def _cut(image: Image, contract: Contract) -> Image:
    """The middle of the image, of the contract's size."""
    top, left = (image.height - contract.height) // 2, (image.width - contract.width) // 2
    rows = []
    for y in range(top, top + contract.height):
        start = 3 * (image.width * y + left)
        rows.append(image.rgb[start : start + 3 * contract.width])
    return Image(contract.height, contract.width, b"".join(rows))


def _planes(image: Image, color: str) -> list[bytes]:
    red, green, blue = (image.rgb[channel::3] for channel in range(3))
    if color == "rgb":
        return [red, green, blue]
    if color == "bgr":
        return [blue, green, red]
    # BT.601 luma in fixed point with 15 bits, as OpenCV computes it
    return [
        bytes((r * 9798 + g * 19235 + b * 3735 + 16384) >> 15 for r, g, b in zip(red, green, blue))
    ]


def _tables(contract: Contract) -> list[Any]:
    """Step 3 as a table of 256 entries a channel, computed in float64 and rounded once to float32."""
    tables = []
    for mean, std in zip(contract.mean, contract.std):
        exact = [(value * contract.scale - mean) / std for value in range(256)]
        single = array.array("f", exact)
        if contract.dtype == "float32":
            tables.append(single)
        else:
            # float16 has no array of its own: its bits travel as unsigned 16-bit integers
            packed = struct.pack("=256e", *single)
            tables.append(array.array("H", struct.unpack("=256H", packed)))
    return tables
