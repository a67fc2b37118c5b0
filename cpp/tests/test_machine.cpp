// Statistics and what the kernel shows.
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include "check.h"
#include "machine.h"
#include "statistics.h"

using namespace edgekit;
namespace fs = std::filesystem;

TEST(machine_statistics) {
    const Summary times = summary({4, 1, 3, 2});
    CHECK(times.p50 == 2.5 && times.min == 1 && times.max == 4 && times.mean == 2.5);
    CHECK(times.p90 > 3.69 && times.p90 < 3.71 && times.std > 1.29 && times.std < 1.30);
    const Summary one = summary({7});
    CHECK(one.p50 == 7 && one.p99 == 7 && one.std == 0);
}

TEST(machine_kernel_files) {
    const fs::path root = fs::temp_directory_path() / ("edgekit-machine-" + std::to_string(::getpid()));
    const auto put = [&](const std::string& name, const std::string& text) {
        fs::create_directories((root / name).parent_path());
        std::ofstream(root / name) << text;
    };
    CHECK(core_states(root.string()).empty() && temperatures(root.string()).empty());
    CHECK(!load_average(root.string()) && !peak_rss_mb(root.string()));
    CHECK(!LoadMeter(root.string()).share());
    put("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1500000\n");
    put("devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n");
    put("devices/system/cpu/cpu1/cpufreq/scaling_governor", "ondemand\n");
    put("class/thermal/thermal_zone0/type", "cpu-thermal\n");
    put("class/thermal/thermal_zone0/temp", "48312\n");
    put("class/thermal/thermal_zone1/temp", "not a number\n");
    put("loadavg", "0.50 1.25 2.00 1/100 4242\n");
    put("self/status", "Name:\tx\nVmHWM:\t   1000 kB\n");
    const auto cores = core_states(root.string());
    CHECK(cores.size() == 2 && cores[0].frequency_mhz == 1500 && cores[1].governor == "ondemand");
    const auto heat = temperatures(root.string());
    CHECK(heat.size() == 1 && heat[0].sensor == "cpu-thermal" && heat[0].celsius == 48.312);
    CHECK((*load_average(root.string()))[1] == 1.25);
    CHECK(*peak_rss_mb(root.string()) == 1.024);
    fs::remove_all(root);
    CHECK(!cpu_text().empty());
}
