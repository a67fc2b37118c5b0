#include "bundle.h"

#include "error.h"
#include "integrity.h"

namespace edgekit {

namespace {

constexpr uint64_t kMaxSidecarBytes = 1 << 20;
constexpr uint64_t kMaxParamBytes = 16 << 20;
constexpr uint64_t kMaxBinBytes = uint64_t(2) << 30;
constexpr int64_t kAnyClass = INT32_MAX;

// The file that the sidecar names, when it is the one that the manifest lists.
std::string read_part(const Manifest& manifest, const std::string& folder, const SidecarFile& file, uint64_t most) {
    const std::string name = folder + file.file;
    const auto listed = manifest.files.find(name);
    if (listed == manifest.files.end()) {
        throw bad_input(manifest.folder + ": " + name + " is part of the model but not listed in the manifest.",
                        "Export the bundle again.");
    }
    if (listed->second.sha256 != file.sha256 || listed->second.size != file.size) {
        throw Error(Exit::verification_failed,
                    manifest.folder + ": the manifest and the model's .json name different files " + name + ".",
                    "Copy the bundle again, or export it again.");
    }
    return read_listed(manifest, name, most);
}

// Whether the sizes agree where both are known.
bool agrees(const Shape& open, const Shape& fixed) {
    if (open.size() != fixed.size()) return false;
    for (size_t i = 0; i < open.size(); i++) {
        if (open[i] != 0 && open[i] != fixed[i]) return false;
    }
    return true;
}

void check_specs(const std::string& what, const std::vector<std::pair<std::string, Shape>>& manifest,
                 const std::vector<SidecarTensor>& sidecar) {
    bool same = manifest.size() == sidecar.size();
    for (size_t i = 0; same && i < manifest.size(); i++) {
        same = manifest[i].first == sidecar[i].name && agrees(manifest[i].second, sidecar[i].shape);
    }
    if (!same) {
        throw bad_input("The " + what + " of the model are not those that the manifest names.",
                        "The bundle is damaged: export it again.");
    }
}

}  // namespace

const ModelEntry& ncnn_entry(const Manifest& manifest) {
    std::string runtimes;
    for (const ModelEntry& entry : manifest.models) {
        if (entry.runtime == "ncnn") return entry;
        runtimes += (runtimes.empty() ? "" : ", ") + entry.runtime;
    }
    throw not_possible("The bundle " + manifest.folder + " has no model for ncnn (it has: " + runtimes + ").",
                       "Export for a target that runs ncnn, such as arm-int8.");
}

ModelFiles read_model_files(const Manifest& manifest, const ModelEntry& entry) {
    const std::string& name = entry.files[0];
    ModelFiles files;
    files.where = manifest.path(name);
    files.sidecar = read_listed(manifest, name, kMaxSidecarBytes);
    const Sidecar sidecar = parse_sidecar(files.sidecar, files.where);
    const size_t slash = name.rfind('/');
    const std::string folder = slash == std::string::npos ? "" : name.substr(0, slash + 1);
    files.param = read_part(manifest, folder, sidecar.param, kMaxParamBytes);
    files.bin = read_part(manifest, folder, sidecar.bin, kMaxBinBytes);
    return files;
}

void check_interface(const Manifest& manifest, const ModelEntry& entry, const Sidecar& sidecar) {
    if (sidecar.inputs.size() != 1) {
        throw not_possible("The model has " + std::to_string(sidecar.inputs.size()) + " inputs; one image is run.");
    }
    check_specs("inputs", entry.inputs, sidecar.inputs);
    check_specs("outputs", entry.outputs, sidecar.outputs);
    if (sidecar.inputs[0].shape != manifest.contract.input_shape()) {
        throw bad_input("The model takes " + text_of(sidecar.inputs[0].shape) + ", the preprocessing gives " +
                            text_of(manifest.contract.input_shape()) + ".",
                        "The bundle is damaged: export it again.");
    }
}

Decoder::Decoder(const Manifest& manifest, const Sidecar& sidecar, const std::string& head, const Suppression& rule)
    : rule_(rule), size_{manifest.contract.height, manifest.contract.width}, names_(manifest.names) {
    std::vector<Shape> shapes;
    for (const SidecarTensor& output : sidecar.outputs) {
        shapes.push_back(output.shape);
        outputs_.push_back(output.name);
    }
    match_ = choose_head(shapes, size_, head.empty() ? manifest.head : head, int64_t(names_.size()),
                         head.empty() ? manifest.task : "");
    if (match_.classifies() && !names_.empty() && int64_t(names_.size()) != match_.classes) {
        throw bad_input("The model has " + std::to_string(match_.classes) + " classes, the bundle names " +
                        std::to_string(names_.size()) + ".");
    }
    classes_ = match_.classes != 0 ? match_.classes : names_.empty() ? kAnyClass : int64_t(names_.size());
    plausibility_.emplace(match_, size_, classes_);
}

std::string Decoder::class_name(int64_t number) const {
    const bool named = number >= 0 && size_t(number) < names_.size();
    return named ? names_[size_t(number)] : std::to_string(number);
}

Answer Decoder::answer(const std::vector<Tensor>& outputs, const Placement& placement, const std::string& image) {
    for (size_t i = 0; i < outputs.size(); i++) check_finite(outputs[i], outputs_[i], image);
    const Tensor& output = outputs.at(match_.output);
    Answer out;
    if (match_.classifies()) {
        out.probabilities = probabilities(output.values);
        return out;
    }
    const std::vector<Candidate> found = decode(output, match_, size_, classes_, rule_.limits);
    plausibility_->see(output, found, image);
    out.detections = suppress(found, match_, placement, rule_);
    return out;
}

}  // namespace edgekit
