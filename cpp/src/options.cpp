#include "options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "error.h"

namespace edgekit {

namespace {

const std::vector<std::string>& known_options() {
    static const std::vector<std::string> known = {
        "--tensor",     "--golden",    "--self-test",       "--bench",       "--warmup",
        "--runs",       "--cooldown-s", "--max-p50-ms",     "--max-p99-ms",  "--threads",
        "--powersave",  "--light-mode", "--no-light-mode",  "--fp16",        "--bf16",
        "--vulkan",     "--draw",      "--save-outputs",    "--score-threshold", "--nms-iou",
        "--max-detections", "--multi-label", "--head",      "--raw",         "--json",         "--samples",
        "--help",       "--version"};
    return known;
}

// Edits that turn one word into the other.
size_t distance(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); j++) row[j] = j;
    for (size_t i = 1; i <= a.size(); i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); j++) {
            const size_t cost = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, cost});
        }
    }
    return row[b.size()];
}

Error unknown(const std::string& name) {
    std::string nearest;
    size_t best = name.size();
    for (const std::string& known : known_options()) {
        const size_t edits = distance(name, known);
        if (edits < best) {
            best = edits;
            nearest = known;
        }
    }
    return usage_error("Unknown option '" + name + "'.",
                       best * 2 < name.size() ? "Did you mean '" + nearest + "'?" : "See --help.");
}

double number_of(const std::string& name, const std::string& text, double low, double high) {
    double value = NAN;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size() || !(value >= low && value <= high)) {
        throw usage_error(name + " takes a number from " + std::to_string(low) + " to " + std::to_string(high) +
                          ", not '" + text + "'.");
    }
    return value;
}

int whole_of(const std::string& name, const std::string& text, int low, int high) {
    int value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size() || value < low || value > high) {
        throw usage_error(name + " takes a whole number from " + std::to_string(low) + " to " +
                          std::to_string(high) + ", not '" + text + "'.");
    }
    return value;
}

class Parser {
public:
    explicit Parser(const std::vector<std::string>& arguments) : arguments_(arguments) {}

    Options run() {
        bool only_paths = false;
        for (; at_ < arguments_.size(); at_++) {
            const std::string& word = arguments_[at_];
            if (!only_paths && word == "--") {
                only_paths = true;
            } else if (only_paths || word.empty() || word[0] != '-') {
                paths_.push_back(word);
            } else {
                option(word);
            }
        }
        finish();
        return options_;
    }

private:
    void job(Job job, const std::string& name) {
        if (!job_name_.empty() && options_.job != job) {
            throw usage_error(job_name_ + " and " + name + " exclude each other.");
        }
        options_.job = job;
        job_name_ = name;
    }

    // The option's value: behind "=", or the next word.
    std::string value() {
        if (has_value_) {
            used_ = true;
            return value_;
        }
        if (at_ + 1 >= arguments_.size()) throw usage_error(name_ + " needs a value.", "See --help.");
        return arguments_[++at_];
    }
    double number(double low, double high) { return number_of(name_, value(), low, high); }
    int whole(int low, int high) { return whole_of(name_, value(), low, high); }

    void option(const std::string& word) {
        const size_t equals = word.find('=');
        name_ = word.substr(0, equals);
        has_value_ = equals != std::string::npos;
        value_ = has_value_ ? word.substr(equals + 1) : "";
        used_ = false;
        if (name_ == "-h" || name_ == "--help") job_help(Job::help);
        else if (name_ == "--version") job_help(Job::version);
        else if (name_ == "--tensor") job(Job::tensor, name_), options_.tensor = value();
        else if (name_ == "--golden") job(Job::golden, name_);
        else if (name_ == "--self-test") job(Job::self_test, name_);
        else if (name_ == "--bench") job(Job::bench, name_);
        else if (name_ == "--warmup") options_.warmup = whole(0, 100'000);
        else if (name_ == "--runs") options_.runs = whole(1, 10'000'000);
        else if (name_ == "--samples") options_.samples = true;
        else if (name_ == "--cooldown-s") options_.cooldown_s = number(0, 3600);
        else if (name_ == "--max-p50-ms") options_.max_p50_ms = number(0, 1e6);
        else if (name_ == "--max-p99-ms") options_.max_p99_ms = number(0, 1e6);
        else if (name_ == "--threads") options_.threads = whole(1, 256);
        else if (name_ == "--powersave") options_.run.powersave = whole(0, 2);
        else if (name_ == "--light-mode") options_.run.light_mode = true;
        else if (name_ == "--no-light-mode") options_.run.light_mode = false;
        else if (name_ == "--fp16" || name_ == "--bf16") precision(name_.substr(2));
        else if (name_ == "--vulkan") options_.run.vulkan = true;
        else if (name_ == "--draw") options_.draw = value();
        else if (name_ == "--save-outputs") options_.save_outputs = value();
        else if (name_ == "--score-threshold") options_.rule.limits.conf = float(number(0, 1));
        else if (name_ == "--nms-iou") options_.rule.iou = float(number(0, 1));
        else if (name_ == "--max-detections") options_.rule.max_det = size_t(whole(1, 10'000));
        else if (name_ == "--multi-label") options_.rule.limits.multi_label = true;
        else if (name_ == "--head") options_.head = value(), head_named(options_.head);
        else if (name_ == "--raw") options_.raw = true;
        else if (name_ == "--json") options_.raw = options_.raw;  // the answer always is
        else throw unknown(name_);
        if (has_value_ && !used_) throw usage_error(name_ + " takes no value.", "See --help.");
    }

    void job_help(Job job) {
        if (asked_ == Job::images) asked_ = job;
    }

    void precision(const std::string& name) {
        if (!options_.run.precision.empty() && options_.run.precision != name) {
            throw usage_error("--fp16 and --bf16 exclude each other.");
        }
        options_.run.precision = name;
    }

    void finish() {
        if (asked_ != Job::images) {
            options_.job = asked_;
            return;
        }
        if (paths_.empty()) throw usage_error("A bundle is missing.", "edgekit-ncnn BUNDLE [IMAGE…]; see --help.");
        options_.bundle = paths_[0];
        options_.images.assign(paths_.begin() + 1, paths_.end());
        const bool takes_images = options_.job == Job::images;
        if (takes_images && options_.images.empty()) {
            throw usage_error("Nothing to do: no image was given.",
                              "Give images or a folder, --tensor FILE, --golden, --self-test or --bench.");
        }
        if (!takes_images && !options_.images.empty()) {
            throw usage_error(job_name_ + " takes no images (got '" + options_.images[0] + "').");
        }
        if (options_.job == Job::self_test && (!options_.run.precision.empty() || options_.run.vulkan)) {
            throw usage_error("--self-test proves the model as it was exported.",
                              "Leave --fp16, --bf16 and --vulkan away.");
        }
        const bool bench_only = options_.warmup || options_.runs || options_.cooldown_s || options_.max_p99_ms ||
                                options_.max_p50_ms || options_.samples;
        if (bench_only && options_.job != Job::bench) {
            throw usage_error("--warmup, --runs, --cooldown-s, --samples, --max-p50-ms and --max-p99-ms go with --bench.");
        }
        if (!options_.draw.empty() && (options_.job == Job::bench || options_.job == Job::self_test ||
                                       options_.job == Job::tensor || options_.raw)) {
            throw usage_error("--draw goes with images or --golden.");
        }
    }

    const std::vector<std::string>& arguments_;
    size_t at_ = 0;
    Options options_;
    std::vector<std::string> paths_;
    std::string job_name_, name_, value_;
    bool has_value_ = false, used_ = false;
    Job asked_ = Job::images;
};

}  // namespace

Options parse_options(const std::vector<std::string>& arguments) {
    return Parser(arguments).run();
}

std::string help_text() {
    return R"(edgekit-ncnn: runs an edgekit bundle's ncnn model on images, checks it and measures it.

Usage: edgekit-ncnn BUNDLE IMAGE...          images, or folders of images
       edgekit-ncnn BUNDLE --tensor FILE     the input tensor itself: .npy, or raw float32
       edgekit-ncnn BUNDLE --golden          the bundle's golden inputs
       edgekit-ncnn BUNDLE --self-test       hashes, preprocessing and golden outputs
       edgekit-ncnn BUNDLE --bench           latency

The answer is one JSON object on stdout; everything else goes to stderr.

What is found:
  --score-threshold X   lowest score of a detection (0.25)
  --nms-iou X           overlap above which the weaker box of a class is dropped (0.65)
  --max-detections N    boxes kept (300)
  --multi-label         a prediction counts once for every class above the threshold
  --head NAME           yolov5, yolov8, yolo26, yolox or logits, where the bundle does not say
  --raw                 decode nothing (with --save-outputs)
  --draw DIR            write each image with its boxes there
  --save-outputs DIR    write the raw outputs there, as .npy

How it runs:
  --threads N           CPU threads (the target's number)
  --powersave 0|1|2     all cores, the little ones, the big ones
  --light-mode          give memory back while running (the default; --no-light-mode keeps it)
  --fp16, --bf16        weights and activations in 16 bits
  --vulkan              on the GPU; an error where there is none

Measuring:
  --warmup N  --runs N  --cooldown-s S      the target's numbers when not given
  --max-p50-ms X  --max-p99-ms X            exit with 7 when slower
  --samples                                 the time of every run in the answer

Exit codes: 0 fine, 1 bug, 2 usage, 4 not possible here, 5 ncnn failed, 7 latency budget missed,
8 bad input, 9 verification failed, 11 no space.

Examples:
  edgekit-ncnn best-rpi5-int8 photo.jpg
  edgekit-ncnn best-rpi5-int8 photos/ --draw drawn/ --score-threshold 0.4
  edgekit-ncnn best-rpi5-int8 --self-test
  edgekit-ncnn best-rpi5-int8 --bench --threads 4 --powersave 2 --runs 300 --max-p99-ms 40
)";
}

}  // namespace edgekit
