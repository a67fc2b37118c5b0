"""The preprocessing contract: one value that calibration, evaluation and every runtime obey.

From a decoded image to the tensor that the model is fed:

1. resize to `height` x `width` by `resize`:
   - letterbox: ratio = min(height / h, width / w); new size = round half up of h*ratio, w*ratio;
     the rest is filled with `pad_value`, at the `pad_place` ("center": the odd pixel goes to the
     bottom and right; "bottom_right": the image stays at the top left);
   - stretch: both sides to the target, the aspect ratio is lost;
   - center_crop: the shorter side to round(target / crop_fraction), then the middle is cut out;
   - none: the image must have the size already;
2. colour order: `color` "rgb", "bgr" or "gray" (BT.601 luma, as cv2.cvtColor computes it);
3. value v of channel c becomes float32((v * scale - mean[c]) / std[c]), computed in float64 and
   rounded once. A pixel has 256 values, so this is a table of 256 entries a channel: every
   implementation that follows the formula gives the same bits;
4. layout "nchw" or "nhwc", cast to `dtype`, a batch axis in front.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput, UsageError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METADATA_KEY = "edgekit.preprocess"
"""Key of the ONNX metadata entry that carries the contract as JSON."""

CHOICES: dict[str, tuple[str, ...]] = {
    "color": ("rgb", "bgr", "gray"),
    "resize": ("letterbox", "stretch", "center_crop", "none"),
    "pad_place": ("center", "bottom_right"),
    "interpolation": ("bilinear", "nearest", "area", "bicubic"),
    "layout": ("nchw", "nhwc"),
    "dtype": ("float32", "float16", "uint8"),
}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the model's input tensor; see the module's text for the arithmetic.

    `mean` and `std` are in units of the scaled pixel (v * scale), one value per channel in the
    order of `color`. `upscale` False leaves images smaller than the target at their size inside a
    letterbox.
    """

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

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(
                    f"Preprocessing: {name} is {value!r}.", hint=nearest(str(value), known)
                )
        if self.color == "gray" and len(self.mean) == 3 and len(set(self.mean)) == 1:
            object.__setattr__(self, "mean", self.mean[:1])
        if self.color == "gray" and len(self.std) == 3 and len(set(self.std)) == 1:
            object.__setattr__(self, "std", self.std[:1])
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(math.isfinite(v) for v in values):
                raise UsageError(
                    f"Preprocessing: {name} must hold {self.channels} finite numbers for "
                    f"{self.color}, got {list(values)}."
                )
        if any(value == 0 for value in self.std):
            raise UsageError("Preprocessing: std must not contain 0.")
        if self.height < 1 or self.width < 1:
            raise UsageError(f"Preprocessing: input size {self.height}x{self.width}.")
        if not 0 <= self.pad_value <= 255:
            raise UsageError(f"Preprocessing: pad_value {self.pad_value} is not in 0..255.")
        if not 0.0 < self.crop_fraction <= 1.0:
            raise UsageError(f"Preprocessing: crop_fraction {self.crop_fraction} is not in (0, 1].")

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor for one image, batch axis included."""
        if self.layout == "nchw":
            return (1, self.channels, self.height, self.width)
        return (1, self.height, self.width, self.channels)

    def replace(self, **changes: Any) -> Preprocess:
        """A copy with `changes`; unknown names are a UsageError with the nearest known one."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(f"Preprocessing has no '{name}'.", hint=nearest(name, known))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field present."""
        value = dataclasses.asdict(self)
        value["mean"], value["std"] = list(self.mean), list(self.std)
        return value

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, value: Any, where: str = "preprocessing") -> Preprocess:
        """Read what `to_dict` wrote; missing fields take their defaults, unknown ones are errors."""
        if not isinstance(value, dict):
            raise BadInput(f"{where}: expected an object with height and width.")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in value:
            if name not in fields:
                raise UsageError(
                    f"{where}: unknown key '{name}'.", hint=nearest(name, list(fields))
                )
        for name in ("height", "width"):
            if name not in value:
                raise UsageError(f"{where}: '{name}' is missing.")
        plain: dict[str, Any] = dict(value)
        try:
            for name in ("height", "width", "pad_value"):
                if name in plain:
                    if int(_number(plain[name])) != plain[name]:
                        raise ValueError(plain[name])
                    plain[name] = int(plain[name])
            for name in ("scale", "crop_fraction"):
                if name in plain:
                    plain[name] = _number(plain[name])
            for name in ("mean", "std"):
                if name in plain:
                    plain[name] = tuple(_number(item) for item in plain[name])
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"{where}: '{name}' has an unusable value: {plain[name]!r}."
            ) from error
        if not isinstance(plain.get("upscale", True), bool):
            raise UsageError(f"{where}: 'upscale' must be true or false.")
        if not math.isfinite(plain.get("scale", 1.0)):
            raise UsageError(f"{where}: 'scale' must be finite.")
        return cls(**plain)

    @classmethod
    def from_json(cls, text: str, where: str = "preprocessing") -> Preprocess:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise BadInput(f"{where}: not valid JSON: {error}.") from error
        return cls.from_dict(value, where)


def _number(value: Any) -> float:
    """`value` as a float; TypeError for true, false and texts, which float() would take."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(value)
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the source image lies in the network's input: input = source * scale + offset.

    Pixel units; used to carry boxes back into the source image.
    """

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    source_height: int
    source_width: int

    def to_source(self, boxes: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map boxes [N, 4] (x1, y1, x2, y2) from input pixels to source pixels, clipped to the image."""
        import numpy as np

        mapped = boxes.astype(np.float64, copy=True)
        mapped[:, 0::2] = (mapped[:, 0::2] - self.offset_x) / self.scale_x
        mapped[:, 1::2] = (mapped[:, 1::2] - self.offset_y) / self.scale_y
        np.clip(mapped[:, 0::2], 0.0, self.source_width, out=mapped[:, 0::2])
        np.clip(mapped[:, 1::2], 0.0, self.source_height, out=mapped[:, 1::2])
        return mapped


def lookup_table(contract: Preprocess) -> NDArray[np.float32]:
    """Step 3 as a table: float32 [channels, 256]."""
    import numpy as np

    values = np.arange(256, dtype=np.float64) * contract.scale
    mean = np.asarray(contract.mean, dtype=np.float64)[:, None]
    std = np.asarray(contract.std, dtype=np.float64)[:, None]
    table: NDArray[np.float32] = ((values[None, :] - mean) / std).astype(np.float32)
    return table


def _round_half_up(value: float) -> int:
    return max(1, math.floor(value + 0.5))


def fit(image: NDArray[np.uint8], contract: Preprocess) -> tuple[NDArray[np.uint8], Placement]:
    """Steps 1 and 2: uint8 RGB [h, w, 3] → uint8 [height, width, channels] in the contract's colours.

    Raises BadInput when `resize` is "none" and the sizes differ.
    """
    import cv2
    import numpy as np

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(f"Expected an RGB image uint8 [h, w, 3], got {image.dtype} {image.shape}.")
    height, width = image.shape[:2]
    interpolation = {
        "bilinear": cv2.INTER_LINEAR,
        "nearest": cv2.INTER_NEAREST,
        "area": cv2.INTER_AREA,
        "bicubic": cv2.INTER_CUBIC,
    }[contract.interpolation]

    def resized(new_height: int, new_width: int) -> NDArray[np.uint8]:
        if (new_height, new_width) == (height, width):
            return image
        out: NDArray[np.uint8] = cv2.resize(
            image, (new_width, new_height), interpolation=interpolation
        )
        return out

    offset_x = offset_y = 0.0
    if contract.resize == "none":
        if (height, width) != (contract.height, contract.width):
            raise BadInput(
                f"An image of {height}x{width} pixels where the model takes exactly "
                f"{contract.height}x{contract.width} (resize is 'none').",
                hint="Resize the images, or choose --resize letterbox.",
            )
        fitted = image
        scale_x = scale_y = 1.0
    elif contract.resize == "stretch":
        fitted = resized(contract.height, contract.width)
        scale_x, scale_y = contract.width / width, contract.height / height
    elif contract.resize == "letterbox":
        ratio = min(contract.height / height, contract.width / width)
        if not contract.upscale:
            ratio = min(ratio, 1.0)
        new_height = min(contract.height, _round_half_up(height * ratio))
        new_width = min(contract.width, _round_half_up(width * ratio))
        small = resized(new_height, new_width)
        spare_y, spare_x = contract.height - new_height, contract.width - new_width
        top, left = (spare_y // 2, spare_x // 2) if contract.pad_place == "center" else (0, 0)
        fitted = cv2.copyMakeBorder(
            small,
            top,
            spare_y - top,
            left,
            spare_x - left,
            cv2.BORDER_CONSTANT,
            value=(contract.pad_value,) * 3,
        )
        # one ratio for both axes, as the labels that detectors are trained on are scaled: the rounding
        # of the new size to whole pixels is not part of the mapping
        scale_x = scale_y = ratio
        offset_x, offset_y = float(left), float(top)
    else:  # center_crop
        want_y = contract.height / contract.crop_fraction
        want_x = contract.width / contract.crop_fraction
        ratio = max(want_y / height, want_x / width)
        new_height = max(contract.height, _round_half_up(height * ratio))
        new_width = max(contract.width, _round_half_up(width * ratio))
        large = resized(new_height, new_width)
        top, left = (new_height - contract.height) // 2, (new_width - contract.width) // 2
        fitted = large[top : top + contract.height, left : left + contract.width]
        scale_x, scale_y = new_width / width, new_height / height
        offset_x, offset_y = -float(left), -float(top)

    placement = Placement(
        scale_x=scale_x,
        scale_y=scale_y,
        offset_x=offset_x,
        offset_y=offset_y,
        source_height=height,
        source_width=width,
    )
    if contract.color == "bgr":
        fitted = fitted[:, :, ::-1]
    elif contract.color == "gray":
        fitted = cv2.cvtColor(fitted, cv2.COLOR_RGB2GRAY)[:, :, None]
    return np.ascontiguousarray(fitted), placement


def normalize(
    fitted: NDArray[np.uint8], contract: Preprocess, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Steps 3 and 4: uint8 [height, width, channels] → the contract's `input_shape` and dtype.

    `out`, when given, is written and returned, so that a loop does not allocate.
    """
    import numpy as np

    if contract.dtype == "uint8":
        planes = fitted if contract.layout == "nhwc" else fitted.transpose(2, 0, 1)
        result: NDArray[Any] = np.ascontiguousarray(planes)[None]
    else:
        table = lookup_table(contract)
        result = np.empty(contract.input_shape, dtype=np.float32)
        for channel in range(contract.channels):
            plane = result[0, channel] if contract.layout == "nchw" else result[0, :, :, channel]
            plane[...] = table[channel][fitted[:, :, channel]]
        result = result.astype(contract.dtype, copy=False)
    if out is None:
        return result
    out[...] = result
    return out


def apply(image: NDArray[np.uint8], contract: Preprocess) -> tuple[NDArray[Any], Placement]:
    """The whole contract: uint8 RGB [h, w, 3] → (input tensor with a batch axis, Placement)."""
    fitted, placement = fit(image, contract)
    return normalize(fitted, contract), placement
