#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "bundle.h"
#include "error.h"
#include "files.h"
#include "image.h"
#include "integrity.h"
#include "jobs.h"
#include "npy.h"

namespace fs = std::filesystem;

namespace edgekit {

namespace {

constexpr uint64_t kMaxTensorBytes = uint64_t(2) << 30;

void make_folder(const std::string& path) {
    if (path.empty()) return;
    std::error_code code;
    fs::create_directories(path, code);
    if (!is_folder(path)) throw bad_input("The folder " + path + " cannot be made.", "Choose another one.");
}

// One thing to run: the input, where the image lies in it, and what it is called.
struct Item {
    std::string name;
    Tensor input;
    Placement placement;
    std::optional<Pixels> image;
};

Tensor read_tensor(const std::string& path, const Shape& shape) {
    const std::string data = read_file(path, kMaxTensorBytes);
    if (is_npy(data)) return read_npy(data, path);
    if (data.size() != size_t(count_of(shape)) * 4) {
        throw bad_input(path + " has " + std::to_string(data.size()) + " bytes where the input " + text_of(shape) +
                            " has " + std::to_string(count_of(shape) * 4) + ".",
                        "Give a .npy, or raw little-endian float32 of exactly that size.");
    }
    Tensor tensor;
    tensor.shape = shape;
    tensor.values.resize(size_t(count_of(shape)));
    std::memcpy(tensor.values.data(), data.data(), data.size());
    return tensor;
}

class Run {
public:
    Run(const Options& options, JsonWriter& json)
        : options_(options),
          json_(json),
          started_(now_ms()),
          manifest_(read_manifest(options.bundle)),
          entry_(ncnn_entry(manifest_)) {
        make_folder(options.draw);
        make_folder(options.save_outputs);
        model_.emplace(read_model_files(manifest_, entry_), run_settings(options, manifest_));
        check_interface(manifest_, entry_, model_->sidecar());
        if (!options.raw) decoder_.emplace(manifest_, model_->sidecar(), options.head, options.rule);
        loaded_ = now_ms();
    }

    Exit run() {
        json_.begin_object();
        json_.field("bundle", manifest_.name).field("target", manifest_.target);
        write_runtime(json_, options_, manifest_, model_->sidecar());
        if (decoder_) json_.field("head", name_of(decoder_->match().head));
        json_.field("load_ms", loaded_ - started_);
        json_.key("images").begin_array();
        switch (options_.job) {
        case Job::tensor: one([&] { return tensor_item(); }, options_.tensor); break;
        case Job::golden:
            for (const GoldenEntry& sample : manifest_.golden.samples) {
                one([&] { return golden_item(sample); }, sample.input);
            }
            break;
        default: images();
        }
        json_.end_array();
        if (first_result_ > 0) json_.field("first_result_ms", first_result_ - started_);
        if (failed_ > 0) {
            // what could be answered stands above; the exit code says that something is missing
            const std::string several = std::to_string(failed_) + " of " + std::to_string(done_ + failed_) +
                                        " inputs cannot be used: " + problem_->what();
            json_.field("error", failed_ == 1 && done_ == 0 ? std::string(problem_->what()) : several);
            json_.field("hint", problem_->hint()).field("exit_code", int(problem_->code()));
        }
        json_.end_object();
        return problem_ ? problem_->code() : Exit::ok;
    }

private:
    void images() {
        const std::string problem = unsupported(manifest_.contract);
        if (!problem.empty()) {
            throw not_possible("This program cannot prepare images for this model: its preprocessing " + problem + ".",
                               "Prepare them yourself and give --tensor FILE.");
        }
        for (const std::string& path : options_.images) {
            for (const std::string& file : list_images(path)) {
                one([&] { return image_item(file); }, file);
            }
        }
    }

    Item image_item(const std::string& file) const {
        Item item;
        item.name = file;
        item.image = read_image(file);
        item.input = apply(*item.image, manifest_.contract, item.placement);
        return item;
    }

    Item tensor_item() const {
        Item item;
        item.name = options_.tensor;
        item.input = read_tensor(options_.tensor, model_->sidecar().inputs[0].shape);
        // boxes stay in pixels of the input
        item.placement.source_height = manifest_.contract.height;
        item.placement.source_width = manifest_.contract.width;
        return item;
    }

    Item golden_item(const GoldenEntry& sample) const {
        Item item;
        item.name = sample.image;
        item.image = decode_image(read_listed(manifest_, sample.image, kMaxTensorBytes), sample.image);
        item.input = read_npy(read_listed(manifest_, sample.input, kMaxTensorBytes), sample.input);
        fit(*item.image, manifest_.contract, item.placement);
        return item;
    }

    template <class Make>
    void one(const Make& make, const std::string& name) {
        try {
            const Item item = make();
            const double begun = now_ms();
            const std::vector<Tensor> outputs = model_->run(item.input);
            const double inference_ms = now_ms() - begun;
            Answer answer;
            if (decoder_) answer = decoder_->answer(outputs, item.placement, item.name);
            if (first_result_ == 0.0) first_result_ = now_ms();
            save(outputs);
            const std::string drawing = draw(item, answer);
            write(item, answer, inference_ms, drawing);
            done_++;
        } catch (const Error& error) {
            // an image that cannot be used takes no other with it; what concerns all of them ends the run
            if (error.code() != Exit::bad_input || options_.job != Job::images) throw;
            note(error.what());
            json_.begin_object().field("image", name).field("error", error.what()).end_object();
            if (!problem_) problem_ = error;
            failed_++;
        }
    }

    std::string stem(int width = 3) const {
        std::string number = std::to_string(done_);
        return std::string(size_t(std::max(0, width - int(number.size()))), '0') + number;
    }

    void save(const std::vector<Tensor>& outputs) const {
        if (options_.save_outputs.empty()) return;
        for (size_t i = 0; i < outputs.size(); i++) {
            write_file(options_.save_outputs + "/" + stem() + "_output_" + std::to_string(i) + ".npy",
                       npy_bytes(outputs[i]));
        }
    }

    std::string draw(const Item& item, const Answer& answer) const {
        if (options_.draw.empty() || !item.image) return "";
        Pixels image = *item.image;
        char score[32];
        if (decoder_->match().classifies()) {
            std::vector<std::string> lines;
            for (const size_t number : ranked(answer.probabilities, 5)) {
                std::snprintf(score, sizeof(score), " %.1f %%", 100 * double(answer.probabilities[number]));
                lines.push_back(decoder_->class_name(int64_t(number)) + score);
            }
            draw_lines(image, lines);
        } else {
            std::vector<Label> labels;
            for (const Candidate& found : answer.detections) {
                std::snprintf(score, sizeof(score), " %.2f", double(found.score));
                labels.push_back({found, decoder_->class_name(found.class_id) + score});
            }
            draw_boxes(image, labels);
        }
        std::string name = fs::path(item.name).filename().string();
        const bool lossless = name.size() > 4 && name.substr(name.size() - 4) == ".png";
        name = stem() + "_" + fs::path(name).stem().string() + (lossless ? ".png" : ".jpg");
        const std::string path = options_.draw + "/" + name;
        write_image(image, path);
        return path;
    }

    void write(const Item& item, const Answer& answer, double inference_ms, const std::string& drawing) {
        json_.begin_object().field("image", item.name);
        json_.field("height", item.placement.source_height).field("width", item.placement.source_width);
        json_.field("inference_ms", inference_ms);
        if (!drawing.empty()) json_.field("drawing", drawing);
        if (decoder_ && decoder_->match().classifies()) {
            json_.key("top").begin_array();
            for (const size_t number : ranked(answer.probabilities, 5)) {
                json_.begin_object().field("class_id", int64_t(number));
                json_.field("name", decoder_->class_name(int64_t(number)));
                json_.field("probability", answer.probabilities[number]).end_object();
            }
            json_.end_array();
        } else if (decoder_) {
            json_.key("detections").begin_array();
            for (const Candidate& found : answer.detections) {
                json_.begin_object().field("class_id", found.class_id);
                json_.field("name", decoder_->class_name(found.class_id)).field("score", found.score);
                json_.key("box").begin_array();
                for (const float side : found.box) json_.value(side);
                json_.end_array().end_object();
            }
            json_.end_array();
        }
        json_.end_object();
    }

    const Options& options_;
    JsonWriter& json_;
    const double started_;
    const Manifest manifest_;
    const ModelEntry& entry_;
    std::optional<Model> model_;
    std::optional<Decoder> decoder_;
    double loaded_ = 0.0, first_result_ = 0.0;
    int done_ = 0, failed_ = 0;
    std::optional<Error> problem_;
};

}  // namespace

double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

void note(const std::string& text) {
    std::fprintf(stderr, "edgekit-ncnn: %s\n", text.c_str());
}

RunSettings run_settings(const Options& options, const Manifest& manifest) {
    RunSettings settings = options.run;
    settings.threads = options.threads.value_or(manifest.measure.threads);
    return settings;
}

void write_runtime(JsonWriter& json, const Options& options, const Manifest& manifest, const Sidecar& sidecar) {
    json.field("runtime", "ncnn").field("runtime_version", ncnn_version());
    json.field("precision", options.run.precision.empty() ? sidecar.precision : options.run.precision);
    json.field("threads", run_settings(options, manifest).threads);
    json.field("vulkan", options.run.vulkan);
}

Exit run_job(const Options& options, JsonWriter& json) {
    return Run(options, json).run();
}

}  // namespace edgekit
