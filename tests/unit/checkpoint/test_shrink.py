"""Structurally pruned state_dicts load into the unpruned architecture and compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from edgekit.checkpoint import LoadOptions, load  # noqa: E402
from edgekit.errors import BadInput  # noqa: E402
from tests.unit.checkpoint import networks  # noqa: E402

ARCH = "tests.unit.checkpoint.networks:"
MOBILENET = [16, 33, 51, 96, 101, 187, 64, 143, 200, 377, 5]
EFFICIENT = [1.0, 0.5, 0.31, 0.9, 0.77, 0.45, 0.6, 0.2, 0.83, 0.4, 0.66, 0.25, 0.9, 0.12, 0.5, 0.7]
RESNET = [0.9, 0.5, 0.33, 0.7, 0.41, 0.28, 0.95, 0.6, 0.37, 0.81, 0.5, 0.22, 0.63, 0.44, 0.15, 0.73]

CASES: list[tuple[str, Callable[..., Any], dict[str, Any], tuple[int, ...]]] = [
    ("mobilenet_v3_small", networks.mobilenet_v3_small, {"expanded": MOBILENET}, (1, 3, 96, 96)),
    ("efficientnet_b0", networks.efficientnet_b0, {"keep": EFFICIENT}, (1, 3, 96, 96)),
    ("resnet50", networks.resnet50, {"keep": RESNET}, (1, 3, 64, 64)),
    ("lenet", networks.lenet, {"widths": (3, 11, 70, 41)}, (1, 1, 32, 32)),
    (
        "cnn6x2",
        networks.cnn6x2,
        {"widths": [9, 16, 21, 30, 17, 48, 50, 33, 96, 40, 101, 77]},
        (1, 3, 64, 64),
    ),
    # whole groups of the grouped convolution gone, GroupNorm's groups kept
    ("mixed", networks.mixed, {"width": 8, "groups": 2, "inner": 7}, (1, 3, 32, 32)),
    # every group of the grouped convolution thinner
    ("mixed", networks.mixed, {"width": 12, "groups": 4, "inner": 12}, (1, 3, 32, 32)),
]


@pytest.mark.parametrize(("name", "factory", "widths", "shape"), CASES)
def test_pruned_state_dict_computes_what_the_pruned_network_computes(
    name: str,
    factory: Callable[..., Any],
    widths: dict[str, Any],
    shape: tuple[int, ...],
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    pruned = networks.randomized(factory(**widths))
    torch.save({"state_dict": pruned.state_dict()}, tmp_path / "pruned.pt")
    loaded = load(tmp_path / "pruned.pt", LoadOptions(arch=ARCH + name))

    stored = {key: tensor.shape for key, tensor in pruned.state_dict().items()}
    assert {key: tensor.shape for key, tensor in loaded.module.state_dict().items()} == stored
    assert loaded.parameters == sum(p.numel() for p in pruned.parameters())
    assert loaded.parameters < sum(p.numel() for p in factory().parameters())
    assert any("shrunk" in note for note in loaded.notes)
    image = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(loaded.module(image), pruned(image))
    described = {
        (type(a), a.extra_repr()) for a in loaded.module.modules() if not list(a.children())
    }
    assert described == {
        (type(a), a.extra_repr()) for a in pruned.modules() if not list(a.children())
    }


def _saved(tmp_path: Path, state: dict[str, Any]) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    return path


def _state(**widths: Any) -> dict[str, Any]:
    return dict(networks.lenet(**widths).state_dict())


def test_layers_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    state = _state(widths=(3, 11, 70, 41))
    state["conv2.weight"] = torch.randn(11, 4, 5, 5)  # conv1 gives 3 channels
    with pytest.raises(BadInput, match=r"layer 'conv2' \(Conv2d\) does not fit"):
        load(_saved(tmp_path, state), LoadOptions(arch=ARCH + "lenet"))


def test_a_tensor_larger_than_the_architecture_is_named(tmp_path: Path) -> None:
    state = _state(widths=(3, 11, 200, 41))
    with pytest.raises(BadInput, match=r"layer 'fc1'.*\[200, 275\], larger.*\[120, 400\]"):
        load(_saved(tmp_path, state), LoadOptions(arch=ARCH + "lenet"))


def test_a_bias_of_another_length_is_named(tmp_path: Path) -> None:
    state = _state(widths=(3, 11, 70, 41))
    state["conv2.bias"] = torch.zeros(10)
    with pytest.raises(BadInput, match=r"layer 'conv2'.*11 channels, but 'bias' has 10"):
        load(_saved(tmp_path, state), LoadOptions(arch=ARCH + "lenet"))


def test_another_kernel_is_another_architecture(tmp_path: Path) -> None:
    state = _state()
    state["conv2.weight"] = torch.randn(16, 6, 3, 3)
    with pytest.raises(BadInput, match=r"layer 'conv2'.*kernel"):
        load(_saved(tmp_path, state), LoadOptions(arch=ARCH + "lenet"))


def test_a_layer_without_channels_is_named(tmp_path: Path) -> None:
    state = _state()
    state["fc2.weight"] = torch.randn(0, 120)
    with pytest.raises(BadInput, match=r"layer 'fc2'.*no channels left"):
        load(_saved(tmp_path, state), LoadOptions(arch=ARCH + "lenet"))


def test_depthwise_that_loses_another_number_than_its_input_is_named(tmp_path: Path) -> None:
    state = dict(networks.mobilenet_v3_small(MOBILENET).state_dict())
    name = "features.4.depthwise.0.weight"
    state[name] = state[name][:-1]
    with pytest.raises(BadInput, match=r"features\.4\.depthwise"):
        load(_saved(tmp_path, state), LoadOptions(arch=ARCH + "mobilenet_v3_small"))


def test_group_norm_that_no_number_of_groups_divides_is_named(tmp_path: Path) -> None:
    state = dict(networks.mixed(width=16).state_dict())
    for key in ("norm.weight", "norm.bias"):
        state[key] = state[key][:15]
    with pytest.raises(BadInput, match=r"layer 'norm'.*15 channels"):
        load(_saved(tmp_path, state), LoadOptions(arch=ARCH + "mixed"))


def test_the_input_shape_can_be_told(tmp_path: Path) -> None:
    state = _state(widths=(3, 11, 70, 41))
    path = _saved(tmp_path, {"state_dict": state, "input_shape": [1, 1, 32, 32]})
    loaded = load(path, LoadOptions(arch=ARCH + "lenet"))
    assert loaded.input_shape == (1, 1, 32, 32)
    with pytest.raises(BadInput, match=r"layer 'fc1'"):
        load(
            _saved(tmp_path, state),
            LoadOptions(arch=ARCH + "lenet", input_shape=(1, 1, 28, 28)),
        )
