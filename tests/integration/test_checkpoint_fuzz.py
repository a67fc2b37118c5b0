"""Thousands of spoiled checkpoints: no hang, no dead interpreter, no traceback but EdgekitErrors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.checkpoint_fuzz import KINDS
from tests.conftest import ROOT

SHORT, FULL, BATCH = 60, 2000, 500


def _run(kind: str, folder: Path, count: int) -> list[str]:
    """Findings of `count` mutations, loaded in child processes; a dead child is a finding too."""
    if kind == "ultralytics":
        pytest.importorskip("ultralytics", exc_type=ImportError)
    findings: list[str] = []
    number = 0
    while number < count:
        last = min(number - number % BATCH + BATCH, count)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.checkpoint_fuzz",
                kind,
                str(folder),
                str(number),
                str(last - number),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if done.returncode == 0:
            number = last
        elif done.returncode == 1 and "Timeout" not in done.stderr:
            findings.append(done.stdout[-4000:] + done.stderr[-4000:])
            number = last
        else:
            died = int((folder / "progress").read_text())
            findings.append(f"{kind} {died} ended with {done.returncode}: {done.stderr[-3000:]}")
            number = died + 1
    return findings


@pytest.mark.parametrize("kind", KINDS)
def test_some_mutations(kind: str, tmp_path: Path) -> None:
    assert _run(kind, tmp_path, SHORT) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_mutations(kind: str, tmp_path: Path) -> None:
    assert _run(kind, tmp_path, FULL) == []
