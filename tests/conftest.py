"""Where tests find real models and images, and what a skip means.

EDGEKIT_STRICT=1 turns every skip into a failure, so that a green run means that everything ran, but for
what needs an NVIDIA driver.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
STRICT = os.environ.get("EDGEKIT_STRICT") == "1"

# `tests.architectures:resnet20` and its like are imported by the code under test
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


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
    """Each test has a stage cache and a history of its own, and none is answered from another's."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "edgekit-cache"))
    monkeypatch.setenv("EDGEKIT_HISTORY", str(tmp_path / "edgekit-history.sqlite"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, None]:
    outcome = yield
    _fail_a_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, None]:
    outcome = yield
    _fail_a_skip(outcome.get_result())


# a GPU cannot be installed; what is left unproved without one stands in DESIGN.md
_NO_DRIVER = "no NVIDIA driver"


def _fail_a_skip(report: Any) -> None:
    if _NO_DRIVER in str(report.longrepr):
        return
    if STRICT and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under EDGEKIT_STRICT: {report.longrepr}"
