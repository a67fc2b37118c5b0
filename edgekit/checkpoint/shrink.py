"""Shrink an architecture to the shapes that structural pruning left in its state_dict.

Pruning removes whole channels: a convolution loses rows (output channels) and columns (input
channels), its normalization and bias lose the same rows. The state_dict shows the new sizes of every
tensor, so each layer is resized on its own, and a forward pass decides whether the layers fit each
other. Groups are settled during that pass, when the number of incoming channels is known:
groups = channels / weight.shape[1], which is all channels for a depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.checkpoint.probe import first_shape
from edgekit.errors import BadInput

Tensors = Mapping[str, Any]


def shrink(
    module: Any, state: Tensors, path: Path, input_shape: tuple[int, ...] | None
) -> tuple[str, ...]:
    """Resize the layers of `module`, in place, to the shapes in `state`, and try a forward pass.

    `state` holds every tensor of the module under its own names. Raises BadInput, naming the layer,
    when a tensor is larger than the architecture's, a layer's tensors contradict each other, or the
    pass fails. Returns notes.
    """
    shape = input_shape or first_shape(module, path)
    changed = []
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        own = {
            leaf: state[prefix + leaf]
            for leaf in (*layer._parameters, *layer._buffers)
            if prefix + leaf in state and getattr(layer, leaf) is not None
        }
        if any(own[leaf].shape != getattr(layer, leaf).shape for leaf in own):
            _resize(layer, own, _Place(name, layer, path))
            changed.append(name)
    skipped = _try(module, shape, path)
    notes = [f"{len(changed)} layers shrunk to the checkpoint's shapes (structural pruning)"]
    if skipped:
        notes.append(
            f"{len(skipped)} layers take no part in the forward pass ({', '.join(skipped[:3])})"
        )
    return tuple(notes)


class _Place:
    """Where an error is: the layer's name and kind."""

    def __init__(self, name: str, layer: Any, path: Path) -> None:
        self.text = f"{path}: layer '{name}' ({type(layer).__name__})"

    def error(self, detail: str) -> BadInput:
        return BadInput(
            f"{self.text} {detail}.",
            hint="Check --arch and --arch-arg. If the network was pruned in a way that its own code "
            "does not follow, save it as a whole module or as ONNX.",
        )


def _resize(layer: Any, own: Tensors, place: _Place) -> None:
    for leaf, tensor in own.items():
        old = getattr(layer, leaf).shape
        if any(new > size for new, size in zip(tensor.shape, old, strict=True)):
            raise place.error(
                f"has '{leaf}' of shape {list(tensor.shape)}, larger than the architecture's "
                f"{list(old)}"
            )
        if tensor.numel() == 0:
            raise place.error(f"has no channels left in '{leaf}'")
    rule = _rule(layer)
    if rule is not None:
        rule(layer, own, place)
    _replace(layer, own)


def _replace(layer: Any, own: Tensors) -> None:
    """Empty tensors of the new shapes; the values come with load_state_dict."""
    import torch

    for leaf, tensor in own.items():
        old = getattr(layer, leaf)
        if old.shape == tensor.shape:
            continue
        new = torch.zeros(tensor.shape, dtype=old.dtype)
        if leaf in layer._parameters:
            layer._parameters[leaf] = torch.nn.Parameter(new, requires_grad=False)
        else:
            layer._buffers[leaf] = new


def _rule(layer: Any) -> Callable[[Any, Tensors, _Place], None] | None:
    """What else changes in a layer of this kind; None for a module of the user's with own tensors."""
    import torch
    from torch import nn

    rules: list[tuple[Any, Callable[[Any, Tensors, _Place], None]]] = [
        (nn.modules.conv._ConvTransposeNd, _conv_transpose),
        (nn.modules.conv._ConvNd, _conv),
        (nn.modules.batchnorm._NormBase, _batch_norm),
        (nn.GroupNorm, _group_norm),
        (nn.LayerNorm, _layer_norm),
        (nn.Linear, _linear),
        (nn.PReLU, _prelu),
        (nn.Embedding, _embedding),
        ((nn.MultiheadAttention, nn.RNNBase, nn.Bilinear), _unsupported),
    ]
    if hasattr(torch.nn, "RMSNorm"):
        rules.append((torch.nn.RMSNorm, _layer_norm))
    return next((rule for kinds, rule in rules if isinstance(layer, kinds)), None)


def _rows(own: Tensors, count: int, place: _Place) -> None:
    """Every vector of the layer has one value per output channel."""
    for leaf, tensor in own.items():
        if leaf != "weight" and tensor.dim() == 1 and tensor.shape[0] != count:
            raise place.error(f"has {count} channels, but '{leaf}' has {tensor.shape[0]} values")


def _kernel(layer: Any, weight: Any, place: _Place) -> None:
    if tuple(weight.shape[2:]) != tuple(layer.kernel_size):
        raise place.error(
            f"has the kernel {list(weight.shape[2:])}, the architecture's {list(layer.kernel_size)}"
        )


def _conv(layer: Any, own: Tensors, place: _Place) -> None:
    weight = own["weight"]  # [out, in / groups, *kernel]
    _kernel(layer, weight, place)
    _rows(own, weight.shape[0], place)
    if layer.groups > 1:
        depthwise = layer.in_channels == layer.groups
        multiplier = layer.out_channels // layer.groups if depthwise else 0
        if depthwise and weight.shape[0] % multiplier == 0:
            layer.groups = weight.shape[0] // multiplier
        # settled when the incoming channels are known; a depthwise one keeps its multiplier
        layer._edgekit_multiplier = multiplier
    layer.out_channels = weight.shape[0]
    layer.in_channels = weight.shape[1] * layer.groups


def _conv_transpose(layer: Any, own: Tensors, place: _Place) -> None:
    weight = own["weight"]  # [in, out / groups, *kernel]
    _kernel(layer, weight, place)
    if layer.groups > 1:
        if layer.in_channels != layer.groups:
            raise place.error("is a grouped transposed convolution, which cannot be shrunk")
        layer.groups = weight.shape[0]
    layer.in_channels = weight.shape[0]
    layer.out_channels = weight.shape[1] * layer.groups
    _rows(own, layer.out_channels, place)


def _batch_norm(layer: Any, own: Tensors, place: _Place) -> None:
    vector = next(tensor for tensor in own.values() if tensor.dim() == 1)
    _rows(own, vector.shape[0], place)
    if "weight" in own and own["weight"].shape[0] != vector.shape[0]:
        raise place.error("has a weight of another length than its statistics")
    layer.num_features = vector.shape[0]


def _group_norm(layer: Any, own: Tensors, place: _Place) -> None:
    channels = own["weight"].shape[0]
    _rows(own, channels, place)
    if channels % layer.num_groups:
        size = layer.num_channels // layer.num_groups
        if channels % size:
            raise place.error(
                f"has {channels} channels, which neither {layer.num_groups} groups nor groups of "
                f"{size} divide"
            )
        layer.num_groups = channels // size
    layer.num_channels = channels


def _layer_norm(layer: Any, own: Tensors, place: _Place) -> None:
    shape = tuple(own["weight"].shape)
    if any(tuple(tensor.shape) != shape for tensor in own.values()):
        raise place.error("has a weight and a bias of different shapes")
    layer.normalized_shape = shape


def _linear(layer: Any, own: Tensors, place: _Place) -> None:
    layer.out_features, layer.in_features = own["weight"].shape
    _rows(own, layer.out_features, place)


def _prelu(layer: Any, own: Tensors, place: _Place) -> None:
    layer.num_parameters = own["weight"].shape[0]


def _embedding(layer: Any, own: Tensors, place: _Place) -> None:
    layer.num_embeddings, layer.embedding_dim = own["weight"].shape


def _unsupported(layer: Any, own: Tensors, place: _Place) -> None:
    raise place.error("has other shapes than the architecture's, and this kind cannot be shrunk")


def _try(module: Any, shape: tuple[int, ...], path: Path) -> list[str]:
    """Run once on noise of `shape`, settling groups; names of layers with weights that did not run.

    Raises BadInput naming the layer where the pass fails.
    """
    import torch

    names = {id(layer): name for name, layer in module.named_modules()}
    entered: list[Any] = []
    ran: set[int] = set()

    def enter(layer: Any, inputs: Any) -> None:
        entered.append(layer)
        if "_edgekit_multiplier" in layer.__dict__:
            _settle_groups(layer, int(inputs[0].shape[1]), _Place(names[id(layer)], layer, path))

    def leave(layer: Any, inputs: Any, output: Any) -> None:
        ran.add(id(layer))
        if entered and entered[-1] is layer:
            entered.pop()

    handles = []
    for layer in module.modules():
        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave))
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            module(torch.zeros(shape))
    except BadInput:
        raise
    # the user's own forward runs here on layers that may not fit: any exception means they do not
    except Exception as error:
        layer = entered[-1] if entered else module
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        place = _Place(names.get(id(layer), ""), layer, path)
        raise place.error(
            f"does not fit what comes before it once shrunk (input {list(shape)}): {first}"
        ) from error
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
        for layer in module.modules():
            layer.__dict__.pop("_edgekit_multiplier", None)
    return [
        name
        for name, layer in module.named_modules()
        if id(layer) not in ran and any(True for _ in layer.parameters(recurse=False))
    ]


def _settle_groups(layer: Any, channels: int, place: _Place) -> None:
    """Groups of a grouped convolution from the channels that really come in."""
    per_group = layer.weight.shape[1]
    groups, multiplier = channels // per_group, layer._edgekit_multiplier
    fits = channels % per_group == 0 and layer.out_channels % groups == 0
    if not fits or (multiplier and layer.out_channels != groups * multiplier):
        raise place.error(
            f"gets {channels} channels, which its weight of shape {list(layer.weight.shape)} does "
            "not divide into groups"
        )
    layer.in_channels, layer.groups = channels, groups
