"""What the machine says of itself, from recorded lines and recorded trees of /sys.

The programs on PATH here are fakes, named so: they write recorded lines and prove the control flow,
nothing about a board.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from edgekit.board.machine import (
    frequency,
    jetson,
    load,
    power,
    raspberrypi,
    system,
    thermal,
    tools,
)
from edgekit.board.machine.files import Missing
from edgekit.board.machine.stream import LineStream
from edgekit.board.machine.watch import Watch, caveats

# one line of each form of tegrastats: Orin NX (JetPack 6), AGX Orin (JetPack 5), Xavier NX, AGX Xavier
ORIN_NX = (
    "05-21-2024 10:11:12 RAM 3521/15523MB (lfb 7x4MB) SWAP 0/7762MB (cached 0MB) CPU [12%@1984,8%"
    "@1984,0%@729,0%@729,off,off,0%@1190,0%@1190] EMC_FREQ 0%@3199 GR3D_FREQ 45%@[918] NVDEC off "
    "NVJPG off NVJPG1 off VIC_FREQ 729 OFA off APE 200 cpu@52.343C soc2@49.5C soc0@50.156C gpu@"
    "49.812C cv0@-256C tj@52.343C soc1@50.5C VDD_IN 7840mW/7412mW VDD_CPU_GPU_CV 2612mW/2318mW "
    "VDD_SOC 2215mW/2195mW"
)
AGX_ORIN = (
    "RAM 5004/30592MB (lfb 5427x4MB) SWAP 0/15296MB (cached 0MB) CPU [1%@2201,0%@2201,0%@2201,0%@2201,"
    "off,off,off,off,off,off,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305,305] VIC_FREQ 729 APE 174 "
    "CV0@-256C CPU@46.375C Tboard@36C SOC2@42.843C Tdiode@37.75C SOC0@42.875C CV1@-256C GPU@-256C "
    "tj@46.375C SOC1@42.656C CV2@-256C VDD_GPU_SOC 2400mW/2393mW VDD_CPU_CV 401mW/431mW VIN_SYS_5V0 "
    "3831mW/3841mW NC 0mW/0mW VDDQ_VDD2_1V8AO 504mW/512mW NC 0mW/0mW"
)
XAVIER_NX = (
    "RAM 2448/7764MB (lfb 1013x4MB) SWAP 0/3882MB (cached 0MB) CPU [2%@1190,0%@1190,off,off,off,off] "
    "EMC_FREQ 0% GR3D_FREQ 0% AO@34C GPU@33.5C PMIC@100C AUX@34C CPU@35C thermal@34.15C VDD_IN "
    "3413/3425 VDD_CPU_GPU_CV 442/450 VDD_SOC 1121/1121"
)
AGX_XAVIER = (
    "RAM 1512/15692MB (lfb 3306x4MB) SWAP 0/7846MB (cached 0MB) CPU [2%@1190,1%@1190,off,off,off,off,"
    "off,off] EMC_FREQ 0% GR3D_FREQ 0% AO@37.5C GPU@37.5C Tboard@38C CPU@38.5C thermal@37.7C "
    "GPU 311/311 CPU 622/622 SOC 1244/1244 CV 0/0 VDDRQ 311/311 SYS5V 1482/1482"
)


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _fake_program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fake-bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


# --- Jetson -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "rails", "total", "gpu"),
    [
        (ORIN_NX, "VDD_IN", 7.84, 918),
        (AGX_ORIN, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 6.632, 305),
        (XAVIER_NX, "VDD_IN", 3.413, None),
        (AGX_XAVIER, "GPU + CPU + SOC + CV + VDDRQ + SYS5V", 3.97, None),
    ],
)
def test_tegrastats_of_four_boards(line: str, rails: str, total: float, gpu: int | None) -> None:
    stats = jetson.parse_tegrastats(line)
    assert stats is not None and stats.total is not None
    assert stats.total[0] == rails
    assert stats.total[1] == pytest.approx(total)
    assert stats.gpu_mhz == gpu
    assert "RAM" not in stats.rails_w
    assert all(30 < value < 101 for value in stats.temperatures_c.values())
    assert "CV0" not in stats.temperatures_c, "a sensor that is off is none"


def test_tegrastats_clocks_and_rails() -> None:
    stats = jetson.parse_tegrastats(ORIN_NX)
    assert stats is not None
    assert stats.cpu_mhz == (1984, 1984, 729, 729, 1190, 1190)
    assert stats.rails_w == pytest.approx(
        {"VDD_IN": 7.84, "VDD_CPU_GPU_CV": 2.612, "VDD_SOC": 2.215}
    )
    assert stats.temperatures_c["tj"] == 52.343


@pytest.mark.parametrize(
    "line", ["", "tegrastats: permission denied", "RAM 3/4MB", "\0\xff", "CPU ["]
)
def test_what_tegrastats_does_not_say_is_nothing(line: str) -> None:
    assert jetson.parse_tegrastats(line) is None
    short = jetson.parse_tegrastats("RAM 1/2MB CPU [off]")
    assert short is not None
    assert (short.total, short.cpu_mhz, short.gpu_mhz) == (None, (), None)


def test_nvpmodel() -> None:
    text = "NV Fan Mode:quiet\nNV Power Mode: MAXN_SUPER\n2\n"
    assert jetson.parse_nvpmodel(text) == {"mode": "MAXN_SUPER", "id": 2}
    assert jetson.parse_nvpmodel("NV Power Mode: MODE_15W_6CORE") == {
        "mode": "MODE_15W_6CORE",
        "id": None,
    }
    assert jetson.parse_nvpmodel("NVPM ERROR: need root") is None


# --- Raspberry Pi -------------------------------------------------------------------------------


def test_get_throttled() -> None:
    assert raspberrypi.parse_throttled("throttled=0x0\n") == {
        "raw": "0x0",
        "now": [],
        "since_boot": [],
    }
    assert raspberrypi.parse_throttled("throttled=0x50005") == {
        "raw": "0x50005",
        "now": ["undervoltage", "throttled"],
        "since_boot": ["undervoltage", "throttled"],
    }
    assert raspberrypi.parse_throttled("80008") == {
        "raw": "0x80008",
        "now": ["soft temperature limit"],
        "since_boot": ["soft temperature limit"],
    }
    for text in ("", "VCHI initialization failed", "throttled=", "throttled=0xzz"):
        assert raspberrypi.parse_throttled(text) is None


def test_power_of_the_pi_5() -> None:
    text = (
        "     3V7_WL_SW_A current(0)=0.09759956A\n"
        "     1V8_SYS_A current(2)=0.19519920A\n"
        "     VDD_CORE_A current(7)=2.50000000A\n"
        "     3V7_WL_SW_V volt(8)=3.70000000V\n"
        "     1V8_SYS_V volt(10)=1.80000000V\n"
        "     VDD_CORE_V volt(15)=0.80000000V\n"
        "     EXT5V_V volt(24)=5.14000000V\n"
    )
    watts = raspberrypi.parse_pmic(text)
    assert watts == pytest.approx(0.09759956 * 3.7 + 0.1951992 * 1.8 + 2.0)
    assert raspberrypi.parse_pmic('error=1 error_msg="Command not registered"') is None


# --- /sys ---------------------------------------------------------------------------------------

LAPTOP = {
    "proc/cpuinfo": "processor : 0\nmodel name : A CPU\nflags : fpu avx2\ncpu MHz : 1200.5\n",
    "proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 3 kB\n",
    "proc/stat": "cpu  100 0 50 800 10 0 5 0 0 0\n",
    "proc/loadavg": "0.52 0.58 0.59 1/389 2093\n",
    "etc/os-release": 'NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/class/dmi/id/sys_vendor": "Maker\n",
    "sys/class/dmi/id/product_name": "Model 5\n",
    "sys/devices/system/cpu/cpufreq/policy0/related_cpus": "0 1\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "400000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2000000\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "3400000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1900000\n",
    "sys/devices/system/cpu/cpufreq/policy2/related_cpus": "2 3\n",
    "sys/devices/system/cpu/cpufreq/policy2/scaling_cur_freq": "3300000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "5\n",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone0/temp": "61000\n",
    "sys/class/thermal/thermal_zone1/type": "acpitz\n",
    "sys/class/thermal/thermal_zone1/temp": "-274000\n",
    "sys/class/thermal/cooling_device0/type": "Processor\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "Fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "2\n",
    "sys/class/hwmon/hwmon0/name": "coretemp\n",
    "sys/class/hwmon/hwmon0/temp1_input": "59000\n",
    "sys/class/hwmon/hwmon0/temp1_label": "Core 0\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "5000000\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "7\n",
}


def test_a_laptop_is_read(tmp_path: Path) -> None:
    root, missing = _tree(tmp_path, LAPTOP), Missing()
    assert system.board(root) == "Maker Model 5"
    assert system.memory_mb(root) == 16384.0
    assert system.describe(root)["system"] == "Debian GNU/Linux 12 (bookworm)"
    assert frequency.highest_mhz(root) == 3300.0
    settings = frequency.settings(missing, root)
    assert settings is not None
    assert settings[0] == {
        "cpus": "0 1",
        "governor": "powersave",
        "min_mhz": 400.0,
        "max_mhz": 2000.0,
        "hardware_max_mhz": 3400.0,
    }
    assert settings[1]["governor"] is None, "what is not there is not made up"
    assert thermal.temperatures_c(root) == {"x86_pkg_temp": 61.0, "coretemp Core 0": 59.0}
    assert thermal.cooling(root) == {"Processor (cooling_device0)": 0}
    assert thermal.throttle_counts(root) == {"core": 7, "package": 5}
    assert missing.reasons == {}


def test_an_energy_counter_that_wraps(tmp_path: Path) -> None:
    root = _tree(tmp_path, LAPTOP)
    meter = power.open_meter(Missing(), root)
    assert meter is not None
    assert (meter.source, meter.scope) == ("powercap (RAPL)", "CPU package")
    energy = root / "sys/class/powercap/intel-rapl:0/energy_uj"
    energy.write_text("4000000")
    assert meter.watts(2.0) == 1.5
    energy.write_text("500000")
    assert meter.watts(1.0) == 1.5
    energy.unlink()
    assert meter.watts(1.0) is None


def test_meters_of_hwmon(tmp_path: Path) -> None:
    ina = _tree(
        tmp_path / "ina",
        {
            "sys/class/hwmon/hwmon3/name": "ina3221\n",
            "sys/class/hwmon/hwmon3/in1_input": "5000\n",
            "sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n",
            "sys/class/hwmon/hwmon3/curr1_input": "1500\n",
            "sys/class/hwmon/hwmon3/in2_input": "5000\n",
            "sys/class/hwmon/hwmon3/in2_label": "VDD_SOC\n",
            "sys/class/hwmon/hwmon3/curr2_input": "400\n",
        },
    )
    meter = power.open_meter(Missing(), ina)
    assert meter is not None
    assert (meter.scope, meter.watts(1.0)) == ("VDD_IN", 7.5)
    watts = _tree(
        tmp_path / "watts",
        {
            "sys/class/hwmon/hwmon1/name": "ina226\n",
            "sys/class/hwmon/hwmon1/power1_input": "2500000\n",
        },
    )
    meter = power.open_meter(Missing(), watts)
    assert meter is not None
    assert meter.watts(1.0) == 2.5


def test_a_machine_that_tells_nothing_says_so_and_never_zero(tmp_path: Path) -> None:
    watch = Watch(tmp_path, interval_s=0.01)
    watch.rest(0.02)
    watch.start()
    time.sleep(0.05)
    found = watch.stop(own_cpu_s=0.0, own_pids=[], inferences=10)
    watch.close()
    for key in (
        "clock_mhz",
        "temperature_c",
        "cpufreq",
        "power",
        "throttled",
        "other_load",
        "jetson",
    ):
        assert found[key] is None, key
    assert found["throttling"] == []
    assert {"governor", "frequency", "temperature", "power", "load", "throttling"} == set(
        found["not_available"]
    )
    assert caveats(found) == []


def test_what_slows_a_machine_down_is_seen(tmp_path: Path) -> None:
    root = _tree(tmp_path, LAPTOP)
    watch = Watch(root, interval_s=0.005)
    watch.start()
    time.sleep(0.15)
    (root / "sys/devices/system/cpu/cpufreq/policy2/scaling_cur_freq").write_text("1000000")
    (root / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count").write_text("9")
    (root / "sys/class/thermal/cooling_device0/cur_state").write_text("2")
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("3000000")
    (root / "proc/stat").write_text("cpu  190 0 60 810 10 0 5 20 0 0\n")
    time.sleep(0.15)
    found = watch.stop(own_cpu_s=0.2, own_pids=[], inferences=100)
    watch.close()
    assert found["throttled"] is True
    text = " ".join(found["throttling"])
    assert "6 core throttlings" in text
    assert "Processor (cooling_device0) went to state 2" in text
    assert "clock fell from 3300 to 1900 MHz" in text
    assert found["power"]["scope"] == "CPU package"
    assert found["power"]["joules_per_inference"] > 0
    assert 0.5 < found["other_load"] < 0.9
    kinds = {item["kind"] for item in caveats(found)}
    assert {"throttled", "busy", "stolen", "governor", "limited"} <= kinds


def test_a_pi_with_a_weak_supply(tmp_path: Path) -> None:
    place = "sys/devices/platform/soc/soc:firmware/get_throttled"
    root = _tree(
        tmp_path, {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0", place: "50000\n"}
    )
    watch = Watch(root, interval_s=0.01)
    watch.start()
    (root / place).write_text("50005\n")
    found = watch.stop(own_cpu_s=0.0, own_pids=[], inferences=1)
    watch.close()
    assert found["throttled"] is True
    assert "get_throttled says undervoltage, throttled" in found["throttling"]
    assert found["before"]["get_throttled"]["since_boot"] == ["undervoltage", "throttled"]


# --- programs, by fakes on PATH -----------------------------------------------------------------


def test_power_from_a_fake_tegrastats(on_path: Path, tmp_path: Path) -> None:
    _fake_program(on_path, "tegrastats", f"while true; do echo '{ORIN_NX}'; sleep 0.02; done")
    _fake_program(on_path, "nvpmodel", "printf 'NV Power Mode: 15W\\n1\\n'")
    root = _tree(
        tmp_path / "root",
        {
            "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1984000\n",
        },
    )
    watch = Watch(root, interval_s=0.05)
    watch.rest(0.3)
    watch.start()
    time.sleep(0.4)
    found = watch.stop(own_cpu_s=0.0, own_pids=[], inferences=50)
    watch.close()
    assert found["power"]["source"] == "tegrastats, VDD_IN"
    assert found["power"]["mean_w"] == pytest.approx(7.84)
    assert found["power"]["idle_w"] == pytest.approx(7.84)
    assert found["power"]["joules_per_inference"] == pytest.approx(
        7.84 * found["seconds"] / 50, rel=0.01
    )
    assert found["jetson"] == {"nvpmodel": {"mode": "15W", "id": 1}, "clocks_locked": False}
    assert "clocks" in {item["kind"] for item in caveats(found)}
    with pytest.raises(ProcessLookupError):
        # the fake is gone: its process group would otherwise answer
        os.kill(_pid_of(on_path / "tegrastats"), 0)


def _pid_of(program: Path) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(program).encode() in words:
                return int(entry.name)
    raise ProcessLookupError(program)


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60", "echo nothing of use", "exit 0"])
def test_a_fake_tegrastats_that_says_nothing(on_path: Path, tmp_path: Path, script: str) -> None:
    _fake_program(on_path, "tegrastats", script)
    watch = Watch(tmp_path / "root", interval_s=0.02)
    watch.start()
    time.sleep(0.1)
    found = watch.stop(own_cpu_s=0.0, own_pids=[], inferences=50)
    watch.close()
    assert found["power"] is None
    assert "gave no value" in found["not_available"]["power"]
    assert found["jetson"]["nvpmodel"] is None
    assert "nvpmodel" in found["not_available"]


def test_a_fake_vcgencmd(on_path: Path, tmp_path: Path) -> None:
    _fake_program(
        on_path,
        "vcgencmd",
        'case "$1" in get_throttled) echo throttled=0x4;; '
        "pmic_read_adc) printf ' A_A current(0)=2.0A\\n A_V volt(8)=1.5V\\n';; *) exit 1;; esac",
    )
    root = _tree(tmp_path / "root", {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    watch = Watch(root, interval_s=0.02)
    watch.start()
    time.sleep(0.3)
    found = watch.stop(own_cpu_s=0.0, own_pids=[], inferences=50)
    watch.close()
    assert found["power"]["source"] == "vcgencmd pmic_read_adc"
    assert found["power"]["mean_w"] == pytest.approx(3.0)
    assert found["throttling"] == ["get_throttled says throttled"]


def test_programs_run_without_a_shell_and_not_for_ever(
    on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_program(on_path, "echoes", 'printf "%s" "$1"')
    assert tools.said("echoes", ["$(id); `id` 'x' \"y\""]) == "$(id); `id` 'x' \"y\""
    assert tools.said("echoes-that-is-not-there") is None
    _fake_program(on_path, "fails", "echo something; exit 3")
    assert tools.said("fails") is None
    monkeypatch.setattr(tools, "_TIMEOUT_S", 0.1)
    _fake_program(on_path, "hangs", "exec sleep 30")
    assert tools.said("hangs") is None


def test_a_stream_that_ignores_its_end_is_killed(
    on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.board.machine.stream._GRACE_S", 0.2)
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
    lines: list[str] = []
    stream = LineStream(["python3", "-c", script + "; time.sleep(600)"], lines.append)
    deadline = time.monotonic() + 20
    while not lines and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lines == ["up\n"]
    process = stream._process
    assert process is not None
    stream.close()
    stream.close()
    assert process.returncode == -signal.SIGKILL


def test_other_work_is_named(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        {
            "proc/stat": "cpu  100 0 0 900 0 0 0 0\n",
            "proc/7/stat": "7 (a (b) c) R 1 1 1 0 -1 0 0 0 0 0 100 50 0 0 20 0 1 0 900\n",
            "proc/8/stat": "8 (mine) R 1 1 1 0 -1 0 0 0 0 0 5 5 0 0 20 0 1 0 900\n",
            "proc/loadavg": "1.5 1 1 1/2 3\n",
        },
    )
    meter = load.LoadMeter(root)
    (root / "proc/stat").write_text("cpu  180 0 20 980 0 0 0 20\n")
    (root / "proc/7/stat").write_text(
        "7 (a (b) c) R 1 1 1 0 -1 0 0 0 0 0 160 50 0 0 20 0 1 0 900\n"
    )
    (root / "proc/8/stat").write_text("8 (mine) R 1 1 1 0 -1 0 0 0 0 0 45 5 0 0 20 0 1 0 900\n")
    ticks = os.sysconf("SC_CLK_TCK")
    assert meter.share(40 / ticks) == pytest.approx(0.4)
    assert meter.stolen() == pytest.approx(0.1)
    assert meter.busiest([8]) == [{"name": "a (b) c", "cpu_s": 60 / ticks}]
    (root / "proc/7/stat").write_text("7 (new) R 1 1 1 0 -1 0 0 0 0 0 20 0 0 0 20 0 1 0 950\n")
    assert meter.busiest([8]) == [{"name": "new", "cpu_s": 20 / ticks}]
    assert load.load_average(root) == 1.5
