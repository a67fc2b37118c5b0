"""Whole pickled modules: torch.nn classes without trust, the user's own with it."""

from __future__ import annotations

import sys
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
    return load(tmp_path / "model.pt", LoadOptions(**options))


def _same(loaded: Checkpoint, model: nn.Module, image: Any = None, tolerance: float = 0.0) -> None:
    image = making.image() if image is None else image
    with torch.no_grad():
        difference = (model(image) - loaded.module(image)).abs().max()
    assert float(difference) <= tolerance
    assert not any(module.training for module in loaded.module.modules())
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert {p.dtype for p in loaded.module.parameters()} <= {torch.float32}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}, lambda m: {"net": m, "ema": None}]
)
def test_known_classes_load_without_trust(tmp_path: Path, wrap: Any, trust: bool) -> None:
    model = making.small()
    loaded = _load(tmp_path, wrap(model.train()), trust=trust)
    _same(loaded, model.eval())
    assert loaded.kind == "whole_module"
    assert loaded.parameters == sum(p.numel() for p in model.parameters())


def test_half_precision_is_widened(tmp_path: Path) -> None:
    loaded = _load(tmp_path, {"model": making.small().half()})
    _same(loaded, making.small().half().float())
    assert "8 half precision tensors widened to float32" in loaded.notes


def many_kinds() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(8, 6, 2, 2),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        nn.PReLU(6),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(2),
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu"),
        nn.Flatten(),
        nn.LayerNorm(96),
        nn.Dropout(0.5),
        nn.Linear(96, 5),
        nn.Softmax(1),
    ).eval()


def test_many_kinds_of_layers(tmp_path: Path) -> None:
    model = many_kinds()
    _same(_load(tmp_path, model), model, tolerance=1e-6)


def test_shared_modules_stay_shared(tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    loaded = _load(tmp_path, model)
    assert loaded.module[0] is loaded.module[2]
    assert loaded.parameters == 84
    _same(loaded, model)


def test_data_parallel_is_taken_off(tmp_path: Path) -> None:
    model = making.small()
    loaded = _load(tmp_path, {"model": nn.DataParallel(model)})
    assert type(loaded.module) is nn.Sequential
    _same(loaded, model)


@pytest.mark.parametrize("trust", [False, True])
def test_attached_pruning_masks_are_folded(tmp_path: Path, trust: bool) -> None:
    model = making.small()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.ln_structured(model[4], "weight", 0.4, n=2, dim=0)
    prune.random_unstructured(model[4], "bias", 0.4)
    loaded = _load(tmp_path, model, trust=trust)
    _same(loaded, model)
    assert "3 pruning masks folded into their weights" in loaded.notes
    assert not list(loaded.module.buffers(recurse=False))
    assert all(not layer._forward_pre_hooks for layer in loaded.module.modules())
    assert {name for name, _ in loaded.module[4].named_parameters()} == {"weight", "bias"}


def test_ema_and_model(tmp_path: Path) -> None:
    value = {"model": making.small(0), "ema": making.small(5)}
    _same(_load(tmp_path, value), making.small(5))
    _same(_load(tmp_path, value, weights="model"), making.small(0))
    with pytest.raises(UsageError, match="no EMA weights"):
        _load(tmp_path, making.small(), weights="ema")
    with pytest.raises(BadInput, match="no model under a key for 'ema'"):
        _load(tmp_path, {"model": making.small()}, weights="ema")


def test_own_classes_with_trust(tmp_path: Path) -> None:
    model = making.OwnNet().eval()
    _same(_load(tmp_path, model, trust=True), model)


def test_own_classes_are_found_in_the_code_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "project"
    code.mkdir()
    (code / "own_net_module.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 2, 3)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x)\n"
    )
    monkeypatch.syspath_prepend(str(code))
    import own_net_module  # type: ignore[import-not-found]

    model = own_net_module.Net().eval()
    torch.save(model, tmp_path / "own.pt")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "own_net_module")
    with pytest.raises(BadInput, match="own_net_module") as error:
        load(tmp_path / "own.pt", LoadOptions(trust=True))
    assert "--code" in error.value.hint
    before = list(sys.path)
    _same(load(tmp_path / "own.pt", LoadOptions(trust=True, code=(code,))), model)
    assert sys.path == before
    sys.modules.pop("own_net_module", None)


def test_a_class_of_the_training_script_is_found_in_the_code_folder(tmp_path: Path) -> None:
    script = tmp_path / "train_own.py"
    script.write_text(
        "import sys, torch\n"
        "from torch import nn\n"
        "class ScriptNet(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 2, 3)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x)\n"
        "if __name__ == '__main__':\n"
        "    torch.save(ScriptNet(), sys.argv[1])\n"
    )
    import subprocess

    subprocess.run([sys.executable, str(script), str(tmp_path / "main.pt")], check=True)
    with pytest.raises(BadInput, match="ScriptNet"):
        load(tmp_path / "main.pt")
    loaded = load(tmp_path / "main.pt", LoadOptions(trust=True, code=(tmp_path,)))
    assert type(loaded.module).__name__ == "ScriptNet"
    sys.modules.pop("train_own", None)


@pytest.mark.parametrize("trust", [False, True])
def test_a_whole_module_of_old_torch(tmp_path: Path, trust: bool) -> None:
    torch.save(making.small(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    if trust:
        _same(load(tmp_path / "old.pt", LoadOptions(trust=True)), making.small())
    else:
        with pytest.raises(BadInput, match=r"before 1\.6"):
            load(tmp_path / "old.pt")


def test_a_whole_module_of_dynamic_int8_layers_with_trust(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    loaded = _load(tmp_path, quantized, trust=True)
    assert type(loaded.module[1]) is nn.Linear
    _same(loaded, quantized, tolerance=0.02)
