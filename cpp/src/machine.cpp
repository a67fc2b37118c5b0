#include "machine.h"

#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

namespace fs = std::filesystem;

namespace edgekit {

namespace {

// /proc/cpuinfo's word and the name that target profiles use
const std::map<std::string, std::string>& known_features(bool x86) {
    static const std::map<std::string, std::string> x86_names = {
        {"sse4_2", "sse4.2"},     {"avx", "avx"},           {"avx2", "avx2"},
        {"fma", "fma"},           {"avx512f", "avx512f"},   {"avx512bw", "avx512bw"},
        {"avx512_vnni", "avx512_vnni"}, {"avx_vnni", "avx_vnni"}, {"amx_int8", "amx_int8"}};
    static const std::map<std::string, std::string> arm_names = {
        {"asimd", "neon"}, {"neon", "neon"}, {"asimdhp", "fp16"}, {"asimddp", "dotprod"},
        {"i8mm", "i8mm"},  {"bf16", "bf16"}, {"sve", "sve"},      {"sve2", "sve2"}};
    return x86 ? x86_names : arm_names;
}

std::string architecture() {
#if defined(__x86_64__)
    return "x86_64";
#elif defined(__aarch64__)
    return "aarch64";
#elif defined(__arm__)
    return "armhf";
#else
    struct utsname name {};
    return ::uname(&name) == 0 ? name.machine : "unknown";
#endif
}

// The first line of a file of /proc or /sys; nothing where it cannot be read.
std::optional<std::string> line_of(const fs::path& path) {
    std::ifstream file(path);
    std::string line;
    if (!file || !std::getline(file, line)) return std::nullopt;
    return line;
}

std::optional<double> number_of(const fs::path& path) {
    const std::optional<std::string> line = line_of(path);
    if (!line) return std::nullopt;
    std::istringstream words(*line);
    double value = 0.0;
    if (!(words >> value)) return std::nullopt;
    return value;
}

double own_cpu_s() {
    struct rusage usage {};
    ::getrusage(RUSAGE_SELF, &usage);
    return double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           double(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

}  // namespace

std::string cpu_text() {
    const std::string arch = architecture();
    const auto& known = known_features(arch == "x86_64");
    std::set<std::string> found;
    std::ifstream file("/proc/cpuinfo");
    std::string line;
    while (found.empty() && std::getline(file, line)) {
        const size_t colon = line.find(':');
        if (colon == std::string::npos) continue;
        std::string key = line.substr(0, line.find_first_of(" \t:"));
        for (char& c : key) c = c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c;
        if (key != "flags" && key != "features") continue;
        std::istringstream words(line.substr(colon + 1));
        for (std::string word; words >> word;) {
            const auto name = known.find(word);
            if (name != known.end()) found.insert(name->second);
        }
        break;
    }
    std::string out = arch;
    for (const std::string& name : found) out += " " + name;
    return out;
}

std::vector<CoreState> core_states(const std::string& sys) {
    std::vector<CoreState> out;
    for (int core = 0; core < 1024; core++) {
        const fs::path folder = fs::path(sys) / "devices/system/cpu" / ("cpu" + std::to_string(core));
        std::error_code code;
        if (!fs::exists(folder, code)) break;
        CoreState state;
        state.core = core;
        state.frequency_mhz = number_of(folder / "cpufreq/scaling_cur_freq").value_or(0.0) / 1e3;
        state.max_frequency_mhz = number_of(folder / "cpufreq/cpuinfo_max_freq").value_or(0.0) / 1e3;
        state.governor = line_of(folder / "cpufreq/scaling_governor").value_or("");
        if (state.frequency_mhz > 0 || !state.governor.empty()) out.push_back(state);
    }
    return out;
}

std::vector<Temperature> temperatures(const std::string& sys) {
    std::vector<Temperature> out;
    for (int zone = 0; zone < 256; zone++) {
        const fs::path folder = fs::path(sys) / "class/thermal" / ("thermal_zone" + std::to_string(zone));
        std::error_code code;
        if (!fs::exists(folder, code)) break;
        const std::optional<double> value = number_of(folder / "temp");
        // thousandths of a degree; some zones answer an error or nonsense while their device sleeps
        if (!value || *value < -100e3 || *value > 250e3) continue;
        out.push_back({line_of(folder / "type").value_or("zone " + std::to_string(zone)), *value / 1e3});
    }
    return out;
}

std::optional<std::vector<double>> load_average(const std::string& proc) {
    std::istringstream words(line_of(fs::path(proc) / "loadavg").value_or(""));
    std::vector<double> out(3);
    if (!(words >> out[0] >> out[1] >> out[2])) return std::nullopt;
    return out;
}

std::optional<double> peak_rss_mb(const std::string& proc) {
    std::ifstream file(fs::path(proc) / "self/status");
    std::string line;
    while (std::getline(file, line)) {
        if (line.compare(0, 6, "VmHWM:") != 0) continue;
        std::istringstream words(line.substr(6));
        double kib = 0.0;
        if (words >> kib) return kib * 1024 / 1e6;
    }
    return std::nullopt;
}

LoadMeter::LoadMeter(std::string proc) : proc_(std::move(proc)), own_start_s_(own_cpu_s()) {
    start_ = read();
}

LoadMeter::Ticks LoadMeter::read() const {
    // user nice system idle iowait irq softirq steal; guest time is in user already
    std::istringstream words(line_of(fs::path(proc_) / "stat").value_or(""));
    std::string first;
    words >> first;
    Ticks out;
    if (first != "cpu") return out;
    double value = 0.0;
    for (int column = 0; column < 8 && words >> value; column++) {
        out.total += value;
        if (column != 3 && column != 4) out.busy += value;
    }
    out.known = true;
    return out;
}

std::optional<double> LoadMeter::share() const {
    const Ticks end = read();
    const double total = end.total - start_.total;
    if (!start_.known || !end.known || total <= 0) return std::nullopt;
    const double own = (own_cpu_s() - own_start_s_) * double(::sysconf(_SC_CLK_TCK));
    return std::clamp((end.busy - start_.busy - own) / total, 0.0, 1.0);
}

}  // namespace edgekit
