"""Target profiles: a board with its settings, as data. A new board is a TOML file and no Python.

A profile file:

    description = "One line for `edgekit targets list`"
    extends = "x86-base"          # a name, a path ending in .toml, or a list of them; later ones win
    abstract = true               # a family: to be extended, not offered as a target

    [device]    what the board is              [measure]  how its latency is measured
    [runtime]   what runs the model there      [source]   where the facts come from
    [build]     precision, opset, workspace
    [quantize]  INT8 only: types, what is quantized, what stays float

The sections' keys are the fields of the classes below. Everything is checked: an unknown section or
key is an error that names the nearest known one, a wrong type names file, section and key.

edgekit.target_files finds and reads the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.cpu import KNOWN_ISA
from edgekit.errors import UsageError, nearest
from edgekit.require import satisfies
from edgekit.schema import check_keys, check_section

if TYPE_CHECKING:
    from edgekit.cpu import Cpu

PLACEMENT_RULES = ("head", "first", "depthwise", "gemv")
"""Rules that `keep_float` may name, see edgekit.quantization.placement: a detector's last
convolutions, the first one, depthwise ones, matrix-vector products."""

FORMS = ("silu", "softmax", "concat", "few_channels", "resize", "hard_swish")
"""What `forms` may name, see edgekit.quantization.forms and .integer_forms."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The board. A field that is not known for sure is left out: None or ().

    `isa` lists instruction sets (names of edgekit.cpu) that the profile's choices rely on; "a|b"
    means either. `sm` is the GPU's compute capability, "8.7"; `jetpack` the JetPack lines that
    support the board; `dla_cores` its deep learning accelerators; `power_modes` as nvpmodel names
    them.
    """

    arch: str = field(default="", metadata={"choices": ("x86_64", "aarch64", "armhf")})
    isa: tuple[str, ...] = ()
    board: str = ""
    cpu: str = ""
    cores: int | None = field(default=None, metadata={"minimum": 1})
    memory_mb: int | None = field(default=None, metadata={"minimum": 1})
    sm: str | None = None
    jetpack: tuple[str, ...] = ()
    dla_cores: int | None = field(default=None, metadata={"minimum": 0})
    power_modes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The software that runs the model: a name of edgekit.runtimes, and the versions that will do,
    as a requirement such as ">=8.5,<12" ("" = any)."""

    name: str = field(default="", metadata={"choices": ("onnxruntime", "tensorrt", "ncnn")})
    versions: str = ""


@dataclass(frozen=True, kw_only=True)
class Build:
    """How the runtime's model is built. `opset` is that of the ONNX file; `workspace_mb` the scratch
    memory the builder may use, None for its own default; `build_on_device` True where the result
    only works on the machine that built it."""

    precision: str = field(default="", metadata={"choices": ("fp32", "fp16", "bf16", "int8")})
    opset: int = field(default=17, metadata={"minimum": 13, "maximum": 25})
    workspace_mb: int | None = field(default=None, metadata={"minimum": 1})
    build_on_device: bool = False


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """INT8 rules of the runtime on this device.

    `operators`: ONNX operator types with weights that run in INT8. `follow`: types that run on
    quantized data only when what is before and after them does. `keep_float`: placement rules
    (PLACEMENT_RULES) and operator types that stay float. `max_range_ratio`: inputs of one Concat or
    Add whose ranges differ by more than this factor do not share a scale. `min_channels`:
    convolutions with fewer input channels stay float. `reduce_range`: 7-bit weights; "auto" asks the
    CPU (`TargetProfile.reduces_range`). `bias`: "int32", scale = input scale * weight scale, or "float".
    `operands_only`: QDQ stands in front of INT8 operators alone, and of an Add only on the branch that
    no convolution just made; what comes out of an operator stays as it is (TensorRT).
    `small_share`: convolutions below `min_channels` stay float only up to this share of the MACs.
    `winograd` (ncnn): 3x3 convolutions of stride 1 run by Winograd, whose sums hold 6-bit weights;
    false gives them 8 bits and keeps Winograd off them. `forms` (FORMS): what is computed in another
    form because the runtime is faster at that, see edgekit.quantization.integer_forms.
    """

    weight_type: str = field(default="int8", metadata={"choices": ("int8", "uint8")})
    activation_type: str = field(default="uint8", metadata={"choices": ("int8", "uint8")})
    symmetric_activations: bool = False
    per_channel: bool = True
    reduce_range: bool | str = field(default=False, metadata={"choices": ("auto", True, False)})
    bias: str = field(default="int32", metadata={"choices": ("int32", "float")})
    winograd: bool = True
    operators: tuple[str, ...] = ("Conv",)
    follow: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    max_range_ratio: float = field(default=16.0, metadata={"minimum": 1.0})
    min_channels: int = field(default=0, metadata={"minimum": 0})
    forms: tuple[str, ...] = ()
    small_share: float = field(default=1.0, metadata={"minimum": 0.0})
    operands_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How latency is measured: threads of the runtime, least warm-up runs, timed runs (iterations),
    and seconds of rest before the measurement."""

    threads: int = field(default=1, metadata={"minimum": 1})
    warmup: int = field(default=10, metadata={"minimum": 0})
    iterations: int = field(default=100, metadata={"minimum": 1})
    cooldown_s: float = field(default=0.0, metadata={"minimum": 0.0})


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the facts come from."""

    urls: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TargetProfile:
    """A board with its settings. `quantize` is None unless the precision is int8."""

    name: str
    description: str
    device: Device
    runtime: Runtime
    build: Build
    quantize: Quantize | None
    measure: Measure
    source: Source

    @property
    def is_int8(self) -> bool:
        return self.quantize is not None

    def reduces_range(self, cpu: Cpu | None = None) -> bool:
        """Whether weights get 7 bits: [-63, 63] instead of [-127, 127].

        x86 without VNNI multiplies u8 by s8 with VPMADDUBSW, which saturates pairs of products at 16
        bits; 7-bit weights stay below that. "auto" looks at the instruction sets that the profile
        asks for, then at `cpu` (the one at hand when None). A CPU of another architecture than the
        target's says nothing about the target, so the safe answer is given.
        """
        from edgekit.cpu import detect

        if self.quantize is None:
            return False
        wanted = self.quantize.reduce_range
        if isinstance(wanted, bool):
            return wanted
        if self.device.arch != "x86_64":
            return False
        if any("vnni" in name for name in self.device.isa):
            return False
        at_hand = cpu or detect()
        return not (at_hand.arch == self.device.arch and at_hand.has_vnni)

    def why_not_on(self, cpu: Cpu) -> str:
        """Why a machine with `cpu` cannot run what this profile builds, "" when it can."""
        if self.device.arch != cpu.arch:
            return f"it is built for {self.device.arch}, this machine is {cpu.arch}"
        absent = [names for names in self.device.isa if not set(names.split("|")) & set(cpu.isa)]
        return f"this CPU has no {', '.join(absent).replace('|', ' or ')}" if absent else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field present; `from_dict` reads them back."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], where: str = "target profile") -> TargetProfile:
        """Read what `to_dict` wrote, with the same checks as a TOML file."""
        tables = {key: item for key, item in value.items() if key != "name"}
        if tables.get("quantize", {}) is None:
            del tables["quantize"]
        name = value.get("name")
        if not isinstance(name, str):
            raise UsageError(f"{where}: 'name' is missing.")
        layer = Layer(where=where, values=checked_values(tables, where))
        return assembled(name, [layer], where)


SECTIONS: dict[str, type[Any]] = {
    "device": Device,
    "runtime": Runtime,
    "build": Build,
    "quantize": Quantize,
    "measure": Measure,
    "source": Source,
}
_TOP_LEVEL = ("description", "extends", "abstract")


@dataclass(frozen=True)
class Layer:
    """One file's part of a profile, checked: top-level keys, and sections as dicts."""

    where: str
    values: dict[str, Any]


def checked_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of one file, each section checked against its class."""
    scalars = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in values.items() if key not in scalars}
    check_keys(tables, list(SECTIONS), "section", where)
    check_keys(scalars, [*_TOP_LEVEL, *SECTIONS], "key", where)
    checked: dict[str, Any] = {}
    for key, kinds, word in (
        ("description", str, "a string"),
        ("abstract", bool, "true or false"),
        ("extends", (str, list), "a name or a list of names"),
    ):
        if key in scalars:
            if not isinstance(scalars[key], kinds):
                raise UsageError(f"{where}: {key} must be {word}, not {scalars[key]!r}.")
            checked[key] = scalars.pop(key)
    for name in checked.get("extends", []) if isinstance(checked.get("extends"), list) else []:
        if not isinstance(name, str):
            raise UsageError(f"{where}: extends must be a name or a list of names, not {name!r}.")
    for key, value in {**tables, **scalars}.items():
        checked[key] = check_section(SECTIONS[key], value, f"{where}: [{key}]")
    for name in checked.get("quantize", {}).get("keep_float", ()):
        # operator types begin with a capital: anything else must be a rule
        if not name[:1].isupper() and name not in PLACEMENT_RULES:
            raise UsageError(
                f"{where}: [quantize] keep_float has '{name}', which is neither a rule nor an "
                "operator type.",
                hint=nearest(name, PLACEMENT_RULES),
            )
    for name in checked.get("quantize", {}).get("forms", ()):
        if name not in FORMS:
            raise UsageError(
                f"{where}: [quantize] forms has '{name}', which is not a form.",
                hint=nearest(name, FORMS),
            )
    try:
        satisfies("0", checked.get("runtime", {}).get("versions", ""))
    except ValueError as error:
        raise UsageError(
            f"{where}: [runtime] versions: {error} is not understood.", hint='Write ">=8.5,<12".'
        ) from error
    for names in checked.get("device", {}).get("isa", ()):
        for name in names.split("|"):
            if name not in KNOWN_ISA:
                raise UsageError(
                    f"{where}: [device] isa has '{name}', which is not an instruction set.",
                    hint=nearest(name, list(KNOWN_ISA)),
                )
    return checked


def assembled(name: str, layers: list[Layer], where: str) -> TargetProfile:
    """Merge the layers key by key, later ones winning, and check the whole."""
    merged: dict[str, dict[str, Any]] = {}
    description = ""
    for layer in layers:
        description = layer.values.get("description", description)
        for section in SECTIONS:
            if section in layer.values:
                merged.setdefault(section, {}).update(layer.values[section])
    urls = [url for layer in layers for url in layer.values.get("source", {}).get("urls", ())]
    for section, key in (("device", "arch"), ("runtime", "name"), ("build", "precision")):
        if not merged.get(section, {}).get(key):
            raise UsageError(
                f"{where}: [{section}] {key} is missing.",
                hint="Set it, or extend a profile that does (`edgekit targets list`).",
            )
    precision = merged["build"]["precision"]
    if precision != "int8" and "quantize" in merged:
        raise UsageError(
            f"{where}: [quantize] is for precision int8, but [build] says {precision}."
        )
    quantize = Quantize(**merged.get("quantize", {})) if precision == "int8" else None
    return TargetProfile(
        name=name,
        description=description,
        device=Device(**merged["device"]),
        runtime=Runtime(**merged["runtime"]),
        build=Build(**merged["build"]),
        quantize=quantize,
        measure=Measure(**merged.get("measure", {})),
        source=Source(urls=tuple(dict.fromkeys(urls))),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
