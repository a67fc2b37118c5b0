"""Compressed weights in a state_dict, turned into the float weights they stand for.

Three forms, found by the names of the tensors; X is the layer's name.

- Pruning masks of torch.nn.utils.prune: X.weight_orig, X.weight_mask → X.weight = orig * mask.
- Quantized tensors of torch: X.weight as a quantized tensor (static), or packed with its bias in
  X._packed_params._packed_params (dynamic Linear) → X.weight = (q - zero_point) * scale, X.bias.
- Codes and scales: X.weight_codes (also codes, weight_ternary, weight_q, weight_int8), integers of
  the weight's shape, with
    ternary: X.wp and X.wn (also w_p/w_n, Wp/Wn, weight_wp/weight_wn, scale_pos/scale_neg), the levels
    of trained ternary quantization (https://arxiv.org/abs/1612.01064): +1 → wp, -1 → -wn, 0 → 0;
    one scale: X.weight_scale (also scale, weight_scales, alpha) → codes * scale, and X.zero_point
    (also weight_zero_point) when the codes are not centred.
  Scales are scalars, or one per output channel [C_out]. Ternary codes may be packed, four in a uint8,
  lowest bits first, as code + 1 in two bits each, beside X.weight_shape.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput

_CODES = ("weight_codes", "codes", "weight_ternary", "weight_q", "weight_int8")
_LEVELS = (
    ("wp", "wn"),
    ("w_p", "w_n"),
    ("Wp", "Wn"),
    ("weight_wp", "weight_wn"),
    ("scale_pos", "scale_neg"),
)
_SCALES = ("weight_scale", "scale", "weight_scales", "alpha")
_ZEROS = ("zero_point", "weight_zero_point")
_SHAPES = ("weight_shape", "shape")
_PACKED = "_packed_params._packed_params"


def to_float(state: dict[str, Any], path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`state` with every compressed weight folded, and a note for each form that was found.

    Raises BadInput for a mask, codes or scales that do not fit each other; the layer is named.
    """
    notes: list[str] = []
    for fold in (_masks, _quantized, _coded):
        state, note = fold(state, path)
        notes += note
    return state, tuple(notes)


def _replace(state: dict[str, Any], old: list[str], new: dict[str, Any]) -> dict[str, Any]:
    """`state` with `new` in the place of the first of `old`, the others taken out."""
    result: dict[str, Any] = {}
    for key, value in state.items():
        if key == old[0]:
            result.update(new)
        elif key not in old:
            result[key] = value
    return result


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _masks(state: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    names = [k[: -len("_orig")] for k in state if k.endswith("_orig") and f"{k[:-5]}_mask" in state]
    zeros = total = 0
    for name in names:
        original, mask = state[f"{name}_orig"], state[f"{name}_mask"]
        if original.shape != mask.shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise BadInput(
                f"{path}: the pruning mask of layer '{_layer(name)}' does not fit its weight."
            )
        # a NaN under the mask stays one: 0 * NaN is NaN, and the check for such values names it
        folded = original * mask.to(original.dtype)
        zeros += int((folded == 0).sum())
        total += folded.numel()
        state = _replace(state, [f"{name}_orig", f"{name}_mask"], {name: folded})
    if not names:
        return state, []
    return state, [
        f"{len(names)} pruning masks folded into their weights: {100 * zeros / max(total, 1):.1f} % of "
        "these are zero; a dense runtime is no faster for it"
    ]


def _quantized(state: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    import torch

    count = 0
    for key in [k for k in state if k.endswith(_PACKED)]:
        layer = key[: -len(_PACKED)]
        packed = state[key]
        if not (
            isinstance(packed, tuple)
            and len(packed) == 2
            and isinstance(packed[0], torch.Tensor)
            and packed[0].is_quantized
        ):
            raise BadInput(
                f"{path}: layer '{layer.rstrip('.')}' holds packed int8 weights of a form that "
                "edgekit does not read.",
                hint="Save the float model, or export the quantized one to ONNX.",
            )
        new = {f"{layer}weight": packed[0].dequantize()}
        if isinstance(packed[1], torch.Tensor):
            new[f"{layer}bias"] = packed[1].detach()
        extra = [f"{layer}{name}" for name in ("scale", "zero_point", "_packed_params.dtype")]
        state = _replace(state, [key, *extra], new)
        count += 1
    for key, value in list(state.items()):
        if isinstance(value, torch.Tensor) and value.is_quantized:
            layer = key.rpartition(".")[0]
            dot = "." if layer else ""
            extra = [f"{layer}{dot}{name}" for name in ("scale", "zero_point")]
            state = _replace(state, [key, *extra], {key: value.dequantize()})
            count += 1
    if not count:
        return state, []
    return state, [f"{count} int8 weights of torch turned into float (their scales are not kept)"]


def _coded(state: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    ternary = others = 0
    for key in list(state):
        layer, dot, leaf = key.rpartition(".")
        prefix = layer + dot
        bare = leaf == "weight" and _is_integer(state[key]) and _pick(state, prefix, _SCALES)
        if (leaf not in _CODES and not bare) or (leaf in _CODES and f"{prefix}weight" in state):
            continue
        if not _is_integer(state[key]):
            continue
        used = [key]
        codes = _unpacked(state, prefix, key, used, path)
        weight, is_ternary = _decoded(state, prefix, codes, used, path)
        ternary += is_ternary
        others += not is_ternary
        state = _replace(state, used, {f"{prefix}weight": weight})
    notes = []
    if ternary:
        notes.append(f"{ternary} layers of ternary codes and scales turned into float weights")
    if others:
        notes.append(f"{others} layers of integer codes and scales turned into float weights")
    return state, notes


def _is_integer(value: Any) -> bool:
    import torch

    kinds = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
    return isinstance(value, torch.Tensor) and value.dtype in kinds


def _pick(state: dict[str, Any], prefix: str, names: tuple[str, ...]) -> str | None:
    import torch

    for name in names:
        if isinstance(state.get(prefix + name), torch.Tensor):
            return prefix + name
    return None


def _unpacked(state: dict[str, Any], prefix: str, key: str, used: list[str], path: Path) -> Any:
    """Integer codes in the weight's shape."""
    import torch

    codes = state[key]
    shape_key = _pick(state, prefix, _SHAPES)
    if shape_key is None:
        return codes
    used.append(shape_key)
    shape = [int(size) for size in state[shape_key].flatten().tolist()[:8]]
    count = math.prod(shape) if shape and min(shape) > 0 else -1
    if codes.dtype != torch.uint8 or not 0 < count <= 4 * codes.numel() < count + 4:
        raise BadInput(
            f"{path}: the packed codes of layer '{_layer(key)}' ({codes.numel()} bytes) do not fill "
            f"the shape {shape}."
        )
    pairs = torch.stack([(codes.flatten() >> shift) & 3 for shift in (0, 2, 4, 6)], 1).flatten()
    return (pairs[:count].to(torch.int8) - 1).reshape(shape)


def _decoded(
    state: dict[str, Any], prefix: str, codes: Any, used: list[str], path: Path
) -> tuple[Any, bool]:
    """The float weight, and whether it has three levels."""
    import torch

    layer = prefix.rstrip(".")
    low, high = int(codes.min()), int(codes.max())
    is_ternary = low >= -1 and high <= 1
    for positive, negative in _LEVELS:
        if prefix + positive in state and prefix + negative in state:
            if not is_ternary:
                raise BadInput(
                    f"{path}: layer '{layer}' has the levels of ternary weights, but codes from {low} "
                    f"to {high}."
                )
            used += [prefix + positive, prefix + negative]
            up = _scale(state[prefix + positive], codes, layer, path)
            down = _scale(state[prefix + negative], codes, layer, path)
            return torch.where(codes > 0, up, torch.where(codes < 0, -down, 0.0)), True
    scale_key = _pick(state, prefix, _SCALES)
    if scale_key is None:
        raise BadInput(
            f"{path}: layer '{layer}' stores integer codes without a scale.",
            hint="Save the scales beside them: weight_scale, or wp and wn for ternary weights.",
        )
    used.append(scale_key)
    centred = codes.to(torch.float32)
    zero_key = _pick(state, prefix, _ZEROS)
    if zero_key is not None:
        used.append(zero_key)
        centred = centred - _scale(state[zero_key], codes, layer, path)
    return centred * _scale(state[scale_key], codes, layer, path), is_ternary


def _scale(value: Any, codes: Any, layer: str, path: Path) -> Any:
    """`value` as float32 that multiplies `codes`: a scalar, one per output channel, or broadcast."""
    import torch

    scale = value.detach().to(torch.float32)
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.numel() == codes.shape[0]:
        return scale.reshape(-1, *[1] * (codes.dim() - 1))
    raise BadInput(
        f"{path}: layer '{layer}' has {scale.numel()} scales for {codes.shape[0]} output channels."
    )


def dequantize_layers(module: Any) -> list[str]:
    """Replace the dynamically quantized Linear layers inside of `module` by float ones, in place."""
    import torch

    try:
        from torch.ao.nn.quantized.dynamic import Linear as Quantized
    except ImportError:  # a torch without torch.ao has no such layers either
        return []
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Quantized):
                layer = torch.nn.Linear(child.in_features, child.out_features)
                bias = child.bias()
                layer.weight = torch.nn.Parameter(child.weight().dequantize(), requires_grad=False)
                layer.bias = None if bias is None else torch.nn.Parameter(bias.detach())
                setattr(parent, name, layer)
                count += 1
    return [f"{count} dynamic int8 Linear layers turned into float"] if count else []
