"""The files that TensorRT builds from, made on any host: graphs for each kind of builder, and scales.

    model.onnx                    float32: implicit quantization with a calibration cache, FP16, DLA
    model_qdq_fp32.onnx           explicit quantization for TensorRT 8.5 to 10
    model_qdq_fp16.onnx           the same, typed float16, for strongly typed builders (10 and 11)
    model_fp16.onnx               a float target's graph for strongly typed builders
    calibration_entropy.cache     scales for IInt8EntropyCalibrator2: the ranges that were chosen
    calibration_minmax.cache      scales for IInt8MinMaxCalibrator: all that was seen

Every graph is held against TensorRT's rules here (`quantization.tensorrt_rules`): what the board would
refuse is refused on the host, with node and rule.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.atomic import replacing
from edgekit.formats import tensorrt_cache
from edgekit.formats.tensorrt_cache import CalibrationCache
from edgekit.quantization import float16, tensorrt_rules
from edgekit.quantization.placement import every_activation
from edgekit.quantization.scheme import Scheme, activation_params
from edgekit.runtimes import open_session
from edgekit.runtimes.base import SessionOptions
from edgekit.stages import calibrate
from edgekit.stages.parity import ParityLimits, compare_sessions, demand
from edgekit.types import Calibration, OnnxModel, ParityReport, Range

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

FLOAT, HALF = "model.onnx", "model_fp16.onnx"
QDQ_FP32, QDQ_FP16 = "model_qdq_fp32.onnx", "model_qdq_fp16.onnx"
ENTROPY, MINMAX = "calibration_entropy.cache", "calibration_minmax.cache"

# the ONNX file version that came with an opset: older parsers refuse or warn of newer ones
_IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}
# float16 moves values over the borders between integers: that is as far as two INT8 models are apart
# that differ in rounding. Measured: 19.2 dB (YOLOv5n), cosine 0.989 (YOLO11n), 35 dB (ResNet-20)
_HALF_LIMITS = ParityLimits(min_cosine=0.95, min_sqnr_db=10.0, negligible=0.02)
_SCHEME = Scheme(
    activation_type="int8",
    symmetric_activations=True,
    explicit_weights=True,
    integer_bias=False,
)


@dataclass(frozen=True, kw_only=True)
class TensorRtFiles:
    """What was written: `files`, the one that speaks for the bundle first; parity of the float16 graph
    with its float32 twin; layers that stay float32 there, with the reason; tensors in the caches."""

    files: tuple[Path, ...]
    parity: ParityReport | None
    floats: Mapping[str, str]
    cached_tensors: int = 0
    notes: tuple[str, ...] = ()


def check(model: OnnxModel) -> None:
    """Raise NotPossible, naming nodes and rules, when TensorRT would refuse the float graph."""
    plain = onnx_file.load(model.path)
    tensorrt_rules.demand(plain, tensorrt_rules.FLOAT_OPSETS, model.path)


def run(
    model: OnnxModel,
    quantized: OnnxModel | None,
    calibration: Calibration | None,
    feeds: Sequence[NDArray[Any]],
    out: Path,
    *,
    half_io: bool = False,
) -> TensorRtFiles:
    """Write TensorRT's files of the float graph `model` (and of `quantized`, its QDQ form) to `out`.

    `calibration` is that of `model`, with the ranges that were chosen; None for a float target, and
    where the graph's own quantization gave every scale: then the cache holds those alone. With
    `half_io` the float16 graph's inputs and outputs are float16. Raises NotPossible, naming nodes and
    rules, when TensorRT would refuse a graph; VerificationFailed when the float16 graph strays.
    """
    plain = onnx_file.load(model.path)
    tensorrt_rules.demand(plain, tensorrt_rules.FLOAT_OPSETS, model.path)
    float_file = _copy(plain, model.metadata, out / FLOAT)
    ranges = {} if calibration is None else _seen(calibration)
    if quantized is None:
        half, report = _typed(plain, model, ranges, out / HALF, half_io)
        parity = _parity(float_file, half, feeds, model)
        return TensorRtFiles(
            files=(float_file.path, half.path),
            parity=parity,
            floats=report.floats,
            notes=_half_notes(report),
        )
    explicit = onnx_file.load(quantized.path)
    tensorrt_rules.demand(explicit, tensorrt_rules.QDQ_OPSETS, quantized.path)
    # the very file that the accuracy was measured with, byte for byte
    with replacing(out / QDQ_FP32) as temporary:
        shutil.copyfile(quantized.path, temporary)
    qdq = onnx_file.describe(out / QDQ_FP32, explicit)
    half, report = _typed(explicit, quantized, ranges, out / QDQ_FP16, half_io)
    parity = _parity(qdq, half, feeds, model)
    chosen = scales(plain, explicit, calibration)
    tensorrt_cache.write(
        CalibrationCache(algorithm=tensorrt_cache.ENTROPY, scales=chosen), out / ENTROPY
    )
    caches = [out / ENTROPY]
    if calibration is not None:
        widest = scales(plain, None, _minmax(calibration))
        tensorrt_cache.write(
            CalibrationCache(algorithm=tensorrt_cache.MINMAX, scales=widest), out / MINMAX
        )
        caches.append(out / MINMAX)
    return TensorRtFiles(
        files=(qdq.path, half.path, float_file.path, *caches),
        parity=parity,
        floats=report.floats,
        cached_tensors=len(chosen),
        notes=(*_half_notes(report), f"calibration caches with {len(chosen)} tensors"),
    )


def scales(
    plain: onnx.ModelProto, explicit: onnx.ModelProto | None, calibration: Calibration | None
) -> dict[str, float]:
    """Tensor → float32 scale, amax / 127, for every activation of `plain` that has a range.

    A tensor that `explicit` quantizes gets that graph's scale, bit for bit, and so does what an
    operator only moves out of it.
    """
    import onnx_ir as ir

    placed = {} if explicit is None else placed_scales(explicit)
    ranges = calibration.ranges if calibration is not None else {}
    found: dict[str, float] = {}
    for name, owner in every_activation(ir.from_proto(plain)).items():
        if name in placed:
            found[name] = placed[name]
        elif owner in placed:
            found[name] = placed[owner]
        elif owner in ranges:
            found[name] = float(activation_params(ranges[owner], _SCHEME).scale)
    return found


def placed_scales(explicit: onnx.ModelProto) -> dict[str, float]:
    """Tensor → scale of every QuantizeLinear of an activation in a QDQ graph."""
    import onnx

    constants = {item.name: item for item in explicit.graph.initializer}
    return {
        node.input[0]: float(onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(()))
        for node in explicit.graph.node
        if node.op_type == "QuantizeLinear"
        and node.input[0] not in constants
        and node.input[1] in constants
    }


def _minmax(calibration: Calibration) -> Calibration:
    return calibrate.choose_ranges(calibration, "minmax", symmetric=True)


def _seen(calibration: Calibration) -> dict[str, Range]:
    return dict(_minmax(calibration).ranges)


def _copy(model: onnx.ModelProto, metadata: dict[str, str], out: Path) -> OnnxModel:
    onnx_file.set_metadata(model, metadata)
    model.ir_version = min(model.ir_version, _IR_VERSIONS.get(onnx_file.opset_of(model), 8))
    return onnx_file.save(model, out)


def _typed(
    source: onnx.ModelProto,
    model: OnnxModel,
    ranges: Mapping[str, Range],
    out: Path,
    half_io: bool,
) -> tuple[OnnxModel, float16.Float16Report]:
    """Write the float16 form of `source`."""
    import onnx
    import onnx_ir as ir
    from onnx import version_converter

    lifted = source
    if onnx_file.opset_of(source) < float16.OPSET:
        lifted = version_converter.convert_version(source, float16.OPSET)
    lifted = onnx.shape_inference.infer_shapes(lifted, data_prop=True)
    graph = ir.from_proto(lifted)
    report = float16.to_float16(graph, ranges=ranges, half_io=half_io)
    typed = ir.to_proto(graph)
    onnx.checker.check_model(typed, full_check=True)
    tensorrt_rules.demand(typed, tensorrt_rules.HALF_OPSETS, out)
    return _copy(typed, model.metadata, out), report


def _half_notes(report: float16.Float16Report) -> tuple[str, ...]:
    if not report.floats:
        return ()
    first = ", ".join(f"{name}: {why}" for name, why in list(report.floats.items())[:3])
    return (f"{len(report.floats)} layers stay float32 in the float16 graph ({first})",)


def _parity(
    reference: OnnxModel, half: OnnxModel, feeds: Sequence[NDArray[Any]], model: OnnxModel
) -> ParityReport | None:
    """Parity of the float16 graph with its float32 twin; None where its inputs are float16."""
    if not feeds or onnx_file.main_input(half).dtype != onnx_file.main_input(reference).dtype:
        return None
    # ONNX Runtime 1.31's optimizer computes float16 QDQ wrongly (4 dB where the graph itself has 50)
    as_it_stands = SessionOptions(optimize=False)
    with (
        open_session("onnxruntime", reference.path, as_it_stands) as one,
        open_session("onnxruntime", half.path, as_it_stands) as other,
    ):
        named = [{onnx_file.main_input(reference).name: feed} for feed in feeds]
        head = model.metadata.get(onnx_file.HEAD_KEY)
        report = compare_sessions(one, other, named, reference.path, head)
    demand(report, _HALF_LIMITS, "float16")
    return report
