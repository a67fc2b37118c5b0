// An open bundle: its manifest, its ncnn model, and the answers to images.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "manifest.h"
#include "model.h"
#include "postprocess.h"

namespace edgekit {

// What was found on one image.
struct Answer {
    std::vector<Candidate> detections;  // best first, boxes in pixels of the image
    std::vector<float> probabilities;   // of a classifier
};

// The bundle's model for ncnn. Throws Error (not possible) when it has none.
const ModelEntry& ncnn_entry(const Manifest& manifest);

// The bytes of the model's files, each with the size and hash that manifest and sidecar name. Throws
// Error: verification failed for changed files.
ModelFiles read_model_files(const Manifest& manifest, const ModelEntry& entry);

// Whether the model takes what the contract gives, and makes what the manifest says. Throws Error.
void check_interface(const Manifest& manifest, const ModelEntry& entry, const Sidecar& sidecar);

// Turns a model's outputs into answers. The head is the one that is asked for, the manifest's, or the
// one that the shapes show.
class Decoder {
public:
    Decoder(const Manifest& manifest, const Sidecar& sidecar, const std::string& head, const Suppression& rule);

    const HeadMatch& match() const { return match_; }
    std::string class_name(int64_t number) const;
    Answer answer(const std::vector<Tensor>& outputs, const Placement& placement, const std::string& image);

private:
    const Suppression rule_;
    const InputSize size_;
    std::vector<std::string> names_;
    std::vector<std::string> outputs_;
    HeadMatch match_;
    int64_t classes_ = 0;
    std::optional<Plausibility> plausibility_;
};

}  // namespace edgekit
