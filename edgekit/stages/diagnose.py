"""What is different when an input tensor is not what the contract makes of its image.

A golden input that does not fit is of little help by itself; which step of the preprocessing went
another way is what a person needs to know. Each step is tried with its other choices, and mean and
std are worked out from the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.preprocess import CHOICES, Preprocess, apply, fit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WORDS = {
    ("rgb", "bgr"): "red and blue are swapped",
    ("bgr", "rgb"): "red and blue are swapped",
}


def explain(image: NDArray[np.uint8], tensor: NDArray[Any], contract: Preprocess) -> str:
    """How `tensor` differs from `contract` applied to `image` (uint8 RGB [h, w, 3]), as a clause.

    "" when they are equal bit for bit.
    """
    import numpy as np

    expected, _ = apply(image, contract)
    if expected.shape != tensor.shape:
        return f"its shape is {list(tensor.shape)}, the contract gives {list(expected.shape)}"
    if expected.dtype != tensor.dtype:
        return f"it is {tensor.dtype}, the contract gives {expected.dtype}"
    if np.array_equal(expected, tensor):
        return ""
    for other, field in _variants(contract):
        try:
            if not np.array_equal(apply(image, other)[0], tensor):
                continue
        except EdgekitError:
            continue
        return _clause(field, getattr(other, field), getattr(contract, field))
    for other in (
        contract,
        *(variant for variant, field in _variants(contract) if field == "color"),
    ):
        values = _normalization(image, tensor, other)
        if values is not None:
            mean, std = values
            text = f"it was made with mean {_shown(mean)} and std {_shown(std)}, the contract says "
            text += f"mean {_shown(contract.mean)} and std {_shown(contract.std)}"
            if other.color != contract.color:
                text += f"; and {_clause('color', other.color, contract.color)}"
            return text
    bad = int(np.size(tensor) - np.isfinite(tensor).sum())
    if bad:
        return f"{bad} values are nan or inf"
    difference = np.abs(expected.astype(np.float64) - tensor.astype(np.float64))
    count = int((difference > 0).sum())
    return f"{count} of {difference.size} values differ, by {difference.max():.4g} at most"


def within_grey_levels(
    image: NDArray[np.uint8], tensor: NDArray[Any], contract: Preprocess, levels: float
) -> bool:
    """Whether `tensor` is within `levels` grey levels of `contract` applied to `image`."""
    import numpy as np

    expected, _ = apply(image, contract)
    if expected.shape != tensor.shape or expected.dtype != tensor.dtype:
        return False
    step = 1.0
    if contract.dtype != "uint8":
        step = max(abs(contract.scale / std) for std in contract.std)
    difference = np.abs(expected.astype(np.float64) - tensor.astype(np.float64))
    return bool(difference.max() <= levels * step * 1.001)


def _variants(contract: Preprocess) -> Iterator[tuple[Preprocess, str]]:
    """The contract with one field changed, and that field's name."""
    for field in ("color", "resize", "pad_place", "interpolation"):
        for choice in CHOICES[field]:
            if choice == getattr(contract, field):
                continue
            # grey has one channel: its tensors differ in shape
            if field == "color" and "gray" in (choice, contract.color):
                continue
            yield contract.replace(**{field: choice}), field
    yield contract.replace(upscale=not contract.upscale), "upscale"
    if contract.resize == "letterbox":
        for value in (0, 114, 127, 128, 255):
            if value != contract.pad_value:
                yield contract.replace(pad_value=value), "pad_value"


def _clause(field: str, found: Any, wanted: Any) -> str:
    word = _WORDS.get((str(found), str(wanted)), "") if field == "color" else ""
    text = f"it was made with {field} {found}, the contract says {wanted}"
    return f"{word} ({text})" if word else text


def _shown(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)


def _normalization(
    image: NDArray[np.uint8], tensor: NDArray[Any], contract: Preprocess
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) with which `tensor` would follow from `image`; None when no such pair fits.

    tensor = (v * scale - mean) / std is a straight line in the pixel v: least squares give it for
    each channel.
    """
    import numpy as np

    if contract.dtype == "uint8" or contract.scale == 0:
        return None
    pixels, _ = fit(image, contract)
    if not np.isfinite(tensor).all():
        return None
    planes = tensor[0] if contract.layout == "nchw" else tensor[0].transpose(2, 0, 1)
    means, stds = [], []
    for channel in range(contract.channels):
        v = pixels[:, :, channel].ravel().astype(np.float64)
        values = planes[channel].ravel().astype(np.float64)
        if v.min() == v.max():
            return None
        slope, offset = np.polyfit(v, values, 1)
        error = np.abs(slope * v + offset - values).max()
        if slope == 0 or error > 1e-3 * max(1e-12, float(np.ptp(values))):
            return None
        stds.append(float(contract.scale / slope))
        means.append(float(-offset * stds[-1]))
    return tuple(means), tuple(stds)
