"""Where tests find real models and images, and what a skip means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _assets() -> Path | None:
    folder = Path(os.environ.get("EDGEKIT_ASSETS", str(ROOT.parent / "shared" / "assets")))
    return folder.resolve() if (folder / "models").is_dir() else None


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and labelled images (EDGEKIT_ASSETS)."""
    folder = _assets()
    if folder is None:
        pytest.skip("no real assets: set EDGEKIT_ASSETS to their folder")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a stage cache of its own, so that none is answered from another's work."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "edgekit-cache"))
