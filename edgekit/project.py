"""The project file edgekit.toml: what a bare `edgekit export` works from.

    [checkpoint]  path, arch, arch_args = { key = value }, code = [...], weights,
                  dtype
    [export]      target, images, out, data, split, imgsz, input_shape, method, dynamic, limit
    [preprocess]  any field of the preprocessing contract
    [budget]      max_drop (points), max_p99_ms, max_p50_ms; for `edgekit check` also max_size_mb,
                  max_joules, max_rss_mb, max_regression ("3%")

Paths are relative to the file's folder. Flags on the command line go over it. Trust in a pickle is
never taken from a file that came with it: that is the flag --trust-checkpoint alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError
from edgekit.schema import check_keys, check_section
from edgekit.toml_file import read_toml

FILE_NAME = "edgekit.toml"


@dataclass(frozen=True, kw_only=True)
class CheckpointSection:
    path: str = ""
    arch: str = ""
    code: tuple[str, ...] = ()
    weights: str = field(default="auto", metadata={"choices": ("auto", "ema", "model")})
    dtype: str = field(default="", metadata={"choices": ("", "float32")})


@dataclass(frozen=True, kw_only=True)
class ExportSection:
    target: str = ""
    images: str = ""
    out: str = ""
    data: str = ""
    split: str = ""
    imgsz: str = ""
    input_shape: str = ""
    method: str = ""
    head: str = ""
    dynamic: bool = False
    limit: int | None = field(default=None, metadata={"minimum": 1})


@dataclass(frozen=True, kw_only=True)
class BudgetSection:
    """`max_drop` in points of the metric (1 point = 0.01); latencies in ms.

    Those below `max_p50_ms` are for `edgekit check` alone; `max_regression` is a share such as "3%".
    """

    max_drop: float | None = field(default=None, metadata={"minimum": 0.0})
    max_p99_ms: float | None = field(default=None, metadata={"above": 0.0})
    max_p50_ms: float | None = field(default=None, metadata={"above": 0.0})
    max_size_mb: float | None = field(default=None, metadata={"above": 0.0})
    max_joules: float | None = field(default=None, metadata={"above": 0.0})
    max_rss_mb: float | None = field(default=None, metadata={"above": 0.0})
    max_regression: str = ""


_SECTIONS: dict[str, type[Any]] = {
    "checkpoint": CheckpointSection,
    "export": ExportSection,
    "budget": BudgetSection,
}
# values that name files or folders
_PATHS = {"checkpoint": ("path",), "export": ("images", "out", "data")}


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project file's values; what it does not say has the sections' defaults."""

    folder: Path
    checkpoint: CheckpointSection = CheckpointSection()
    arch_args: Mapping[str, str] = field(default_factory=dict)
    export: ExportSection = ExportSection()
    budget: BudgetSection = BudgetSection()
    preprocess: Mapping[str, Any] = field(default_factory=dict)


def load_project(folder: Path) -> Project | None:
    """Read edgekit.toml in `folder`; None when there is none. Raises UsageError for any mistake."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    values = read_toml(path)
    check_keys(values, [*_SECTIONS, "preprocess"], "section", str(path))
    tables = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    arch_args: dict[str, str] = {}
    if isinstance(tables.get("checkpoint"), dict):
        given = tables["checkpoint"].pop("arch_args", {})
        if not isinstance(given, Mapping):
            raise UsageError(f"{path}: [checkpoint] arch_args must be a table of keys and values.")
        arch_args = {
            key: value if isinstance(value, str) else repr(value) for key, value in given.items()
        }
    if isinstance(tables.get("export"), dict) and isinstance(tables["export"].get("imgsz"), int):
        tables["export"]["imgsz"] = str(tables["export"]["imgsz"])
    sections: dict[str, Any] = {}
    for key, kind in _SECTIONS.items():
        if key not in tables:
            continue
        checked = check_section(kind, tables[key], f"{path}: [{key}]")
        for name in _PATHS.get(key, ()):
            if checked.get(name):
                checked[name] = str(folder / checked[name])
        sections[key] = kind(**checked)
    preprocess = tables.get("preprocess", {})
    if not isinstance(preprocess, Mapping):
        raise UsageError(f"{path}: [preprocess] must be a table of keys and values.")
    from edgekit.preprocess import Preprocess

    known = [item.name for item in dataclasses.fields(Preprocess)]
    check_keys(preprocess, known, "key", f"{path}: [preprocess]")
    return Project(folder=folder, arch_args=arch_args, preprocess=preprocess, **sections)
