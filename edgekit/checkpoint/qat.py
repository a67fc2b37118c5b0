"""Quantization-aware training: torch's fake-quantize modules, frozen with the scales they have.

While observers are switched on, a forward pass changes the scales of torch.ao's FakeQuantize, in
eval mode too; and its exporters refuse the quantized ranges they do not know. So every one is
replaced by a `FixedFakeQuantize` with its scale and zero point, bit for bit, and every QAT layer by
a plain one with its BatchNorm folded (W * gamma / sqrt(var + eps), which is what the QAT layer
quantizes). The weights are set onto their grid once; quantizing them again changes nothing.

Eager mode (torch.ao.quantization.prepare_qat) and FX mode (prepare_qat_fx) leave the same modules.
PT2E (torchao's prepare_qat_pt2e) writes BatchNorm's share of the weights out as operators, which its
own convert_pt2e takes back in: such a program is read once it is converted, as a .pt2.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import BadInput

_SIGNED = (-128, 127)
_UNSIGNED = (0, 255)


class FixedFakeQuantize(nn.Module):  # type: ignore[misc]
    """Rounds to a grid and back, with a scale that nothing changes.

    scale float32 [] or [C], zero_point int32 of the same shape, `axis` the channel axis or None;
    integers from `low` to `high`. A grid narrower than 8 bits is the 8-bit one behind a clip.
    """

    def __init__(
        self, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None
    ) -> None:
        super().__init__()
        shape = () if axis is None else (-1,)
        self.register_buffer("scale", scale.detach().float().reshape(shape).clone())
        self.register_buffer(
            "zero_point", zero_point.detach().to(torch.int32).reshape(shape).clone()
        )
        self.low, self.high, self.axis = low, high, axis
        self.full = _SIGNED if low < 0 else _UNSIGNED

    def forward(self, x: Tensor) -> Tensor:
        x = self.clipped(x)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *self.full)
        return torch.fake_quantize_per_channel_affine(
            x, self.scale, self.zero_point, self.axis, *self.full
        )

    def clipped(self, x: Tensor) -> Tensor:
        """`x` within what `low` and `high` stand for; as it is when the grid has all 8 bits."""
        if (self.low, self.high) == self.full:
            return x
        if self.axis is None:
            zero, scale = int(self.zero_point), float(self.scale)
            return x.clamp((self.low - zero) * scale, (self.high - zero) * scale)
        shape = [1] * x.dim()
        shape[self.axis] = -1
        scale, zero = self.scale.reshape(shape), self.zero_point.reshape(shape)
        return torch.minimum(
            torch.maximum(x, (self.low - zero) * scale), (self.high - zero) * scale
        )


class QuantizedLayer(nn.Module):  # type: ignore[misc]
    """A Conv or Linear whose weight passes a quantizer, with its ReLU and output quantizer, if any."""

    def __init__(
        self, layer: nn.Module, quantizer: nn.Module, relu: bool, output: nn.Module | None
    ) -> None:
        super().__init__()
        self.layer, self.weight_fake_quant, self.relu = layer, quantizer, relu
        self.activation_post_process = output

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_fake_quant(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            y = functional.linear(x, weight, self.layer.bias)
        else:
            y = self.layer._conv_forward(x, weight, self.layer.bias)
        if self.relu:
            y = functional.relu(y)
        return y if self.activation_post_process is None else self.activation_post_process(y)


def _class(module: str, name: str) -> type[Any] | None:
    """A class of a torch module that somebody imported already; None when nobody did.

    Without that import no object of the class can exist.
    """
    return getattr(sys.modules.get(module), name, None)


def _is_quantizer(module: Any) -> bool:
    base = _class("torch.ao.quantization.fake_quantize", "FakeQuantizeBase")
    return base is not None and isinstance(module, base)


def _is_observer(module: Any) -> bool:
    base = _class("torch.ao.quantization.observer", "ObserverBase")
    return base is not None and isinstance(module, base)


def adopt_shapes(module: Any, state: Mapping[str, Any]) -> None:
    """Give the quantizers and observers of `module` buffers of the shapes that `state` has for them.

    A fresh per-channel quantizer does not know its channels yet.
    """
    for name, part in module.named_modules():
        if not _is_quantizer(part) and not _is_observer(part):
            continue
        for leaf, tensor in list(part.named_buffers(recurse=False)):
            stored = state.get(f"{name}.{leaf}" if name else leaf)
            if isinstance(stored, Tensor) and stored.shape != tensor.shape:
                part._buffers[leaf] = torch.empty_like(stored)
        for leaf, parameter in list(part.named_parameters(recurse=False)):
            stored = state.get(f"{name}.{leaf}" if name else leaf)
            if isinstance(stored, Tensor) and stored.shape != parameter.shape:
                part._parameters[leaf] = nn.Parameter(torch.empty_like(stored), requires_grad=False)


def freeze(module: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """`module` with its fake quantizers fixed, and notes; itself when it has none.

    Raises BadInput for quantizers of more than 8 bits, or whose scales are unusable; named.
    """
    quantizers = [name for name, part in module.named_modules() if _is_quantizer(part)]
    observers = [name for name, part in module.named_modules() if _is_observer(part)]
    if not quantizers and not observers:
        return module, ()
    off = 0
    fixed: dict[int, nn.Module] = {}
    for name, part in list(module.named_modules(remove_duplicate=False)):
        if _is_quantizer(part):
            if id(part) not in fixed:
                fixed[id(part)] = _fixed(part, name, path)
                off += isinstance(fixed[id(part)], nn.Identity)
            module = _put(module, name, fixed[id(part)])
    for name in observers:
        with_parent = name.rpartition(".")[0]
        if name == "" or any(name.startswith(f"{q}.") for q in quantizers):
            continue  # went with its quantizer
        if with_parent == "" or _has(module, with_parent):
            module = _put(module, name, nn.Identity())
    layers = 0
    for name, part in list(module.named_modules()):
        if hasattr(part, "weight_fake_quant") and not isinstance(part, QuantizedLayer):
            module = _put(module, name, _plain(part, name, path))
            layers += 1
    notes = []
    if quantizers:
        notes.append(
            f"quantization-aware training: {len(fixed) - off} fake quantizers with their scales, "
            f"{layers} layers with quantized weights"
        )
    if off:
        notes.append(f"{off} fake quantizers were switched off and are left out")
    if observers and not quantizers:
        notes.append(f"{len(observers)} observers left out")
    return module, tuple(notes)


def demand_converted(module: Any, path: Path) -> None:
    """Raises BadInput for a network that PT2E has prepared and not converted."""
    base = _class("torchao.quantization.pt2e.fake_quantize", "FakeQuantizeBase")
    if base is None or not any(isinstance(part, base) for part in module.modules()):
        return
    raise BadInput(
        f"{path}: the network is a program of torch.export in the middle of its training, not one "
        "that can be deployed.",
        hint="Convert it and save the result: torch.export.save(torch.export.export("
        "convert_pt2e(model), (x,)), 'm.pt2'), with convert_pt2e of torchao.quantization.pt2e.",
    )


def _has(module: Any, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _put(root: Any, name: str, new: Any) -> Any:
    """`root` with `new` in the place called `name`; `new` itself for the root's own."""
    if not name:
        return new
    parent, _, leaf = name.rpartition(".")
    owner = root.get_submodule(parent) if parent else root
    owner._modules[leaf] = new
    return root


def _fixed(quantizer: Any, name: str, path: Path) -> nn.Module:
    if int(quantizer.fake_quant_enabled[0]) == 0:
        return nn.Identity()
    observer = getattr(quantizer, "activation_post_process", None)
    low = int(getattr(quantizer, "quant_min", getattr(observer, "quant_min", 0)))
    high = int(getattr(quantizer, "quant_max", getattr(observer, "quant_max", 255)))
    full = _SIGNED if low < 0 else _UNSIGNED
    if not full[0] <= low < high <= full[1]:
        raise BadInput(
            f"{path}: the fake quantizer '{name}' has integers from {low} to {high}; edgekit takes "
            "those of 8 bits and fewer."
        )
    scale, zero = quantizer.scale.detach(), quantizer.zero_point.detach()
    if scale.numel() == 0 or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise BadInput(
            f"{path}: the fake quantizer '{name}' has scales that are not positive numbers.",
            hint="It has seen no data, or the training diverged; use a later or earlier checkpoint.",
        )
    per_channel = bool(getattr(quantizer, "is_per_channel", False)) or scale.numel() > 1
    axis = int(getattr(quantizer, "ch_axis", 0)) if per_channel else None
    whole = zero.round()
    if bool((whole < full[0]).any()) or bool((whole > full[1]).any()):
        raise BadInput(f"{path}: the fake quantizer '{name}' has a zero point outside of 8 bits.")
    return FixedFakeQuantize(scale, whole, low, high, axis)


def _plain(part: Any, name: str, path: Path) -> nn.Module:
    """The QAT layer as a plain one behind a weight quantizer, BatchNorm folded."""
    weight, bias = part.weight.detach().float(), getattr(part, "bias", None)
    bias = None if bias is None else bias.detach().float()
    norm = getattr(part, "bn", None)
    if norm is not None:
        factor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        weight = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
        centred = -norm.running_mean if bias is None else bias - norm.running_mean
        bias = centred * factor + norm.bias.detach()
    if weight.dim() == 2:
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    elif isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        layer = kinds[weight.dim()](
            part.in_channels,
            part.out_channels,
            part.kernel_size,
            part.stride,
            part.padding,
            part.dilation,
            part.groups,
            bias is not None,
            part.padding_mode,
        )
    else:
        raise BadInput(f"{path}: '{name}' is a {type(part).__name__}, which edgekit cannot freeze.")
    quantizer = part.weight_fake_quant
    with torch.no_grad():
        layer.weight = nn.Parameter(quantizer(weight), requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    layer.eval()
    if isinstance(quantizer, FixedFakeQuantize):
        # the weight is on its grid: a clip to the narrow range would change nothing
        quantizer = FixedFakeQuantize(
            quantizer.scale, quantizer.zero_point, *quantizer.full, quantizer.axis
        )
    output = part._modules.get("activation_post_process")
    made = QuantizedLayer(layer, quantizer, "ReLU" in type(part).__name__, output)
    return made.eval()
