"""Real checkpoints: loaded without trust, in the checkpoint's own shapes, and equal after export."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit import images as image_reader  # noqa: E402
from edgekit.checkpoint import LoadOptions, load  # noqa: E402
from edgekit.preprocess import Preprocess, apply  # noqa: E402
from edgekit.runtimes.base import SessionOptions  # noqa: E402
from edgekit.runtimes.onnxruntime import open_bytes  # noqa: E402
from edgekit.types import Checkpoint  # noqa: E402

YOLOS = {
    # file: parameters, input side, classes, images
    "yolo11n_w8.pt": (2_624_080, 640, 80, "coco/val2017"),
    "yolo11n_cells.pt": (2_605_369, 320, 3, "txl_pbc/images/val"),
    "yolo11n_cells_p30.pt": (1_381_953, 320, 3, "txl_pbc/images/val"),
    "yolo11n_cells_p50.pt": (934_721, 320, 3, "txl_pbc/images/val"),
}
RESNETS = {
    "resnet20-12fca82f.th": ("resnet20", 0.9173),
    "resnet56-4bfd9763.th": ("resnet56", 0.9339),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _load(assets: Path, name: str, **options: Any) -> Checkpoint:
    return load(assets / "models" / name, LoadOptions(**options))


def _image(assets: Path, folder: str, contract: Preprocess) -> np.ndarray[Any, Any]:
    file = sorted(p for p in (assets / folder).iterdir() if p.suffix in (".jpg", ".png"))[0]
    return apply(image_reader.read(file), contract)[0]


def _export(module: Any, image: Any, dynamo: bool) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:  # its operators begin with opset 18
            program = torch.onnx.export(
                module, (image,), dynamo=True, opset_version=18, verbose=False
            )
            return bytes(program.model_proto.SerializeToString())
        torch.onnx.export(module, (image,), stream, dynamo=False, opset_version=17)
    return stream.getvalue()


def _errors(module: Any, image: np.ndarray[Any, Any], split: int, dynamo: bool) -> list[float]:
    """max|a - b| / max|a| of the first `split` rows and of the others."""
    tensor = torch.from_numpy(image)
    with torch.no_grad():
        expected = module(tensor).numpy()
    with open_bytes(_export(module, tensor, dynamo), SessionOptions()) as session:
        (got,) = session.run({session.inputs[0].name: image}).values()
    blocks = [(expected[:, :split], got[:, :split]), (expected[:, split:], got[:, split:])]
    return [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in blocks if a.size]


def _stored_conv_shapes(path: Path) -> set[tuple[int, ...]]:
    """Shapes of all 4-D tensors in the file, read from its pickle without loading it."""
    from edgekit.checkpoint.pickle_scan import scan
    from edgekit.checkpoint.pickle_tree import Call, walk

    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        nodes = walk(scan(archive.read(name)).tree)
    sizes = [
        n.args[2] for n in nodes if isinstance(n, Call) and n.path.endswith("_rebuild_tensor_v2")
    ]
    return {size for size in sizes if len(size) == 4}


@pytest.mark.parametrize("name", YOLOS)
def test_yolo_checkpoints_load_as_they_are(assets: Path, name: str) -> None:
    pytest.importorskip("ultralytics", exc_type=ImportError)
    parameters, side, classes, folder = YOLOS[name]
    loaded = _load(assets, name)
    assert (loaded.kind, loaded.task, loaded.head) == ("ultralytics", "detect", "yolov8")
    assert loaded.parameters == parameters
    assert loaded.input_shape == (1, 3, side, side)
    assert loaded.preprocess == Preprocess(height=side, width=side)
    assert len(loaded.names) == classes
    weights = {n: p for n, p in loaded.module.named_parameters() if p.dim() == 4}
    assert {tuple(p.shape) for p in weights.values()} == _stored_conv_shapes(
        assets / "models" / name
    )
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert ("cells" in name) == any("half precision" in note for note in loaded.notes)
    image = torch.from_numpy(_image(assets, folder, loaded.preprocess))
    with torch.no_grad():
        output = loaded.module(image)
    assert output.shape == (1, 4 + classes, side * side // 64 * 21 // 16)
    # a real image of cells or of everyday things: something is found with confidence
    assert float(output[0, 4:].max()) > 0.5


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("yolo11n_w8.pt", 640),
        ("yolo11n_w8.pt", 320),
        ("yolo11n_cells_p50.pt", 320),
        ("yolo11n_cells_p30.pt", 320),
    ],
)
def test_yolo_exports_are_equal(assets: Path, name: str, side: int) -> None:
    pytest.importorskip("ultralytics", exc_type=ImportError)
    loaded = _load(assets, name)
    image = _image(assets, YOLOS[name][3], Preprocess(height=side, width=side))
    assert max(_errors(loaded.module, image, 4, dynamo=False)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("yolo11n_w8.pt", 640), ("yolo11n_cells_p50.pt", 320)])
def test_yolo_dynamo_exports_are_equal(assets: Path, name: str, side: int) -> None:
    pytest.importorskip("ultralytics", exc_type=ImportError)
    loaded = _load(assets, name)
    image = _image(assets, YOLOS[name][3], Preprocess(height=side, width=side))
    assert max(_errors(loaded.module, image, 4, dynamo=True)) <= 1e-4


def test_a_pruned_yolo_state_dict_shrinks_the_unpruned_yolo(assets: Path, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", exc_type=ImportError)
    pruned = _load(assets, "yolo11n_cells_p50.pt").module
    torch.save(pruned.state_dict(), tmp_path / "state.pt")
    whole = assets / "models" / "yolo11n_cells.pt"
    (tmp_path / "whole_yolo.py").write_text(
        "from pathlib import Path\nfrom edgekit.checkpoint import load\n"
        f"def build():\n    return load(Path({str(whole)!r})).module\n"
    )
    shrunk = load(
        tmp_path / "state.pt",
        LoadOptions(arch="whole_yolo:build", code=(tmp_path,), input_shape=(1, 3, 320, 320)),
    )
    assert shrunk.parameters == 934_721
    image = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        assert torch.equal(shrunk.module(image), pruned(image))


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_keep_their_accuracy(assets: Path, name: str) -> None:
    """Old-format files: a state_dict under `state_dict` with `module.` prefixes."""
    arch, _ = RESNETS[name]
    loaded = _load(assets, name, arch=f"tests.architectures:{arch}")
    assert loaded.kind == "state_dict"
    assert "state_dict found under 'state_dict'" in loaded.notes
    assert "prefix 'module.' taken off the names" in loaded.notes
    assert _top1(loaded, assets, 1000) >= 0.9
    image = _cifar(assets)[0][:1]
    assert max(_errors(loaded.module, image, 10, dynamo=False)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS)
def test_resnets_reach_their_published_accuracy(assets: Path, name: str) -> None:
    arch, accuracy = RESNETS[name]
    loaded = _load(assets, name, arch=f"tests.architectures:{arch}")
    assert abs(_top1(loaded, assets, 10_000) - accuracy) <= 1e-4


def _cifar(assets: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    data = np.load(assets / "cifar10" / "test.npz")
    pixels = data["images"].astype(np.float32) / 255
    return ((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(0, 3, 1, 2), data["labels"]


def _top1(loaded: Checkpoint, assets: Path, count: int) -> float:
    pixels, labels = _cifar(assets)
    right = 0
    with torch.no_grad():
        for start in range(0, count, 500):
            batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + 500]))
            answer = loaded.module(batch).argmax(1).numpy()
            right += int((answer == labels[start : start + 500]).sum())
    return right / count


def test_no_weights_are_unpickled_the_unsafe_way(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ultralytics", exc_type=ImportError)
    calls: list[Any] = []
    original = torch.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs.get("weights_only"))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    for name in YOLOS:
        _load(assets, name)
    for name, (arch, _) in RESNETS.items():
        _load(assets, name, arch=f"tests.architectures:{arch}")
    assert calls == [True] * 6


def test_yolov5n_onnx(assets: Path) -> None:
    loaded = _load(assets, "yolov5n.onnx")
    assert loaded.kind == "onnx"
    assert loaded.input_shape == (1, 3, 640, 640)
    assert loaded.parameters == 1_867_405
    assert loaded.onnx == assets / "models" / "yolov5n.onnx"
