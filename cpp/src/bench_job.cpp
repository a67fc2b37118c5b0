#include <chrono>
#include <cstdio>
#include <thread>

#include "bundle.h"
#include "error.h"
#include "integrity.h"
#include "jobs.h"
#include "machine.h"
#include "npy.h"
#include "statistics.h"

namespace edgekit {

namespace {

constexpr uint64_t kMaxBytes = uint64_t(2) << 30;
constexpr double kBusy = 0.1;  // share of the machine's time that went to others

void write_summary(JsonWriter& json, const Summary& times) {
    json.field("p50_ms", times.p50).field("p90_ms", times.p90).field("p95_ms", times.p95);
    json.field("p99_ms", times.p99).field("mean_ms", times.mean).field("std_ms", times.std);
    json.field("min_ms", times.min).field("max_ms", times.max);
}

void write_optional(JsonWriter& json, const char* key, const std::optional<double>& value) {
    json.key(key);
    if (value) json.value(*value);
    else json.null();
}

// Frequencies, governors and temperatures before and after the runs; names of what the kernel does not
// show are added to `missing`.
void write_machine(JsonWriter& json, const std::vector<CoreState>& cores, const std::vector<CoreState>& cores_after,
                   const std::vector<Temperature>& heat, const std::vector<Temperature>& heat_after,
                   std::vector<std::string>& missing) {
    json.key("cores").begin_array();
    for (const CoreState& core : cores) {
        json.begin_object().field("core", core.core).field("governor", core.governor);
        json.field("frequency_mhz", core.frequency_mhz).field("max_frequency_mhz", core.max_frequency_mhz);
        for (const CoreState& after : cores_after) {
            if (after.core == core.core) json.field("frequency_after_mhz", after.frequency_mhz);
        }
        json.end_object();
    }
    json.end_array();
    json.key("temperatures").begin_array();
    for (size_t i = 0; i < heat.size(); i++) {
        json.begin_object().field("sensor", heat[i].sensor).field("before_c", heat[i].celsius);
        if (i < heat_after.size() && heat_after[i].sensor == heat[i].sensor) {
            json.field("after_c", heat_after[i].celsius);
        }
        json.end_object();
    }
    json.end_array();
    if (cores.empty()) missing.insert(missing.end(), {"CPU frequency", "CPU governor"});
    if (heat.empty()) missing.push_back("temperature");
}

std::string over(const char* name, double value, const std::optional<double>& limit) {
    if (!limit || value <= *limit) return "";
    char text[128];
    std::snprintf(text, sizeof(text), "%s is %.3f ms, above the budget of %g ms", name, value, *limit);
    return text;
}

}  // namespace

Exit bench_job(const Options& options, JsonWriter& json) {
    const Manifest manifest = read_manifest(options.bundle);
    const ModelEntry& entry = ncnn_entry(manifest);
    const RunSettings settings = run_settings(options, manifest);
    const Model model(read_model_files(manifest, entry), settings);
    check_interface(manifest, entry, model.sidecar());
    if (manifest.golden.samples.empty()) throw bad_input("The bundle has no golden sample to run.");
    const std::string& file = manifest.golden.samples[0].input;
    const Tensor input = read_npy(read_listed(manifest, file, kMaxBytes), file);

    const int warmup = options.warmup.value_or(manifest.measure.warmup);
    const int runs = options.runs.value_or(manifest.measure.iterations);
    const double cooldown_s = options.cooldown_s.value_or(manifest.measure.cooldown_s);
    for (int i = 0; i < warmup; i++) model.run(input);
    if (cooldown_s > 0) {
        note("cooling down for " + std::to_string(int(cooldown_s + 0.5)) + " s");
        std::this_thread::sleep_for(std::chrono::duration<double>(cooldown_s));
        model.run(input);  // caches and clocks have gone cold, too
    }
    const std::vector<CoreState> cores = core_states();
    const std::vector<Temperature> heat = temperatures();
    const LoadMeter meter;
    std::vector<double> samples;
    samples.reserve(size_t(runs));
    for (int i = 0; i < runs; i++) {
        const double begun = now_ms();
        const std::vector<Tensor> outputs = model.run(input);
        samples.push_back(now_ms() - begun);
        if (i == 0) {
            for (size_t k = 0; k < outputs.size(); k++) {
                check_finite(outputs[k], model.sidecar().outputs[k].name, file);
            }
        }
    }
    const std::optional<double> load = meter.share();
    const Summary times = summary(samples);

    std::vector<std::string> missing;
    json.begin_object();
    write_summary(json, times);
    if (options.samples) {
        json.key("samples_ms").begin_array();
        for (const double sample : samples) json.value(sample);
        json.end_array();
    }
    json.field("runs", runs).field("warmup", warmup).field("cooldown_s", cooldown_s).field("batch", 1);
    json.field("throughput_fps", 1e3 / times.mean);
    const std::optional<double> peak = peak_rss_mb();
    write_optional(json, "peak_rss_mb", peak);
    if (!peak) missing.push_back("peak memory");
    write_optional(json, "load", load);
    if (!load) missing.push_back("load");
    json.key("load_average");
    if (const auto average = load_average()) {
        json.begin_array();
        for (const double value : *average) json.value(value);
        json.end_array();
    } else {
        json.null();
        missing.push_back("load average");
    }
    json.field("bundle", manifest.name).field("target", manifest.target);
    write_runtime(json, options, manifest, model.sidecar());
    const CoreCounts counts = core_counts();
    json.field("powersave", settings.powersave < 0 ? 0 : settings.powersave);
    json.field("light_mode", settings.light_mode);
    json.key("cpu").begin_object().field("isa", cpu_text());
    json.field("cores", counts.all).field("big_cores", counts.big).field("little_cores", counts.little).end_object();
    write_machine(json, cores, core_states(), heat, temperatures(), missing);
    json.key("not_available").begin_array();
    for (const std::string& name : missing) json.value(name);
    json.end_array();
    std::string missed = over("p50", times.p50, options.max_p50_ms);
    const std::string missed_p99 = over("p99", times.p99, options.max_p99_ms);
    if (!missed_p99.empty()) missed += (missed.empty() ? "" : "; ") + missed_p99;
    if (!missed.empty()) {
        note(missed);
        const bool busy = load.value_or(0.0) > kBusy;
        json.field("error", missed + ".");
        json.field("hint", busy ? "Other processes were busy during the runs: measure again on a quiet machine."
                                : "Take a smaller model or input, more threads, or a faster precision.");
        json.field("exit_code", int(Exit::latency_missed));
    }
    json.end_object();
    std::string absent;
    for (const std::string& name : missing) absent += (absent.empty() ? "" : ", ") + name;
    if (!absent.empty()) note("not available on this machine: " + absent);
    return missed.empty() ? Exit::ok : Exit::latency_missed;
}

}  // namespace edgekit
