"""Ultralytics `.pt`: a dictionary with the whole model under `ema` or `model`.

Pruned models too: the pickled layers carry their own shapes, so nothing is built from a yaml. The
package is needed for its layer classes alone; its loader, hub and settings are not used.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint import pickle_tree, torch_file
from edgekit.checkpoint.inference import ready
from edgekit.checkpoint.revive import Reviver, plain_fields
from edgekit.checkpoint.sniff import Sniff
from edgekit.errors import BadInput, NotPossible, UsageError
from edgekit.preprocess import Preprocess
from edgekit.require import require
from edgekit.types import Checkpoint

if TYPE_CHECKING:
    from edgekit.checkpoint import LoadOptions

_MODELS = "ultralytics.nn.tasks."
_DEFAULT_SIZE = 640
_STRIDE = 32
_ONNX_HINT = (
    "Export it to ONNX with Ultralytics (yolo export format=onnx) and give edgekit that file."
)


def sniff(head: Sniff) -> bool:
    return bool(_model_keys(head)) or _is_model(head.tree)


def _is_model(node: Any) -> bool:
    return isinstance(node, pickle_tree.Instance) and node.path.startswith(_MODELS)


def _model_keys(head: Sniff) -> list[str]:
    mapping = pickle_tree.as_mapping(head.tree) or {}
    return [key for key in ("ema", "model") if _is_model(mapping.get(key))]


def load(head: Sniff, options: LoadOptions) -> Checkpoint:
    """Load the model as [1, 3, H, W] → [1, 4 + nc, A] (see yolo.Detector), or logits [1, nc].

    Raises NotPossible for tasks with more than one output (segmentation, pose, oriented boxes).
    """
    import_ultralytics()
    trusted = options.trust
    found = torch_file.read_trusted(head, options) if trusted else torch_file.read(head)
    notes: list[str] = []
    if _is_model(head.tree):
        chosen, record = found, {}
    else:
        key = _choose(_model_keys(head), options.weights, head)
        chosen, record = found[key], found
        if key == "ema":
            notes.append("EMA weights used")
    model = chosen
    if not trusted:
        reviver = Reviver(str(head.path))
        model = reviver.module(chosen)
        notes += reviver.notes
    if record.get("modelopt"):
        notes.append("the quantizers of its quantization-aware training are not carried over")
    try:
        return _checkpoint(head, model, record, tuple(notes), options.dtype)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError, RuntimeError) as error:
        # attributes of the pickled layers steer everything from here on, and they are the file's
        raise BadInput(
            f"{head.path} holds an Ultralytics model that cannot run: {error}",
            hint="If it runs in Ultralytics, its version may differ from the one that saved it. "
            + _ONNX_HINT,
        ) from error


def _choose(keys: list[str], weights: str, head: Sniff) -> str:
    if weights == "auto":
        return keys[0]  # "ema" comes first where there is one
    if weights not in keys:
        raise UsageError(
            f"{head.path} has no {weights} weights.", hint=f"It has: {', '.join(keys)}."
        )
    return weights


def _checkpoint(
    head: Sniff, model: Any, record: Any, notes: tuple[str, ...], dtype: str | None
) -> Checkpoint:
    from edgekit.checkpoint.probe import check_forward

    made = ready(model, head.path, dtype)
    arguments = {
        **plain_fields(record.get("train_args")),
        **plain_fields(getattr(model, "args", None)),
    }
    if isinstance(record.get("train_args"), dict):
        arguments.update(plain_fields(record["train_args"]))
    module, task, layout = _deployable(model, head)
    channels = _channels(module)
    size = _size(arguments)
    shape = (1, channels, size, size)
    names = getattr(model, "names", None)
    # only the parameters that take part count: a training-only branch is left behind
    final = ready(module, head.path)
    if _has_second_head(model.model[-1]):
        used, unused = (
            ("end-to-end", "one-to-many") if layout == "yolo26" else ("one-to-many", "end-to-end")
        )
        notes += (f"of its two heads the {used} one is deployed, the {unused} one left out",)
    check_forward(module, shape, head.path)
    return Checkpoint(
        path=head.path,
        sha256="",
        kind="ultralytics",
        module=module,
        input_shape=shape,
        preprocess=_contract(task, channels, size),
        task=task,
        head=layout,
        names=_names(names),
        parameters=final.parameters,
        notes=notes + made.notes,
        architecture=_architecture(model),
        training_batch=_batch(arguments),
    )


def _architecture(model: Any) -> str:
    """Name of the yaml that the network was built from, "" where it is gone."""
    yaml = getattr(model, "yaml", None)
    file = yaml.get("yaml_file") if isinstance(yaml, dict) else None
    return PurePath(file).stem if isinstance(file, str) else ""


def _batch(arguments: dict[str, Any]) -> int | None:
    value = arguments.get("batch")
    # -1 asked Ultralytics to choose; a bool is an int, too
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _deployable(model: Any, file: Sniff) -> tuple[Any, str, str]:
    """The module to deploy, its task, and the layout of its output."""
    from edgekit.checkpoint.yolo import Classifier, Detector, Layers

    layers = list(model.model)
    head = layers[-1]
    kind = type(head).__name__
    body = Layers(
        layers[:-1], _saved(model.save), [_source(layer.f, i) for i, layer in enumerate(layers)]
    )
    if kind in ("Detect", "v10Detect"):
        end_to_end = _is_end_to_end(head)
        return Detector(body, head, end_to_end), "detect", "yolo26" if end_to_end else "yolov8"
    if kind == "Classify":
        return Classifier(body, head), "classify", "logits"
    raise NotPossible(
        f"{file.path} is a {type(model).__name__} with the head {kind}; edgekit takes Ultralytics' "
        "detection and classification models.",
        hint=_ONNX_HINT,
    )


def _saved(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise ValueError("its list of saved layers is unreadable")
    return value


def _source(value: Any, index: int) -> int | list[int]:
    """What layer `index` reads: -1 for the layer before, or indices of earlier layers."""
    items = value if isinstance(value, list) else [value]
    plain = [
        i for i in items if isinstance(i, int) and not isinstance(i, bool) and -index <= i < index
    ]
    first = index == 0 and items == [-1]
    if not first and (len(plain) != len(items) or not items):
        raise ValueError(f"layer {index} reads from {value!r}")
    absolute = [i if i >= -1 else index + i for i in items]
    return absolute if isinstance(value, list) else absolute[0]


def _is_end_to_end(head: Any) -> bool:
    """Whether to deploy the head that needs no suppression (YOLO26 and YOLOv10 carry both kinds).

    As Ultralytics does: only when the checkpoint asks for it, or has no other. The one-to-many head
    is the more accurate one, and has no TopK and Gather that small runtimes lack.
    """
    if not _has_second_head(head):
        return False
    if getattr(head, "cv2", None) is None:
        return True
    return bool(head.__dict__.get("_end2end", head.__dict__.get("end2end", False)))


def _has_second_head(head: Any) -> bool:
    return getattr(head, "one2one_cv2", None) is not None


def _channels(module: Any) -> int:
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            return int(layer.in_channels)
    raise ValueError("it has no convolution")


def _size(arguments: dict[str, Any]) -> int:
    """Side of the square training images in pixels, a multiple of the largest stride."""
    value = arguments.get("imgsz", _DEFAULT_SIZE)
    if isinstance(value, (list, tuple)):
        value = max((item for item in value if isinstance(item, int)), default=_DEFAULT_SIZE)
    if isinstance(value, bool) or not isinstance(value, int) or not _STRIDE <= value <= 8192:
        return _DEFAULT_SIZE
    return -(-value // _STRIDE) * _STRIDE


def _contract(task: str, channels: int, size: int) -> Preprocess | None:
    """How Ultralytics feeds its models: ultralytics/data/augment.py, LetterBox, classify_transforms."""
    if channels != 3:
        return None
    if task == "classify":
        return Preprocess(height=size, width=size, resize="center_crop")
    return Preprocess(
        height=size, width=size, resize="letterbox", pad_value=114, pad_place="center"
    )


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):
        keys = [key for key in value if isinstance(key, int)]
        return tuple(str(value[key]) for key in sorted(keys))
    return tuple(str(item) for item in value) if isinstance(value, (list, tuple)) else ()


def import_ultralytics() -> ModuleType:
    """Import the package quietly: no settings in the home directory, no network, no messages.

    Raises MissingDependency when it is not installed.
    """
    require("torch", "Loading an Ultralytics checkpoint")
    if "ultralytics.nn.tasks" in sys.modules:
        return sys.modules["ultralytics"]
    with _quiet_environment(), _settings_of_others():
        package = require("ultralytics", "Loading an Ultralytics checkpoint")
        require("ultralytics.nn.tasks", "Loading an Ultralytics checkpoint")
    return package


@contextlib.contextmanager
def _settings_of_others() -> Iterator[None]:
    """Put back what the import changes in other packages: threads of OpenCV, printing, torch.save."""
    import cv2
    import numpy as np
    import torch

    threads, printing, save = cv2.getNumThreads(), np.get_printoptions(), torch.save
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        np.set_printoptions(**printing)
        torch.set_printoptions(profile="default")
        torch.save = save


@contextlib.contextmanager
def _quiet_environment() -> Iterator[None]:
    """Settings that Ultralytics reads while it is imported, in the block only."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="edgekit-ultralytics-") as folder:
        os.environ.setdefault("YOLO_CONFIG_DIR", folder)
        os.environ.update(YOLO_OFFLINE="true", YOLO_VERBOSE="false", YOLO_AUTOINSTALL="false")
        try:
            yield
        finally:
            # it also sets OMP_NUM_THREADS, which is not its business here
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)
