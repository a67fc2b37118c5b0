"""How an export chooses what to quantize, and how: by searching, or as an earlier run did."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.codec import from_json
from edgekit.errors import BadInput, EdgekitError
from edgekit.stages.search import Choice, SearchOptions, SearchResult
from edgekit.types import Calibration, OnnxModel, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.preprocess import Preprocess
    from edgekit.stages.quantize import QuantizeOptions
    from edgekit.target import TargetProfile


def searched(
    model: OnnxModel,
    calibration: Calibration,
    profile: TargetProfile,
    contract: Preprocess,
    pictures: Sequence[NDArray[np.uint8]],
    options: QuantizeOptions,
    limits: SearchOptions,
    partial: Path | None,
    progress: Progress,
    *,
    head: str | None = None,
    names: Sequence[str] = (),
    task: str | None = None,
) -> tuple[Calibration, QuantizeOptions, SearchResult]:
    """The calibration and the options that the search chose, and how it went."""
    from edgekit.stages import search_int8

    subject = search_int8.Int8Search(
        model, calibration, profile, contract, pictures, options, head=head, names=names, task=task
    )
    result = subject.run(limits, partial, progress)
    ranges, chosen = taken(model, calibration, profile, result.best.choice, options)
    return ranges, chosen, result


def taken(
    model: OnnxModel,
    calibration: Calibration,
    profile: TargetProfile,
    choice: Choice,
    options: QuantizeOptions,
) -> tuple[Calibration, QuantizeOptions]:
    """Ranges and options that make the model of `choice`; what `options` keeps float stays so."""
    from edgekit.stages.search_int8 import calibration_of

    keep = tuple(dict.fromkeys((*options.keep_float, *choice.keep_float)))
    chosen = dataclasses.replace(
        options, keep_float=keep, bias_correction=choice.bias_correction or options.bias_correction
    )
    return calibration_of(model, calibration, choice, is_symmetric(profile)), chosen


def with_method(calibration: Calibration, method: str, symmetric: bool) -> Calibration:
    """The calibration with ranges chosen by `method` from its statistics, no image run again."""
    if calibration.method == method:
        return calibration
    from edgekit.stages import calibrate

    return calibrate.choose_ranges(calibration, method, symmetric=symmetric)


def is_symmetric(profile: TargetProfile) -> bool:
    """Whether the target's activations have ranges around zero."""
    return profile.quantize is not None and profile.quantize.symmetric_activations


def search_notes(result: SearchResult) -> tuple[str, ...]:
    """What a person should know of a search's result."""
    choice = result.best.choice
    text = choice.method + (" behind activations" if choice.behind else "")
    if choice.bias_correction:
        text += ", biases corrected"
    if choice.keep_float:
        text += f", {len(choice.keep_float)} layers left float"
        fast = len(set(choice.keep_float) & set(result.faster_float))
        if fast:
            text += f" ({fast} of them for speed)"
    text += (
        f": {result.best.agreement:.1%} agreement with float, best of {len(result.trials)} trials"
    )
    return (text, *(("the search ran out of time",) if result.out_of_time else ()))


def read_choice(path: Path) -> Choice:
    """What an earlier run chose: from its bundle, its manifest.json, or the record of a search.

    Raises BadInput when there is no INT8 model in it, or a choice that cannot be read.
    """
    file = path / "manifest.json" if path.is_dir() else path
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        steps = [found] if "choice" in found else found["chain"]
        steps = [step for step in steps if "choice" in found or step["name"] == "quantize"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is neither a bundle nor its manifest.json nor the record of a search.",
            hint="Name the folder of an earlier `edgekit export` for an INT8 target.",
        ) from error
    if not steps:
        raise BadInput(f"The bundle {path} was not quantized: there is no choice to replay.")
    try:
        options = steps[-1] if "choice" in found else steps[-1]["options"]
        return from_json(Choice, options["choice"])
    except (KeyError, TypeError, EdgekitError) as error:
        raise BadInput(
            f"{path} does not say how it was quantized in a way that can be replayed.",
            hint="Export it again with this version, or give --method and --keep-float.",
        ) from error
