"""Source files of an architecture, found as the import system would, without importing anything.

The content key of a loaded model must change when its architecture's code changes; importing the
code to find it would run it for every cache lookup.
"""

from __future__ import annotations

import ast
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from edgekit.atomic import sha256_file

_MOST_FILES = 500


def search_path(code: tuple[Path, ...]) -> list[str]:
    """Where modules are looked for: the code folders, the current folder, then Python's own path."""
    return [*(str(folder.resolve()) for folder in code), str(Path.cwd()), *sys.path]


def find_spec(module: str, path: list[str]) -> ModuleSpec | None:
    """Spec of `module` ("package.part") found on `path` without importing its parents."""
    places: list[str] | None = path
    spec: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        if not part or places is None:
            return None
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return None
        found = spec.submodule_search_locations
        places = [str(place) for place in found] if found is not None else None
    return spec


def _file(spec: ModuleSpec | None) -> Path | None:
    if spec is None or not spec.origin or not spec.has_location:
        return None
    file = Path(spec.origin)
    return file if file.suffix == ".py" and file.is_file() else None


def _imports(file: Path, module: str, is_package: bool) -> set[str]:
    """Absolute names of what `file` imports, as far as its text says."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package[: len(package) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            if base:
                names.add(base)
                # `from package import part` may name a module
                names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def _is_installed(file: Path) -> bool:
    parts = file.parts
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or any(file.is_relative_to(prefix) for prefix in _library_folders())
    )


def _library_folders() -> list[Path]:
    import sysconfig

    return [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]


def source_hashes(module: str, code: tuple[Path, ...] = ()) -> dict[str, str]:
    """sha256 of the source of `module` and of what it imports outside of installed packages.

    Keys are module names. Empty when the module is not found: then loading fails, and says why.
    """
    path = search_path(code)
    hashes: dict[str, str] = {}
    waiting = [module]
    seen: set[str] = set()
    while waiting and len(seen) < _MOST_FILES:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            # importing a module runs the __init__ of each parent as well
            parent = ".".join(parts[:length])
            spec = find_spec(parent, path)
            file = _file(spec)
            if spec is None or file is None or parent in hashes:
                continue
            if parent != module and _is_installed(file):
                continue
            hashes[parent] = sha256_file(file)
            package = spec.submodule_search_locations is not None
            waiting.extend(_imports(file, parent, package) - seen)
    return dict(sorted(hashes.items()))
