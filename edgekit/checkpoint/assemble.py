"""Put a state_dict into a module: match the names, fold, shrink to the stored shapes, check, load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekit.checkpoint import fold, shrink
from edgekit.checkpoint.inference import Ready, check_finite, check_types, ready
from edgekit.errors import BadInput

# counters that counting tools leave in the state_dict (thop), and torch's own averaging counter
_LEFTOVERS = ("total_ops", "total_params", "n_averaged")
_OPTIONAL = "num_batches_tracked"
_SHOWN = 5


def fill(
    module: Any,
    tensors: Mapping[str, Any],
    path: Path,
    input_shape: tuple[int, ...] | None,
    dtype: str | None = None,
) -> Ready:
    """Load `tensors` into `module`, each exactly once, and make it ready to run.

    Pruning masks, ternary codes and int8 codes are folded into float weights; layers whose stored
    shapes are smaller than the architecture's are shrunk, which a forward pass must survive.
    Raises BadInput: another architecture (keys and shapes named), types that are no weights, mixed
    float types (unless `dtype` is "float32"), NaN.
    """
    from edgekit.checkpoint import qat

    qat.demand_converted(module, path)
    expected = module.state_dict()
    state, notes = _strip(dict(tensors), set(expected))
    stored = state
    state, folded = fold.to_float(state, path)
    made = frozenset(key for key, value in state.items() if stored.get(key) is not value)
    qat.adopt_shapes(module, state)
    expected = module.state_dict()
    state, more = _match(state, expected, module, path)
    notes += (*folded, *more)
    notes += _check_values(state, module, path, dtype, made)
    if any(state[key].shape != expected[key].shape for key in state):
        shrunk = shrink.shrink(module, state, path, input_shape)
        notes = (*notes, *shrunk)
    _load(module, state, path)
    done = ready(module, path, dtype)
    return Ready(module=done.module, parameters=done.parameters, notes=(*notes, *done.notes))


def _bases(key: str) -> str:
    return key.partition(".")[0]


def _strip(state: dict[str, Any], expected: set[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Take off prefixes that wrappers put before every name ("module.", "_orig_mod.", "model.").

    A first part is a wrapper's when no name of the architecture begins with it. When only some of
    the names have it, and those alone cover the architecture, the others (a loss's weights) stay out.
    """
    notes: list[str] = []
    tops = {_bases(key) for key in expected}
    for _ in range(6):
        state = {k: v for k, v in state.items() if k.rpartition(".")[2] not in _LEFTOVERS}
        counts: dict[str, int] = {}
        for key in state:
            if "." in key:
                counts[_bases(key)] = counts.get(_bases(key), 0) + 1
        foreign = [top for top in counts if top not in tops]
        whole = [top for top in foreign if counts[top] == len(state)]
        if whole:
            prefix = whole[0] + "."
            state = {key[len(prefix) :]: value for key, value in state.items()}
            notes.append(f"prefix '{prefix}' taken off the names")
            continue
        part = next((top for top in foreign if _covers(state, top + ".", expected)), None)
        if part is None:
            break
        outside = sorted(key for key in state if not key.startswith(part + "."))
        state = {k[len(part) + 1 :]: v for k, v in state.items() if k.startswith(part + ".")}
        notes.append(
            f"prefix '{part}.' taken off the names; {len(outside)} tensors outside of it left out "
            f"({', '.join(outside[:3])}{', …' if len(outside) > 3 else ''})"
        )
    return state, tuple(notes)


def _covers(state: Mapping[str, Any], prefix: str, expected: set[str]) -> bool:
    inside = {key[len(prefix) :] for key in state if key.startswith(prefix)}
    needed = {key for key in expected if not key.endswith(_OPTIONAL)}
    return bool(needed) and needed <= inside


def _match(
    state: dict[str, Any], expected: Mapping[str, Any], module: Any, path: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Hold the names against the architecture's. Raises BadInput with the names that differ."""
    import torch

    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    missing = [k for k in expected if k not in state and not k.endswith(_OPTIONAL)]
    extra = [k for k in state if k not in expected and not k.endswith(_OPTIONAL)]
    ranks = [k for k in state if k in expected and state[k].dim() != expected[k].dim()]
    notes: list[str] = []
    if missing or extra:
        raise _other_architecture(module, path, missing, extra, len(expected))
    if ranks:
        key = ranks[0]
        raise BadInput(
            f"{path} does not fit {type(module).__name__}: '{key}' has the shape "
            f"{list(state[key].shape)}, the architecture's has {list(expected[key].shape)}.",
            hint="Name the architecture that the weights were trained in with --arch.",
        )
    counters = [k for k in expected if k not in state]
    if counters:
        notes.append(f"{len(counters)} batch counters that the checkpoint lacks left at 0")
    return {key: state[key] for key in expected if key in state}, tuple(notes)


def _other_architecture(
    module: Any, path: Path, missing: list[str], extra: list[str], count: int
) -> BadInput:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {count} tensors are missing ({_some(missing)})")
    if extra:
        parts.append(f"{len(extra)} are unknown to it ({_some(extra)})")
    return BadInput(
        f"{path} is a state_dict of another architecture than {type(module).__name__}: "
        + "; ".join(parts)
        + ".",
        hint="Check --arch and --arch-arg: the factory must build the network that was trained.",
    )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")


def _check_values(
    state: Mapping[str, Any], module: Any, path: Path, dtype: str | None, made: frozenset[str]
) -> tuple[str, ...]:
    """Notes on types; BadInput for tensors that are no weights, NaN, and mixed types.

    `made` names weights that folding made: their type says nothing about the file.
    """
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    parameters = {key: tensor for key, tensor in state.items() if key in names}
    buffers = {key: tensor for key, tensor in state.items() if key not in names}
    notes = check_types(parameters, buffers, path, dtype, made)
    check_finite(parameters.items(), buffers.items(), path)
    return notes


def _load(module: Any, state: Mapping[str, Any], path: Path) -> None:
    """Copy every tensor into its place. Raises BadInput when torch finds one that does not fit."""
    try:
        result = module.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BadInput(
            f"{path} does not fit {type(module).__name__}: {lines[-1]}",
            hint="Check --arch and --arch-arg.",
        ) from error
    left = [k for k in result.missing_keys if not k.endswith(_OPTIONAL)]
    left += result.unexpected_keys
    if left:
        raise BadInput(
            f"{path}: tensors without a place in {type(module).__name__}: {_some(left)}."
        )
