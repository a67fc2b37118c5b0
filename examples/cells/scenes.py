"""Procedural microscopy-like scenes with exact boxes: a stand-in for a real labelled data set.

Every pixel comes from `numpy.random.PCG64` seeded with (seed, index) and from drawing done with
OpenCV's fixed-point rasterizer and 8-bit blur, so a scene needs no file: whoever has this module
has the data. These are cartoons of a stained blood smear. They have what makes detection and
quantization non-trivial (texture, uneven light, blur, noise, overlaps, cut-off objects, look-alike
dirt), and nothing of what makes haematology hard. Draw no medical conclusion from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Gray = NDArray[np.uint8]

CLASS_NAMES: tuple[str, ...] = ("wbc", "rbc", "platelet")
WBC, RBC, PLATELET = range(3)

# One seed per use. Scenes of different seeds share no random stream.
TRAIN_SEED = 1
CALIBRATION_SEED = 2
VALIDATION_SEED = 3

DEFAULT_SIZE = 192
# An object is labelled when at least this share of its outline lies inside the image ...
_MIN_INSIDE = 0.35
# ... and no more than this share of its box is covered by the objects drawn over it.
_MAX_COVERED = 0.55
_MIN_SIDE_PX = 4.0
# Contours are handed to cv2.fillPoly in 1/16 pixel.
_SHIFT = 4


@dataclass(frozen=True)
class _Object:
    """One placed object: its class, outline [K, 2] in pixels and the radius it was drawn with."""

    label: int
    outline: NDArray[np.float64]
    centre: tuple[float, float]
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        low, high = self.outline.min(axis=0), self.outline.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def scene(
    seed: int, index: int, size: int = DEFAULT_SIZE
) -> tuple[Gray, NDArray[np.float32], NDArray[np.int64]]:
    """Draw scene `index` of the data set `seed`; the same arguments always give the same arrays.

    Returns (image [size, size, 3] uint8 RGB, boxes [N, 4] float32 as x1, y1, x2, y2 in pixels
    clipped to the image, classes [N] int64 indexing CLASS_NAMES). N may be 0. Objects of which too
    little can be seen are drawn but not labelled.

    Raises ValueError when seed or index is not in [0, 2**32) or size is under 64.
    """
    if not (0 <= seed < 2**32 and 0 <= index < 2**32):
        raise ValueError(f"seed and index must be in [0, 2**32), got {seed} and {index}")
    if size < 64:
        raise ValueError(f"size must be at least 64 pixels, got {size}")
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    canvas = _background(rng, size)
    _smears(rng, canvas)
    objects = _place(rng, size)
    stain = _stain(rng)
    _ghosts(rng, canvas, stain)
    for item in objects:
        _DRAW[item.label](rng, canvas, item, stain)
    _dirt(rng, canvas)
    image = _camera(rng, canvas)
    keep = _visible(objects, size)
    boxes = np.array([objects[i].box for i in keep], dtype=np.float32).reshape(-1, 4)
    classes = np.array([objects[i].label for i in keep], dtype=np.int64)
    return image, boxes.clip(0.0, float(size)), classes


# --- the slide -----------------------------------------------------------------------------------


def _cloud(rng: np.random.Generator, size: int, cells: int) -> Float:
    """Smooth noise in [-1, 1], [size, size]: a coarse grid of 8-bit values, enlarged."""
    grid = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
    # INTER_LINEAR_EXACT and the 8-bit blur are bit-exact on every CPU; the float ones are not.
    wide = cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)
    smooth = _blurred(np.asarray(wide, dtype=np.uint8), size / cells / 3)
    return np.asarray((smooth.astype(np.float32) - 127.5) / 127.5, dtype=np.float32)


def _background(rng: np.random.Generator, size: int) -> Float:
    """The empty slide, [size, size, 3] float32 in about [0, 255]: colour, light, texture."""
    value = rng.uniform(175, 245)
    tint = np.array([rng.uniform(-12, 14), rng.uniform(-22, 8), rng.uniform(-18, 16)])
    colour = (value + tint).astype(np.float32)
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0.0, 0.28)
    light = 1.0 + slope * (math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None])
    off_x, off_y = rng.uniform(-0.2, 0.2, 2)
    radius2 = (ramp[None, :] - off_x) ** 2 + (ramp[:, None] - off_y) ** 2
    light = light - rng.uniform(0.0, 0.45) * radius2
    light = light + rng.uniform(0.0, 0.06) * _cloud(rng, size, int(rng.integers(3, 7)))
    light = light + rng.uniform(0.0, 0.035) * _cloud(rng, size, int(rng.integers(20, 48)))
    return np.asarray(colour[None, None, :] * light[:, :, None], dtype=np.float32)


def _smears(rng: np.random.Generator, canvas: Float) -> None:
    """Blurred coloured patches without an edge: stain residue, no object."""
    size = canvas.shape[0]
    for _ in range(int(rng.integers(0, 3))):
        mask = np.zeros((size, size), np.uint8)
        centre = tuple(int(v) for v in rng.integers(0, size, 2))
        axes = tuple(int(v) for v in rng.integers(8, 36, 2))
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
        mask = _blurred(mask, float(rng.uniform(5, 11)))
        colour = np.array(rng.uniform([120, 70, 120], [225, 170, 225]), np.float32)
        _blend(canvas, mask, colour, float(rng.uniform(0.15, 0.5)))


def _ghosts(rng: np.random.Generator, canvas: Float, stain: dict[str, Float]) -> None:
    """Look-alikes that are no objects: faint empty rings and unsharp drops of stain."""
    size = canvas.shape[0]
    for _ in range(int(rng.integers(0, 3))):
        centre, radius = rng.uniform(0, size, 2), float(rng.uniform(9, 18))
        outline = _outline(rng, (float(centre[0]), float(centre[1])), radius, 0.1, 0.3)
        middle = outline.mean(axis=0)
        body = _fill(outline, size)
        ring = _without(body, _fill(middle + (outline - middle) * 0.8, size))
        _blend(canvas, _blurred(ring, 1.2), stain["rbc"], float(rng.uniform(0.2, 0.6)))
    for _ in range(int(rng.integers(0, 4))):
        centre, radius = rng.uniform(0, size, 2), float(rng.uniform(2.0, 6.0))
        drop = _fill(_outline(rng, (float(centre[0]), float(centre[1])), radius, 0.1, 0.4), size)
        _blend(canvas, _blurred(drop, 2.4), stain["platelet"], float(rng.uniform(0.4, 0.8)))


def _dirt(rng: np.random.Generator, canvas: Float) -> None:
    """Dust and scratches on top of everything; dust is of platelet size but of another colour."""
    size = canvas.shape[0]
    for _ in range(int(rng.integers(0, 5))):
        radius = float(rng.uniform(1.0, 4.0))
        centre = rng.uniform(0, size, 2)
        outline = _outline(rng, (float(centre[0]), float(centre[1])), radius, 0.30, 0.6)
        dark = float(rng.uniform(20, 110))
        colour = np.array([dark * 1.1, dark, dark * rng.uniform(0.6, 0.9)], np.float32)
        _blend(canvas, _fill(outline, size), colour, float(rng.uniform(0.5, 0.95)))
    for _ in range(int(rng.integers(0, 3))):
        mask = np.zeros((size, size), np.uint8)
        start, bend = rng.uniform(0, size, 2), rng.normal(0, 0.25)
        heading, steps = rng.uniform(0, 2 * math.pi), int(rng.integers(4, 14))
        points = [start]
        for _ in range(steps):
            heading += bend * rng.uniform(0.2, 1.0)
            points.append(points[-1] + 9.0 * np.array([math.cos(heading), math.sin(heading)]))
        line = np.round(np.array(points) * 2**_SHIFT).astype(np.int32)
        cv2.polylines(mask, [line], False, 255, int(rng.integers(1, 3)), cv2.LINE_AA, _SHIFT)
        colour = np.full(3, 250.0 if rng.random() < 0.6 else 60.0, np.float32)
        _blend(canvas, mask, colour, float(rng.uniform(0.2, 0.6)))


def _camera(rng: np.random.Generator, canvas: Float) -> Gray:
    """What the sensor makes of the slide: defocus, exposure, colour cast, noise, 8 bits."""
    size = canvas.shape[0]
    exposure = rng.uniform(0.82, 1.08)
    cast = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    image = np.clip(canvas * cast * exposure, 0, 255).astype(np.uint8)
    sigma = float(rng.uniform(0.4, 1.8))
    image = _blurred(image, sigma)
    shot, read = rng.uniform(0.0, 0.7), rng.uniform(0.5, 8.0)
    exact = image.astype(np.float32)
    deviation = np.sqrt(read**2 + (shot**2) * exact)
    noise = rng.standard_normal((size, size, 3), dtype=np.float32)
    noisy = np.clip(np.rint(exact + deviation * noise), 0, 255)
    return np.asarray(noisy, dtype=np.uint8)


# --- where things lie ----------------------------------------------------------------------------


def _outline(
    rng: np.random.Generator,
    centre: tuple[float, float],
    radius: float,
    roughness: float,
    squeeze: float,
) -> NDArray[np.float64]:
    """A closed wobbly ellipse, [K, 2]: axes ratio in [1 - squeeze, 1], harmonics 2 to 5 on top."""
    theta = np.linspace(0, 2 * math.pi, 48 if radius > 8 else 24, endpoint=False)
    wobble = np.ones_like(theta)
    for order in range(2, 6):
        amplitude = roughness * rng.uniform(-1, 1) / order
        wobble += amplitude * np.cos(order * theta + rng.uniform(0, 2 * math.pi))
    ratio, turn = 1.0 - squeeze * rng.random(), rng.uniform(0, math.pi)
    x, y = radius * wobble * np.cos(theta), radius * ratio * wobble * np.sin(theta)
    cos, sin = math.cos(turn), math.sin(turn)
    return np.stack([centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos], axis=1)


# Per class: radius range in pixels, roughness, squeeze.
_SHAPE = {
    WBC: ((19.0, 34.0), 0.12, 0.22),
    RBC: ((10.0, 18.5), 0.07, 0.25),
    PLATELET: ((4.2, 7.2), 0.22, 0.35),
}


def _place(rng: np.random.Generator, size: int) -> list[_Object]:
    """Choose objects and put them down bottom to top, none covering too much of another."""
    area = (size / DEFAULT_SIZE) ** 2
    # Crowding and the scale of the optics are properties of the slide, not of one cell.
    crowding, zoom = rng.uniform(0.35, 1.5), rng.uniform(0.82, 1.18)
    labels = [RBC] * int(rng.poisson(9.0 * crowding * area))
    labels += [WBC] * int(rng.poisson(1.6 * area))
    labels += [PLATELET] * int(rng.poisson(4.5 * area))
    rng.shuffle(labels)
    placed: list[_Object] = []
    for label in labels:
        (low, high), roughness, squeeze = _SHAPE[label]
        for _ in range(12):
            radius = float(rng.uniform(low, high)) * float(zoom)
            # The centre may lie outside the image: some cells are cut by the border.
            margin = 0.5 * radius
            centre = (
                float(rng.uniform(-margin, size + margin)),
                float(rng.uniform(-margin, size + margin)),
            )
            if all(_apart(centre, radius, label, other) for other in placed):
                outline = _outline(rng, centre, radius, roughness, squeeze)
                placed.append(_Object(label, outline, centre, radius))
                break
    return placed


def _apart(centre: tuple[float, float], radius: float, label: int, other: _Object) -> bool:
    distance = math.hypot(centre[0] - other.centre[0], centre[1] - other.centre[1])
    # Cells may overlap by a part of the smaller one; a platelet never vanishes under a cell.
    slack = 0.65 if label != PLATELET and other.label != PLATELET else 0.25
    return distance > radius + other.radius - slack * 2 * min(radius, other.radius)


def _visible(objects: list[_Object], size: int) -> list[int]:
    """Indices of the objects that an annotator would still mark."""
    kept = []
    covers = np.zeros((size, size), np.uint8)
    for i in range(len(objects) - 1, -1, -1):
        outline = objects[i].outline
        mask = _fill(outline, size) > 127
        inside = int(np.count_nonzero(mask))
        # The shoelace formula: the outline's area with what lies outside the image.
        x, y = outline[:, 0], outline[:, 1]
        area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
        hidden = int(np.count_nonzero(covers[mask]))
        x1, y1, x2, y2 = (min(max(v, 0.0), float(size)) for v in objects[i].box)
        if (
            inside >= _MIN_INSIDE * area
            and hidden <= _MAX_COVERED * inside
            and min(x2 - x1, y2 - y1) >= _MIN_SIDE_PX
        ):
            kept.append(i)
        covers[mask] = 1
    return kept[::-1]


# --- how cells look ------------------------------------------------------------------------------


def _stain(rng: np.random.Generator) -> dict[str, Float]:
    """The colours of one slide; every cell varies a little around them."""
    ranges = {
        "rbc": ([185, 110, 110], [232, 165, 165]),
        "plasma": ([150, 130, 175], [215, 185, 225]),
        "nucleus": ([70, 35, 105], [125, 85, 165]),
        "platelet": ([120, 70, 130], [175, 125, 190]),
    }
    return {
        name: np.array(rng.uniform(low, high), np.float32) for name, (low, high) in ranges.items()
    }


def _fill(outline: NDArray[np.float64], size: int) -> Gray:
    """The outline as an anti-aliased mask, [size, size] uint8."""
    mask = np.zeros((size, size), np.uint8)
    points = np.round(outline * 2**_SHIFT).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SHIFT)
    return mask


def _blurred(image: Gray, sigma: float) -> Gray:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def _without(mask: Gray, part: Gray) -> Gray:
    """The mask where `part` is not: what is left of a disc is a ring."""
    return np.asarray(mask - np.minimum(mask, part), dtype=np.uint8)


def _blend(canvas: Float, mask: Gray, colour: Float, opacity: float) -> None:
    """Paint `colour` ([3] or [size, size, 3]) through the mask, in place."""
    x, y, width, height = cv2.boundingRect(mask)
    window = (slice(y, y + height), slice(x, x + width))
    alpha = mask[window].astype(np.float32)[:, :, None] * np.float32(opacity / 255.0)
    paint = colour[window] if colour.ndim == 3 else colour
    canvas[window] += alpha * (paint - canvas[window])


def _shrunk(item: _Object, share: float) -> NDArray[np.float64]:
    centre = np.array(item.centre)
    return np.asarray(centre + (item.outline - centre) * share)


def _draw_rbc(
    rng: np.random.Generator, canvas: Float, item: _Object, stain: dict[str, Float]
) -> None:
    """A translucent disc with a pale centre of varying strength; some have none."""
    size = canvas.shape[0]
    colour = stain["rbc"] + rng.uniform(-12, 12, 3).astype(np.float32)
    opacity = float(rng.uniform(0.35, 0.85))
    body = _fill(item.outline, size)
    _blend(canvas, body, colour, opacity)
    _blend(canvas, _without(body, _fill(_shrunk(item, 0.86), size)), colour * 0.82, 0.5)
    if rng.random() < 0.85:
        hole = _fill(_shrunk(item, float(rng.uniform(0.36, 0.60))), size)
        hole = _blurred(hole, item.radius * 0.12)
        pale = np.minimum(colour + rng.uniform(35, 80), 248).astype(np.float32)
        _blend(canvas, hole, pale, float(rng.uniform(0.45, 0.95)))


def _draw_wbc(
    rng: np.random.Generator, canvas: Float, item: _Object, stain: dict[str, Float]
) -> None:
    """Grainy cytoplasm, often hardly darker than the slide, round a dark nucleus of 1-4 lobes."""
    size = canvas.shape[0]
    body = _fill(item.outline, size)
    grain = _cloud(rng, size, size // 3)[:, :, None] * float(rng.uniform(6, 22))
    plasma = stain["plasma"] + rng.uniform(-10, 10, 3).astype(np.float32)
    _blend(canvas, body, plasma + grain, float(rng.uniform(0.4, 0.9)))
    edge = _without(body, _fill(_shrunk(item, 0.93), size))
    _blend(canvas, edge, plasma * 0.75, float(rng.uniform(0.35, 0.7)))
    nucleus = np.zeros((size, size), np.uint8)
    lobes = int(rng.integers(1, 5))
    spread = item.radius * (0.0 if lobes == 1 else float(rng.uniform(0.28, 0.42)))
    lobe_radius = item.radius * (0.62 if lobes == 1 else 0.36)
    start = rng.uniform(0, 2 * math.pi)
    for lobe in range(lobes):
        angle = start + lobe * rng.uniform(1.2, 1.8)
        centre = (
            item.centre[0] + spread * math.cos(angle),
            item.centre[1] + spread * math.sin(angle),
        )
        radius = lobe_radius * float(rng.uniform(0.8, 1.15))
        nucleus = np.maximum(nucleus, _fill(_outline(rng, centre, radius, 0.2, 0.3), size))
    nucleus = np.minimum(nucleus, body)
    chromatin = _cloud(rng, size, size // 4)[:, :, None] * float(rng.uniform(8, 26))
    colour = stain["nucleus"] + rng.uniform(-10, 10, 3).astype(np.float32)
    _blend(canvas, nucleus, colour + chromatin, float(rng.uniform(0.8, 0.97)))


def _draw_platelet(
    rng: np.random.Generator, canvas: Float, item: _Object, stain: dict[str, Float]
) -> None:
    """A small ragged purple speck with a darker core."""
    size = canvas.shape[0]
    colour = stain["platelet"] + rng.uniform(-14, 14, 3).astype(np.float32)
    _blend(canvas, _fill(item.outline, size), colour, float(rng.uniform(0.35, 0.85)))
    _blend(canvas, _fill(_shrunk(item, 0.5), size), colour * 0.75, float(rng.uniform(0.3, 0.7)))


_DRAW = {WBC: _draw_wbc, RBC: _draw_rbc, PLATELET: _draw_platelet}
