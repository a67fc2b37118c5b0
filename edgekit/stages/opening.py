"""Opening whatever a user names: a torch checkpoint, an ONNX file, a bundle, a runtime's own files.

`describe` says what it is without running it; `open_session` gives a `Session` on its runtime. A
runtime that is added to edgekit.runtimes.RUNTIMES works here at once: bundles name it, and files of
its own are known by their suffix (RUNTIME_FILES).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import checkpoint as checkpoints
from edgekit import runtimes
from edgekit.atomic import sha256_file
from edgekit.bundle import open_model, read_manifest
from edgekit.checkpoint import LoadOptions
from edgekit.errors import BadInput, NotPossible
from edgekit.manifest import is_bundle
from edgekit.require import version_of
from edgekit.runtimes.base import Session, SessionOptions
from edgekit.stages import contract as contracts
from edgekit.stages.contract import Resolved
from edgekit.stages.export import INPUT_NAME
from edgekit.types import Checkpoint, TensorSpec

if TYPE_CHECKING:
    from edgekit.preprocess import Preprocess

TORCH = "torch"
"""The runtime of a checkpoint that holds a module; it is loaded again wherever it is opened."""

# suffix of a file that one runtime alone reads → that runtime
RUNTIME_FILES: dict[str, str] = {
    ".param": "ncnn",
    ".json": "ncnn",  # the model.json that edgekit writes beside .param and .bin
    ".engine": "tensorrt",
    ".plan": "tensorrt",
}

_INTEGER_OPERATORS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeLinear",
    }
)


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model that a user named, described.

    `runtime` opens `files` (the first is the one to open); "torch" stands for a checkpoint, whose
    module is in `checkpoint.module`. `checkpoint` holds what the model says of itself, whatever its
    kind: contract, task, head, names, parameters. `precision` is "fp32", "fp16" or "int8".
    `origin` says who settled the contract of a bundle ("the bundle"), "" for everything else.
    `golden` are the input tensors (.npy) that a bundle carries.
    """

    path: Path
    runtime: str
    files: tuple[Path, ...]
    precision: str
    checkpoint: Checkpoint
    load: LoadOptions = field(default_factory=LoadOptions)
    origin: str = ""
    golden: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name or str(self.path)

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files)

    def contract(
        self, overrides: Mapping[str, Any] | None = None, size: tuple[int, int] | None = None
    ) -> Resolved:
        """The preprocessing contract: `overrides` and `size` (height, width) over the model's own.

        Raises UsageError when nobody says the input size. A contract that had to be assumed comes
        with a warning.
        """
        return contracts.resolve(self.checkpoint, dict(overrides or {}), size)

    def open(self, contract: Preprocess, options: SessionOptions | None = None) -> Session:
        """Open the model on its runtime. Close the session, or use it as a context manager."""
        if self.checkpoint.module is not None:
            return torch_session(self.checkpoint.module, contract, options)
        return runtimes.open_session(self.runtime, self.files, options)


def describe(
    path: Path, load: LoadOptions | None = None, *, runtime: str | None = None
) -> NamedModel:
    """Find out what `path` is. `runtime` chooses among those of a bundle.

    Raises BadInput for what is missing or of no known kind, VerificationFailed for a bundle whose
    model was changed, MissingDependency, and what loading a checkpoint raises.
    """
    path = Path(path)
    if path.is_dir():
        return _bundle(path, runtime)
    if not path.exists():
        raise BadInput(f"The model {path} does not exist.")
    if path.suffix.lower() in RUNTIME_FILES:
        return _runtime_files(path)
    load = load or LoadOptions()
    loaded = checkpoints.load(path, load)
    if loaded.onnx is not None:
        return NamedModel(
            path=path,
            runtime="onnxruntime",
            files=(loaded.onnx,),
            precision=onnx_precision(loaded.onnx),
            checkpoint=loaded,
        )
    return NamedModel(
        path=path, runtime=TORCH, files=(path,), precision="fp32", checkpoint=loaded, load=load
    )


def _bundle(path: Path, runtime: str | None) -> NamedModel:
    if not is_bundle(path):
        raise BadInput(
            f"{path} is a folder without a manifest.json, so it is not a bundle.",
            hint="Give a bundle made by `edgekit export`, a checkpoint, or an .onnx file.",
        )
    manifest = read_manifest(path)
    entry = manifest.model(runtime)
    name, files, contract = open_model(path, runtime)
    raw = manifest.raw.get("checkpoint")
    parameters = raw.get("parameters") if isinstance(raw, dict) else None
    described = Checkpoint(
        path=path,
        sha256=manifest.files[entry.files[0]].sha256,
        kind="bundle",
        onnx=files[0] if files[0].suffix == ".onnx" else None,
        input_shape=contract.input_shape,
        preprocess=contract,
        task=manifest.task,
        head=manifest.head,
        names=manifest.names,
        parameters=parameters if isinstance(parameters, int) else 0,
    )
    return NamedModel(
        path=path,
        runtime=name,
        files=tuple(files),
        precision=entry.precision,
        checkpoint=described,
        origin="the bundle",
        golden=tuple(manifest.path(sample.input) for sample in manifest.golden.samples),
    )


def _runtime_files(path: Path) -> NamedModel:
    """Files that one runtime alone reads; they say nothing of preprocessing, task or names."""
    runtime = RUNTIME_FILES[path.suffix.lower()]
    if runtime == "tensorrt" and version_of("tensorrt") is None:
        raise NotPossible(
            f"{path.name} is a TensorRT engine, which needs the board that it was built on: TensorRT "
            "is not installed here.",
            hint="Run edgekit on that board, or compare the bundle that the engine was built from.",
        )
    if runtime not in runtimes.RUNTIMES:
        raise NotPossible(
            f"{path.name} is a model for {runtime}, which this edgekit does not run on this machine.",
            hint="`edgekit doctor` lists the runtimes.",
        )
    if runtime == "ncnn":
        return _ncnn(path)
    return NamedModel(
        path=path,
        runtime=runtime,
        files=(path,),
        precision="unknown",
        checkpoint=Checkpoint(path=path, sha256=sha256_file(path), kind=runtime),
    )


def _ncnn(path: Path) -> NamedModel:
    """An ncnn model: its model.json, which says the input's size, or the .param beside it."""
    from edgekit.formats import ncnn_json

    described = path if path.suffix.lower() == ".json" else path.with_name("model.json")
    sidecar = ncnn_json.read(described)
    files = tuple(described.parent / item.file for item in (sidecar.param, sidecar.bin))
    if path not in (described, *files):
        raise BadInput(f"{described} is about {sidecar.param.file}, not about {path.name}.")
    for file in files:
        if not file.is_file():
            raise BadInput(f"{described} names {file.name}, which does not lie beside it.")
    shape = sidecar.inputs[0].shape if len(sidecar.inputs) == 1 else None
    return NamedModel(
        path=path,
        runtime="ncnn",
        files=(described, *files),
        precision=sidecar.precision,
        checkpoint=Checkpoint(path=path, sha256=sidecar.bin.sha256, kind="ncnn", input_shape=shape),
    )


def onnx_precision(path: Path) -> str:
    """ "int8" for a graph with integer operators, "fp16" for one with half-precision weights."""
    import onnx

    from edgekit import onnx_file

    graph = onnx_file.load(path, external_data=False).graph
    if any(node.op_type in _INTEGER_OPERATORS for node in graph.node):
        return "int8"
    types = {item.data_type for item in graph.initializer if len(item.dims) > 1}
    return "fp16" if types & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16} else "fp32"


def open_session(
    runtime: str,
    files: Sequence[Path],
    options: SessionOptions | None = None,
    *,
    load: LoadOptions | None = None,
    contract: Preprocess | None = None,
) -> Session:
    """`edgekit.runtimes.open_session`, and "torch" for a checkpoint, which `load` says how to load.

    `contract` gives a checkpoint's input shape; without one it is the checkpoint's own.
    Raises BadInput when neither says it.
    """
    if runtime != TORCH:
        return runtimes.open_session(runtime, files, options)
    loaded = checkpoints.load(Path(files[0]), load or LoadOptions())
    if loaded.module is None:
        raise BadInput(f"{files[0]} is {loaded.kind}, not a torch checkpoint.")
    if contract is None:
        contract = contracts.resolve(loaded, {}, None).contract
    return torch_session(loaded.module, contract, options)


def torch_session(
    module: Any, contract: Preprocess, options: SessionOptions | None = None
) -> Session:
    """A module as a session with a free batch axis and the threads that `options` asks for."""
    import torch

    from edgekit.runtimes.torch import TorchSession

    torch.set_num_threads((options or SessionOptions()).threads)
    spec = TensorSpec(
        name=INPUT_NAME, shape=("batch", *contract.input_shape[1:]), dtype=contract.dtype
    )
    return TorchSession(module, (spec,))
