"""The cells example: its scenes, its data sets, its detector and the checkpoint it ships."""

from __future__ import annotations

import hashlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "cells"
CALIB = ROOT / "calib"
CHECKPOINT = EXAMPLE / "cells_pruned.pt"
MODULES = ("scenes", "make_data", "model", "loss", "score", "weights", "train", "prune")


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """Imports a module of the example by name; its plain names are forgotten afterwards."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(EXAMPLE))

    def load(name: str) -> ModuleType:
        if name not in ("scenes", "make_data"):
            pytest.importorskip("torch")
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(EXAMPLE))
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def _digest(arrays: Any) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _pixels(data: bytes) -> NDArray[np.uint8]:
    """RGB pixels of an encoded image."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image[:, :, ::-1], dtype=np.uint8)


# --- scenes --------------------------------------------------------------------------------------


def test_scene_repeats_itself_and_depends_on_nothing_before_it(example: Any) -> None:
    scenes = example("scenes")
    first = scenes.scene(7, 3)
    for index in (0, 9):
        scenes.scene(7, index)
    again = scenes.scene(7, 3)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    digests = {_digest(scenes.scene(s, i)) for s, i in ((7, 3), (7, 4), (8, 3), (3, 7))}
    assert len(digests) == 4


def test_scene_is_the_same_in_another_process(example: Any) -> None:
    scenes = example("scenes")
    program = (
        "import hashlib, scenes\n"
        "print(hashlib.sha256(b''.join(a.tobytes() for a in scenes.scene(3, 5))).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=EXAMPLE, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == _digest(scenes.scene(3, 5))


def test_scene_arrays_and_boxes(example: Any) -> None:
    scenes = example("scenes")
    seen = np.zeros(3, np.int64)
    for index in range(40):
        image, boxes, classes = scenes.scene(11, index)
        assert image.shape == (192, 192, 3) and image.dtype == np.uint8
        assert boxes.shape == (len(classes), 4) and boxes.dtype == np.float32
        assert classes.dtype == np.int64
        assert boxes.min(initial=0) >= 0 and boxes.max(initial=0) <= 192
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min(initial=99) >= 4.0
        seen += np.bincount(classes, minlength=3)
        assert sides[classes == scenes.WBC].max(initial=0) <= 110
        assert sides[classes == scenes.PLATELET].max(initial=0) <= 24
    # Red cells are the most common, every class occurs often.
    assert seen.argmax() == scenes.RBC and seen.min() >= 20


def test_boxes_lie_where_the_colour_changes(example: Any) -> None:
    # A white cell's nucleus is the darkest thing around: its box must hold darker pixels than the
    # scene's median, and a box moved elsewhere would mostly not.
    scenes = example("scenes")
    inside, everywhere = [], []
    for index in range(40):
        image, boxes, classes = scenes.scene(12, index)
        luma = image.astype(np.float64).mean(2)
        for x1, y1, x2, y2 in boxes[classes == scenes.WBC].astype(int):
            if x2 - x1 > 25 and y2 - y1 > 25:
                inside.append(np.percentile(luma[y1:y2, x1:x2], 10))
                everywhere.append(np.median(luma))
    assert len(inside) > 20
    assert np.mean(np.array(inside) < np.array(everywhere) - 20) > 0.9


@pytest.mark.parametrize("arguments", [(-1, 0), (0, -1), (2**32, 0), (0, 0, 32)])
def test_scene_refuses_what_it_cannot_seed_or_draw(
    example: Any, arguments: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="must be"):
        example("scenes").scene(*arguments)


# --- data sets -----------------------------------------------------------------------------------


def test_uses_have_seeds_of_their_own(example: Any) -> None:
    scenes, make_data = example("scenes"), example("make_data")
    seeds = [seed for seed, _ in make_data.SPLITS.values()]
    assert seeds == [scenes.TRAIN_SEED, scenes.CALIBRATION_SEED, scenes.VALIDATION_SEED]
    assert seeds == [1, 2, 3]
    pictures = {_digest(scenes.scene(seed, index)[:1]) for seed in seeds for index in range(20)}
    assert len(pictures) == 60


def test_labelled_data_set_reads_back(example: Any, tmp_path: Path) -> None:
    scenes, make_data = example("scenes"), example("make_data")
    written = make_data.write_dataset(tmp_path, 3, 4)
    assert [p.name for p in written] == [f"cells_s3_{i:05d}.png" for i in range(4)]
    assert sorted(tmp_path.rglob(".*")) == []
    described = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert described["val"] == "images"
    assert described["names"] == {0: "wbc", 1: "rbc", 2: "platelet"}
    for index, path in enumerate(written):
        image, boxes, classes = scenes.scene(3, index)
        np.testing.assert_array_equal(_pixels(path.read_bytes()), image)
        rows = np.loadtxt(tmp_path / "labels" / f"{path.stem}.txt", ndmin=2).reshape(-1, 5)
        np.testing.assert_array_equal(rows[:, 0], classes)
        corners = np.hstack([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2])
        np.testing.assert_allclose(corners * 192, boxes, atol=1e-4)


def test_smaller_set_leaves_nothing_stale_and_spares_the_rest(example: Any, tmp_path: Path) -> None:
    make_data = example("make_data")
    (tmp_path / "README.md").write_text("kept")
    make_data.write_dataset(tmp_path, 2, 3, labels=False, ending="jpg")
    make_data.write_dataset(tmp_path, 2, 1, labels=False, ending="jpg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "cells_s2_00000.jpg"]


def test_labelled_set_is_not_mixed_with_foreign_images(example: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"holiday\.jpg"):
        example("make_data").write_dataset(tmp_path, 3, 1)
    assert (tmp_path / "images" / "holiday.jpg").read_bytes() == b"mine"
    assert not list(tmp_path.rglob("cells_*"))


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "make_data.py"), "--out", str(tmp_path / "set")]
    done = subprocess.run(
        [*command, "--seed", "9", "--count", "2"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("2 scenes of seed 9 in ")
    assert len(list((tmp_path / "set" / "images").iterdir())) == 2
    wrong = subprocess.run(
        [*command, "--seed", "9", "--count", "0"], capture_output=True, text=True
    )
    assert wrong.returncode == 2 and "--count" in wrong.stderr


def test_calibration_set_is_what_the_generator_draws(example: Any) -> None:
    scenes, make_data = example("scenes"), example("make_data")
    files = sorted(CALIB.glob("*.jpg"))
    assert len(files) == 64
    assert sum(path.stat().st_size for path in files) < 1_500_000
    drawn = [scenes.scene(scenes.CALIBRATION_SEED, index)[0] for index in range(64)]
    for index, path in enumerate(files):
        assert re.fullmatch(rf"cells_s{scenes.CALIBRATION_SEED}_{index:05d}\.jpg", path.name)
        image = _pixels(path.read_bytes()).astype(np.float64)
        # What this machine's JPEG library makes of the scene; others may round differently.
        here = _pixels(make_data.encoded(drawn[index], "jpg", 92)).astype(np.float64)
        assert np.abs(image - here).mean() < 0.5, path.name
        assert np.abs(image - drawn[index]).mean() < 6.0, path.name


# --- the detector and its checkpoint -------------------------------------------------------------


def _randomized(model: Any, seed: int) -> Any:
    """BatchNorm statistics and scales as after training, not the ones and zeros of a fresh net."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


def test_groups_hold_together(example: Any) -> None:
    # Silence channels of every group by their BatchNorms: cutting them out must change nothing.
    model, prune = example("model"), example("prune")
    import torch

    torch.manual_seed(0)
    whole = _randomized(model.detector(), 1)
    rng = np.random.default_rng(2)
    kept = []
    for group in model.GROUPS:
        keep = np.sort(rng.choice(group.width, group.width - 8, replace=False))
        gone = np.setdiff1d(np.arange(group.width), keep)
        for name in group.producers:
            norm = whole.get_submodule(name).norm
            norm.weight.data[gone] = 0.0
            norm.bias.data[gone] = 0.0
        kept.append(keep)
    small = prune.narrowed(whole, kept)
    assert small.widths == tuple(width - 8 for width in model.BASE_WIDTHS)
    images = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(small(images), whole(images), rtol=1e-4, atol=1e-4)


def test_output_is_the_decoded_form_of_the_raw_maps(example: Any) -> None:
    model = example("model")
    import torch

    torch.manual_seed(0)
    net = _randomized(model.detector("16,32,16,48,40,64,48,48,40,40,32"), 4)
    images = torch.rand(2, 3, 192, 192)
    with torch.no_grad():
        output = net(images).numpy()
        maps = [(box.numpy(), score.numpy()) for box, score in net.maps(images)]
    assert output.shape == (2, 7, 24 * 24 + 12 * 12)
    cell = 0
    for (box, score), stride in zip(maps, (8, 16), strict=True):
        for row in range(box.shape[2]):
            for column in range(box.shape[3]):
                left, top, right, bottom = box[1, :, row, column] * stride
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                wanted = [
                    x + (right - left) / 2,
                    y + (bottom - top) / 2,
                    max(0.0, left + right),
                    max(0.0, top + bottom),
                ]
                np.testing.assert_allclose(output[1, :4, cell], wanted, rtol=1e-4, atol=1e-3)
                logits = score[1, :, row, column].astype(np.float64)
                np.testing.assert_allclose(output[1, 4:, cell], 1 / (1 + np.exp(-logits)), 1e-4)
                cell += 1
    with pytest.raises(RuntimeError, match="size"):
        net(torch.rand(1, 3, 384, 384))


@pytest.mark.parametrize("widths", ["16,32", "16,32,24,64,64,80,80,64,64,64,x", [0] * 11])
def test_widths_that_do_not_describe_the_network_are_refused(example: Any, widths: Any) -> None:
    with pytest.raises(ValueError, match="widths must be"):
        example("model").detector(widths)


def test_checkpoint_is_plain_and_truly_narrow(example: Any) -> None:
    model, weights = example("model"), example("weights")
    import torch

    assert CHECKPOINT.stat().st_size < 2_000_000
    content = torch.load(CHECKPOINT, weights_only=True)
    assert set(content) == {"state_dict", "widths", "names", "input_size", "note"}
    assert content["names"] == ["wbc", "rbc", "platelet"]
    assert content["input_size"] == [192, 192]
    state = content["state_dict"]
    assert all(t.is_contiguous() and bool(torch.isfinite(t).all()) for t in state.values())
    # Pruned by hand, as a user would: the text form of the widths, strict loading.
    net = model.detector(",".join(map(str, content["widths"])))
    net.load_state_dict(state, strict=True)
    parameters = sum(p.numel() for p in net.parameters())
    whole = sum(p.numel() for p in model.detector().parameters())
    assert 0.4 <= 1 - parameters / whole <= 0.6
    shares = {w / b for w, b in zip(content["widths"], model.BASE_WIDTHS, strict=True)}
    assert len(shares) > 3 and max(shares) <= 1.0
    assert weights.load(CHECKPOINT).widths == tuple(content["widths"])


def test_checkpoint_detects(example: Any) -> None:
    score, weights = example("score"), example("weights")
    pytest.importorskip("faster_coco_eval")
    truth = score.validation(60)
    result = score.evaluate(weights.load(CHECKPOINT), truth)
    assert result.map50_95 > 0.62
    assert min(result.per_class) > 0.40
    # The same figures must not come from a scorer that is always content.
    import torch

    torch.manual_seed(0)
    fresh = score.evaluate(example("model").detector(), truth)
    assert fresh.map50_95 < 0.05


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("free_batch", [False, True], ids=["fixed", "free-batch"])
def test_checkpoint_exports(example: Any, tmp_path: Path, dynamo: bool, free_batch: bool) -> None:
    scenes, weights = example("scenes"), example("weights")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    import torch

    net = weights.load(CHECKPOINT)
    pixels = np.stack([scenes.scene(scenes.CALIBRATION_SEED, i)[0] for i in range(3)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    path = tmp_path / "cells.onnx"
    options: dict[str, Any] = {"dynamo": dynamo, "opset_version": 17}
    if dynamo:
        options |= {"external_data": False, "verbose": False}
    if free_batch and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif free_batch:
        options["dynamic_axes"] = {"images": {0: "batch"}, "output": {0: "batch"}}
    sample = images[:2] if free_batch else images[:1]
    torch.onnx.export(
        net, (sample,), str(path), input_names=["images"], output_names=["output"], **options
    )
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph, full_check=True)
    assert [o.version for o in graph.opset_import if o.domain == ""] == [17]
    assert [o.name for o in graph.graph.output] == ["output"]
    sessions = runtime.SessionOptions()
    sessions.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), sessions, providers=["CPUExecutionProvider"])
    for batch in (1, 3) if free_batch else (1,):
        (got,) = session.run(None, {"images": images[:batch].numpy()})
        with torch.no_grad():
            wanted = net(images[:batch]).numpy()
        assert got.shape == wanted.shape == (batch, 7, 720)
        for rows in (slice(0, 4), slice(4, 7)):
            error = np.abs(got[:, rows] - wanted[:, rows]).max() / np.abs(wanted[:, rows]).max()
            assert error <= 1e-4
