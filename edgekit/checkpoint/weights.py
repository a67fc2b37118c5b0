"""Find the weights inside of a checkpoint's dictionary, and choose between the model and its EMA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput, UsageError

MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "student",
    "student_state_dict",
    "model_weights",
    "classifier",
    "detector",
)
EMA_KEYS = (
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "model_ema_state_dict",
    "ema_model",
    "ema_model_state_dict",
    "params_ema",
    "ema_weights",
    "averaged_model",
)
# where EMA helpers keep their copy, below one of the above
_INNER_KEYS = ("state_dict", "module", "shadow", "model", "params", "ema_model")
_TRAINING = (
    "optim",
    "sched",
    "scaler",
    "loss",
    "criterion",
    "callbacks",
    "loops",
    "rng",
    "teacher",
)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The state_dict that was found, where, and what to tell the user."""

    tensors: dict[str, Any]
    where: str
    notes: tuple[str, ...]


def is_training_state(key: Any) -> bool:
    """Whether `key` names what only training needs (optimizer, scheduler, teacher)."""
    return isinstance(key, str) and any(key.lower().startswith(word) for word in _TRAINING)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _is_state(value: Any) -> bool:
    """Whether `value` is a state_dict: text keys, and tensors among its values."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) for key in value)
        and any(_is_tensor(item) for item in value.values())
    )


def _inside(value: Any) -> tuple[str, Mapping[str, Any]] | None:
    """The state_dict in `value`, at most two wrappings down."""
    if _is_state(value):
        return "", value
    if isinstance(value, Mapping):
        for key in _INNER_KEYS:
            found = _inside(value.get(key)) if key in value else None
            if found is not None:
                inner, state = found
                return f"{key}.{inner}" if inner else key, state
    return None


def _under(found: Mapping[Any, Any], keys: tuple[str, ...]) -> tuple[str, Mapping[str, Any]] | None:
    for key in keys:
        inside = _inside(found[key]) if key in found else None
        if inside is not None:
            return (f"{key}.{inside[0]}" if inside[0] else key), inside[1]
    return None


def choose(found: Mapping[Any, Any], weights: str, path: Path) -> Chosen:
    """The state_dict in `found` that `weights` ("auto", "ema", "model") asks for.

    "auto" takes the EMA where there is one, because that is what training evaluated. An EMA of
    parameters alone is completed with the model's buffers. Raises BadInput when there is no
    state_dict, UsageError when the wished one is missing.
    """
    if not isinstance(found, Mapping):
        raise BadInput(f"{path} holds a {type(found).__name__}, not a state_dict.")
    ema = _under(found, EMA_KEYS)
    model = _under(found, MODEL_KEYS)
    if model is None and _is_state(found):
        model = "", found
    if model is None and ema is None:
        model = _only_one(found, path)
    picked = model if weights == "model" else ema or (model if weights == "auto" else None)
    if picked is None:
        raise UsageError(
            f"{path} has no {'EMA' if weights == 'ema' else 'model'} weights.",
            hint="Leave out --weights, or give --weights "
            + ("model." if weights == "ema" else "ema."),
        )
    where, state = picked
    notes = [f"state_dict found under '{where}'"] if where else []
    tensors = dict(state)
    if ema is not None and picked is ema:
        notes.append("EMA weights used")
        if model is not None:
            added = {k: v for k, v in model[1].items() if k not in tensors}
            if added and set(tensors) <= set(model[1]):
                tensors = {k: tensors.get(k, v) for k, v in model[1].items()}
                notes.append(f"{len(added)} tensors that the EMA lacks taken from '{model[0]}'")
    elif ema is not None:
        notes.append(f"EMA weights left aside ('{ema[0]}')")
    return Chosen(tensors=tensors, where=where, notes=tuple(notes))


def _only_one(found: Mapping[Any, Any], path: Path) -> tuple[str, Mapping[str, Any]]:
    """The single nested state_dict under an unusual key."""
    inside = {
        str(key): state
        for key, value in found.items()
        if not is_training_state(key) and (state := _inside(value)) is not None
    }
    if len(inside) == 1:
        ((name, (below, only)),) = inside.items()
        return (f"{name}.{below}" if below else name), only
    keys = ", ".join(f"'{key}'" for key in list(found)[:12])
    raise BadInput(
        f"{path} holds "
        + (f"{len(inside)} sets of weights ({', '.join(inside)})" if inside else "no weights")
        + f"; its keys are {keys or 'none'}.",
        hint="Save the state_dict alone: torch.save(model.state_dict(), 'model.pt').",
    )
