"""What a model is fed while it is timed: real arrays, or noise that its contract could produce.

Never zeros: a runtime may skip work on them, and denormal or constant activations run at a speed of
their own.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput, NotPossible, UsageError
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.preprocess import Preprocess

MOST_FEEDS = 8
"""Feeds kept at most, so that they do not dominate the memory that is measured."""

Feed = dict[str, "NDArray[Any]"]


def batch_of(specs: Sequence[TensorSpec], batch: int | None, name: str) -> int:
    """The batch size to run: the model's fixed one, or `batch` (1 when None) where its axis is free.

    Raises NotPossible when the model is fixed to another batch than the one asked for.
    """
    axis = specs[0].shape[0] if specs and specs[0].shape else 1
    if isinstance(axis, str):
        return batch or 1
    if batch is not None and batch != axis:
        raise NotPossible(
            f"{name} is fixed to batch {axis}; batch {batch} was asked for.",
            hint="Export the model with --dynamic, or leave out --batch.",
        )
    return axis


def make_feeds(
    specs: Sequence[TensorSpec],
    batch: int,
    *,
    contract: Preprocess | None,
    file: Path | None,
    name: str,
    seed: int = 0,
) -> list[Feed]:
    """Up to MOST_FEEDS feeds of `batch` samples: from `file`, or else noise drawn with `seed`.

    `file` is an .npy (models with one input) or an .npz with an array per input name; the first axis
    counts samples, which are cut into batches, and repeated when they are fewer than one batch.
    Raises BadInput for a file that cannot be used, UsageError for a free dimension nobody gives.
    """
    if file is not None:
        arrays = _read(file, specs, name)
        return _given(specs, batch, arrays, file, name)
    import numpy as np

    generator = np.random.default_rng(seed)
    shapes = [_shape(spec, batch, contract, name) for spec in specs]
    return [
        {
            spec.name: _noise(generator, shape, spec, contract)
            for spec, shape in zip(specs, shapes, strict=True)
        }
        for _ in range(2)
    ]


def write_feeds(feeds: Sequence[Feed], specs: Sequence[TensorSpec], path: Path) -> None:
    """Write feeds as the timing worker reads them: arrays "SAMPLE_INPUT", inputs by position."""
    import numpy as np

    arrays = {
        f"{number}_{position}": feed[spec.name]
        for number, feed in enumerate(feeds)
        for position, spec in enumerate(specs)
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _shape(spec: TensorSpec, batch: int, contract: Preprocess | None, name: str) -> tuple[int, ...]:
    wanted: list[int | str] = list(spec.shape)
    if wanted and isinstance(wanted[0], str):
        wanted[0] = batch
    if contract is not None and len(wanted) == 4:
        known = contract.input_shape
        wanted = [known[i] if isinstance(size, str) else size for i, size in enumerate(wanted)]
    free = [size for size in wanted if isinstance(size, str)]
    if free:
        raise UsageError(
            f"{name}: input '{spec.name}' has free dimensions {', '.join(free)}, and the model "
            "carries no preprocessing that says their size.",
            hint="Give input arrays with --inputs FILE.npy.",
        )
    return tuple(int(size) for size in wanted)


def _noise(
    generator: np.random.Generator,
    shape: tuple[int, ...],
    spec: TensorSpec,
    contract: Preprocess | None,
) -> NDArray[Any]:
    """Noise of `spec`'s type: random pixels through the contract, else uniform in the usual range."""
    import numpy as np

    if contract is not None and len(shape) == 4 and shape[1:] == contract.input_shape[1:]:
        pixels = generator.integers(0, 256, size=shape, dtype=np.uint8)
        if spec.dtype == "uint8":
            return pixels
        from edgekit.preprocess import lookup_table

        table = lookup_table(contract)
        axis = 1 if contract.layout == "nchw" else 3
        planes = [table[c][np.take(pixels, c, axis=axis)] for c in range(contract.channels)]
        return np.stack(planes, axis=axis).astype(spec.dtype)
    if spec.dtype in ("uint8", "int8"):
        limits = np.iinfo(spec.dtype)
        return generator.integers(limits.min, limits.max + 1, size=shape).astype(spec.dtype)
    if spec.dtype == "bool" or spec.dtype.startswith(("int", "uint")):
        # indices and masks: 0 and 1 are valid wherever anything is
        return generator.integers(0, 2, size=shape).astype(spec.dtype)
    try:
        return generator.random(size=shape, dtype=np.float32).astype(spec.dtype)
    except TypeError as error:
        raise BadInput(
            f"Input '{spec.name}' has the type {spec.dtype}, which has no noise."
        ) from error


def _read(file: Path, specs: Sequence[TensorSpec], name: str) -> dict[str, NDArray[Any]]:
    import numpy as np

    try:
        # an .npy of many images is read where it is needed only
        loaded = np.load(file, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"": loaded}
        else:
            with loaded:
                arrays = dict(loaded)
    except FileNotFoundError as error:
        raise BadInput(f"The input file {file} does not exist.") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"{file} is not a file of arrays: {error}.", hint="Write it with numpy.save or savez."
        ) from error
    names = [spec.name for spec in specs]
    if len(arrays) == len(names) == 1:
        return {names[0]: next(iter(arrays.values()))}
    missing = [wanted for wanted in names if wanted not in arrays]
    if missing:
        raise BadInput(
            f"{file} has no array for input '{missing[0]}' of {name}.",
            hint=f"It needs an .npz with the arrays {', '.join(names)}.",
        )
    return {wanted: arrays[wanted] for wanted in names}


def _given(
    specs: Sequence[TensorSpec],
    batch: int,
    arrays: Mapping[str, NDArray[Any]],
    file: Path,
    name: str,
) -> list[Feed]:
    import numpy as np

    counts = set()
    for spec in specs:
        array = arrays[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        castable = array.dtype.name == spec.dtype or (
            array.dtype == np.float64 and spec.dtype == "float32"
        )
        if not fits or not castable or not array.size:
            raise BadInput(
                f"{file}: input '{spec.name}' of {name} takes {spec.dtype} {list(spec.shape)}, the "
                f"file holds {array.dtype} {list(array.shape)}.",
                hint="The first axis counts samples; the rest must be the model's, preprocessed.",
            )
        counts.add(len(array) if array.ndim else 1)
    samples = min(counts)
    feeds = []
    for start in range(0, max(samples - batch, 0) + 1, batch)[:MOST_FEEDS]:
        chosen = np.arange(start, start + batch) % samples
        feeds.append(
            {
                spec.name: np.array(
                    arrays[spec.name][chosen] if arrays[spec.name].ndim else arrays[spec.name],
                    dtype=spec.dtype,
                    order="C",
                )
                for spec in specs
            }
        )
    return feeds
