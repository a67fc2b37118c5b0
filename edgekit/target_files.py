"""The files of target profiles: found by name or path, read, and put together with what they extend.

Profiles are found by name in the folders of EDGEKIT_TARGETS (separated as in PATH), then among those
that come with edgekit. A file in EDGEKIT_TARGETS may carry the name of one that comes with edgekit
and extend it by that same name.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.errors import UsageError, nearest
from edgekit.target import Layer, TargetProfile, assembled, checked_values
from edgekit.toml_file import read_toml

ENVIRONMENT = "EDGEKIT_TARGETS"


def load_target(name_or_path: str | Path) -> TargetProfile:
    """The profile of that name, or of a TOML file (a path that ends in .toml or has a separator).

    Raises UsageError for an unknown name (with the nearest one), a family, and any mistake in the
    file or in one that it extends.
    """
    text = str(name_or_path)
    if _is_path(text):
        path = Path(text).expanduser()
        if not path.is_file():
            raise UsageError(
                f"The target file {text} does not exist.",
                hint="Give the name of a target (`edgekit targets list`) or a TOML file.",
            )
    else:
        path = _find(text, skip=frozenset(), where="")
    layers = _layers(path, ())
    if layers[-1].values.get("abstract"):
        members = [name for name in list_targets() if _extends(name, path)]
        raise UsageError(
            f"'{path.stem}' is a family of targets, not a target.",
            hint="Its targets: " + ", ".join(members) if members else "",
        )
    return assembled(path.stem, layers, str(layers[-1].where))


def list_targets() -> list[str]:
    """Names of all targets that can be asked for, sorted; families are left out."""
    return sorted(name for name, path in _known().items() if not _read(path).values.get("abstract"))


def target_folders() -> list[Path]:
    """Folders that are searched for profiles, first match first."""
    extra = [Path(part) for part in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if part]
    for folder in extra:
        if not folder.is_dir():
            raise UsageError(f"{ENVIRONMENT} names {folder}, which is not a folder.")
    # a wheel carries the profiles inside the package, a checkout beside it
    inside = Path(__file__).resolve().parent / "targets"
    return [*extra, inside if inside.is_dir() else inside.parent.parent / "targets"]


def _is_path(text: str) -> bool:
    return text.endswith(".toml") or "/" in text or os.sep in text


def _known(skip: frozenset[Path] = frozenset()) -> dict[str, Path]:
    """Every profile by name, families included; files in `skip` do not count."""
    found: dict[str, Path] = {}
    for folder in target_folders():
        for path in sorted(folder.glob("*.toml")):
            if not skip or path.resolve() not in skip:
                found.setdefault(path.stem, path)
    return found


def _find(name: str, skip: frozenset[Path], where: str) -> Path:
    known = _known(skip)
    if name in known:
        return known[name]
    raise UsageError(
        f"{where}: extends an unknown target '{name}'." if where else f"Unknown target '{name}'.",
        hint=nearest(name, list(known) if where else list_targets()),
    )


def _read(path: Path) -> Layer:
    return Layer(where=str(path), values=checked_values(read_toml(path), str(path)))


def _layers(path: Path, chain: tuple[Path, ...]) -> list[Layer]:
    """The file's own layer last, what it extends before it, in the order in which they apply."""
    resolved = path.resolve()
    if resolved in chain:
        names = " → ".join(link.stem for link in (*chain[chain.index(resolved) :], resolved))
        raise UsageError(f"{path}: 'extends' goes in a circle: {names}.")
    own = _read(path)
    parents = own.values.get("extends", [])
    layers: list[Layer] = []
    for parent in [parents] if isinstance(parents, str) else parents:
        if _is_path(parent):
            base = path.parent / Path(parent).expanduser()
            if not base.is_file():
                raise UsageError(f"{path}: extends '{parent}', which does not exist.")
        else:
            # its own name means the profile of that name further down the search path
            skip = frozenset({resolved}) if parent == path.stem else frozenset()
            base = _find(parent, skip=skip, where=str(path))
        layers += _layers(base, (*chain, resolved))
    return [*layers, own]


def _extends(name: str, family: Path) -> bool:
    wanted = str(family)
    return any(layer.where == wanted for layer in _layers(_known()[name], ()))
