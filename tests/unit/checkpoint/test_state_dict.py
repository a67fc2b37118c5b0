"""State_dicts as they are found in the wild: nested, wrapped, averaged, compressed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from edgekit.checkpoint import LoadOptions, load  # noqa: E402
from edgekit.errors import BadInput, UsageError  # noqa: E402
from edgekit.types import Checkpoint  # noqa: E402
from tests.unit.checkpoint import making  # noqa: E402


def _load(tmp_path: Path, value: Any, **options: Any) -> Checkpoint:
    torch.save(value, tmp_path / "model.pt")
    return load(tmp_path / "model.pt", LoadOptions(**{"arch": making.ARCH, **options}))


def _same(loaded: Checkpoint, model: nn.Module, tolerance: float = 0.0) -> None:
    with torch.no_grad():
        expected, got = model(making.image()), loaded.module(making.image())
    assert float((expected - got).abs().max()) <= tolerance
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict(state),
        lambda state: {"state_dict": state, "epoch": 7, "optimizer": {"state": {0: torch.ones(2)}}},
        lambda state: {"model": state},
        lambda state: {"model_state": state, "best": 0.5},
        lambda state: {"net": {"state_dict": state}},
        lambda state: {"my_own_key": state, "lr": 0.1},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {"model": {f"backbone.{k}": v for k, v in state.items()}},
        lambda state: {
            "state_dict": {
                **{f"model.{k}": v for k, v in state.items()},
                "criterion.weight": torch.ones(5),
            }
        },
        lambda state: {**state, "0.total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    ],
    ids=[
        "bare",
        "ordered",
        "state_dict",
        "model",
        "model_state",
        "two levels",
        "own key",
        "module.",
        "compiled",
        "backbone.",
        "lightning",
        "thop",
        "old torch",
    ],
)
def test_where_the_weights_may_lie(tmp_path: Path, wrap: Any) -> None:
    model = making.small()
    loaded = _load(tmp_path, wrap(model.state_dict()))
    _same(loaded, model)
    assert loaded.kind == "state_dict"
    assert loaded.parameters == sum(p.numel() for p in model.parameters())
    assert loaded.sha256


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(tmp_path: Path, dtype: str, new_format: bool) -> None:
    model = making.small().to(getattr(torch, dtype))
    torch.save(model.state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
    loaded = load(tmp_path / "m.pt", LoadOptions(arch=making.ARCH))
    _same(loaded, model.float())
    assert any("float32" in note for note in loaded.notes)


def test_ema_is_chosen_and_can_be_left_aside(tmp_path: Path) -> None:
    model, ema = making.small(0), making.small(5)
    value = {"model": model.state_dict(), "ema": ema.state_dict()}
    chosen = _load(tmp_path, value)
    _same(chosen, ema)
    assert "EMA weights used" in chosen.notes
    _same(_load(tmp_path, value, weights="ema"), ema)
    left = _load(tmp_path, value, weights="model")
    _same(left, model)
    assert any("left aside" in note for note in left.notes)


def test_an_ema_of_parameters_alone_takes_its_buffers_from_the_model(tmp_path: Path) -> None:
    model, ema = making.small(0), making.small(5)
    shadow = {name: p.detach() for name, p in ema.named_parameters()}
    loaded = _load(
        tmp_path, {"model": model.state_dict(), "ema": {"decay": 0.99, "shadow": shadow}}
    )
    ema[1].load_state_dict({**model[1].state_dict(), "weight": ema[1].weight, "bias": ema[1].bias})
    _same(loaded, ema)
    assert any("taken from 'model'" in note for note in loaded.notes)


def test_torchs_own_averaged_model(tmp_path: Path) -> None:
    model = making.small()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    _same(_load(tmp_path, {"model_ema": averaged.state_dict()}), model)


def test_an_ema_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no EMA weights"):
        _load(tmp_path, making.small().state_dict(), weights="ema")
    with pytest.raises(UsageError, match="no model weights"):
        _load(tmp_path, {"ema": making.small().state_dict()}, weights="model")


def test_two_sets_of_weights_under_unknown_keys_are_not_guessed(tmp_path: Path) -> None:
    state = making.small().state_dict()
    with pytest.raises(BadInput, match="2 sets of weights"):
        _load(tmp_path, {"first": state, "second": state})


def test_arguments_reach_the_factory(tmp_path: Path) -> None:
    model = making.factory(6).eval()
    _same(_load(tmp_path, model.state_dict(), arch_args={"width": "6"}), model)


def test_what_the_checkpoint_says_of_itself(tmp_path: Path) -> None:
    value = {
        "state_dict": making.small().state_dict(),
        "edgekit": {
            "preprocess": {"height": 8, "width": 8, "mean": [0.5, 0.5, 0.5]},
            "task": "classify",
            "head": "logits",
            "names": ["a", "b", "c", "d", "e"],
        },
    }
    loaded = _load(tmp_path, value)
    assert loaded.input_shape == (1, 3, 8, 8)
    assert loaded.preprocess is not None
    assert loaded.preprocess.mean == (0.5, 0.5, 0.5)
    assert (loaded.task, loaded.head, loaded.names[4]) == ("classify", "logits", "e")


def test_pruning_masks_are_folded(tmp_path: Path) -> None:
    model = making.small()
    for layer, name in ((model[0], "weight"), (model[4], "weight"), (model[4], "bias")):
        prune.random_unstructured(layer, name, 0.5)
    loaded = _load(tmp_path, model.state_dict())
    _same(loaded, model)
    assert any("3 pruning masks folded" in note and "50.0 %" in note for note in loaded.notes)
    state = dict(model.state_dict())
    state["4.weight_mask"] = torch.full_like(state["4.weight_mask"], 0.5)
    with pytest.raises(BadInput, match="mask of layer '4'"):
        _load(tmp_path, state)


def two_linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.ReLU(), nn.Linear(10, 3))


def test_dynamically_quantized_linear_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = torch.ao.quantization.quantize_dynamic(two_linear().eval(), {nn.Linear})
    loaded = _load(
        tmp_path, quantized.state_dict(), arch="tests.unit.checkpoint.test_state_dict:two_linear"
    )
    for index in (1, 3):
        assert torch.equal(loaded.module[index].weight, quantized[index].weight().dequantize())
        assert torch.equal(loaded.module[index].bias, quantized[index].bias())
    # the quantized model rounds activations to 8 bits as well
    _same(loaded, quantized, tolerance=0.02)
    assert any("2 int8 weights" in note for note in loaded.notes)


def _ternary(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state_dict with float ternary weights, and its layers' codes with levels per layer."""
    generator = torch.Generator().manual_seed(3)
    state, codes = dict(model.state_dict()), {}
    for name in ("0", "4"):
        code = torch.randint(-1, 2, state[f"{name}.weight"].shape, generator=generator)
        up, down = torch.rand(2, generator=generator) + 0.1
        state[f"{name}.weight"] = torch.where(code > 0, up, torch.where(code < 0, -down, 0.0))
        codes[name] = (code.to(torch.int8), up, down)
    return state, codes


def test_ternary_codes_and_their_two_levels(tmp_path: Path) -> None:
    model = making.small()
    state, codes = _ternary(model)
    model.load_state_dict(state)
    stored = dict(state)
    for name, (code, up, down) in codes.items():
        del stored[f"{name}.weight"]
        stored |= {f"{name}.weight_codes": code, f"{name}.wp": up, f"{name}.wn": down}
    loaded = _load(tmp_path, stored)
    _same(loaded, model)
    assert torch.equal(loaded.module[0].weight, state["0.weight"])
    assert any("2 layers of ternary codes" in note for note in loaded.notes)


def test_packed_ternary_codes_with_a_scale_per_channel(tmp_path: Path) -> None:
    model = making.small()
    _, codes = _ternary(model)
    stored = dict(model.state_dict())
    for name, (code, _, _) in codes.items():
        scale = torch.rand(code.shape[0]) + 0.1
        model[int(name)].weight.data = code * scale.reshape(-1, *[1] * (code.dim() - 1))
        flat = nn.functional.pad(code.flatten() + 1, (0, -code.numel() % 4)).reshape(-1, 4)
        packed = sum(flat[:, i].to(torch.int32) << (2 * i) for i in range(4)).to(torch.uint8)
        del stored[f"{name}.weight"]
        stored |= {
            f"{name}.codes": packed,
            f"{name}.weight_shape": torch.tensor(code.shape),
            f"{name}.weight_scale": scale,
        }
    _same(_load(tmp_path, stored), model)
    stored["4.codes"] = stored["4.codes"][:-1]
    with pytest.raises(BadInput, match="packed codes of layer '4'"):
        _load(tmp_path, stored)


def test_int8_weights_with_their_scales(tmp_path: Path) -> None:
    model = making.small()
    weight = model[4].weight.data
    scale = weight.abs().amax(1) / 127
    codes = torch.round(weight / scale[:, None]).to(torch.int8)
    model[4].weight.data = codes * scale[:, None]
    state = {**model.state_dict(), "4.weight": codes, "4.weight_scale": scale}
    loaded = _load(tmp_path, state)
    _same(loaded, model, tolerance=1e-6)
    assert any("integer codes" in note for note in loaded.notes)


def test_codes_without_or_with_wrong_scales_are_refused(tmp_path: Path) -> None:
    state = dict(making.small().state_dict())
    codes = torch.ones(5, 256, dtype=torch.int8)
    del state["4.weight"]
    with pytest.raises(BadInput, match="layer '4' stores integer codes without a scale"):
        _load(tmp_path, {**state, "4.weight_codes": codes})
    with pytest.raises(BadInput, match="layer '4' has 3 scales for 5"):
        _load(tmp_path, {**state, "4.weight_codes": codes, "4.scale": torch.ones(3)})
    with pytest.raises(BadInput, match="codes from 2 to 2"):
        _load(
            tmp_path,
            {**state, "4.weight_codes": codes * 2, "4.wp": torch.ones(()), "4.wn": torch.ones(())},
        )
