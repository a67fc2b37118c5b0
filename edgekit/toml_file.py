"""A TOML file as plain values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of the file `path`. Raises UsageError when it cannot be read or is not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    return values
