"""Gates: every limit passes and fails, a missing value fails, and the files for CI are well formed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgekit import bundle, cli
from edgekit.errors import DeviceUnreachable, UsageError
from edgekit.manifest import Manifest
from edgekit.report.gate_report import junit_xml, markdown
from edgekit.stages import gates
from edgekit.stages.device import DeviceAnswer
from edgekit.stages.gates import Budgets, Gate
from tests.bundles import contents


@pytest.fixture
def small(tmp_path: Path) -> Manifest:
    return bundle.write(tmp_path / "bundle", contents(tmp_path / "sources"))


def with_raw(manifest: Manifest, **changes: Any) -> Manifest:
    return dataclasses.replace(manifest, raw=manifest.raw | changes)


def measured(**changes: Any) -> DeviceAnswer:
    answer = {
        "p50_ms": 10.0,
        "p99_ms": 20.0,
        "peak_rss_mb": 100.0,
        "conditions": {
            "power": {"joules_per_inference": 0.5},
            "not_available": {},
        },
    }
    return DeviceAnswer(device="pi", address="ssh://pi", run="r", answer=answer | changes)


@pytest.mark.parametrize(
    ("budget", "passes", "fails", "code"),
    [
        ("max_p50_ms", 10.0, 9.99, 7),
        ("max_p99_ms", 20.0, 19.9, 7),
        ("max_joules", 0.5, 0.49, 7),
        ("max_rss_mb", 100.0, 99.0, 7),
    ],
)
def test_limits_of_what_is_measured(budget: str, passes: float, fails: float, code: int) -> None:
    assert gates.exit_code(gates.device_gates(measured(), Budgets(**{budget: passes}))) == 0
    assert gates.exit_code(gates.device_gates(measured(), Budgets(**{budget: fails}))) == code


def test_what_is_not_available_fails_with_its_reason() -> None:
    answer = measured(
        peak_rss_mb=None,
        p99_ms=None,
        conditions={"power": None, "not_available": {"power": "no tegrastats"}},
    )
    found = gates.device_gates(answer, Budgets(max_joules=9e9, max_rss_mb=9e9, max_p99_ms=9e9))
    assert [gate.ok for gate in found] == [False, False, False]
    assert {gate.name: gate.detail for gate in found}["energy"] == "not available: no tegrastats"
    assert all(gate.value is None and gate.exit_code == 7 for gate in found)
    # a device that counts nothing as something is not believed either
    odd = measured(p99_ms=float("nan"), peak_rss_mb=True)
    assert not any(g.ok for g in gates.device_gates(odd, Budgets(max_p99_ms=1e9, max_rss_mb=1e9)))


def test_accuracy_and_size(small: Manifest) -> None:
    lost = with_raw(small, accuracy={"metric": "map50_95", "float": 0.400, "int8": 0.394})
    assert gates.exit_code(gates.bundle_gates(lost, Budgets(max_drop=0.7))) == 0
    assert gates.exit_code(gates.bundle_gates(lost, Budgets(max_drop=0.5))) == 6
    unknown = gates.bundle_gates(with_raw(small, accuracy=None), Budgets(max_drop=99))
    assert gates.exit_code(unknown) == 6 and "--data" in unknown[0].detail
    # a float bundle lost nothing
    float_one = with_raw(small, accuracy={"metric": "top1", "float": 0.9, "int8": None})
    assert gates.bundle_gates(float_one, Budgets(max_drop=0))[0].value == 0.0
    size_mb = small.files[small.models[0].files[0]].size_bytes / 1e6
    assert gates.exit_code(gates.bundle_gates(small, Budgets(max_size_mb=size_mb))) == 0
    assert gates.exit_code(gates.bundle_gates(small, Budgets(max_size_mb=size_mb * 0.99))) == 7


@pytest.mark.parametrize(
    ("ratio", "low", "high", "ok"),
    [
        (1.0, 0.98, 1.02, True),
        (0.91, 0.90, 0.92, False),  # 10 % more work
        (0.96, 0.92, 1.01, True),  # noise: nothing could be shown
        (0.98, 0.975, 0.985, True),  # slower for sure, but within the tolerance
        (0.0, 0.0, 0.0, False),
    ],
)
def test_baseline(ratio: float, low: float, high: float, ok: bool) -> None:
    answer = measured(against={"ratio": ratio, "low": low, "high": high})
    gate = gates.baseline_gate(answer, 0.03)
    assert gate.ok is ok and (gate.exit_code == 0) is ok


def test_verification_counts_only_when_outputs_were_compared() -> None:
    checks = [{"name": "files", "ok": True, "detail": "", "skipped": False}]
    golden = {"name": "golden outputs (ncnn)", "ok": True, "detail": "", "skipped": False}
    assert not gates.verify_gate(measured(checks=checks)).ok
    assert not gates.verify_gate(measured(checks=[*checks, golden | {"skipped": True}])).ok
    assert gates.verify_gate(measured(checks=[*checks, golden])).ok


def test_the_worst_exit_code() -> None:
    def gate(code: int) -> Gate:
        return Gate(name="x", device=None, ok=code == 0, detail="", exit_code=code)

    assert gates.exit_code([gate(0), gate(6), gate(7)]) == 7
    assert gates.exit_code([gate(7), gate(10), gate(9)]) == 10
    assert gates.exit_code([gate(10), gate(1)]) == 1
    error = DeviceUnreachable("pi cannot be reached.")
    answer = dataclasses.replace(measured(), answer=None, error=error)
    assert gates.exit_code(gates.device_gates(answer, Budgets(max_p50_ms=1))) == 10


def test_files_for_ci_take_any_text() -> None:
    nasty = 'a<b>&"\x00\x1b[2J]]>|`*_\n$(x)'
    found = [
        Gate(name="p99", device=nasty, ok=False, detail=nasty, exit_code=7),
        Gate(name="size", device=None, ok=True, detail="1 MB"),
    ]
    root = ElementTree.fromstring(junit_xml(nasty, found))
    assert root.get("tests") == "2" and root.get("failures") == "1"
    failure = root.find("testsuite/testcase/failure")
    assert failure is not None and 'a<b>&"' in (failure.get("message") or "")
    assert len(root.findall("testsuite")) == 2
    text = markdown(nasty, found, [nasty])
    assert "<b>" not in text and "1 of 2 gates failed" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert all(line.replace("\\|", "").count("|") == 5 for line in table)


def test_check_without_a_device(
    small: Manifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    junit, summary = tmp_path / "gates.xml", tmp_path / "gates.md"
    arguments = ["check", str(small.folder), "--junit", str(junit), "--markdown", str(summary)]
    assert cli.run([*arguments, "--max-size-mb", "4"]) == 0
    assert ElementTree.parse(junit).getroot().get("failures") == "0"
    assert "all gates passed" in summary.read_text()
    assert cli.run([*arguments, "--max-size-mb", "0.0001"]) == 7
    assert ElementTree.parse(junit).getroot().get("failures") == "1"
    capsys.readouterr()
    assert cli.run(arguments) == 2
    assert "nothing to check" in capsys.readouterr().err
    # budgets of the project file; the command line goes over them
    (tmp_path / "edgekit.toml").write_text("[budget]\nmax_size_mb = 0.0001\n")
    assert cli.run(arguments) == 7
    assert cli.run([*arguments, "--max-size-mb", "4"]) == 0


def test_shares() -> None:
    from edgekit.cli.check import share_of

    assert share_of("3%", "--x") == pytest.approx(0.03) and share_of("0.05", "--x") == 0.05
    for text in ("", "x", "-1%", "100%", "3%%", "3% x", "nan"):
        with pytest.raises(UsageError):
            share_of(text, "--x")
