"""What commands that choose ranges share: the scheme of a target and overrides by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.types import Range

_HINT = "--override TENSOR=mse or --override TENSOR=-1.5,6"


def symmetric_for(target: str | None) -> bool:
    """Whether the INT8 target quantizes activations symmetrically; False without one."""
    if target is None:
        return False
    from edgekit.stages.quantize import rules_of
    from edgekit.target_files import load_target

    profile = load_target(target)
    rules_of(profile)  # refuses a float target
    return profile.quantize is not None and profile.quantize.symmetric_activations


def parse_overrides(texts: Sequence[str]) -> dict[str, str | Range]:
    """ "TENSOR=METHOD" and "TENSOR=LOW,HIGH" by tensor; whether the tensor exists is seen later.

    Tensors may have = in their names: what stands behind the first one that leaves a method or a
    range counts. Raises UsageError for what is neither.
    """
    from edgekit.calibration.methods import METHODS, method_named

    found: dict[str, str | Range] = {}
    for text in texts:
        places = [place for place, letter in enumerate(text) if letter == "=" and place > 0]
        if not places:
            raise UsageError(f"--override {text!r} names no method or range.", hint=_HINT)
        for place in places:
            name, value = text[:place], text[place + 1 :]
            span = _range(value)
            if span is None and value.partition("=")[0] not in METHODS:
                continue
            found[name] = value if span is None else span
            break
        else:
            value = text[places[0] + 1 :]
            if "," in value:
                raise UsageError(f"--override {text!r}: the range cannot be read.", hint=_HINT)
            method_named(value)
    for chosen in found.values():
        if isinstance(chosen, str):
            method_named(chosen)
    return found


def _range(text: str) -> Range | None:
    """ "LOW,HIGH" as a range; None where it is no pair of finite rising numbers."""
    from edgekit.types import Range

    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        return None
    return Range(low=low, high=high) if float("-inf") < low < high < float("inf") else None
