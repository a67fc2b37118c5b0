"""Gates for machines and people: JUnit XML, which CI systems show, and a markdown summary.

JUnit has no standard; what is written here is what Jenkins' junit plugin, GitLab and the common GitHub
actions read: testsuites > testsuite > testcase > failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol
from xml.etree import ElementTree


class GateLike(Protocol):
    """What is read of a gate; see edgekit.stages.gates.Gate."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str | None: ...
    @property
    def ok(self) -> bool: ...
    @property
    def detail(self) -> str: ...
    @property
    def exit_code(self) -> int: ...
    @property
    def seconds(self) -> float: ...


def _plain(text: str) -> str:
    """`text` without the characters that XML 1.0 cannot hold (its production Char)."""
    return "".join(
        letter
        if letter in "\t\n\r"
        or "\x20" <= letter <= "\ud7ff"
        or "\ue000" <= letter <= "\ufffd"
        or letter >= "\U00010000"
        else "\ufffd"
        for letter in text
    )


def _suites(gates: Sequence[GateLike]) -> Iterable[tuple[str, list[GateLike]]]:
    names = dict.fromkeys(gate.device or "bundle" for gate in gates)
    for name in names:
        yield name, [gate for gate in gates if (gate.device or "bundle") == name]


def junit_xml(bundle: str, gates: Sequence[GateLike]) -> bytes:
    """One test suite for the bundle and for each device, one test case for each gate. UTF-8."""
    root = ElementTree.Element("testsuites", name=_plain(f"edgekit check {bundle}"))
    root.set("tests", str(len(gates)))
    root.set("failures", str(sum(not gate.ok for gate in gates)))
    for name, members in _suites(gates):
        suite = ElementTree.SubElement(root, "testsuite", name=_plain(f"{bundle} on {name}"))
        suite.set("tests", str(len(members)))
        suite.set("failures", str(sum(not gate.ok for gate in members)))
        suite.set("errors", "0")
        suite.set("skipped", "0")
        suite.set("time", f"{sum(gate.seconds for gate in members):.3f}")
        for gate in members:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=_plain(f"edgekit.{bundle}.{name}"),
                name=_plain(gate.name),
                time=f"{gate.seconds:.3f}",
            )
            if gate.ok:
                ElementTree.SubElement(case, "system-out").text = _plain(gate.detail)
            else:
                failure = ElementTree.SubElement(
                    case, "failure", message=_plain(gate.detail), type=f"exit-code-{gate.exit_code}"
                )
                failure.text = _plain(gate.detail)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def markdown(bundle: str, gates: Sequence[GateLike], lines: Sequence[str] = ()) -> str:
    """A heading with the verdict, a table of gates, and further lines below it."""
    bad = sum(not gate.ok for gate in gates)
    verdict = "all gates passed" if not bad else f"{bad} of {len(gates)} gates failed"
    rows = [
        f"### {_cell(bundle)}: {verdict}",
        "",
        "| | gate | device | found |",
        "|---|---|---|---|",
    ]
    for gate in gates:
        sign = "✅" if gate.ok else "❌"
        rows.append(
            f"| {sign} | {_cell(gate.name)} | {_cell(gate.device or '–')} | {_cell(gate.detail)} |"
        )
    if lines:
        rows += ["", *(f"- {_cell(line)}" for line in lines)]
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    """`text` as it is, in one cell: no markup, no HTML, no line end."""
    plain = " ".join(_plain(text).split())
    for letter in "\\`*_|[]<>#":
        plain = plain.replace(
            letter, f"\\{letter}" if letter not in "<>" else f"&{'lg'[letter == '>']}t;"
        )
    return plain
