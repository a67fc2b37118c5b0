"""What an interrupted calibration had reached: files of statistics that the next run adds up."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgekit.calibration import store
from edgekit.calibration.statistics import Origin, Statistics
from edgekit.errors import BadInput

BASE = "partial-base.npz"
"""The file that holds what was resumed, and what a single process collects."""


@contextlib.contextmanager
def unfinished_folder(partial: Path | None) -> Iterator[Path]:
    """The folder for unfinished statistics; a temporary one when none is to be kept."""
    if partial is not None:
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-calibrate-") as name:
        yield Path(name)


def resume(folder: Path, origin: Origin, images: set[str]) -> Statistics:
    """Add up what interrupted runs left, as far as it belongs to these images and this origin.

    A kill between two steps can leave the same image in two files; the larger one counts, and
    images of a file that is passed over are simply run again.
    """
    statistics = Statistics(origin)
    parts = []
    for file in folder.glob("partial-*.npz"):
        with contextlib.suppress(BadInput):
            part, _ = store.read(file)
            if not origin.difference(part.origin) and images.issuperset(part.images):
                parts.append(part)
    for part in sorted(parts, key=lambda part: (-len(part.images), part.images)):
        if not set(part.images) & set(statistics.images):
            statistics.merge(part)
    # skipped images are looked at again: the file may have been mended
    statistics.skipped.clear()
    clear(folder, keep=None if not statistics.images else statistics)
    return statistics


def clear(folder: Path, keep: Statistics | None = None) -> None:
    """Remove unfinished statistics; `keep` is written as the only one before the others go."""
    base = folder / BASE
    if keep is not None:
        store.write(keep, base, compress=False)
    # also the temporaries of a killed writer
    for file in [*folder.glob("partial-*.npz"), *folder.glob(".partial-*.npz")]:
        if keep is None or file != base:
            file.unlink(missing_ok=True)
