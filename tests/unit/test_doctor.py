"""The doctor: known-bad combinations as data, readiness of targets, and the JSON contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit import cli
from edgekit.cpu import Cpu
from edgekit.require import install_line, satisfies
from edgekit.stages import doctor, known_bad
from edgekit.stages.doctor import Package, examine, missing_part, target_state
from edgekit.stages.known_bad import Installed, problems
from edgekit.target_files import list_targets, load_target

VNNI = Cpu(arch="x86_64", model="new", isa=("avx2", "avx512_vnni"), cores=8)
AVX2 = Cpu(arch="x86_64", model="old", isa=("avx2",), cores=8)
BUILDERS = {"onnxruntime": "edgekit.cpu"}  # any module that exists stands for a builder
ALL_BUILDERS = {"onnxruntime": "edgekit.cpu", "ncnn": "edgekit.cpu", "tensorrt": "edgekit.cpu"}


class FakeInstalled(Installed):
    """An environment made up for a test: versions, requirements, and where files lie."""

    def __init__(
        self,
        versions: dict[str, str],
        requirements: dict[str, list[str]] | None = None,
        root: Path = Path("/nowhere"),
    ) -> None:
        self._versions = versions
        self._requirements = requirements or {}
        self._root = root

    def version(self, package: str) -> str | None:
        return self._versions.get(package)

    def requirements(self, package: str) -> list[str]:
        return self._requirements.get(package, [])

    def path(self, package: str, file: str) -> Path:
        return self._root / file


def packages(**versions: str | None) -> dict[str, Package]:
    """Every package the doctor knows, installed and working unless said otherwise."""
    return {
        name: Package(
            version=versions.get(name, "99.0"),
            imports=True if versions.get(name, "99.0") else None,
            detail="",
            install=install_line(name),
        )
        for name in (*doctor.RUNTIMES, *doctor.PACKAGES)
    }


# --- versions


@pytest.mark.parametrize(
    ("version", "requirement", "met"),
    [
        ("1.31.1", ">=1.20", True),
        ("1.9", ">=1.20", False),
        ("10.3", ">=8.5,<12", True),
        ("12.0", ">=8.5,<12", False),
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.13", "==2.13.0", True),
        ("2.0rc1", ">=2", True),
        ("5.0.0.93", "<4.10.0.84", False),
        ("4.10.0.82", "<4.10.0.84", True),
        ("1.0", "!=1.0", False),
        ("1.0", "", True),
        ("20260704", "==20260704", True),
    ],
)
def test_version_requirements(version: str, requirement: str, met: bool) -> None:
    assert satisfies(version, requirement) is met


def test_a_requirement_that_is_not_one() -> None:
    with pytest.raises(ValueError, match="about 3"):
        satisfies("3", "about 3")


# --- known-bad combinations


@pytest.mark.parametrize(
    ("versions", "word"),
    [
        ({"opencv-python": "4.12.0.88", "opencv-python-headless": "5.0.0.93"}, "the same files"),
        ({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}, "the same files"),
        ({"ncnn": "1.0.20261020", "pnnx": "20260704"}, "different releases"),
        ({"pnnx": "20260704"}, "YOLO26"),
        ({"tensorrt": "10.3.0.26"}, "YOLO26"),
        ({"numpy": "2.4.6", "opencv-python-headless": "4.9.0.80"}, "NumPy 1"),
    ],
)
def test_a_bad_combination_is_found_with_its_fix_and_source(
    versions: dict[str, str], word: str
) -> None:
    found = problems(FakeInstalled(versions))
    assert any(word in problem.what for problem in found)
    for problem in found:
        assert problem.fix
        assert problem.source.startswith("https://")
        assert any(version in problem.what for version in versions.values())


@pytest.mark.parametrize(
    "versions",
    [
        {},
        {"opencv-python": "5.0.0.93", "opencv-python-headless": "5.0.0.93"},
        {"opencv-python-headless": "5.0.0.93", "numpy": "2.4.6"},
        {"opencv-python-headless": "4.9.0.80", "numpy": "1.26.4"},
        {"onnxruntime-gpu": "1.31.1"},
        {"ncnn": "1.0.20261020", "pnnx": "20261020"},
        {"ncnn": "1.0.20261020"},
        {"tensorrt": "10.13.3.9"},
        {"torch": "2.13.0+cpu"},
    ],
)
def test_good_combinations_are_left_alone(versions: dict[str, str]) -> None:
    assert problems(FakeInstalled(versions)) == []


@pytest.mark.parametrize("requirement", ["torch==2.12.0", "torch (==2.12.0)", "torch == 2.12.0"])
def test_torchvision_pins_torch(requirement: str) -> None:
    installed = FakeInstalled(
        {"torch": "2.13.0+cpu", "torchvision": "0.27.0"}, {"torchvision": ["numpy", requirement]}
    )
    (problem,) = problems(installed)
    assert "torchvision 0.27.0" in problem.what and "torch 2.13.0+cpu" in problem.what
    matching = FakeInstalled(
        {"torch": "2.12.0+cpu", "torchvision": "0.27.0"}, {"torchvision": [requirement]}
    )
    assert problems(matching) == []


def test_torchvision_for_cuda_beside_torch_for_the_cpu(tmp_path: Path) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    library = tmp_path / "torchvision" / "_C.so"
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF\x00libtorch_cuda.so\x00")
    (problem,) = problems(FakeInstalled(versions, root=tmp_path))
    assert "torchvision::nms" in problem.what
    cuda = tmp_path / "torch" / "lib" / "libtorch_cuda.so"
    cuda.parent.mkdir(parents=True)
    cuda.write_bytes(b"")
    assert problems(FakeInstalled(versions, root=tmp_path)) == []
    cuda.unlink()
    library.write_bytes(b"\x7fELF\x00libtorch_cpu.so\x00")
    assert problems(FakeInstalled(versions, root=tmp_path)) == []


def test_the_rows_speak_of_real_distributions() -> None:
    rows = (*known_bad.VERSIONS, *known_bad.SAME_FILES, *known_bad.SAME_RELEASE)
    for row in rows:
        for package in row.packages:
            assert package == package.lower() and " " not in package
    for versions in known_bad.VERSIONS:
        for requirement in versions.packages.values():
            satisfies("1.0", requirement)  # parses


# --- targets


def test_a_target_with_everything_is_ready() -> None:
    state = target_state(load_target("x86-int8"), packages(), VNNI, BUILDERS)
    assert (state.ready, state.missing, state.install) == (True, (), ())
    assert state.runs_here


def test_a_missing_builder_is_said_in_words() -> None:
    assert missing_part(load_target("x86-int8"), BUILDERS) is None
    assert missing_part(load_target("jetson-int8"), BUILDERS) == (
        "the TensorRT builder is not part of this version"
    )
    gone = {"ncnn": "edgekit.builders.gone"}
    assert missing_part(load_target("rpi5-int8"), gone) == (
        "the ncnn builder is not part of this version"
    )
    state = target_state(load_target("jetson-int8"), packages(), VNNI, BUILDERS)
    assert not state.ready and not state.runs_here
    assert state.missing == ("the TensorRT builder is not part of this version",)


def test_missing_packages_come_with_their_install_line() -> None:
    have = packages(ncnn=None, pnnx=None)
    state = target_state(load_target("x86-ncnn-int8"), have, VNNI, ALL_BUILDERS)
    assert state.missing == ("ncnn is not installed", "pnnx is not installed")
    assert state.install == ("pip install 'edgekit[ncnn]'",)
    assert target_state(load_target("x86-int8"), have, VNNI, ALL_BUILDERS).ready


def test_a_package_that_does_not_import_is_missing_with_its_error() -> None:
    have = packages()
    have["cv2"] = Package(
        version="5.0", imports=False, detail="ImportError: libGL.so.1", install=install_line("cv2")
    )
    state = target_state(load_target("x86-int8"), have, VNNI, ALL_BUILDERS)
    assert not state.ready
    assert state.missing == ("cv2 5.0 does not import: ImportError: libGL.so.1",)


def test_a_runtime_of_the_wrong_version_is_missing() -> None:
    state = target_state(load_target("x86-int8"), packages(onnxruntime="1.18.1"), VNNI, BUILDERS)
    assert state.missing == ("onnxruntime 1.18.1 is installed, >=1.20 is needed",)


def test_preparing_for_another_cpu_is_possible_running_is_not() -> None:
    state = target_state(load_target("x86-int8-vnni"), packages(), AVX2, BUILDERS)
    assert state.ready and not state.runs_here
    assert "vnni" in state.remark
    on_board = target_state(load_target("cuda-int8"), packages(), VNNI, ALL_BUILDERS)
    assert on_board.ready and on_board.runs_here
    host = target_state(load_target("cuda-int8"), packages(tensorrt=None), VNNI, ALL_BUILDERS)
    assert host.ready and not host.runs_here  # TensorRT is for the machine with the GPU
    assert "TensorRT" in host.remark


# --- trying imports


def test_a_broken_package_is_found_by_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brokenmodule.py").write_text("raise ImportError('libfoo.so.7: cannot open')\n")
    (tmp_path / "crashingmodule.py").write_text("import os; os.abort()\n")
    (tmp_path / "goodmodule.py").write_text("print('hello')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["brokenmodule", "crashingmodule", "goodmodule"]
    failures = doctor._probe_all(names, lambda done, total, what: None)
    assert failures == {
        "brokenmodule": "ImportError: libfoo.so.7: cannot open",
        "crashingmodule": "it crashed with signal 6",
    }


# --- the whole


def test_examine_knows_every_target_and_the_versions_here() -> None:
    diagnosis = examine(probe=False)
    assert set(diagnosis.targets) == set(list_targets())
    numpy = diagnosis.packages["numpy"]
    assert numpy.version is not None and numpy.imports is None
    for state in diagnosis.targets.values():
        assert state.ready == (not state.missing)


def test_json_has_the_promised_keys_and_nothing_else_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["doctor", "--quick", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"python", "cpu", "runtimes", "targets"} <= set(answer)
    assert {"arch", "isa"} <= set(answer["cpu"])
    assert "onnxruntime" in answer["runtimes"]
    for state in answer["targets"].values():
        assert isinstance(state["ready"], bool)
        assert isinstance(state["missing"], list)


def test_the_report_for_people_names_targets_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "x86-int8" in out
    if "tensorrt" in out and "not installed" in out:
        assert "edgekit[tensorrt]" in out  # brackets are not taken for markup


def test_targets_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["targets", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["targets"]
    assert [entry["name"] for entry in listed] == list_targets()
    assert cli.run(["targets", "show", "x86-int8", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("missing") is None or shown["name"] == "x86-int8"
    assert shown == load_target("x86-int8").to_dict()
    assert cli.run(["targets", "list"]) == 0
    assert "jetson-orin-nano-int8" in capsys.readouterr().out
    assert cli.run(["targets", "show", "nope", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2
