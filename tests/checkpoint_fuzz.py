"""Mutations of valid checkpoints of every kind, and a child program that loads them.

    python -m tests.checkpoint_fuzz KIND FOLDER FIRST COUNT

loads mutations FIRST to FIRST + COUNT - 1 of the kind's valid file, which is made in FOLDER from a
fixed seed, so every mutation can be had again by its number. Odd numbers are mutated past the
container: members of a zip are changed and their checksums written anew, pickles are changed opcode
by opcode, JSON value by value, ONNX field by field. Even numbers have bytes changed anywhere.

The program prints one line per finding and exits 0 when each load gave a checkpoint or an
EdgekitError; `progress` in FOLDER holds the number of the mutation being loaded, for a parent that
sees the interpreter die or hang.
"""

from __future__ import annotations

import copy
import faulthandler
import random
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mutations import (
    change_bytes,
    change_legacy,
    change_onnx,
    change_safetensors,
    change_zip,
)

# a load may take so much CPU time, and so much of the clock: a busy machine may let it wait
CPU_SECONDS_PER_LOAD, SECONDS_PER_LOAD = 30, 600
MEMORY_BYTES = 12 << 30

# --- valid files --------------------------------------------------------------------------------

TINY_YOLO = {
    "nc": 2,
    "scales": {"n": [1.0, 1.0, 1024]},
    "scale": "n",
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "C3k2", [8, False, 0.5]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "SPPF", [16, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3k2", [8, False]],
        [[7, 4], 1, "Detect", ["nc"]],
    ],
}


def _small() -> Any:
    from tests.unit.checkpoint import making

    return making.small()


def make_onnx(path: Path) -> None:
    import onnx

    from tests.unit.checkpoint.test_onnx_file import model

    onnx.save(model(metadata={"task": "detect", "stride": "8", "imgsz": "[8, 8]"}), str(path))


def make_torchscript(path: Path) -> None:
    import torch

    from tests.unit.checkpoint import making

    torch.jit.trace(_small(), making.image()).save(str(path))


def make_state_dict(path: Path) -> None:
    import torch

    torch.save({"state_dict": _small().state_dict(), "epoch": 3}, path)


def make_compressed(path: Path) -> None:
    import torch
    from torch.nn.utils import prune

    from tests.unit.checkpoint.test_state_dict import two_linear

    model = two_linear().eval()
    prune.l1_unstructured(model[1], "bias", 0.5)
    state = dict(model.state_dict())
    codes = torch.randint(-1, 2, (3, 10), dtype=torch.int8)
    del state["3.weight"]
    state |= {"3.weight_codes": codes, "3.wp": torch.tensor(0.5), "3.wn": torch.tensor(0.25)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        quantized = torch.ao.quantization.quantize_dynamic(layer, {torch.nn.Linear}).state_dict()
    del state["1.weight"]
    packed = quantized["1._packed_params._packed_params"]
    state |= {"1.weight": packed[0]}
    torch.save({"model": state, "ema": {"shadow": state}}, path)


def make_legacy(path: Path) -> None:
    import torch

    state = {"state_dict": _small().state_dict(), "epoch": 3}
    torch.save(state, path, _use_new_zipfile_serialization=False)


def make_whole_module(path: Path) -> None:
    import torch

    torch.save({"model": _small().half(), "epoch": 3}, path)


def make_exported_program(path: Path) -> None:
    import torch

    from tests.unit.checkpoint import making

    torch.export.save(torch.export.export(_small(), (making.image(),)), path)


def quantized_factory() -> Any:
    """The network of `making.small`, prepared for quantization-aware training."""
    import torch.ao.quantization as tq

    from tests import qat_training

    model = _small().train()
    model.qconfig = qat_training.config()
    return tq.prepare_qat(tq.fuse_modules_qat(model, [["0", "1", "2"]]))


def make_qat(path: Path) -> None:
    import torch

    from tests.unit.checkpoint import making

    model = quantized_factory()
    model(making.image())
    torch.save({"state_dict": model.eval().state_dict(), "epoch": 3}, path)


def make_quantized_program(path: Path) -> None:
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    from tests.unit.checkpoint import making

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(True))
    program = torch.export.export(_small(), (making.image(),))
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(making.image())
    torch.export.save(torch.export.export(convert_pt2e(prepared), (making.image(),)), path)


def make_quantized_onnx(path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    from tests.unit.checkpoint import making

    plain = path.with_name("float.onnx")
    make_onnx(plain)
    import onnx

    (given,) = onnx.load(plain).graph.input
    shape = [dim.dim_value or 1 for dim in given.type.tensor_type.shape.dim]
    feeds = [{given.name: making.image().numpy()[:1].reshape(shape)}]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return feeds.pop() if feeds else None

    quantize_static(plain, path, Reader())


def make_safetensors(path: Path) -> None:
    from tests.unit.checkpoint.test_archives import safetensors

    path.write_bytes(safetensors(_small().state_dict(), {"names": '["a"]'}))


def make_ultralytics(path: Path) -> None:
    import torch

    from edgekit.checkpoint.ultralytics import import_ultralytics

    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(copy.deepcopy(TINY_YOLO), verbose=False)
    model.args = {"imgsz": 64}
    torch.save({"model": model.half(), "ema": None, "train_args": {"imgsz": 64}}, path)


KINDS: dict[str, tuple[str, Callable[[Path], None], Callable[[bytes, random.Random], bytes]]] = {
    "onnx": ("m.onnx", make_onnx, change_onnx),
    "torchscript": ("m.pt", make_torchscript, change_zip),
    "state_dict": ("m.pt", make_state_dict, change_zip),
    "compressed": ("m.pt", make_compressed, change_zip),
    "legacy": ("m.th", make_legacy, change_legacy),
    "whole_module": ("m.pt", make_whole_module, change_zip),
    "ultralytics": ("m.pt", make_ultralytics, change_zip),
    "exported_program": ("m.pt2", make_exported_program, change_zip),
    "safetensors": ("m.safetensors", make_safetensors, change_safetensors),
    "qat": ("m.pt", make_qat, change_zip),
    "quantized_program": ("m.pt2", make_quantized_program, change_zip),
    "quantized_onnx": ("m.onnx", make_quantized_onnx, change_onnx),
}


# what builds the network, where it is not the small one
ARCHES = {
    "compressed": "tests.unit.checkpoint.test_state_dict:two_linear",
    "qat": "tests.checkpoint_fuzz:quantized_factory",
}


def mutation(kind: str, valid: bytes, number: int) -> bytes:
    """Mutation `number` of the valid file of `kind`."""
    rng = random.Random(f"{kind}-{number}")
    return KINDS[kind][2](valid, rng) if number % 2 else change_bytes(valid, rng)


def main(kind: str, folder: Path, first: int, count: int) -> int:
    """Load the mutations; the number of findings."""
    import torch

    from edgekit.checkpoint import LoadOptions, load
    from edgekit.errors import EdgekitError

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, make, _ = KINDS[kind]
    valid_path = folder / f"valid-{name}"
    if not valid_path.exists():
        make(valid_path)
    valid = valid_path.read_bytes()
    options = LoadOptions(arch=ARCHES.get(kind, "tests.unit.checkpoint.making:factory"))
    load(valid_path, options)  # the file is valid, or nothing below means anything
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    path = folder / f"mutated-{name}"
    findings = 0
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        (folder / "progress").write_text(str(number))
        path.write_bytes(mutation(kind, valid, number))
        faulthandler.dump_traceback_later(SECONDS_PER_LOAD, exit=True)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_PER_LOAD)  # SIGPROF ends the process
        try:
            load(path, options)
            outcomes["loaded"] += 1
        except EdgekitError as error:
            outcomes[type(error).__name__] += 1
        except BaseException:
            findings += 1
            print(f"{kind} {number}:\n{traceback.format_exc()}", flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    print(f"{kind} {first}..{first + count - 1}: {dict(outcomes)}", flush=True)
    return findings


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(1 if main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])) else 0)
