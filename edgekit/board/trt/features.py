"""What the TensorRT at hand can do, found by looking for names; versions are never compared.

Two ways of naming TensorRT's API in this package, which a test holds against the real bindings of
several versions:

- a plain attribute (`trt.Builder`, `builder.create_network`) is there in every version;
- what came or went is asked for by `optional(owner, "NAME")`, or `assign(owner, "NAME", value)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.board.errors import MissingDependency


def optional(owner: Any, name: str) -> Any:
    """The attribute `name` of a module, class or object; None where this version has none."""
    return getattr(owner, name, None)


def assign(owner: Any, name: str, value: Any) -> bool:
    """Set the attribute `name` where this version has it; whether it does."""
    if not hasattr(type(owner), name) and not hasattr(owner, name):
        return False
    setattr(owner, name, value)
    return True


def load() -> Any:
    """The module `tensorrt`. Raises MissingDependency, saying why, where it does not load."""
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise MissingDependency(f"tensorrt does not load: {error}.", _HINT) from error
        raise MissingDependency("the Python package tensorrt is not installed.", _HINT) from error
    except (ImportError, OSError) as error:
        raise MissingDependency(f"tensorrt does not load: {error}.", _HINT) from error
    if optional(tensorrt, "Builder") is None:
        # an empty wheel, or a folder of that name in the way
        raise MissingDependency("the Python package tensorrt is empty.", _HINT)
    return tensorrt


_HINT = (
    "On a Jetson it belongs to JetPack: apt-get install python3-libnvinfer; on a desktop: "
    "python3 -m pip install tensorrt."
)


@dataclass(frozen=True)
class Features:
    """What matters for the choice of a way to build.

    `entropy`, `minmax`: calibrators (up to 10.16). `weak_int8`, `weak_fp16`: the builder chooses types
    by flags (up to 10.16). `strongly_typed`: a network whose types are those of the graph can be
    asked for (10) or is the only kind (11).
    """

    version: str
    entropy: bool
    minmax: bool
    weak_int8: bool
    weak_fp16: bool
    strongly_typed: bool


def features(trt: Any) -> Features:
    """Look at the module `trt`; nothing is created."""
    flags = trt.BuilderFlag
    creation = trt.NetworkDefinitionCreationFlag
    accepts_calibrator = optional(trt.IBuilderConfig, "int8_calibrator") is not None
    return Features(
        version=str(trt.__version__),
        entropy=accepts_calibrator and optional(trt, "IInt8EntropyCalibrator2") is not None,
        minmax=accepts_calibrator and optional(trt, "IInt8MinMaxCalibrator") is not None,
        weak_int8=optional(flags, "INT8") is not None,
        weak_fp16=optional(flags, "FP16") is not None,
        strongly_typed=optional(creation, "STRONGLY_TYPED") is not None,
    )


def network_flags(trt: Any, strongly_typed: bool) -> int:
    """The bits for `create_network`, made of the members that exist.

    The value of STRONGLY_TYPED differs between 10 and 11, and its bit in 10 means something else in 11.
    """
    creation = trt.NetworkDefinitionCreationFlag
    bits = 0
    wanted = [optional(creation, "EXPLICIT_BATCH")]
    if strongly_typed:
        wanted.append(optional(creation, "STRONGLY_TYPED"))
    for flag in wanted:
        if flag is not None:
            bits |= 1 << int(flag)
    return bits


def cache_stamp(version: str) -> str:
    """The version as a calibration cache writes it: NV_TENSORRT_VERSION of NvInferVersion.h.

    8.6.1 is 8601 (major * 1000 + minor * 100 + patch); with a major number of two digits it is
    major * 10000: 10.3.0 is 100300.
    """
    numbers = [int(part) for part in version.split(".")[:3] if part.isdigit()]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    wide = len(str(major)) > 1
    return str(major * (10000 if wide else 1000) + minor * 100 + patch)
