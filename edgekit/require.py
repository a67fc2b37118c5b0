"""`require("tensorrt")`: a missing extra becomes one clear line instead of an ImportError."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from types import ModuleType

from edgekit.errors import MissingDependency

# module → (distribution that carries it, extra that installs it; "" = a core dependency)
_CARRIERS: dict[str, tuple[str, str]] = {
    "torch": ("torch", "torch"),
    "onnxscript": ("onnxscript", "torch"),
    "ultralytics": ("ultralytics", "ultralytics"),
    "ncnn": ("ncnn", "ncnn"),
    "pnnx": ("pnnx", "ncnn"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "pycuda": ("pycuda", "tensorrt"),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"),
    "onnx": ("onnx", ""),
    "onnxruntime": ("onnxruntime", ""),
    "onnxsim": ("onnxsim", ""),
    "onnxslim": ("onnxslim", ""),
    "onnx_ir": ("onnx-ir", ""),
    "cv2": ("opencv-python-headless", ""),
    "numpy": ("numpy", ""),
    "faster_coco_eval": ("faster-coco-eval", ""),
    "safetensors": ("safetensors", "torch"),
    "jinja2": ("jinja2", ""),
}


def install_line(module: str) -> str:
    """The command that installs what carries `module`."""
    distribution, extra = _CARRIERS.get(module, (module, ""))
    if extra:
        return f"pip install 'edgekit[{extra}]'"
    return f"pip install {distribution}"


def require(module: str, purpose: str) -> ModuleType:
    """Import and return `module`.

    Raises MissingDependency, naming `purpose` and the install line, when it is not installed or
    when its own import fails (a wheel for another CPU, a shared library that is not there).
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing_itself = isinstance(error, ModuleNotFoundError) and error.name == module
        detail = "is not installed" if missing_itself else f"does not import: {error}"
        raise MissingDependency(
            f"{purpose} needs the package '{module}', which {detail}.",
            hint=f"Install it with: {install_line(module)}",
        ) from error


def version_of(module: str) -> str | None:
    """Installed version of what carries `module`, without importing it; None when it is absent."""
    distribution, _ = _CARRIERS.get(module, (module, ""))
    candidates: tuple[str, ...] = (distribution, module)
    if distribution == "opencv-python-headless":
        candidates = (distribution, "opencv-python", "opencv-contrib-python")
    for candidate in candidates:
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def versions_of(*modules: str) -> dict[str, str]:
    """Installed versions of `modules`, "absent" for those not installed; part of every cache key."""
    return {module: version_of(module) or "absent" for module in modules}


_CLAUSE = re.compile(r"(==|!=|>=|<=|>|<)\s*(\d+(?:\.\d+)*)")


def satisfies(version: str, requirement: str) -> bool:
    """Whether `version` meets every clause of `requirement`, such as ">=1.20" or ">=8.5,<12".

    Compares the numbers before any suffix: "2.13.0+cpu" counts as 2.13.0, "2.0rc1" as 2.0. An empty
    requirement is met by every version. Raises ValueError for a clause that is not understood.
    """
    have = _release(version)
    for clause in filter(None, (part.strip() for part in requirement.split(","))):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise ValueError(f"version requirement {clause!r}")
        want = _release(match[2])
        length = max(len(have), len(want))
        left = have + (0,) * (length - len(have))
        right = want + (0,) * (length - len(want))
        met = {
            "==": left == right,
            "!=": left != right,
            ">=": left >= right,
            "<=": left <= right,
            ">": left > right,
            "<": left < right,
        }[match[1]]
        if not met:
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
