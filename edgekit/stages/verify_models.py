"""One model held against another: the same interface, and parity block by block on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import bundle, onnx_file
from edgekit.errors import BadInput, UsageError, VerificationFailed
from edgekit.images import check_bad_share, list_images, read_all
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes import open_session
from edgekit.runtimes.base import Session, SessionOptions
from edgekit.stages.blocks import find_blocks
from edgekit.stages.divergence import first_divergence
from edgekit.stages.parity import FLOAT_LIMITS, INT8_LIMITS, ParityLimits, ParityMeter
from edgekit.stages.verify import Check
from edgekit.types import OnnxModel, Progress, TensorSpec, no_progress

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_NOISE_SAMPLES = 2
_BAD_IMAGES = 0.1


def verify_models(
    candidate: Path,
    reference: Path,
    *,
    images: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    limit: int = 8,
    limits: ParityLimits | None = None,
    progress: Progress = no_progress,
) -> list[Check]:
    """Compare two ONNX models, or bundles that hold one, on the same inputs.

    The inputs are the first `limit` images of the folder `images`, preprocessed by the contract in
    the reference's (else the candidate's) metadata with `overrides` on top; without images they are
    random numbers, which show less. `limits` defaults to FLOAT_LIMITS, to INT8_LIMITS when exactly
    one of the models is quantized. Where parity breaks, the check names the node.
    """
    paths = [_onnx_file(path) for path in (reference, candidate)]
    protos = [onnx_file.load(path) for path in paths]
    models = [onnx_file.describe(*pair) for pair in zip(paths, protos, strict=True)]
    quantized = [_is_quantized(proto) for proto in protos]
    if limits is None:
        limits = INT8_LIMITS if quantized[0] != quantized[1] else FLOAT_LIMITS
    problem = _interface_problem(*models)
    interface = Check(
        name="interface", ok=problem is None, detail=problem or "the same inputs and outputs"
    )
    if problem is not None:
        return [interface]
    feeds, origin = _feeds(models, images, overrides or {}, limit)
    inputs = Check(name="inputs", ok=True, detail=origin)
    head = models[0].metadata.get(onnx_file.HEAD_KEY) or models[1].metadata.get(onnx_file.HEAD_KEY)
    meter = ParityMeter(find_blocks(protos[0], head, feeds[0]))
    try:
        with _open(paths[0]) as one, _open(paths[1]) as other:
            for number, feed in enumerate(feeds):
                progress(number, len(feeds), "compare")
                ours = one.run(feed)
                theirs = other.run(_renamed(feed, models[1].inputs))
                # outputs that only have another name are paired by their order
                meter.add(ours, dict(zip(ours, theirs.values(), strict=True)))
    except VerificationFailed as error:
        return [interface, inputs, Check(name="outputs", ok=False, detail=error.message)]
    checks = [interface, inputs]
    for block in meter.report().blocks:
        problem = limits.problem(block)
        detail = (
            f"cosine {block.cosine:.6f}, SQNR {block.sqnr_db:.1f} dB, "
            f"max_rel_error {block.max_rel_error:.1e}"
        )
        if problem is not None:
            detail += f": {problem}"
        checks.append(Check(name=f"block {block.name}", ok=problem is None, detail=detail))
    if not all(check.ok for check in checks):
        progress(len(feeds), len(feeds), "locate")
        found = first_divergence(protos[0], protos[1], feeds[0], limits, head)
        text = str(found) if found else "no shared tensor in front of the outputs breaks the limits"
        checks.append(Check(name="where", ok=False, detail=text))
    return checks


def _onnx_file(path: Path) -> Path:
    """The ONNX file at `path`, or that of the bundle at `path`."""
    if bundle.is_bundle(path):
        runtime, files, _ = bundle.open_model(path)
        path = files[0]
        if path.suffix != ".onnx":
            raise UsageError(
                f"The bundle's model is for {runtime}; two ONNX models can be compared.",
                hint="`edgekit verify BUNDLE` alone checks the bundle against its golden outputs.",
            )
    if not path.is_file():
        raise BadInput(f"The model {path} does not exist.")
    return path


def _open(path: Path) -> Session:
    return open_session("onnxruntime", path, SessionOptions(threads=1))


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(
        "Quantize" in node.op_type or node.op_type.startswith("QLinear")
        for node in model.graph.node
    )


def _interface_problem(reference: OnnxModel, candidate: OnnxModel) -> str | None:
    """How number, shapes and dtypes of inputs and outputs differ; names may."""
    for kind in ("inputs", "outputs"):
        ours: tuple[TensorSpec, ...] = getattr(reference, kind)
        theirs: tuple[TensorSpec, ...] = getattr(candidate, kind)
        if len(ours) != len(theirs):
            return f"{len(theirs)} {kind} ({', '.join(s.name for s in theirs)}), not {len(ours)}"
        for one, other in zip(ours, theirs, strict=True):
            if one.dtype != other.dtype or not _fits(one.shape, other.shape):
                return (
                    f"{kind[:-1]} '{other.name}' is {other.dtype} {list(other.shape)}, "
                    f"not {one.dtype} {list(one.shape)}"
                )
    return None


def _fits(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    """Whether two shapes can be equal; a free dimension fits everything, an unknown rank too."""
    if not one or not other:
        return True
    return len(one) == len(other) and all(
        isinstance(a, str) or isinstance(b, str) or a == b for a, b in zip(one, other, strict=True)
    )


def _renamed(
    feed: Mapping[str, NDArray[Any]], inputs: tuple[TensorSpec, ...]
) -> dict[str, NDArray[Any]]:
    return dict(zip((spec.name for spec in inputs), feed.values(), strict=True))


def _feeds(
    models: Sequence[OnnxModel], images: Path | None, overrides: Mapping[str, Any], limit: int
) -> tuple[list[dict[str, NDArray[Any]]], str]:
    """Inputs for the reference, and one line on where they come from."""
    reference = models[0]
    if images is None:
        import numpy as np

        random = np.random.default_rng(0)
        feeds = [
            {spec.name: _noise(random, spec) for spec in reference.inputs}
            for _ in range(_NOISE_SAMPLES)
        ]
        return feeds, "random numbers: real images show more (--images DIR)"
    spec = onnx_file.main_input(reference)
    contract = _contract(models, spec, overrides)
    paths = list_images(images)[:limit]
    bad: list[str] = []
    feeds = [{spec.name: apply(image, contract)[0]} for _, image in read_all(paths, bad)]
    check_bad_share(bad, len(paths), _BAD_IMAGES)
    return feeds, f"{len(feeds)} images of {images}"


def _noise(random: Any, spec: TensorSpec) -> NDArray[Any]:
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    if spec.dtype.startswith("float"):
        array: NDArray[Any] = random.random(shape).astype(spec.dtype)
        return array
    integers: NDArray[Any] = random.integers(0, 2 if spec.dtype == "bool" else 128, shape)
    return integers.astype(spec.dtype)


def _contract(
    models: Sequence[OnnxModel], spec: TensorSpec, overrides: Mapping[str, Any]
) -> Preprocess:
    for model in models:
        contract = onnx_file.read_contract(model)
        if contract is not None:
            return contract.replace(**overrides)
    fields = dict(overrides)
    sizes = [size for size in spec.shape[2:4] if isinstance(size, int)]
    if spec.shape[-1:] and spec.shape[-1] in (1, 3):
        sizes = [size for size in spec.shape[1:3] if isinstance(size, int)]
        fields.setdefault("layout", "nhwc")
    if len(sizes) == 2:
        fields.setdefault("height", sizes[0])
        fields.setdefault("width", sizes[1])
    if "height" not in fields or "width" not in fields:
        raise UsageError(
            "Neither model says how large its input is.",
            hint="Give --preprocess FILE with height and width.",
        )
    fields.setdefault("dtype", spec.dtype)
    return Preprocess(**fields)
