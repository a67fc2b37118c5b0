"""How much the ranges depend on which images were drawn, and whether more would help.

The statistics keep two halves of the images apart (by the parity of each image's hash). Each half
gives its own ranges; their difference, relative to the width of the range from all images, is the
sample of one draw. Two independent estimates from n/2 images differ by sqrt(2) times the standard
error of one, and the error of all n images is that divided by sqrt(2) again: difference / 2. It
shrinks with 1 / sqrt(n), so n * (error / tolerance)^2 images reach a tolerance. Min-max follows the
single largest value, for which that law is only a rough guide; the text says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.calibration.methods import choose
from edgekit.calibration.statistics import Statistics, half_of
from edgekit.types import Range

TOLERANCE = 0.05
"""Relative error of a range that 8-bit quantization hardly notices: 5 % of a step size is 0.4 dB."""

_MIN_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Estimated relative error of the ranges (1 = the whole width) from `images` images.

    `median` and `p90` are over tensors; `worst` are the most uncertain ones, worst first;
    `needed_images` brings the p90 to the tolerance (at most that of `images` when it is there
    already), None when it cannot be told. `warning` is "" when the set is large enough.
    """

    method: str
    images: int
    halves: tuple[int, int]
    median: float
    p90: float
    worst: tuple[tuple[str, float], ...]
    needed_images: int | None
    message: str
    warning: str


def stability(
    statistics: Statistics,
    method: str,
    *,
    symmetric: bool,
    levels: int = 256,
    tolerance: float = TOLERANCE,
    overrides: Mapping[str, str | Range] | None = None,
) -> Stability:
    """Compare the ranges of the two halves of the images; see the module's text for the estimate."""
    images = len(statistics.images)
    second = sum(half_of(image) for image in statistics.images)
    sizes = (images - second, second)
    if images < _MIN_IMAGES or min(sizes) == 0:
        text = (
            f"{images} calibration image{'' if images == 1 else 's'} cannot tell how far the ranges "
            "depend on the images; use 32 or more, drawn from what the model will see."
        )
        return Stability(
            method=method,
            images=images,
            halves=sizes,
            median=math.nan,
            p90=math.nan,
            worst=(),
            needed_images=None,
            message=text,
            warning=text,
        )
    full, one, two = (
        choose(part, method, symmetric=symmetric, levels=levels, overrides=overrides)
        for part in (statistics, *_halves(statistics))
    )
    # unequal halves: the variances of both add up to (1/a + 1/b) of one image's, all n have 1/n
    share = math.sqrt(1.0 / images / (1.0 / sizes[0] + 1.0 / sizes[1]))
    errors = {name: _difference(one[name], two[name], span) * share for name, span in full.items()}
    ranked = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    values = sorted(errors.values())
    p90 = _quantile(values, 0.9)
    needed = max(1, math.ceil(images * (p90 / tolerance) ** 2))
    message = (
        f"Ranges by {method} from {images} images are certain to about {_quantile(values, 0.5):.1%} "
        f"(half of the tensors) and {p90:.1%} (nine tenths)."
    )
    warning = ""
    if needed > images:
        wanted = _rounded_up(needed)
        warning = (
            f"The calibration set is small: {message} About {wanted - images} more images would "
            f"bring nine tenths of the tensors within {tolerance:.0%}"
            + (" (a rough guess: min-max follows single values)" if method == "minmax" else "")
            + f"; the most uncertain is '{ranked[0][0]}' ({ranked[0][1]:.0%})."
        )
    else:
        message += f" More images would change little: {needed} already reach {tolerance:.0%}."
    return Stability(
        method=method,
        images=images,
        halves=sizes,
        median=_quantile(values, 0.5),
        p90=p90,
        worst=tuple(ranked[:5]),
        needed_images=needed,
        message=message,
        warning=warning,
    )


def _halves(statistics: Statistics) -> tuple[Statistics, Statistics]:
    """Views of the two halves as statistics of their own (sharing the histograms)."""
    views = []
    for half in (0, 1):
        view = Statistics(statistics.origin)
        for name, tensor in statistics.tensors.items():
            view.tensors[name].halves[0].merge(tensor.halves[half])
        view.restore_images(i for i in statistics.images if half_of(i) == half)
        views.append(view)
    return views[0], views[1]


def _difference(one: Range, two: Range, full: Range) -> float:
    """Largest shift of an end, relative to the width; 0 for a tensor of zeros."""
    shift = max(abs(one.low - two.low), abs(one.high - two.high))
    width = full.high - full.low
    return shift / width if width > 0 else 0.0


def _quantile(ordered: list[float], share: float) -> float:
    if not ordered:
        return 0.0
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _rounded_up(images: int) -> int:
    """To the next multiple of 16 or, above 512, of 128: an estimate has no last digit."""
    step = 16 if images <= 512 else 128
    return -(-images // step) * step
