"""The history: appending, reading, several writers at once, and files that are no history."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import cli, history
from edgekit.errors import BadInput
from edgekit.history import Result


def result(number: int = 0, **changes: object) -> Result:
    values: dict[str, object] = {
        "utc": f"2026-01-{number % 28 + 1:02d}T00:00:00Z",
        "model": "best-rpi5-int8",
        "bundle_sha256": "0" * 64,
        "target": "rpi5-int8",
        "runtime": "ncnn",
        "precision": "int8",
        "device": "pi",
        "host": "raspberrypi",
        "machine": "aarch64",
        "p50_ms": 10.0 + number,
        "p99_ms": 12.0 + number,
        "runs": 100,
    }
    return Result(**(values | changes))  # type: ignore[arg-type]


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "history.sqlite"
    assert history.read(file) == []
    history.append(file, [result(1), result(0), result(2, device="jetson", joules=0.5)])
    assert [each.p50_ms for each in history.read(file)] == [10.0, 11.0, 12.0]
    assert history.read(file, device="jetson") == [result(2, device="jetson", joules=0.5)]
    assert [each.p50_ms for each in history.read(file, limit=1)] == [12.0]
    assert history.names(file, "device") == ["jetson", "pi"]
    assert history.read(file, model="x' OR '1'='1") == []


def test_many_writers_at_once(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgekit import history\n"
        "from tests.unit.test_history import result\n"
        "for number in range(20):\n"
        "    history.append(Path(sys.argv[1]), [result(number, device=sys.argv[2])])\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(file), f"device-{number}"])
        for number in range(4)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0, 0]
    found = history.read(file)
    assert len(found) == 80 and len(history.names(file, "device")) == 4


def test_a_damaged_file_is_kept_aside_and_a_new_one_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "history.sqlite"
    content = b"this was a history once" * 100
    file.write_bytes(content)
    monkeypatch.setenv("EDGEKIT_HISTORY", str(file))
    assert cli.run(["history"]) == 8
    assert "damaged" in capsys.readouterr().err
    aside = next(tmp_path.glob("history.sqlite.damaged-*"))
    assert aside.read_bytes() == content and not file.exists()
    file.write_bytes(content)
    from edgekit.cli.history_options import _append

    _append([result()])
    assert "damaged" in capsys.readouterr().err
    assert history.read(file) == [result()]


def test_a_database_of_others_and_of_the_future_is_left_alone(tmp_path: Path) -> None:
    foreign, newer = tmp_path / "foreign.sqlite", tmp_path / "newer.sqlite"
    for file, statement in ((foreign, "CREATE TABLE photos (x)"), (newer, "PRAGMA user_version=9")):
        with sqlite3.connect(file) as database:
            database.execute(statement)
    before = foreign.read_bytes()
    with pytest.raises(BadInput, match="another program"):
        history.append(foreign, [result()])
    with pytest.raises(BadInput, match="newer edgekit"):
        history.append(newer, [result()])
    assert foreign.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_a_history_that_cannot_be_written_does_not_cost_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("EDGEKIT_HISTORY", str(tmp_path / "file" / "history.sqlite"))
    from edgekit.cli.history_options import _append

    _append([result()])
    assert "not in the history" in capsys.readouterr().err
    monkeypatch.setenv("EDGEKIT_HISTORY", "off")
    _append([result()])
    assert capsys.readouterr().err == ""


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "history.sqlite"
    monkeypatch.setenv("EDGEKIT_HISTORY", str(file))
    assert cli.run(["history"]) == 0
    assert "no results yet" in capsys.readouterr().err
    history.append(
        file, [result(n, bundle_sha256=str(n // 3) * 64, model="<b>&'\"") for n in range(6)]
    )
    history.append(file, [result(3, device="jetson", p50_ms=None)])
    assert cli.run(["history", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert len(found) == 7 and found[0]["p50_ms"] == 10.0
    assert cli.run(["history", "--csv", "--device", "pi"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["p50_ms"]) for row in rows] == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    assert cli.run(["history", "--plot", str(page)]) == 0
    text = page.read_text()
    assert text.count("<circle") == 6 and "&lt;b&gt;" in text and "<b>&" not in text
    # the first of another bundle is marked
    assert text.count('class="bubble int8"') == 1
    assert cli.run(["history", "--plot", str(picture), "--metric", "p99_ms"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == ""
    assert cli.run(["history"]) == 0
    assert "not available" in capsys.readouterr().out
    assert cli.run(["history", "--metric", "p50"]) == 2
    assert "p50_ms" in capsys.readouterr().err
    assert cli.run(["history", "--device", "jetsom"]) == 2
    assert "'jetson'" in capsys.readouterr().err
    assert cli.run(["history", "--plot", "x.gif"]) == 2
