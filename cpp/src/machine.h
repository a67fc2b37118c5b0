// What the machine is and how busy, hot and fast it is, as far as its kernel tells.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace edgekit {

// Architecture and instruction sets in one line, as a bundle's `golden.cpu` has them:
// "x86_64 avx avx2 fma sse4.2".
std::string cpu_text();

struct CoreState {
    int core = 0;
    double frequency_mhz = 0.0;
    double max_frequency_mhz = 0.0;
    std::string governor;
};

struct Temperature {
    std::string sensor;
    double celsius = 0.0;
};

// Cores with a cpufreq folder; empty where the kernel shows none. `sys` is for tests.
std::vector<CoreState> core_states(const std::string& sys = "/sys");

// Thermal zones; empty where the kernel shows none.
std::vector<Temperature> temperatures(const std::string& sys = "/sys");

// Load averages of 1, 5 and 15 minutes.
std::optional<std::vector<double>> load_average(const std::string& proc = "/proc");

// Peak resident memory of this process (VmHWM), megabytes of 10^6 bytes.
std::optional<double> peak_rss_mb(const std::string& proc = "/proc");

// Share (0 to 1) of all CPU time that went to other processes between two readings.
class LoadMeter {
public:
    explicit LoadMeter(std::string proc = "/proc");
    // Since the construction; nothing where the kernel does not tell or less than a tick has passed.
    std::optional<double> share() const;

private:
    struct Ticks {
        double busy = 0.0;
        double total = 0.0;
        bool known = false;
    };
    Ticks read() const;

    std::string proc_;
    Ticks start_;
    double own_start_s_;
};

}  // namespace edgekit
