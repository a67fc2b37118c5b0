#include <cmath>
#include <cstdio>
#include <functional>

#include "bundle.h"
#include "error.h"
#include "files.h"
#include "golden.h"
#include "image.h"
#include "integrity.h"
#include "jobs.h"
#include "machine.h"
#include "npy.h"

namespace edgekit {

namespace {

constexpr uint64_t kMaxBytes = uint64_t(2) << 30;

struct Check {
    std::string name;
    bool ok = false;
    std::string detail;
    bool skipped = false;
};

std::string short_number(double value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.1e", value);
    return text;
}

class SelfTest {
public:
    explicit SelfTest(const Options& options) : options_(options) {}

    std::vector<Check> checks;

    void run() {
        try {
            manifest_ = read_manifest(options_.bundle);
        } catch (const Error& error) {
            // no bundle at all is bad input; a damaged manifest is a failed check
            if (!is_folder(options_.bundle)) throw;
            checks.push_back({"manifest", false, error.what()});
            return;
        }
        checks.push_back({"manifest", true, "schema 1"});
        const std::string problem = sums_problem(manifest_);
        checks.push_back({"SHA256SUMS", problem.empty(), problem.empty() ? "is that of the manifest" : problem});
        files();
        attempt("unlisted files", [&] { return unlisted_files(); });
        attempt("preprocessing in preprocess.json", [&] { return preprocessing(); });
        for (const GoldenEntry& sample : manifest_.golden.samples) {
            attempt("golden input of " + sample.image, [&] { return golden_input(sample); });
        }
        attempt("golden outputs (ncnn)", [&] { return golden_outputs(); });
    }

private:
    // What throws is a failed check like any other; the ones behind it are made all the same.
    void attempt(const std::string& name, const std::function<Check()>& check) {
        try {
            Check made = check();
            made.name = name;
            checks.push_back(made);
        } catch (const Error& error) {
            if (error.code() == Exit::not_possible) throw;
            checks.push_back({name, false, error.what()});
        }
    }

    void files() {
        int64_t bytes = 0;
        bool good = true;
        for (const auto& [name, entry] : manifest_.files) {
            bytes += entry.size;
            const std::string problem = file_problem(manifest_, name);
            if (problem.empty()) continue;
            good = false;
            checks.push_back({"file " + name, false, name + " " + problem});
        }
        if (!good) return;
        char size[32];
        std::snprintf(size, sizeof(size), "%.1f MB", double(bytes) / 1e6);
        checks.push_back({"files", true,
                          std::to_string(manifest_.files.size()) + " files, " + size + ", all as they were written"});
    }

    Check unlisted_files() const {
        const std::vector<std::string> names = unlisted(manifest_);
        if (names.empty()) return {"", true, "nothing but what the manifest lists"};
        std::string listed;
        for (size_t i = 0; i < names.size() && i < 5; i++) listed += (i ? ", " : "") + names[i];
        return {"", false, "not in the manifest: " + listed};
    }

    Check preprocessing() const {
        const std::string name = "preprocess.json";
        const Json value = Json::parse(read_listed(manifest_, name, 1 << 20), name);
        const bool same = Contract::from_json(value, name) == manifest_.contract;
        return {"", same, same ? "as in the manifest" : "differs from the manifest"};
    }

    // The golden input must be the contract applied to its image, bit for bit. Where another architecture
    // wrote it, its OpenCV may have rounded a grey level otherwise; nothing more is let through.
    Check golden_input(const GoldenEntry& sample) const {
        const std::string problem = unsupported(manifest_.contract);
        if (!problem.empty()) return {"", true, "not checked: the preprocessing " + problem, true};
        const Pixels image = decode_image(read_listed(manifest_, sample.image, kMaxBytes), sample.image);
        const Tensor golden = read_npy(read_listed(manifest_, sample.input, kMaxBytes), sample.input);
        Placement placement;
        const Tensor made = apply(image, manifest_.contract, placement);
        if (made.shape != golden.shape) return {"", false, "it has the shape " + text_of(golden.shape)};
        double step = 0.0, difference = 0.0;
        for (const double std : manifest_.contract.std) {
            step = std::max(step, std::fabs(manifest_.contract.scale / std));
        }
        for (size_t i = 0; i < made.values.size(); i++) {
            const double each = std::fabs(double(made.values[i]) - double(golden.values[i]));
            difference = each >= 0 ? std::max(difference, each) : INFINITY;
        }
        const bool elsewhere = manifest_.golden.cpu.compare(0, 6, "x86_64") != 0;
        if (difference == 0.0) return {"", true, "the contract applied to its image gives it, bit for bit"};
        if (elsewhere && difference <= 1.01 * step) {
            return {"", true, "as the contract gives it, within one grey level"};
        }
        return {"", false, "it is not its image preprocessed: the largest difference is " + short_number(difference)};
    }

    Check golden_outputs() {
        const ModelEntry& entry = ncnn_entry(manifest_);
        const Golden& golden = manifest_.golden;
        if (golden.samples.empty()) return {"", false, "there is no golden sample"};
        if (entry.precision != manifest_.models[0].precision) {
            return {"", true, "not checked: the golden outputs are of another precision", true};
        }
        RunSettings settings = options_.run;
        settings.threads = 1;  // as the golden outputs were made
        const Model model(read_model_files(manifest_, entry), settings);
        check_interface(manifest_, entry, model.sidecar());
        std::vector<std::string> names;
        for (const auto& output : golden.samples[0].outputs) names.push_back(output.first);
        GoldenMeter meter(golden, names);
        for (const GoldenEntry& sample : golden.samples) {
            const std::vector<Tensor> found =
                model.run(read_npy(read_listed(manifest_, sample.input, kMaxBytes), sample.input));
            for (const auto& [name, file] : sample.outputs) {
                const Tensor expected = read_npy(read_listed(manifest_, file, kMaxBytes), file);
                meter.add(name, expected, output_named(model.sidecar(), found, name));
            }
        }
        // the ncnn in this program is another build than the one that made the golden outputs, even of the
        // same version on the same CPU: its compiler may round otherwise
        const std::string problem = meter.problem(golden.other);
        if (!problem.empty()) {
            return {"", false, problem + ". Made with " + golden.runtime + " " + golden.runtime_version + " on " +
                                   golden.cpu + "; here ncnn " + ncnn_version() + " on " + cpu_text()};
        }
        double worst = 0.0;
        for (const BlockParity& parity : meter.parities()) worst = std::max(worst, parity.max_rel_error);
        std::string found = "equal bit for bit";
        if (worst > 0.0) {
            found = "max_rel_error " + short_number(worst) + " (limit " + short_number(golden.other.max_rel_error) + ")";
        }
        return {"", true, std::to_string(golden.samples.size()) + " samples, " + found};
    }

    static const Tensor& output_named(const Sidecar& sidecar, const std::vector<Tensor>& found, const std::string& name) {
        for (size_t i = 0; i < sidecar.outputs.size(); i++) {
            if (sidecar.outputs[i].name == name) return found[i];
        }
        throw Error(Exit::verification_failed, "The model has no output '" + name + "'.");
    }

    const Options& options_;
    Manifest manifest_;
};

}  // namespace

Exit self_test_job(const Options& options, JsonWriter& json) {
    SelfTest test(options);
    test.run();
    size_t failed = 0;
    std::string first;
    for (const Check& check : test.checks) {
        if (check.ok) continue;
        if (failed++ == 0) first = check.name + ": " + check.detail;
        note("failed: " + check.name + ": " + check.detail);
    }
    json.begin_object().field("ok", failed == 0).key("checks").begin_array();
    for (const Check& check : test.checks) {
        json.begin_object().field("name", check.name).field("ok", check.ok).field("detail", check.detail);
        if (check.skipped) json.field("skipped", true);
        json.end_object();
    }
    json.end_array();
    json.field("runtime", "ncnn").field("runtime_version", ncnn_version()).field("cpu", cpu_text());
    if (failed > 0) {
        json.field("error", std::to_string(failed) + " of " + std::to_string(test.checks.size()) +
                                " checks failed; the first: " + first);
        json.field("hint", "Copy the bundle again, or export it again.");
        json.field("exit_code", int(Exit::verification_failed));
    }
    json.end_object();
    return failed == 0 ? Exit::ok : Exit::verification_failed;
}

}  // namespace edgekit
