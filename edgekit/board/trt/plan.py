"""Which graph is built with which flags: the bundle's files and the TensorRT at hand decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from edgekit.board.errors import BadInput, NotPossible, UsageError
from edgekit.board.manifest import Manifest
from edgekit.board.session import BuildOptions
from edgekit.board.trt.features import Features

METHODS = ("auto", "qdq", "entropy", "minmax", "float")


@dataclass(frozen=True)
class Plan:
    """One way to build: the bundle's file `onnx`, the builder's flags by name, and where scales come from.

    `method`: "qdq", "entropy", "minmax" or "float". `cache`: the calibration cache's path in the
    bundle; `why` says in one sentence how this was chosen.
    """

    method: str
    onnx: str
    flags: tuple[str, ...]
    strongly_typed: bool
    cache: str | None
    why: str

    @property
    def algorithm(self) -> str | None:
        """The calibrator's algorithm, None without one."""
        return self.method if self.method in ("entropy", "minmax") else None


def files_by_role(manifest: Manifest) -> dict[str, Any]:
    """`details.tensorrt` of the manifest, checked. Raises BadInput where it does not fit the bundle."""
    details = manifest.raw.get("details")
    value = details.get("tensorrt") if isinstance(details, dict) else None
    roles = value.get("files") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(roles, dict):
        raise BadInput(
            f"{manifest.folder} does not say which of its files are for TensorRT.",
            "Export it again: edgekit export CHECKPOINT --target jetson-int8 --images DIR",
        )
    for name in [*roles.values(), *value.get("batches", [])]:
        if name not in manifest.files:
            raise BadInput(f"{manifest.folder}: {name} is spoken of but not listed.")
    return value


def is_int8(roles: Mapping[str, str]) -> bool:
    """Whether the bundle holds a quantized model."""
    return "qdq_fp32" in roles or "entropy" in roles


def choose(roles: Mapping[str, str], have: Features, options: BuildOptions) -> Plan:
    """The plan for `options.method`.

    "auto" takes explicit QDQ, whose accuracy was measured on the host; for DLA, which computes INT8
    from calibration alone, the entropy cache. Raises NotPossible, naming what to use instead, where
    this TensorRT lacks the way asked for; UsageError for an unknown one.
    """
    method = options.method
    if method not in METHODS:
        raise UsageError(f"There is no method {method!r}.", f"Known: {', '.join(METHODS)}.")
    if not is_int8(roles):
        if method in ("qdq", "entropy", "minmax"):
            raise NotPossible(
                f"The bundle holds no INT8 model, which {method} builds.",
                "Use --method auto, or export for an INT8 target.",
            )
        return _float(roles, have, options, "the bundle's model is float")
    if method == "float":
        return _float(roles, have, options, "asked for")
    if options.dla is not None and method == "qdq":
        raise NotPossible(
            "DLA takes INT8 from a calibration, not from QDQ.",
            "Use --method entropy (TensorRT up to 10.16), or --method float for float16 on DLA.",
        )
    if method == "auto" and options.dla is None:
        return _qdq(roles, have, options, "explicit QDQ, as measured on the host")
    if method == "qdq":
        return _qdq(roles, have, options, "asked for")
    if method == "auto":
        return _calibrated("entropy", roles, have, options, "DLA takes INT8 from a calibration")
    return _calibrated(method, roles, have, options, "asked for")


def fallback(
    plan: Plan, roles: Mapping[str, str], have: Features, options: BuildOptions
) -> Plan | None:
    """What "auto" tries when QDQ does not build: TensorRT 10.3 cannot build some graphs; None: nothing."""
    if options.method != "auto" or plan.method != "qdq" or not have.entropy:
        return None
    return _calibrated("entropy", roles, have, options, "the QDQ graph did not build here")


def _role(roles: Mapping[str, str], role: str) -> str:
    if role not in roles:
        raise NotPossible(
            f"The bundle has no {role} file for TensorRT.", "Export it again with this edgekit."
        )
    return roles[role]


def _mixed(have: Features, options: BuildOptions, *flags: str) -> tuple[str, ...]:
    """The flags of a weakly typed build; float16 beside them unless it was refused."""
    return (*flags, "FP16") if options.fp16 and have.weak_fp16 else flags


def _qdq(roles: Mapping[str, str], have: Features, options: BuildOptions, why: str) -> Plan:
    if have.weak_int8:
        flags = _mixed(have, options, "INT8")
        return Plan("qdq", _role(roles, "qdq_fp32"), flags, False, None, why)
    role = "qdq_fp16" if options.fp16 else "qdq_fp32"
    return Plan("qdq", _role(roles, role), (), True, None, why)


def _calibrated(
    method: str, roles: Mapping[str, str], have: Features, options: BuildOptions, why: str
) -> Plan:
    if not (have.entropy if method == "entropy" else have.minmax):
        raise NotPossible(
            f"TensorRT {have.version} has no calibrators, which {method} needs: they ended with 10.16.",
            "Use --method float for float16 on DLA, or build for the GPU: --method qdq."
            if options.dla is not None
            else "Use --method qdq: explicit quantization works in every version.",
        )
    flags = _mixed(have, options, "INT8")
    return Plan(method, _role(roles, "float"), flags, False, roles.get(method), why)


def _float(roles: Mapping[str, str], have: Features, options: BuildOptions, why: str) -> Plan:
    if have.weak_fp16 or not options.fp16:
        return Plan(
            "float", _role(roles, "float"), _mixed(have, options), not have.weak_fp16, None, why
        )
    if "float_fp16" not in roles:
        raise NotPossible(
            f"TensorRT {have.version} computes in the types of the graph, and the bundle has no "
            "float16 graph without INT8.",
            "Use --method qdq, or export for a float16 target (jetson-fp16).",
        )
    return Plan("float", roles["float_fp16"], (), True, None, why)
