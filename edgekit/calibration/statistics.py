"""Statistics of a graph's activations: which tensors, over which images, and how to add them up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edgekit.calibration.channels import ChannelStatistics
from edgekit.calibration.histogram import Histogram
from edgekit.errors import BadInput

Spread = Callable[[Callable[[str], None], Sequence[str]], Iterable[None]]
"""`spread(function, names)` calls `function` for every name, in threads if it likes; like `map`."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the statistics were collected on; only equal origins may be added up.

    graph_sha256 names the prepared graph; `preprocess` is the contract as JSON; `versions` those of
    the stage and of the libraries that did the work; `tensors` all observed tensors in graph order;
    `channels` maps those with per-channel statistics to their channel axis. `weights_sha256` names
    the weights where they lie outside the graph's file.
    """

    graph_sha256: str
    preprocess: str
    versions: Mapping[str, str]
    tensors: tuple[str, ...]
    channels: Mapping[str, int] = field(default_factory=dict)
    weights_sha256: str = ""

    def difference(self, other: Origin) -> str:
        """The first field in which two origins differ, in words; "" when they are equal."""
        if self.graph_sha256 != other.graph_sha256:
            return f"the graph: {self.graph_sha256[:12]}… and {other.graph_sha256[:12]}…"
        if self.weights_sha256 != other.weights_sha256:
            return "the weights, which lie outside the graph's file"
        mine, theirs = _object(self.preprocess), _object(other.preprocess)
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                return f"preprocessing {name}: {mine.get(name)!r} and {theirs.get(name)!r}"
        for name in sorted(self.versions.keys() | other.versions.keys()):
            one, two = self.versions.get(name), other.versions.get(name)
            if one != two:
                return f"the version of {name}: {one} and {two}"
        if self.tensors != other.tensors:
            odd = sorted(set(self.tensors) ^ set(other.tensors))
            return f"the observed tensors: {odd[0]!r}" if odd else "the order of the tensors"
        if dict(self.channels) != dict(other.channels):
            return "the tensors with per-channel statistics"
        return ""


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}


@dataclass(eq=False)
class TensorStatistics:
    """One tensor's histograms, one for each half of the images, and its channels where asked for."""

    halves: tuple[Histogram, Histogram] = field(default_factory=lambda: (Histogram(), Histogram()))
    channels: ChannelStatistics | None = None

    @property
    def histogram(self) -> Histogram:
        """The histogram over all images (a new one, made from the halves)."""
        both = self.halves[0].copy()
        both.merge(self.halves[1])
        return both


def half_of(image_sha256: str) -> int:
    """Which half an image belongs to: the parity of its hash, so that it depends on nothing else.

    The halves differ in size as coin tosses do; they serve to tell how stable the ranges are.
    """
    return int(image_sha256[-1], 16) & 1


class Statistics:
    """Activation statistics of one graph; they depend on the set of images, never on their order.

    An image is its sha256. The same image counts once: adding it again is a programming error,
    merging two sets that share images is refused (histograms cannot be taken apart again).
    `skipped` maps the hash of each unusable image to the reason.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.tensors = {name: TensorStatistics() for name in origin.tensors}
        for name, axis in origin.channels.items():
            self.tensors[name].channels = ChannelStatistics(axis=axis)
        self._images: set[str] = set()
        self.skipped: dict[str, str] = {}

    @property
    def images(self) -> tuple[str, ...]:
        """sha256 of every image that was used, sorted."""
        return tuple(sorted(self._images))

    @property
    def total(self) -> int:
        """Images used and skipped."""
        return len(self._images) + len(self.skipped)

    def __contains__(self, image_sha256: str) -> bool:
        return image_sha256 in self._images or image_sha256 in self.skipped

    def histogram(self, name: str) -> Histogram:
        """The tensor's histogram over all images."""
        return self.tensors[name].histogram

    def add(
        self,
        image_sha256: str,
        image: str,
        values: Mapping[str, NDArray[Any]],
        spread: Spread = map,
    ) -> None:
        """Take in every observed tensor of one image; `image` is its name in errors.

        Raises BadInput, naming the first tensor (graph order) and the image, when a value is NaN or
        infinite; the statistics are not to be used after that.
        """
        if image_sha256 in self._images:
            raise ValueError(f"image {image_sha256} was added before")
        half = half_of(image_sha256)

        def add_one(name: str) -> None:
            tensor = self.tensors[name]
            known = None if tensor.channels is None else tensor.channels.add(values[name])
            tensor.halves[half].add(values[name], known)

        # the largest first: threads then end at about the same time
        order = sorted(self.tensors, key=lambda name: -values[name].size)
        for _ in spread(add_one, order):
            pass
        for name, tensor in self.tensors.items():
            if tensor.halves[half].nonfinite_count:
                raise _not_finite(name, image, tensor.halves[half], values[name].size)
        self._images.add(image_sha256)

    def skip(self, image_sha256: str, reason: str) -> None:
        """Record an image that cannot be used."""
        self.skipped[image_sha256] = reason

    def merge(self, other: Statistics) -> None:
        """Add `other`; it is left as it is.

        Raises BadInput, naming what differs, when the two were not collected on the same graph in
        the same way, and when they share images.
        """
        difference = self.origin.difference(other.origin)
        if difference:
            raise BadInput(
                f"These statistics cannot be merged; they differ in {difference}.",
                hint="Collect both with the same model, preprocessing and versions.",
            )
        shared = self._images & other._images
        if shared:
            raise BadInput(
                f"These statistics cannot be merged: {len(shared)} images are in both "
                f"(sha256 {min(shared)[:12]}…).",
                hint="Split the images into disjoint folders, or calibrate once on all of them.",
            )
        for name, tensor in self.tensors.items():
            theirs = other.tensors[name]
            for mine, half in zip(tensor.halves, theirs.halves, strict=True):
                mine.merge(half)
            if tensor.channels is not None and theirs.channels is not None:
                tensor.channels.merge(theirs.channels)
        self._images |= other._images
        self.skipped.update(other.skipped)

    def restore_images(self, images: Iterable[str]) -> None:
        """Set the images used: for readers of stored statistics."""
        self._images = set(images)

    def same_as(self, other: Statistics) -> bool:
        """Whether origin, images and every tensor are equal, bit for bit."""
        return (
            not self.origin.difference(other.origin)
            and self._images == other._images
            and self.skipped.keys() == other.skipped.keys()
            and all(_same(self.tensors[name], other.tensors[name]) for name in self.tensors)
        )


def _same(one: TensorStatistics, two: TensorStatistics) -> bool:
    if (one.channels is None) != (two.channels is None):
        return False
    if (
        one.channels is not None
        and two.channels is not None
        and not one.channels.same_as(two.channels)
    ):
        return False
    return all(a.same_as(b) for a, b in zip(one.halves, two.halves, strict=True))


def _not_finite(name: str, image: str, histogram: Histogram, size: int) -> BadInput:
    what = []
    if histogram.nan_count:
        what.append(f"{histogram.nan_count} NaN")
    if histogram.inf_count:
        what.append(f"{histogram.inf_count} infinite")
    return BadInput(
        f"The tensor '{name}' has {' and '.join(what)} of {size} values for the image {image}.",
        hint="It is the first such tensor of the graph. Check the weights before it and the "
        "preprocessing; with correct ones, remove the image.",
    )
