"""edgekit.toml: what it says, and what it may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.project import load_project


def _write(folder: Path, text: str) -> Path:
    (folder / "edgekit.toml").write_text(text)
    return folder


def test_no_file_is_no_project(tmp_path: Path) -> None:
    assert load_project(tmp_path) is None


def test_everything_is_read_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    project = load_project(
        _write(
            tmp_path,
            """
            [checkpoint]
            path = "w.pt"
            arch = "net:build"
            arch_args = { width = 16, name = "small", deep = true }
            [export]
            target = "x86-int8"
            images = "calib"
            imgsz = 320
            limit = 10
            [preprocess]
            color = "bgr"
            [budget]
            max_drop = 1
            max_p99_ms = 25.0
            """,
        )
    )
    assert project is not None
    assert project.checkpoint.path == str(tmp_path / "w.pt")
    assert dict(project.arch_args) == {"width": "16", "name": "small", "deep": "True"}
    assert project.export.images == str(tmp_path / "calib")
    assert project.export.imgsz == "320"
    assert dict(project.preprocess) == {"color": "bgr"}
    assert project.budget.max_drop == 1.0 and project.budget.max_p50_ms is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[exprot]\n", "export"),
        ('[export]\ntargte = "x"\n', "target"),
        ("[export]\nlimit = 0\n", "limit"),
        ("[budget]\nmax_drop = -1\n", "max_drop"),
        ('[preprocess]\ncolour = "rgb"\n', "color"),
        ("[checkpoint]\ntrust = true\n", "trust"),
        ("checkpoint = 3\n", "checkpoint"),
        ("[export\n", "TOML"),
    ],
)
def test_mistakes_are_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_project(_write(tmp_path, text))
    assert words in caught.value.message + caught.value.hint
