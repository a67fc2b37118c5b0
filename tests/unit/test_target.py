"""Target profiles: what ships is sound, and every mistake in a TOML file is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.cli.targets import to_toml
from edgekit.cpu import Cpu
from edgekit.errors import UsageError
from edgekit.target import TargetProfile
from edgekit.target_files import list_targets, load_target, target_folders

VNNI = Cpu(arch="x86_64", model="new", isa=("avx2", "avx512f", "avx512_vnni"), cores=8)
AVX_VNNI = Cpu(arch="x86_64", model="small", isa=("avx2", "avx_vnni"), cores=8)
AVX2 = Cpu(arch="x86_64", model="old", isa=("avx", "avx2"), cores=4)
PI = Cpu(arch="aarch64", model="Cortex-A76", isa=("neon", "fp16", "dotprod"), cores=4)
PI4 = Cpu(arch="aarch64", model="Cortex-A72", isa=("neon",), cores=4)

MINIMAL = """
[device]
arch = "x86_64"
[runtime]
name = "onnxruntime"
[build]
precision = "fp32"
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own profiles, found through EDGEKIT_TARGETS."""
    path = tmp_path / "profiles"
    path.mkdir()
    monkeypatch.setenv("EDGEKIT_TARGETS", str(path))
    return path


# --- what ships


@pytest.mark.parametrize("name", list_targets())
def test_shipped_profile_is_complete_and_survives_its_own_formats(
    name: str, tmp_path: Path
) -> None:
    profile = load_target(name)
    assert profile.name == name
    assert profile.source.urls and all(url.startswith("https://") for url in profile.source.urls)
    assert (profile.quantize is not None) == (profile.build.precision == "int8")
    assert TargetProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    assert load_target(write(tmp_path, name, to_toml(profile.to_dict()))) == profile


def test_shipped_profiles_have_descriptions_of_their_own() -> None:
    descriptions = [load_target(name).description for name in list_targets()]
    assert all(descriptions)
    assert len(set(descriptions)) == len(descriptions)


def test_the_promised_names_are_there() -> None:
    boards = ("orin-nano", "orin-nx", "agx-orin", "xavier-nx", "thor")
    wanted = {
        "x86-fp32", "x86-int8", "x86-int8-vnni", "x86-int8-avx2", "x86-ncnn-fp32", "x86-ncnn-int8",
        "jetson-int8", "jetson-fp16", "cuda-int8", "cuda-fp16", "arm-fp32", "arm-fp16", "arm-int8",
        "arm-ort-int8", "rpi4-fp32", "rpi4-int8", "rpi5-fp32", "rpi5-int8",
        *(f"jetson-{board}-{precision}" for board in boards for precision in ("int8", "fp16")),
    }  # fmt: skip
    assert wanted <= set(list_targets())


@pytest.mark.parametrize("name", [name for name in list_targets() if "int8" in name])
def test_int8_rules_are_those_of_the_runtime(name: str) -> None:
    profile = load_target(name)
    rules = profile.quantize
    assert rules is not None and "Conv" in rules.operators
    found = (rules.activation_type, rules.symmetric_activations, rules.bias)
    if profile.runtime.name == "onnxruntime" and profile.device.arch == "x86_64":
        assert found == ("uint8", False, "int32")
    elif profile.runtime.name == "onnxruntime":  # ARM multiplies signed by signed
        assert found == ("int8", False, "int32")
    else:  # zero point 0 and a float bias, or TensorRT and ncnn do not take it
        assert found == ("int8", True, "float")
    # ncnn's float layers are all searched; elsewhere the head's last layers start out float
    assert ("head" in rules.keep_float) is (profile.runtime.name != "ncnn")
    if profile.runtime.name == "tensorrt":
        assert profile.build.opset <= 17
        assert profile.build.build_on_device
        assert "Concat" not in rules.follow


def test_layers_apply_in_order() -> None:
    profile = load_target("jetson-xavier-nx-int8")
    assert (profile.device.board, profile.device.sm) == ("Jetson Xavier NX", "7.2")
    assert profile.device.jetpack == ("5",)  # the family's three lines are overridden
    assert profile.device.arch == "aarch64"
    assert profile.quantize is not None and profile.quantize.min_channels == 16
    assert len(profile.source.urls) == len(set(profile.source.urls)) > 3  # all layers' sources


# --- what the CPU decides


@pytest.mark.parametrize(
    ("name", "cpu", "reduced"),
    [
        ("x86-int8", VNNI, False),
        ("x86-int8", AVX_VNNI, False),
        ("x86-int8", AVX2, True),
        ("x86-int8", PI, True),  # prepared elsewhere: nothing known of the target's CPU
        ("x86-int8-vnni", AVX2, False),
        ("x86-int8-avx2", VNNI, True),
        ("arm-ort-int8", AVX2, False),
        ("jetson-int8", AVX2, False),
        ("x86-fp32", AVX2, False),
    ],
)
def test_seven_bit_weights_where_products_saturate(name: str, cpu: Cpu, reduced: bool) -> None:
    assert load_target(name).reduces_range(cpu) is reduced


def test_auto_range_follows_the_profiles_own_instruction_sets(tmp_path: Path) -> None:
    path = write(
        tmp_path, "mine", 'extends = "x86-int8"\n[device]\nisa = ["avx512_vnni|avx_vnni"]\n'
    )
    assert load_target(path).reduces_range(AVX2) is False


@pytest.mark.parametrize(
    ("name", "cpu", "word"),
    [
        ("x86-int8", VNNI, ""),
        ("x86-int8-vnni", AVX_VNNI, ""),
        ("x86-int8-vnni", AVX2, "avx512_vnni or avx_vnni"),
        ("x86-int8", PI, "aarch64"),
        ("arm-fp16", PI, ""),
        ("arm-fp16", PI4, "fp16"),
        ("rpi4-int8", PI4, ""),
        ("rpi5-int8", PI4, "dotprod"),
    ],
)
def test_why_a_machine_cannot_run_a_target(name: str, cpu: Cpu, word: str) -> None:
    why = load_target(name).why_not_on(cpu)
    assert bool(why) == bool(word)
    assert word.split(" ")[0] in why


# --- names


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Unknown target 'x86-in8'") as caught:
        load_target("x86-in8")
    assert "x86-int8" in caught.value.hint


def test_a_family_is_not_a_target_and_names_its_members() -> None:
    assert "jetson-thor" not in list_targets()
    with pytest.raises(UsageError, match="family") as caught:
        load_target("jetson-thor")
    assert "jetson-thor-int8" in caught.value.hint and "orin" not in caught.value.hint


def test_missing_file() -> None:
    with pytest.raises(UsageError, match=r"nowhere/my.toml does not exist"):
        load_target("nowhere/my.toml")


def test_profiles_of_the_user(folder: Path) -> None:
    write(folder, "camera", 'description = "ours"\nextends = "x86-int8"\n[measure]\nthreads = 2\n')
    assert "camera" in list_targets()
    profile = load_target("camera")
    assert (profile.description, profile.measure.threads) == ("ours", 2)
    assert profile.quantize == load_target("x86-int8").quantize


def test_a_users_profile_may_shadow_and_extend_the_shipped_one(folder: Path) -> None:
    write(folder, "x86-int8", 'extends = "x86-int8"\n[quantize]\nper_channel = false\n')
    profile = load_target("x86-int8")
    assert profile.quantize is not None
    assert profile.quantize.per_channel is False
    assert profile.quantize.operators  # the rest is the shipped one's
    assert list_targets().count("x86-int8") == 1


def test_extends_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "base", MINIMAL)
    assert load_target(write(tmp_path, "mine", 'extends = "./base.toml"')).device.arch == "x86_64"
    with pytest.raises(UsageError, match=r"extends './gone.toml', which does not exist"):
        load_target(write(tmp_path, "other", 'extends = "./gone.toml"'))


def test_environment_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_TARGETS", "/nowhere/at/all")
    with pytest.raises(UsageError, match="EDGEKIT_TARGETS names /nowhere/at/all"):
        target_folders()


# --- mistakes


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[devise]\narch = "x86_64"', "unknown section 'devise'", "'device'"),
        ('[build]\nprecison = "int8"', r"\[build\]: unknown key 'precison'", "'precision'"),
        ('descripton = "x"', "unknown key 'descripton'", "'description'"),
        ("description = 3", "description must be a string", ""),
        ("abstract = 1", "abstract must be true or false", ""),
        ("extends = 3", "extends must be a name", ""),
        ('extends = ["x86-base", 3]', "extends must be a name", ""),
        ("build = 3", r"\[build\] must be a table", ""),
        ('[build]\nopset = "17"', r"\[build\] opset must be a whole number, not '17'", ""),
        ("[build]\nopset = true", r"\[build\] opset must be a whole number, not True", ""),
        ("[build]\nopset = 12", "opset is 12; it must be 13 or more", ""),
        ("[build]\nopset = 99", "opset is 99; it must be 25 or less", ""),
        ("[build]\nbuild_on_device = 1", "build_on_device must be true or false", ""),
        ('[build]\nprecision = "int9"', "precision is 'int9'; it takes fp32", "'int8'"),
        ('[device]\narch = "x86-64"', "arch is 'x86-64'", "'x86_64'"),
        ('[device]\nisa = "avx2"', r"isa must be a list of strings", ""),
        ('[device]\nisa = ["avx2", 3]', r"isa\[1\] must be a string", ""),
        ('[device]\nisa = ["avx512_vni"]', "isa has 'avx512_vni'", "'avx512_vnni'"),
        ('[device]\nisa = ["avx2|vnny"]', "isa has 'vnny'", ""),
        ('[runtime]\nname = "onnx-runtime"', "name is 'onnx-runtime'", "'onnxruntime'"),
        ('[runtime]\nversions = "8.5"', "'8.5' is not understood", ">=8.5,<12"),
        ('[quantize]\nreduce_range = "yes"', "reduce_range is 'yes'; it takes auto, true", ""),
        ("[quantize]\nreduce_range = 1", "reduce_range must be true or false or a string", ""),
        ('[quantize]\nkeep_float = ["heads"]', "keep_float has 'heads'", "'head'"),
        ("[quantize]\nmax_range_ratio = 0.5", "max_range_ratio is 0.5; it must be 1.0 or more", ""),
        ("[quantize]\nmax_range_ratio = nan", "max_range_ratio must be finite", ""),
        ("[measure]\nthreads = 0", "threads is 0; it must be 1 or more", ""),
        ("[source]\nurls = [1]", r"urls\[0\] must be a string", ""),
        ('extends = "x86-bas"', "extends an unknown target 'x86-bas'", "'x86-base'"),
        ("[build", "is not valid TOML", ""),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = write(tmp_path, "mine", text)
    with pytest.raises(UsageError, match=message) as caught:
        load_target(path)
    assert str(path) in caught.value.message  # the file is named, too
    assert hint in caught.value.hint


@pytest.mark.parametrize("missing", ["arch", "name", "precision"])
def test_what_every_target_must_say(tmp_path: Path, missing: str) -> None:
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(missing)]
    with pytest.raises(UsageError, match=rf"\] {missing} is missing"):
        load_target(write(tmp_path, "mine", "\n".join(lines)))


def test_quantize_needs_int8(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\[quantize\] is for precision int8.*fp32"):
        load_target(write(tmp_path, "mine", MINIMAL + "[quantize]\nper_channel = true\n"))


def test_a_mistake_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    parent = write(tmp_path, "parent", MINIMAL + "[measure]\nthread = 1\n")
    with pytest.raises(UsageError, match="unknown key 'thread'") as caught:
        load_target(write(tmp_path, "mine", 'extends = "./parent.toml"'))
    assert str(parent) in caught.value.message


def test_circles_are_found(folder: Path) -> None:
    write(folder, "a", 'extends = "b"')
    write(folder, "b", 'extends = ["x86-base", "c"]')
    write(folder, "c", 'extends = "./a.toml"')
    with pytest.raises(UsageError, match=r"goes in a circle: (\w → ){3}\w"):
        load_target("a")


def test_extending_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="extends an unknown target 'lonely'"):
        load_target(write(tmp_path, "lonely", 'extends = "lonely"'))
    with pytest.raises(UsageError, match="goes in a circle"):
        load_target(write(tmp_path, "loop", 'extends = "./loop.toml"'))


def test_a_diamond_is_no_circle(folder: Path) -> None:
    write(folder, "left", 'extends = "x86-base"\nabstract = true')
    write(folder, "both", 'extends = ["x86-fp32", "left"]')
    assert load_target("both").build.precision == "fp32"


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'description = "\xff\xfe"')
    with pytest.raises(UsageError, match="is not valid TOML"):
        load_target(path)


def test_profiles_are_frozen_and_hashable_where_it_counts() -> None:
    profile = load_target("x86-int8")
    with pytest.raises(AttributeError):
        profile.name = "other"  # type: ignore[misc]
    assert hash(profile) == hash(load_target("x86-int8"))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from edgekit.target_files import load_target; load_target('x86-int8');"
        "print([m for m in ('numpy', 'onnx', 'cv2', 'torch', 'click', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
